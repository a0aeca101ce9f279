"""Several recordings at once, and some experiments of one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sync_recording import T0, Recording
from sync_server import TrackingServer

from labtrack.cli import cli
from labtrack.errors import BadInputError
from labtrack.stores import filters
from labtrack.sync import Report

Send = Callable[..., Report]


def call(*words: object) -> Result:
    return CliRunner().invoke(cli, ["sync", *map(str, words)])


@pytest.fixture
def jobs(tmp_path: Path) -> list[Recording]:
    """One recording for each of three jobs, in one folder."""
    found = [Recording(tmp_path / f"job{number}", "sweep") for number in range(3)]
    (tmp_path / "all").mkdir()
    for number, one in enumerate(found):
        one.sql("UPDATE experiments SET name = ? WHERE experiment_id = 1", found[0].folder.parent.name)
        one.run(name=f"job {number}", metrics={"loss": [1.0]})
        (one.folder / "artifacts").mkdir()  # so that none of its are missing
        one.path = one.path.rename(tmp_path / "all" / f"run-{number}.db")
    return found


def names(server: TrackingServer, experiment: str) -> list[str]:
    return sorted(one["info"]["run_name"] for one in server.runs(experiment))


def test_a_folder_of_recordings(jobs: list[Recording], server: TrackingServer, tmp_path: Path) -> None:
    (tmp_path / "all" / "run-1.db").write_bytes(jobs[1].path.read_bytes()[:5000])  # damaged
    done = call("-s", tmp_path / "all", "-d", server.url)
    assert done.exit_code in (1, 2), done.output
    assert names(server, tmp_path.name) == ["job 0", "job 2"], "the damaged one keeps no other away"
    assert "run-1.db" in done.output and "damaged" in done.output


def test_several_sources(jobs: list[Recording], server: TrackingServer, tmp_path: Path) -> None:
    words = [word for one in jobs[:2] for word in ("-s", one.path)]
    done = call(*words, "-d", server.url, "--json")
    assert done.exit_code == 0, done.output
    data: dict[str, Any] = json.loads(done.stdout)
    assert [one["counts"]["new"] for one in data["recordings"]] == [1, 1] and data["exit_code"] == 0
    assert names(server, tmp_path.name) == ["job 0", "job 1"]
    refused = call(*words, "-d", server.url, "--watch")
    assert isinstance(refused.exception, BadInputError) and "follows one recording" in refused.exception.what


def test_only_some_experiments(recording: Recording, server: TrackingServer, send: Send) -> None:
    recording.run(name="wanted")
    for number, name in ((2, f"{recording.name}-debug"), (3, f"{recording.name}-debug-2")):
        recording.experiment(name, number, born=T0)
        recording.run(name=name, experiment=number)
    report = send(wanted=filters.chosen(None, exclude=["*-debug*"]))
    assert report.exit_code == 0 and [one.name for one in report.planned] == ["wanted"]
    report = send(wanted=filters.chosen(None, only=[f"{recording.name}-debug"]))
    assert [one.experiment for one in report.planned] == [f"{recording.name}-debug"]
    report = send(wanted=filters.chosen("name = 'wanted'", only=["*"]))
    assert [one.todo for one in report.planned] == ["there"]


def test_runs_of_a_deleted_experiment_are_deleted_too(recording: Recording, server: TrackingServer, send: Send) -> None:
    recording.run(name="kept")
    recording.experiment(f"{recording.name}-old", 2)
    recording.run(name="old", experiment=2)
    recording.sql("UPDATE experiments SET lifecycle_stage = 'deleted' WHERE experiment_id = 2")
    assert [one.name for one in send().planned] == ["kept"]
    report = send(deleted=True)
    assert report.exit_code == 0
    (run,) = server.runs(f"{recording.name}-old")
    assert run["info"]["lifecycle_stage"] == "deleted"
    assert {one.todo for one in send(deleted=True).planned} == {"there"}
