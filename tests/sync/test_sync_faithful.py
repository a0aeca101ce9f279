"""What is kept, and what is said about the rest."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from sync_recording import T0, Recording, new_id
from sync_server import TrackingServer, tag

from labtrack.sync import Report
from labtrack.sync.files import Sender

Send = Callable[..., Report]


def test_what_is_too_long_is_whole_in_an_artifact(recording: Recording, server: TrackingServer, send: Send) -> None:
    key, note = "k" * 260, "n" * 9000
    run_id = recording.run(params={"text": "p" * 7000, key: "v"}, tags={"mlflow.note.content": note, "ok": "1"})
    recording.points(run_id, key, [1.0, 2.0])
    recording.insert("metrics", run_uuid=run_id, key="old", value=1, timestamp=-5, step=3)
    report = send(verify=True)
    assert report.exit_code == 0 and report.differences == {}, report
    (run,) = server.runs(recording.name)
    params = {one["key"]: one["value"] for one in run["data"]["params"]}
    assert params["text"] == "p" * 6000 and len(tag(run, "mlflow.note.content") or "") == 8000
    (short,) = params.keys() - {"text"}
    assert len(short) <= 250 and params[short] == "v"
    whole = json.loads(server.files(run["info"]["artifact_uri"])["labtrack/overflow.json"])
    assert whole["params"] == {"text": {"key": "text", "value": "p" * 7000}, short: {"key": key, "value": "v"}}
    assert whole["tags"]["mlflow.note.content"]["value"] == note
    assert whole["metrics"][short]["key"] == key and whole["times"]["old"]["value"] == [[3, -5]]
    assert len(server.history(run["info"]["run_id"], short)) == 2
    said = tag(run, "labtrack.overflow") or ""
    assert "param text (7,000 characters)" in said and "tag mlflow.note.content (9,000 characters)" in said
    assert len(report.outcomes[0].cuts) == 5
    assert send().planned[0].todo == "there"


def test_texts_that_postgresql_cannot_keep(recording: Recording, server: TrackingServer, send: Send) -> None:
    recording.run(params={"nul": "a\0b", "emoji": "\U0001f600"}, tags={"x": "\0"})
    assert send().exit_code == 0
    (run,) = server.runs(recording.name)
    assert {one["key"]: one["value"] for one in run["data"]["params"]} == {"nul": "a\ufffdb", "emoji": "\U0001f600"}
    assert b"a\\u0000b" in server.files(run["info"]["artifact_uri"])["labtrack/overflow.json"]


def test_logged_models_with_points_and_links(recording: Recording, server: TrackingServer, send: Send) -> None:
    made = recording.run(name="train", metrics={"loss": [1.0]})
    model = recording.model(made, "unet", {"MLmodel": b"flavors: {}", "data/w.bin": b"w" * 3000}, step=7)
    scored = recording.run(name="evaluate", metrics={"rmse": [0.5]})
    recording.dataset(scored, "era5", "d1")
    recording.insert("inputs", input_uuid=new_id(), source_type="RUN_INPUT", source_id=scored,
                     destination_type="MODEL_INPUT", destination_id=model, step=0)  # fmt: skip
    recording.insert(
        "logged_model_metrics", model_id=model, metric_name="rmse", metric_timestamp_ms=T0, metric_step=0,
        metric_value=0.5, experiment_id=1, run_id=scored, dataset_name="era5", dataset_digest="d1",
    )  # fmt: skip
    for _ in range(2):
        report = send()
        assert report.exit_code == 0 and report.notes == [], report
    runs = {one["info"]["run_name"]: one for one in server.runs(recording.name)}
    found = server.post("logged-models/search", experiment_ids=[runs["train"]["info"]["experiment_id"]])["models"]
    assert len(found) == 1
    info, data = found[0]["info"], found[0]["data"]
    assert (info["name"], info["status"], info["source_run_id"]) == (
        "unet", "LOGGED_MODEL_READY", runs["train"]["info"]["run_id"])  # fmt: skip
    assert {"key": "kind", "value": "unet"} in info["tags"] and data["params"] == [{"key": "depth", "value": "3"}]
    assert [(one["key"], one["value"], one["run_id"], one["dataset_name"]) for one in data["metrics"]] == [
        ("rmse", 0.5, runs["evaluate"]["info"]["run_id"], "era5")
    ]
    assert server.files(info["artifact_uri"]) == {"MLmodel": b"flavors: {}", "data/w.bin": b"w" * 3000}
    train = server.get("runs/get", run_id=runs["train"]["info"]["run_id"])["run"]
    assert [one["model_id"] for one in train["outputs"]["model_outputs"]] == [info["model_id"]]
    evaluate = server.get("runs/get", run_id=runs["evaluate"]["info"]["run_id"])["run"]
    assert [one["model_id"] for one in evaluate["inputs"]["model_inputs"]] == [info["model_id"]]
    assert {one.todo for one in send().planned} == {"there"}


def test_a_change_at_the_server_stays(recording: Recording, server: TrackingServer, send: Send) -> None:
    run_id = recording.run(tags={"mlflow.note.content": "as recorded", "kind": "a"}, metrics={"loss": [1.0]})
    send()
    (run,) = server.runs(recording.name)
    server.post("runs/set-tag", run_id=run["info"]["run_id"], key="mlflow.note.content", value="better words")
    recording.points(run_id, "loss", [2.0], first=1)
    recording.tags(run_id, {"kind": "b"})
    send()
    (run,) = server.runs(recording.name)
    assert tag(run, "mlflow.note.content") == "better words" and tag(run, "kind") == "b"
    assert len(server.history(run["info"]["run_id"], "loss")) == 2


def test_a_run_deleted_at_the_server_stays_deleted(recording: Recording, server: TrackingServer, send: Send) -> None:
    run_id = recording.run(metrics={"loss": [1.0]})
    send()
    (run,) = server.runs(recording.name)
    server.post("runs/delete", run_id=run["info"]["run_id"])
    recording.points(run_id, "loss", [2.0], first=1)
    report = send()
    assert report.exit_code == 0 and report.planned[0].todo == "deleted at the server"
    (run,) = server.runs(recording.name)
    assert run["info"]["lifecycle_stage"] == "deleted"


def test_a_lost_journal_is_found_again_from_the_server(
    recording: Recording, server: TrackingServer, send: Send, tmp_path: Path
) -> None:
    values = [float(one) for one in range(3000)]
    run_id = recording.run(metrics={"a": values, "b": values}, files={"f.bin": b"f" * 100})
    # the same time and value at steps that Python's own hash takes for the same
    for step in (-1, -2):
        recording.sql(
            "INSERT INTO metrics (run_uuid, key, value, timestamp, step) VALUES (?, 'a', 1, 5, ?)", run_id, step
        )
    send()
    for file in (tmp_path / "state").rglob("*.jsonl"):
        file.write_bytes(b"\0\xff{torn")
    recording.points(run_id, "a", [math.nan] * 10, first=3000)
    report = send(verify=True)
    assert report.exit_code == 0 and report.differences == {}
    assert report.outcomes[0].points == 10 and report.calls.get("PUT artifacts", 0) == 0


def test_a_hole_at_the_server_is_filled_where_the_journal_is_lost(
    recording: Recording, server: TrackingServer, send: Send, tmp_path: Path
) -> None:
    """Steps -1 and -2, same time and value: only one of them is there."""
    run_id = recording.run(status="RUNNING", metrics={"a": [float(one) for one in range(1200)]})
    recording.insert("metrics", run_uuid=run_id, key="z", value=1, timestamp=5, step=-1)
    send()
    for file in (tmp_path / "state").rglob("*.jsonl"):
        file.unlink()
    recording.insert("metrics", run_uuid=run_id, key="z", value=1, timestamp=5, step=-2)
    recording.end(run_id)
    assert send(verify=True).differences == {}
    (run,) = server.runs(recording.name)
    assert [one[1] for one in server.history(run["info"]["run_id"], "z")] == [-2, -1]


def test_a_resumed_long_run_sends_only_the_other_half(recording: Recording, server: TrackingServer, send: Send) -> None:
    run_id = recording.run(status="RUNNING", metrics={"loss": [float(one) for one in range(10_000)]})
    first = send()
    recording.points(run_id, "loss", [float(one) for one in range(10_000)], first=10_000)
    recording.end(run_id)
    second = send()
    assert (first.outcomes[0].points, second.outcomes[0].points) == (10_000, 10_000)
    assert second.calls["POST runs/log-batch"] == 11
    (run,) = server.runs(recording.name)
    assert run["info"]["status"] == "FINISHED" and run["info"]["end_time"] == T0 + 9000
    assert len(server.history(run["info"]["run_id"], "loss")) == 20_000


def test_an_artifact_that_vanishes_is_named(
    recording: Recording, server: TrackingServer, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = recording.run(metrics={"loss": [1.0]}, files={"a.txt": b"a", "b.txt": b"b"})
    place = recording.folder / "artifacts" / "1" / run_id / "artifacts" / "a.txt"
    with monkeypatch.context() as patched:
        started = Sender.start

        def start(self: Sender, *args: object, **more: object) -> object:
            found = started(self, *args, **more)  # type: ignore[arg-type]
            place.unlink()  # listed, but not yet read
            return found

        patched.setattr(Sender, "start", start)
        report = send()
    assert report.exit_code == 3
    assert "artifact a.txt can't be read (No such file" in report.damaged[run_id][0]
    (run,) = server.runs(recording.name)
    assert server.files(run["info"]["artifact_uri"]) == {"b.txt": b"b"}
    assert json.loads(tag(run, "labtrack.sync_state") or "")["state"] == "incomplete"
    place.write_bytes(b"back")
    assert send().exit_code == 0
    (run,) = server.runs(recording.name)
    assert server.files(run["info"]["artifact_uri"]) == {"a.txt": b"back", "b.txt": b"b"}


def test_a_recording_whose_identity_has_changed_is_known_by_its_runs(
    recording: Recording, server: TrackingServer, send: Send
) -> None:
    """As when the first experiment is removed for good, or a file store becomes a database."""
    for number in range(3):
        recording.run(name=f"run {number}")
    send()
    recording.sql("UPDATE experiments SET creation_time = creation_time + 1 WHERE experiment_id = 0")
    recording.run(name="new")
    assert [one.todo for one in send().planned] == ["there"] * 3 + ["new"]
    assert [one.todo for one in send().planned] == ["there"] * 4
    assert len(server.runs(recording.name)) == 4


def test_versions_are_registered_under_known_and_new_names(
    recording: Recording, server: TrackingServer, send: Send
) -> None:
    known, unknown = f"known {recording.name}", f"unknown {recording.name}"
    server.post("registered-models/create", name=known)
    run_id = recording.run(files={"model/MLmodel": b"flavors: {}"})
    place = recording.sql("SELECT artifact_uri FROM runs WHERE run_uuid = ?", run_id)[0][0]
    for name in (known, unknown):
        recording.insert("registered_models", name=name, creation_time=T0, last_updated_time=T0, workspace="default")
        recording.insert(
            "model_versions", name=name, version=1, creation_time=T0, last_updated_time=T0, current_stage="None",
            source=f"{place}/model", run_id=run_id, status="READY", workspace="default", description="the first",
        )  # fmt: skip
    report = send()
    assert report.exit_code == 0 and (report.names, report.registered) == (1, 2)
    report = send()
    assert (report.names, report.registered, report.versions) == (0, 0, 2)
    (version,) = server.get("model-versions/search", filter=f"name = '{known}'")["model_versions"]
    (run,) = server.runs(recording.name)
    assert version["run_id"] == run["info"]["run_id"] and version["description"] == "the first"
    assert version["source"] == f"{run['info']['artifact_uri']}/model"
