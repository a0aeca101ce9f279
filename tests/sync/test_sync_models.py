"""Logged models that belong to no run, registered versions, and what --verify and --repair do with everything."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sync_proxy import HostileProxy
from sync_recording import T0, Recording, new_id
from sync_server import TrackingServer, tag

from labtrack.sync import Options, Report, sync

Send = Callable[..., Report]


def models(server: TrackingServer, recording: Recording) -> list[dict[str, Any]]:
    number = server.experiments()[recording.name]
    return list(server.post("logged-models/search", experiment_ids=[number], max_results=50).get("models", []))


def test_a_model_outside_a_run_arrives(recording: Recording, server: TrackingServer, send: Send) -> None:
    model = recording.model(None, "lonely", {"MLmodel": b"flavors: {}", "data/w.bin": b"w" * 3000})
    report = send(verify=True)
    assert report.exit_code == 0 and report.differences == {} and report.verified == 1, report
    assert [(one.run_id, one.name, one.todo, one.ending) for one in report.models] == [
        (model, "lonely", "new", "whole")
    ]
    assert report.model_outcomes[0].artifacts == 2 and report.as_data()["counts"]["models"] == 1
    (found,) = models(server, recording)
    info, data = found["info"], found["data"]
    assert (info["name"], info["status"], info.get("source_run_id")) == ("lonely", "LOGGED_MODEL_READY", "")
    assert data["params"] == [{"key": "depth", "value": "3"}] and {"key": "kind", "value": "unet"} in info["tags"]
    assert server.files(info["artifact_uri"]) == {"MLmodel": b"flavors: {}", "data/w.bin": b"w" * 3000}
    report = send()
    assert [one.todo for one in report.models] == ["there"] and report.model_outcomes == []
    assert len(models(server, recording)) == 1


def test_a_model_outside_a_run_is_named_where_a_filter_leaves_it_out(
    recording: Recording, server: TrackingServer, send: Send
) -> None:
    recording.run()
    recording.model(None, "lonely", {"MLmodel": b"x"})
    report = send(wanted=lambda *_: True)
    assert report.exit_code == 0 and models(server, recording) == []
    assert any("1 logged models that belong to no run are not sent" in one for one in report.notes)


def test_a_model_whose_run_is_gone_is_sent_too(recording: Recording, server: TrackingServer, send: Send) -> None:
    recording.run()
    recording.model(new_id(), "orphan", {"MLmodel": b"x"})
    assert send().exit_code == 0
    assert [one["info"]["name"] for one in models(server, recording)] == ["orphan"]


def test_a_changed_model_outside_a_run_is_sent_again(recording: Recording, server: TrackingServer, send: Send) -> None:
    model = recording.model(None, "lonely", {"MLmodel": b"x"})
    send()
    recording.insert("logged_model_tags", model_id=model, experiment_id=1, tag_key="kind", tag_value="better")
    (recording.folder / "artifacts/1/models" / model / "artifacts/more.bin").write_bytes(b"more")
    report = send()
    assert report.exit_code == 0 and [one.todo for one in report.models] == ["changed"]
    (found,) = models(server, recording)
    assert {"key": "kind", "value": "better"} in found["info"]["tags"]
    assert set(server.files(found["info"]["artifact_uri"])) == {"MLmodel", "more.bin"}


def test_values_of_a_model_over_the_limits(recording: Recording, server: TrackingServer, send: Send) -> None:
    model = recording.model(None, "lonely", {"MLmodel": b"x"})
    recording.insert("logged_model_params", model_id=model, experiment_id=1, param_key="long", param_value="p" * 7000)
    report = send(verify=True)
    assert report.exit_code == 0 and report.differences == {}, report
    assert report.models[0].ending == "whole, changed"
    (found,) = models(server, recording)
    assert b"p" * 7000 in server.files(found["info"]["artifact_uri"])["labtrack/overflow.json"]


def test_a_version_of_a_model_outside_a_run(recording: Recording, server: TrackingServer, send: Send) -> None:
    name = f"known {recording.name}"
    server.post("registered-models/create", name=name)
    model = recording.model(None, "lonely", {"MLmodel": b"x"})
    recording.insert("registered_models", name=name, creation_time=T0, last_updated_time=T0, workspace="default")
    recording.insert(
        "model_versions", name=name, version=1, creation_time=T0, last_updated_time=T0, current_stage="None",
        source=f"models:/{model}", run_id=None, status="READY", workspace="default", description="the first",
    )  # fmt: skip
    assert send().registered == 1
    report = send(verify=True)
    assert report.registered == 0 and report.versions == 1 and report.differences == {}
    assert len(server.get("model-versions/search", filter=f"name = '{name}'")["model_versions"]) == 1


def test_a_version_whose_create_comes_late_is_there_once(
    recording: Recording, server: TrackingServer, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    name = f"known {recording.name}"
    server.post("registered-models/create", name=name)
    version(recording, name, 1, recording.run(files={"model/MLmodel": b"x"}))

    def there() -> list[str]:
        found = server.get("model-versions/search", filter=f"name = '{name}'").get("model_versions", [])
        return sorted(one["version"] for one in found)

    first = {("POST model-versions/create", 1): "held"}
    with HostileProxy(server.url, lambda kind, number: first.get((kind, number), "")) as proxy:
        report = sync(recording.path, proxy.url, Options())
        assert report.exit_code == 0 and report.registered == 1, report
        assert there() == ["1"]
        proxy.let_go()
    assert there() == ["1", "2"]
    assert send().exit_code == 0
    assert there() == ["1"]


def version(recording: Recording, name: str, number: int, run_id: str) -> None:
    place = recording.sql("SELECT artifact_uri FROM runs WHERE run_uuid = ?", run_id)[0][0]
    recording.insert("registered_models", name=name, creation_time=T0, last_updated_time=T0, workspace="default")
    recording.insert(
        "model_versions", name=name, version=number, creation_time=T0, last_updated_time=T0, current_stage="None",
        source=f"{place}/model", run_id=run_id, status="READY", workspace="default", description="",
    )  # fmt: skip


def test_versions_beyond_the_first_page(
    recording: Recording, server: TrackingServer, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labtrack.sync.registry._PAGE", 2)
    name = f"known {recording.name}"
    server.post("registered-models/create", name=name)
    for number in range(1, 6):
        version(recording, name, number, recording.run(files={"model/MLmodel": b"x"}))
    assert send().registered == 5
    assert send().registered == 0


def test_versions_of_recordings_that_were_born_in_the_same_millisecond(
    recording: Recording, server: TrackingServer, send: Send, tmp_path: Path
) -> None:
    name = f"known {recording.name}"
    server.post("registered-models/create", name=name)
    other = Recording(tmp_path / "other")
    ((born,),) = recording.sql("SELECT creation_time FROM experiments WHERE experiment_id = 0")
    other.sql("UPDATE experiments SET creation_time = ? WHERE experiment_id = 0", born)
    for one in (recording, other):
        version(one, name, 1, one.run(files={"model/MLmodel": b"x"}))
        assert send(one.path).registered == 1
        assert send(one.path).registered == 0
    assert [one["info"]["run_name"] for one in server.runs(recording.name, other.name)] == ["a run"] * 2


def test_verify_compares_all_and_repair_sends_it(recording: Recording, server: TrackingServer, send: Send) -> None:
    run_id = recording.run(
        params={"a": "1", "long": "x" * 7000}, metrics={"loss": [1.0, 2.0]},
        files={"a.txt": b"one", "b.txt": b"two"}, tags={"kind": "x"},
    )  # fmt: skip
    model = recording.model(run_id, "unet", {"MLmodel": b"flavors: {}", "w.bin": b"w" * 100})
    assert send(verify=True).differences == {}
    (run,) = server.runs(recording.name)
    (found,) = models(server, recording)
    place = server.folder / "artifacts" / run["info"]["experiment_id"] / run["info"]["run_id"] / "artifacts"
    (place / "a.txt").write_bytes(b"1ne")
    (place / "b.txt").unlink()
    (place / "labtrack/overflow.json").unlink()
    files = server.folder / "artifacts" / found["info"]["artifact_uri"].partition(":/")[2].strip("/")
    (files / "w.bin").write_bytes(b"v" * 100)
    server.post("runs/delete-tag", run_id=run["info"]["run_id"], key="kind")
    report = send(verify=True, dry_run=True)
    assert report.exit_code == 1 and set(report.differences) == {run_id, model}
    assert len(report.differences[run_id]) == 4 and len(report.differences[model]) == 1, report.differences
    assert send().exit_code == 0  # nothing has changed in the recording
    report = send(repair=True, verify=True)
    assert report.exit_code == 0 and report.differences == {}, report
    (run,) = server.runs(recording.name)
    assert server.files(run["info"]["artifact_uri"])["a.txt"] == b"one" and tag(run, "kind") == "x"
    assert len(models(server, recording)) == 1 and len(server.runs(recording.name)) == 1


def test_repair_sends_points_that_are_gone(recording: Recording, server: TrackingServer, send: Send) -> None:
    recording.run(metrics={"loss": [float(one) for one in range(1500)]})
    send()
    (run,) = server.runs(recording.name)
    gone = "DELETE FROM metrics WHERE run_uuid = '{}' AND step IN (3, 1400)"
    server.sql(gone.format(run["info"]["run_id"]))
    report = send(verify=True)
    assert "2 points are missing at the server (step 3: 3.0; step 1400: 1400.0)" in str(report.differences)
    assert send(repair=True, verify=True).differences == {}


def test_verify_names_what_cannot_be_compared(recording: Recording, server: TrackingServer, send: Send) -> None:
    run_id = recording.run(files={"a.txt": b"one"})
    other = recording.run(name="other", metrics={"early": [1.0]})
    recording.sql("UPDATE metrics SET timestamp = -7 WHERE run_uuid = ?", other)
    send()
    (recording.folder / "artifacts/1" / run_id / "artifacts/a.txt").unlink()
    (recording.folder / "artifacts/1" / run_id / "artifacts/a.txt").mkdir()
    report = send(verify=True, dry_run=True)
    assert list(report.differences) == [run_id] and report.verified == 2


def test_models_with_names_that_the_server_refuses(recording: Recording, server: TrackingServer, send: Send) -> None:
    run_id = recording.run()
    empty, dotted, long = (
        recording.model(owner, name, {"MLmodel": b"x"})
        for owner, name in ((None, ""), (run_id, "unet.v2/final"), (run_id, "n" * 400))
    )
    report = send(verify=True)
    assert (report.exit_code, report.differences) == (0, {}), report
    found = {
        pair["value"]: one["info"] for one in models(server, recording) for pair in one["info"]["tags"]
        if pair["key"] == "labtrack.source_model_id"
    }  # fmt: skip
    assert found[empty]["name"] == empty and found[dotted]["name"].startswith("unet_v2_final~")
    assert len(found[long]["name"]) == 250
    whole = json.loads(server.files(found[dotted]["artifact_uri"])["labtrack/overflow.json"])
    assert whole["models"] == {found[dotted]["name"]: {"key": "unet.v2/final"}}
    report = send(verify=True)
    assert report.differences == {} and {one.todo for one in (*report.planned, *report.models)} == {"there"}
