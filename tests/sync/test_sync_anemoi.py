"""What Anemoi's own sync does wrong, each as a case; and that its users' commands and conventions still hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from sync_proxy import HostileProxy
from sync_recording import T0, Recording, anemois, new_id
from sync_server import TrackingServer, tag

from labtrack.sync import Report

Send = Callable[..., Report]


def copy_of(server: TrackingServer, recording: Recording, run_id: str) -> dict[str, Any]:
    """The one copy of a run."""
    (found,) = (one for one in server.runs(recording.name) if tag(one, "labtrack.source_run_id") == run_id)
    return found


def params(run: dict[str, Any]) -> dict[str, str]:
    return {one["key"]: one["value"] for one in run["data"].get("params", [])}


def family(recording: Recording) -> tuple[str, str]:
    """A run and one that was resumed from it."""
    parent, child = new_id(), new_id()
    recording.run(run_id=parent, name="parent", metrics={"loss": [1.0]}, **anemois(parent))
    recording.run(run_id=child, name="child", metrics={"loss": [0.5]}, **anemois(child, parent=parent))
    return parent, child


def test_case_1_a_child_before_its_parent(recording: Recording, server: TrackingServer, send: Send) -> None:
    parent, child = family(recording)
    send(run_ids=[child])
    early = copy_of(server, recording, child)
    assert tag(early, "mlflow.parentRunId") is None and "metadata.run_id" not in params(early)
    assert child not in (tag(early, "labtrack.pending") or "") and parent in (tag(early, "labtrack.pending") or "")
    assert send(run_ids=[parent]).linked == 1
    there, late = copy_of(server, recording, parent), copy_of(server, recording, child)
    assert tag(late, "mlflow.parentRunId") == there["info"]["run_id"]
    assert params(late)["metadata.run_id"] == params(late)["config.training.run_id"] == there["info"]["run_id"]
    assert tag(late, "labtrack.pending") is None
    assert params(late)["metadata.offline_run_id"] == parent == tag(late, "mlflow.offline.parentRunId")
    assert params(late)["config.training.offline_self_run_id"] == child


def test_case_2_the_same_child_twice(recording: Recording, server: TrackingServer, send: Send) -> None:
    _, child = family(recording)
    send(run_ids=[child])
    send(run_ids=[child])
    send()
    assert len(server.runs(recording.name)) == 2


@pytest.mark.parametrize("status", ["KILLED", "RUNNING", "FAILED"])
def test_case_3_a_run_that_did_not_finish_twice(
    recording: Recording, server: TrackingServer, send: Send, status: str
) -> None:
    recording.run(status=status, metrics={"loss": [1.0]})
    send()
    send()
    (run,) = server.runs(recording.name)
    assert run["info"]["status"] == status


def test_case_4_the_connection_drops_among_the_artifacts(
    recording: Recording, server: TrackingServer, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"f{one}.txt": b"x" * 1000 for one in range(6)}
    recording.run(params={"a": "1"}, metrics={"loss": [1.0]}, files=files)
    monkeypatch.setenv("LABTRACK_SYNC_PATIENCE", "1")
    with HostileProxy(
        server.url, lambda kind, number: "reset" if kind == "PUT artifacts" and number > 2 else ""
    ) as proxy:
        report = send(to=proxy.url, jobs=1)
    assert report.exit_code == 1 and "could not be used" in report.stopped and report.left
    assert send().exit_code == 0
    (run,) = server.runs(recording.name)
    assert run["info"]["status"] == "FINISHED" and server.files(run["info"]["artifact_uri"]) == files


def test_case_5_a_run_with_datasets(recording: Recording, server: TrackingServer, send: Send) -> None:
    run_id = recording.run()
    recording.dataset(run_id, "era5", "d1", {"mlflow.data.context": "training"})
    assert send().exit_code == 0
    (run,) = server.runs(recording.name)
    (found,) = run["inputs"]["dataset_inputs"]
    assert found["tags"] == [{"key": "mlflow.data.context", "value": "training"}]
    assert found["dataset"] == {
        "name": "era5", "digest": "d1", "source_type": "local", "source": '{"uri": "/data/era5"}',
        "schema": '{"mlflow_colspec": []}', "profile": '{"num_rows": 3}',
    }  # fmt: skip


def test_case_6_a_plain_run_of_mlflow(recording: Recording, server: TrackingServer, send: Send) -> None:
    recording.run(params={"lr": "1"})
    assert send().exit_code == 0
    (run,) = server.runs(recording.name)
    assert params(run) == {"lr": "1"}


def test_case_7_artifacts_beside_a_sqlite_file(recording: Recording, server: TrackingServer, send: Send) -> None:
    recording.run(files={"model/weights.bin": b"w" * 10})
    moved = recording.folder.rename(recording.folder.with_name("moved"))
    assert send(moved / "mlflow.db").exit_code == 0
    (run,) = server.runs(recording.name)
    assert server.files(run["info"]["artifact_uri"]) == {"model/weights.bin": b"w" * 10}


def test_case_8_times_user_and_status(recording: Recording, server: TrackingServer, send: Send) -> None:
    recording.run(user="grace", status="FAILED", start=T0 + 1, end=T0 + 2)
    send()
    (run,) = server.runs(recording.name)
    info = run["info"]
    assert (info["user_id"], tag(run, "mlflow.user")) == ("grace", "grace")
    assert (info["start_time"], info["end_time"], info["status"]) == (T0 + 1, T0 + 2, "FAILED")


def test_forks_point_to_the_new_ids(recording: Recording, server: TrackingServer, send: Send) -> None:
    first, both = new_id(), new_id()
    fork = new_id()
    recording.run(run_id=both, **anemois(both, parent=fork, fork=first))
    recording.run(run_id=fork, **anemois(fork, fork=first))
    recording.run(run_id=first, **anemois(first))
    send()
    ids = {one: copy_of(server, recording, one)["info"]["run_id"] for one in (first, fork, both)}
    forked = copy_of(server, recording, fork)
    assert tag(forked, "forkedRunId") == ids[first] and tag(forked, "offline.forkedRunId") == first
    assert params(forked)["config.training.fork_run_id"] == ids[first]
    assert params(forked)["config.training.run_id"] == ids[fork] == params(forked)["metadata.run_id"]
    assert params(forked)["metadata.offline_run_id"] == fork
    resumed = copy_of(server, recording, both)
    assert tag(resumed, "mlflow.parentRunId") == ids[fork] and tag(resumed, "forkedRunId") == ids[first]


def test_a_run_that_names_itself_as_parent_has_none(recording: Recording, server: TrackingServer, send: Send) -> None:
    run_id = new_id()
    recording.run(run_id=run_id, tags={"mlflow.parentRunId": run_id})
    report = send()
    (run,) = server.runs(recording.name)
    assert tag(run, "mlflow.parentRunId") is None and tag(run, "labtrack.pending") is None
    assert any("named the run itself" in note for note in report.notes)


def test_runs_that_anemois_sync_put_there_are_taken_up(
    recording: Recording, server: TrackingServer, send: Send
) -> None:
    parent, child = family(recording)
    recording.file(parent, "a.txt", b"missing there")
    experiment = server.post("experiments/create", name=recording.name)["experiment_id"]
    theirs = {}
    marks = {
        parent: {"metadata.offline_run_id": parent},
        child: {"metadata.offline_run_id": parent, "config.training.offline_self_run_id": child},
    }
    for run_id, params_of in marks.items():
        made = server.post("runs/create", experiment_id=experiment, start_time=1)["run"]["info"]["run_id"]
        server.post("runs/log-batch", run_id=made, params=[{"key": k, "value": v} for k, v in params_of.items()])
        server.post(
            "runs/log-batch", run_id=made, params=[{"key": "metadata.run_id", "value": theirs.get(parent, made)}]
        )
        server.post("runs/update", run_id=made, status="FINISHED", end_time=5)
        theirs[run_id] = made
    report = send()
    assert report.exit_code == 0, report
    runs = {one["info"]["run_id"]: one for one in server.runs(recording.name)}
    assert set(runs) == set(theirs.values())
    assert server.files(runs[theirs[parent]]["info"]["artifact_uri"]) == {"a.txt": b"missing there"}
    assert server.history(theirs[child], "loss") == [(T0, 0, 0.5)]
    assert runs[theirs[parent]]["info"]["end_time"] == T0 + 5000
    assert {one.todo for one in send().planned} == {"there"}


def test_a_run_that_anemois_sync_put_there_lasts_as_long_as_it_did(
    recording: Recording, server: TrackingServer, send: Send
) -> None:
    """Anemoi's sync lets it start when the sync does, after its recorded end."""
    run_id = new_id()
    recording.run(run_id=run_id, **anemois(run_id))
    experiment = server.post("experiments/create", name=recording.name)["experiment_id"]
    made = server.post("runs/create", experiment_id=experiment, start_time=T0 + 10**9)["run"]["info"]["run_id"]
    mark = [{"key": "metadata.offline_run_id", "value": run_id}]
    server.post("runs/log-batch", run_id=made, params=mark)
    report = send(verify=True)
    assert report.exit_code == 0, report
    assert "offlineRun" not in str(report.differences)
    (run,) = server.runs(recording.name)
    assert run["info"]["end_time"] - run["info"]["start_time"] == 5000
    whole = json.loads(server.files(run["info"]["artifact_uri"])["labtrack/overflow.json"])
    assert whole["run_times"]["end_time"]["value"] == {"start_time": T0, "end_time": T0 + 5000}
    assert {one.todo for one in send().planned} == {"there"}


def test_the_seeds_line_runs_as_written(recording: Recording, server: TrackingServer, tmp_path: Path) -> None:
    run_id = recording.run(metrics={"loss": [1.0]})
    recording.run()
    name = f"my-experiment {run_id[:6]}"
    line = ["mlflow", "sync", "-s", str(recording.folder), "-d", server.url, "-r", run_id, "-e", name]
    command = [sys.executable, "-m", "labtrack", *line[1:]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(server.runs(name)) == 1
    compatible = [sys.executable, "-m", "labtrack", "anemoi", *line[1:-2], "--authentication", "--verbose"]
    other = Recording(tmp_path / "other")
    other_run = other.run()
    compatible[compatible.index(str(recording.folder))], compatible[compatible.index(run_id)] = (
        str(other.folder),
        other_run,
    )
    done = subprocess.run(compatible, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert other_run in [tag(one, "labtrack.source_run_id") for one in server.runs("anemoi-debug")]


def test_the_server_is_really_asked(server: TrackingServer) -> None:
    """The other tests mean nothing with a server that takes anything."""
    answer = requests.post(f"{server.url}/api/2.0/mlflow/runs/create", json={"experiment_id": "987654"}, timeout=30)
    assert answer.status_code == 404
