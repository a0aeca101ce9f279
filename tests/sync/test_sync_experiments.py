"""What was written about experiments reaches the server, also where they have no runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import requests
from sync_recording import T0, Recording, new_id
from sync_server import TrackingServer
from test_sync_traces import trace

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


def test_what_no_sync_sends_is_counted(recording: Recording, server: TrackingServer, send: Send) -> None:
    recording.run()
    recording.insert("evaluation_datasets", dataset_id="d-1", name="questions", workspace="default")
    for number in range(3):
        recording.insert(
            "evaluation_dataset_records", dataset_record_id=f"r-{number}", dataset_id="d-1", inputs="{}",
            input_hash=str(number),
        )  # fmt: skip
    recording.insert("scorers", experiment_id=1, scorer_name="tone", scorer_id="s-1")
    recording.insert("scorer_versions", scorer_id="s-1", scorer_version=1, serialized_scorer="{}")
    recording.insert(
        "issues", issue_id="i-1", experiment_id=1, name="rude", description="", status="OPEN",
        created_timestamp=T0, last_updated_timestamp=T0,
    )  # fmt: skip
    recording.sql("CREATE TABLE of_next_year (id INTEGER)")
    recording.sql("INSERT INTO of_next_year VALUES (1)")
    expected = {
        "evaluation datasets": 1, "records of evaluation datasets": 3, "scorers": 1, "versions of scorers": 1,
        "issues": 1, "rows of the table of_next_year": 1,
    }  # fmt: skip
    for options in ({"dry_run": True}, {}, {"verify": True}):
        report = send(**options)
        assert report.exit_code == 0 and report.unsent == report.as_data()["unsent"] == expected, report
        told = [one for one in report.notes if "no sync sends" in one]
        assert len(told) == len(expected), told
        assert any(one.startswith("3 records of evaluation datasets are not sent") for one in told)


def test_what_a_server_has_that_no_sync_sends(server: TrackingServer, second: TrackingServer, send: Send) -> None:
    number = second.post("experiments/create", name="asked of the second")["experiment_id"]
    api = f"{second.url}/api/3.0/mlflow"
    data = {"name": "questions", "experiment_ids": [number]}
    scorer = {"experiment_id": number, "name": "tone", "serialized_scorer": '{"name": "tone"}'}
    for path, body in (("datasets/create", data), ("scorers/register", scorer)):
        answer = requests.post(f"{api}/{path}", json=body, timeout=30)
        assert answer.ok, answer.text
    report = send(second.url)
    assert report.unsent == {"evaluation datasets": 1, "scorers": 1}, report


def test_traces_that_are_linked_to_a_run_later(recording: Recording, server: TrackingServer, send: Send) -> None:
    run_id, late = recording.run(), f"tr-{new_id()}"
    trace(recording, late)
    send()
    recording.insert(
        "entity_associations", association_id="a-1", source_type="trace", source_id=late, destination_type="run",
        destination_id=run_id,
    )  # fmt: skip
    assert list(send(dry_run=True, verify=True).differences) == [f"trace {late}"]
    report = send(verify=True)
    assert report.exit_code == 0 and report.differences == {} and report.unsent == {}, report
    (run,) = server.runs(recording.name)
    asked = {
        "locations": [
            {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": run["info"]["experiment_id"]}}
        ],
        "filter": f"attributes.run_id = '{run['info']['run_id']}'",
    }
    found = requests.post(f"{server.url}/api/3.0/mlflow/traces/search", json=asked, timeout=30).json()
    assert [one["trace_id"] for one in found["traces"]] == [late]
    assert send().traces[recording.name]["sent"] == 0


def test_what_belongs_to_an_experiment_that_is_gone(recording: Recording, server: TrackingServer, send: Send) -> None:
    lost = f"tr-{new_id()}"
    trace(recording, lost)
    recording.sql("UPDATE trace_info SET experiment_id = 77")
    report = send()
    assert report.exit_code == 3 and "its name is lost" in report.unreadable[0], report
    assert report.traces["unnamed experiment 77"]["sent"] == 1


def test_what_belongs_to_a_deleted_experiment_goes_with_its_runs(
    recording: Recording, server: TrackingServer, send: Send
) -> None:
    recording.run()
    trace(recording, one := f"tr-{new_id()}")
    recording.model(None, "lonely", {"MLmodel": b"x"})
    recording.sql("UPDATE experiments SET lifecycle_stage = 'deleted' WHERE experiment_id = 1")
    report = send(verify=True)
    assert (report.exit_code, report.traces, report.models, report.differences) == (0, {}, [], {}), report
    assert recording.name not in server.experiments()
    assert len([note for note in report.notes if "-x sends them too" in note]) == 2
    report = send(deleted=True, verify=True)
    assert (report.exit_code, report.differences) == (0, {}) and len(report.models) == 1, report
    assert report.traces[recording.name]["sent"] == 1 and one
    assert [run["info"]["lifecycle_stage"] for run in server.runs(recording.name)] == ["deleted"]


def test_a_deleted_model_that_a_run_names_is_no_damage(
    recording: Recording, server: TrackingServer, send: Send
) -> None:
    recording.model(recording.run(), "old", {"MLmodel": b"x"})
    recording.sql("UPDATE logged_models SET lifecycle_stage = 'deleted'")
    assert send(verify=True).exit_code == 0
    assert [one for one in send(deleted=True).notes if "1 logged models that are deleted" in one]


@pytest.mark.parametrize("kept", ["", "a run without meta.yaml", "tags", ".DS_Store", "artifacts"])
def test_a_folder_of_an_experiment_without_meta(kept: str, server: TrackingServer, send: Send, tmp_path: Path) -> None:
    root = tmp_path / "mlruns"
    good, bad = root / "1", root / "2"
    bad.mkdir(parents=True)
    good.mkdir()
    (good / "meta.yaml").write_text(f"experiment_id: '1'\nname: e-{new_id()}\ncreation_time: {T0}\n")
    (bad / "tags").mkdir()
    # of a run whose record is in a SQLite file
    artifact = bad / new_id() / "artifacts/metrics/plot.svg"
    file = {"tags": bad / "tags" / NOTE, ".DS_Store": bad / ".DS_Store", "artifacts": artifact}.get(kept)
    if kept.startswith("a run"):
        file = bad / new_id() / "params" / "lr"
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("0.1")
    broken = kept not in ("", ".DS_Store", "artifacts")
    for options in ({"dry_run": True}, {"verify": True}):
        report = send(root, **options)
        assert report.exit_code == (3 if broken else 0), report
        assert [str(bad) in one for one in report.unreadable] == [True] * broken
    if broken:
        send(root, accept_damage=True)
