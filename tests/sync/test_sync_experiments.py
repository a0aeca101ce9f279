"""What was written about experiments reaches the server, also where they have no runs."""

from __future__ import annotations

from collections.abc import Callable

from sync_recording import Recording
from sync_server import TrackingServer

from labtrack.cli.sync import _summary
from labtrack.sync import Report

Send = Callable[..., Report]
NOTE = "mlflow.note.content"


def describe(recording: Recording, **tags: str) -> None:
    for key, value in tags.items():
        recording.insert("experiment_tags", experiment_id=1, key=key, value=value)


def tags(server: TrackingServer, name: str) -> dict[str, str]:
    found = server.get("experiments/get-by-name", experiment_name=name)["experiment"].get("tags", [])
    return {one["key"]: one["value"] for one in found if not one["key"].startswith("labtrack.")}


def test_an_experiment_without_runs_is_made(recording: Recording, server: TrackingServer, send: Send) -> None:
    describe(recording, **{NOTE: "what we want to know", "long": "x" * 6000})
    report = send(dry_run=True, verify=True)
    assert report.experiments == [recording.name] and recording.name not in server.experiments(), report
    assert report.differences == {f"experiment {recording.name}": ["is not at the server"]} and report.exit_code == 1
    assert "1 experiments without runs" in _summary(report, report.as_data()["counts"])
    report = send(verify=True)
    assert (report.exit_code, report.differences, report.experiments) == (0, {}, [recording.name]), report
    assert tags(server, recording.name) == {NOTE: "what we want to know", "long": "x" * 5000}
    assert [one for one in report.notes if "tag long" in one]  # no run keeps the rest
    assert "1 experiments made" in _summary(report, report.as_data()["counts"])
    report = send(verify=True)
    assert (report.exit_code, report.differences, report.experiments, report.notes) == (0, {}, [], [])


def test_tags_that_come_later_and_tags_of_others(recording: Recording, server: TrackingServer, send: Send) -> None:
    recording.run()
    describe(recording, team="ocean")
    assert send(verify=True).notes == []
    describe(recording, **{NOTE: "later"})
    report = send(verify=True)
    assert (report.experiments, report.differences) == ([recording.name], {}), report
    number = server.experiments()[recording.name]
    server.post("experiments/set-experiment-tag", experiment_id=number, key="team", value="ice")
    report = send(verify=True)
    assert report.exit_code == 1 and list(report.differences) == [f"experiment {recording.name}"], report
    assert tags(server, recording.name)["team"] == "ice" and [one for one in report.notes if "team" in one]
    assert send(repair=True, verify=True).differences == {}
    assert tags(server, recording.name) == {"team": "ocean", NOTE: "later"}


def test_an_experiment_that_somebody_else_made(recording: Recording, server: TrackingServer, send: Send) -> None:
    describe(recording, team="ocean")
    server.post("experiments/create", name=recording.name)
    report = send(verify=True)
    assert report.exit_code == 0 and tags(server, recording.name) == {}
    assert [one for one in report.notes if recording.name in one and "team" in one], report


def test_an_experiment_without_runs_and_tags_is_told(recording: Recording, server: TrackingServer, send: Send) -> None:
    report = send(verify=True)
    assert report.exit_code == 0 and recording.name not in server.experiments()
    assert [one for one in report.notes if "not made" in one and recording.name in one], report


def test_experiments_that_are_not_asked_for(recording: Recording, server: TrackingServer, send: Send) -> None:
    describe(recording, team="ocean")
    asked: list[dict[str, object]] = [{"wanted": lambda *_: True}, {"experiment": f"{recording.name} elsewhere"}]
    for options in asked:
        report = send(**options, verify=True)
        assert report.exit_code == 0 and recording.name not in server.experiments()
        assert [one for one in report.notes if "1 experiments with tags" in one], report
