"""Exactly once, also for recordings that overlap, were converted, copied or born at the same moment."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from sync_recording import T0, Recording, new_id
from sync_server import TrackingServer, mlflow_bin, tag

from labtrack.sync import Report

Send = Callable[..., Report]


def file_run(folder: Path, run_id: str, *, start: int = T0, metric: str = f"{T0} 0.5 0\n") -> None:
    """A run of an mlruns folder, in the folder of its experiment."""
    place = folder / run_id
    for part in ("metrics", "params", "tags", "artifacts"):
        (place / part).mkdir(parents=True)
    facts = {
        "run_id": run_id, "run_name": "x", "status": 3, "start_time": start, "end_time": start + 1,
        "lifecycle_stage": "active", "experiment_id": folder.name, "artifact_uri": str(place / "artifacts"),
    }  # fmt: skip
    (place / "meta.yaml").write_text(json.dumps(facts))
    (place / "metrics" / "loss").write_text(metric)


def file_experiment(root: Path, number: str, name: str, born: int = T0) -> Path:
    folder = root / number
    folder.mkdir(parents=True)
    (folder / "meta.yaml").write_text(json.dumps({"name": name, "experiment_id": number, "creation_time": born}))
    return folder


def test_one_experiment_first_and_the_whole_later(
    recording: Recording, server: TrackingServer, send: Send, tmp_path: Path
) -> None:
    names = [f"{recording.name} {one}" for one in range(3)]
    for number, name in enumerate(names):
        folder = file_experiment(tmp_path / "mlruns", str(number), name, born=T0 + number)
        for one in range(3):
            file_run(folder, new_id(), start=T0 + 1000 * number + one)
    for part in ("1", "2"):  # two copies of parts, each with an identity of its own
        shutil.copytree(tmp_path / "mlruns" / part, tmp_path / f"part{part}" / "mlruns" / part)
        assert send(tmp_path / f"part{part}").as_data()["counts"]["new"] == 3
    assert [one.todo for one in send(tmp_path / "mlruns").planned] == ["new"] * 3 + ["there"] * 6
    assert [one.todo for one in send(tmp_path / "mlruns").planned] == ["there"] * 9
    assert len(server.runs(*names)) == 9


def test_runs_without_a_start_are_asked_for_too(recording: Recording, server: TrackingServer, send: Send) -> None:
    recording.run()
    run_id = recording.run()
    recording.sql("UPDATE runs SET start_time = NULL WHERE run_uuid = ?", run_id)
    send()
    recording.sql("UPDATE experiments SET creation_time = creation_time + 1 WHERE experiment_id = 0")
    assert [one.todo for one in send().planned] == ["there"] * 2
    assert len(server.runs(recording.name)) == 2


def test_logged_models_of_another_identity(recording: Recording, server: TrackingServer, send: Send) -> None:
    recording.model(recording.run(), "unet", {"MLmodel": b"x"})
    recording.model(None, "lonely", {"MLmodel": b"x"})
    send()
    recording.sql("UPDATE experiments SET creation_time = creation_time + 1 WHERE experiment_id = 0")
    assert send(repair=True).exit_code == 0
    number = server.experiments()[recording.name]
    assert len(server.post("logged-models/search", experiment_ids=[number], max_results=50)["models"]) == 2


def test_a_run_that_was_copied_into_a_second_experiment_is_one(
    recording: Recording, server: TrackingServer, send: Send, tmp_path: Path
) -> None:
    first, second = (file_experiment(tmp_path / "mlruns", one, f"{recording.name} {one}") for one in ("1", "2"))
    run_id, other = new_id(), new_id()
    file_run(first, run_id)
    file_run(second, other)
    shutil.copytree(first / run_id, second / run_id)
    for todo in ("new", "there"):
        report = send(tmp_path / "mlruns")
        assert report.exit_code == 0 and {one.run_id: one.todo for one in report.planned} == {run_id: todo, other: todo}
        assert any(f"it is a copy of the run {run_id}" in one for one in report.notes), report.notes
    assert len(server.runs(f"{recording.name} 1")) == 1 and len(server.runs(f"{recording.name} 2")) == 1


def test_recordings_that_were_born_in_the_same_millisecond_are_two(
    recording: Recording, server: TrackingServer, send: Send, tmp_path: Path
) -> None:
    other = Recording(tmp_path / "other")
    ((born,),) = recording.sql("SELECT creation_time FROM experiments WHERE experiment_id = 0")
    other.sql("UPDATE experiments SET creation_time = ? WHERE experiment_id = 0", born)
    for one in (recording, other):
        for _ in range(2):
            one.run(metrics={"loss": [1.0]}, files={"a.txt": b"a"})
    for todo in ("new", "there"):
        for one in (recording, other):
            assert {planned.todo for planned in send(one.path).planned} == {todo}
    assert len(server.runs(recording.name, other.name)) == 4


@pytest.mark.parametrize("journal", ["kept", "lost"])
def test_a_file_that_is_rewritten_at_the_same_size(
    journal: str, recording: Recording, server: TrackingServer, send: Send, tmp_path: Path
) -> None:
    run_id = recording.run(files={"a.txt": b"one", "b.txt": b"two"})
    assert send().exit_code == 0
    if journal == "lost":
        shutil.rmtree(tmp_path / "state")
        assert [one.todo for one in send().planned] == ["there"]
        shutil.rmtree(tmp_path / "state")
    recording.file(run_id, "a.txt", b"1ne")
    report = send()
    assert report.exit_code == 0 and report.outcomes[0].artifacts == 1, report
    (run,) = server.runs(recording.name)
    assert server.files(run["info"]["artifact_uri"]) == {"a.txt": b"1ne", "b.txt": b"two"}
    assert [one.todo for one in send().planned] == ["there"]


def test_a_point_that_is_logged_late_at_a_server(
    recording: Recording, server: TrackingServer, send: Send, second: TrackingServer
) -> None:
    """It has an earlier time than what was sent, and a server gives points in the order of their times."""
    number = second.post("experiments/create", name=recording.name)["experiment_id"]
    run_id = second.post("runs/create", experiment_id=number, start_time=T0)["run"]["info"]["run_id"]
    for step in (1, 2, 3):
        second.post("runs/log-metric", run_id=run_id, key="loss", value=step, timestamp=T0 + step * 10, step=step)
    second.post("runs/update", run_id=run_id, status="FINISHED", end_time=T0 + 100)
    assert send(second.url, run_ids=[run_id]).exit_code == 0
    second.post("runs/log-metric", run_id=run_id, key="loss", value=0.5, timestamp=T0 + 15, step=7)
    report = send(second.url, run_ids=[run_id], verify=True)
    assert report.exit_code == 0 and report.outcomes[0].points == 1, report
    (run,) = server.runs(recording.name)
    assert [one[1] for one in server.history(run["info"]["run_id"], "loss")] == [1, 7, 2, 3]
    assert [one.todo for one in send(second.url, run_ids=[run_id]).planned] == ["there"]


def test_another_experiment_after_a_first_sync_moves_nothing(
    recording: Recording, server: TrackingServer, send: Send
) -> None:
    run_id = recording.run()
    send()
    new = recording.run(name="new")
    report = send(experiment=f"{recording.name} else")
    assert {one.run_id: one.experiment for one in report.planned} == {
        run_id: recording.name, new: f"{recording.name} else",
    }  # fmt: skip
    assert any("1 runs are at the server already" in one and recording.name in one for one in report.notes)
    assert [tag(one, "labtrack.source_run_id") for one in server.runs(recording.name)] == [run_id]
    assert [tag(one, "labtrack.source_run_id") for one in server.runs(f"{recording.name} else")] == [new]


# What people do with MLflow's own tools, which are imported once, because that takes seconds:
# two experiments in a folder; the folder made a database; the first experiment then gone for good.
REAL_TOOLS = """
import os, sqlite3, sys
from multiprocessing import get_context
folder, first, second = sys.argv[1:]
os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
import mlflow
from mlflow.cli import cli

def tool(*words):  # in a process that ends, as a command does: what it has not committed is not there
    process = get_context("fork").Process(target=cli, args=(words,))
    process.start()
    process.join()
    assert process.exitcode == 0, words

files, database = f"{folder}/files/mlruns", f"sqlite:///{folder}/mlflow.db"
os.mkdir(f"{folder}/files")
mlflow.set_tracking_uri(f"file://{files}")
for name in (first, second):
    mlflow.set_experiment(name)
    for number in range(2):
        with mlflow.start_run(run_name=f"{name} {number}"):
            mlflow.log_param("number", number)
            for step in range(5):
                mlflow.log_metric("loss", 1 / (step + 1), step=step)
            mlflow.log_text("what it was", "note.txt")
tool("migrate-filestore", "--source", files, "--target", database)
with sqlite3.connect(f"{folder}/mlflow.db") as there, sqlite3.connect(f"{folder}/migrated.db") as copy:
    there.backup(copy)  # the tool leaves a WAL
client = mlflow.MlflowClient(database)
client.delete_experiment(client.get_experiment_by_name("Default").experiment_id)
client.delete_experiment(client.get_experiment_by_name(first).experiment_id)
tool("gc", "--backend-store-uri", database)
assert client.get_experiment_by_name(first) is None
"""


def test_a_store_that_mlflows_own_tools_converted_and_cleared(
    recording: Recording, server: TrackingServer, send: Send, tmp_path: Path
) -> None:
    names = [f"{recording.name} first", f"{recording.name} second"]
    subprocess.run([mlflow_bin() / "python", "-c", REAL_TOOLS, tmp_path, *names], check=True, cwd=tmp_path)
    report = send(tmp_path / "files", verify=True)
    assert report.exit_code == 0 and report.as_data()["counts"]["new"] == 4, report
    for source, runs in (("migrated.db", 4), ("mlflow.db", 2)):
        report = send(tmp_path / source, verify=True)
        assert report.exit_code == 0 and report.differences == {}, report
        assert [one.todo for one in report.planned] == ["there"] * runs
    assert len(server.runs(*names)) == 4
