"""What other trackers recorded, sent to a server."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sync_server import TrackingServer, tag

from foreign_recorder import Training, trainings
from labtrack import portable
from labtrack.cli import cli
from labtrack.stores import open_store
from labtrack.sync import Report
from make_foreign_fixtures import unpack

Send = Callable[..., Report]
LARGEST = 1.7976931348623157e308  # what MLflow's database keeps of infinity


def kept(value: float) -> object:
    return "nan" if math.isnan(value) else LARGEST if math.isinf(value) else value


def expected(training: Training) -> dict[str, list[tuple[int, object]]]:
    found: dict[str, list[tuple[int, object]]] = {}
    for point in training.points:
        found.setdefault(point.key, []).append((point.step, kept(point.value)))
    return found


def params_of(run: dict[str, Any]) -> dict[str, str]:
    return {one["key"]: one["value"] for one in run["data"].get("params", [])}


def at_the_server(server: TrackingServer, run_id: str, keys: list[str]) -> dict[str, list[tuple[int, object]]]:
    return {key: [(step, kept(value)) for _, step, value in server.history(run_id, key)] for key in keys}


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("tensorboard", "runs"),
        ("wandb", "wandb"),
        ("csvlogger", "runs"),
        ("dvclive", "runs"),
        ("sacred", "runs"),
        ("trackio", "trackio"),
    ],
)
def test_trainings_arrive_once(tmp_path: Path, server: TrackingServer, send: Send, name: str, folder: str) -> None:
    place = unpack(name, tmp_path / "recorded") / folder
    for other in place.glob("*resumed*"):  # which another test sends
        shutil.rmtree(other)
    experiment = f"foreign {name}"
    report = send(place, experiment=experiment, verify=True)
    assert (report.exit_code, report.differences) == (0, {}), report
    runs = server.runs(experiment)
    widths = {params_of(run).get("width"): run for run in runs if "attempt" not in params_of(run)}
    for training in trainings():
        run = widths[str(training.params["width"])]
        assert at_the_server(server, run["info"]["run_id"], list(expected(training))) == expected(training)
        assert params_of(run).items() >= {key: str(value) for key, value in training.params.items()}.items()
        assert run["info"]["status"] == "FINISHED"
        assert name in tag(run, "labtrack.recorded_with").lower()
    (tmp_path / "moved").mkdir()
    shutil.move(place, tmp_path / "moved")
    again = send(tmp_path / "moved" / folder, experiment=experiment)
    assert {one.todo for one in again.planned} == {"there"} and len(again.planned) == len(runs)
    assert set(again.calls) == {"POST experiments/search", "POST runs/search"}


@pytest.mark.parametrize("grows", ["first", "second"])
def test_growing_tensorboard_run(tmp_path: Path, server: TrackingServer, send: Send, grows: str) -> None:
    """Whichever of the files of a resumed run grows: an old job may still write while the new one does."""
    place = unpack("tensorboard", tmp_path / "recorded") / "resumed"
    files = [path.rename(f"{path}.{grows}") for path in sorted((place / "run").iterdir())]  # another run for each case
    file = files[grows == "second"]
    whole = file.read_bytes()
    experiment = f"foreign grows {grows}"
    file.write_bytes(whole[: len(whole) // 2])
    assert send(place, experiment=experiment).exit_code == 3, "the last event is cut"
    (run,) = server.runs(experiment)
    before = len(server.history(run["info"]["run_id"], "train/loss"))
    file.write_bytes(whole)
    report = send(place, experiment=experiment, verify=True)
    assert (report.exit_code, report.differences) == (0, {}), report
    (run,) = server.runs(experiment)
    assert len(server.history(run["info"]["run_id"], "train/loss")) == 21 > before
    assert [one.points for one in report.outcomes] == [sum(one.points for one in report.planned)]
    assert [one.todo for one in send(place, experiment=experiment).planned] == ["there"]


def test_wandb_run_that_is_resumed_after_a_sync(tmp_path: Path, server: TrackingServer, send: Send) -> None:
    """The folder of the second attempt comes later, and the first one's may still be half there."""
    place = unpack("wandb", tmp_path / "recorded") / "wandb"
    for folder in place.iterdir():
        if "resumed" not in folder.name:
            shutil.rmtree(folder)
    first, second = sorted(place.iterdir())
    second.rename(tmp_path / second.name)
    log = next(first.glob("*.wandb"))
    whole = log.read_bytes()
    log.write_bytes(whole[: len(whole) * 2 // 3])
    assert send(place, experiment="foreign resumed").exit_code == 3, "the last record is cut"
    (run,) = server.runs("foreign resumed")
    assert 0 < len(server.history(run["info"]["run_id"], "train/loss")) < 10
    log.write_bytes(whole)
    shutil.move(tmp_path / second.name, place)
    report = send(place, experiment="foreign resumed", verify=True)
    (differences,) = report.differences.values()
    assert differences == ["param attempt is '0' at the server, '10' in the recording"], "MLflow lets nobody change it"
    (run,) = server.runs("foreign resumed")
    training = trainings()[0]
    assert at_the_server(server, run["info"]["run_id"], list(expected(training))) == expected(training)
    assert run["info"]["status"] == "FINISHED"
    assert [one.todo for one in send(place, experiment="foreign resumed").planned] == ["there"]


def test_commands_take_other_trackers_files(tmp_path: Path, server: TrackingServer) -> None:
    place = unpack("tensorboard", tmp_path / "recorded") / "runs"
    for path in place.rglob("events.*"):
        path.rename(f"{path}.commands")  # other runs than those that are there
    experiment = ["-d", server.url, "-e", "foreign commands"]
    done = CliRunner().invoke(cli, ["import", str(place), *experiment, "--dry-run"])
    assert done.exit_code == 0 and "small" in done.output, done.output
    assert server.runs("foreign commands") == []
    chosen = ["--filter", "params.width = '64' AND metrics.val_acc > 0.5"]
    done = CliRunner().invoke(cli, ["sync", "-s", str(place), *experiment, *chosen])
    assert done.exit_code == 0, done.output
    assert [run["info"]["run_name"] for run in server.runs("foreign commands")] == ["large"]
    done = CliRunner().invoke(cli, ["import", str(place), *experiment, "--verify", "--json"])
    assert done.exit_code == 0, done.output
    assert sorted(run["info"]["run_name"] for run in server.runs("foreign commands")) == ["large", "small"]


def test_exported_run_of_another_tracker_is_the_same_run(tmp_path: Path, server: TrackingServer, send: Send) -> None:
    place = unpack("sacred", tmp_path / "recorded") / "others"
    experiment = "foreign exported"
    send(place, experiment=experiment)
    before = server.runs(experiment)
    with open_store(place) as store:
        portable.export(store, [run.id for run in store.runs()], tmp_path / "runs.zip")
    send(tmp_path / "runs.zip", experiment=experiment)
    assert len(server.runs(experiment)) == len(before) == 2
