"""Registered names without a run: those without a version, prompts, and versions whose files are elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from sync_proxy import HostileProxy
from sync_recording import T0, Recording
from sync_server import TrackingServer

from labtrack.stores import open_store
from labtrack.sync import Options, Report, sync

Tags = dict[str, str]
Send = Callable[..., Report]
IS_PROMPT = {"mlflow.prompt.is_prompt": "true"}


def register(recording: Recording, name: str, tags: Tags | None = None, said: str = "") -> str:
    recording.insert(
        "registered_models", name=name, creation_time=T0, last_updated_time=T0, workspace="default", description=said
    )
    for key, value in (tags or {}).items():
        recording.insert("registered_model_tags", name=name, key=key, value=value, workspace="default")
    return name


def version(
    recording: Recording, name: str, number: int, source: str, run_id: str | None = None, *, tags: Tags | None = None
) -> None:
    recording.insert(
        "model_versions", name=name, version=number, creation_time=T0, last_updated_time=T0, current_stage="None",
        source=source, run_id=run_id, status="READY", workspace="default", description=f"text {number}",
    )  # fmt: skip
    for key, value in (tags or {}).items():
        recording.insert("model_version_tags", name=name, version=number, key=key, value=value, workspace="default")


def alias(recording: Recording, name: str, said: str, number: int) -> None:
    recording.insert("registered_model_aliases", name=name, alias=said, version=number, workspace="default")


def there(server: TrackingServer, name: str) -> dict[str, Any]:
    found: dict[str, Any] = server.get("registered-models/get", name=name)["registered_model"]
    return found


def tags(found: dict[str, Any]) -> dict[str, str]:
    return {one["key"]: one["value"] for one in found["tags"] if not one["key"].startswith("labtrack.")}


def test_a_name_without_a_version_is_registered(recording: Recording, server: TrackingServer, send: Send) -> None:
    name = register(recording, f"empty {recording.name}", {"team": "ocean"}, "to be filled")
    assert send(wanted=lambda *_: True).names == 0
    report = send(verify=True, dry_run=True)
    assert report.differences == {f"model {name}": ["is not registered at the server"]} and report.exit_code == 1
    report = send(verify=True)
    assert (report.exit_code, report.names, report.differences) == (0, 1, {}), report
    found = there(server, name)
    assert found["description"] == "to be filled" and tags(found) == {"team": "ocean"}
    # what is missing is added; what somebody has changed stays, is told by --verify, and is set by --repair
    server.post("registered-models/set-tag", name=name, key="team", value="land")
    register(recording, name, {"also": "new"}, "to be filled")
    report = send(verify=True)
    assert report.names == 0 and tags(there(server, name)) == {"team": "land", "also": "new"}
    assert report.differences == {f"model {name}": ["tag team is 'land' at the server, 'ocean' in the recording"]}
    assert send(repair=True, verify=True).differences == {}


def test_a_name_of_somebody_else_gets_versions_only(recording: Recording, server: TrackingServer, send: Send) -> None:
    name = register(recording, f"shared {recording.name}", {"team": "ocean"}, "ours")
    server.post("registered-models/create", name=name, description="theirs")
    run_id = recording.run(files={"model/MLmodel": b"x"})
    version(recording, name, 1, f"runs:/{run_id}/model", run_id)
    alias(recording, name, "champion", 1)
    report = send(verify=True)
    assert (report.exit_code, report.names, report.registered, report.differences) == (0, 0, 1, {}), report
    found = there(server, name)
    assert found["description"] == "theirs" and "tags" not in found and "aliases" not in found
    (made,) = server.get("model-versions/search", filter=f"name = '{name}'")["model_versions"]
    (run,) = server.runs(recording.name)
    assert made["source"] == f"{run['info']['artifact_uri']}/model"


def test_aliases_of_a_new_name(recording: Recording, server: TrackingServer, send: Send) -> None:
    name = register(recording, f"new {recording.name}")
    for number in (1, 3):  # the second was deleted
        run_id = recording.run(files={"model/MLmodel": b"x"})
        version(recording, name, number, f"runs:/{run_id}/model", run_id)
        alias(recording, name, f"the-{number}", number)
    alias(recording, name, "latest", 3)  # a name that MLflow keeps for itself
    report = send(verify=True)
    assert (report.names, report.registered, report.exit_code, report.differences) == (1, 2, 0, {}), report
    found = {one["alias"][:7]: one["version"] for one in there(server, name)["aliases"]}
    assert found == {"the-1": "1", "the-3": "2", "_latest": "2"}


def test_prompts_arrive(recording: Recording, server: TrackingServer, send: Send) -> None:
    recording.run()
    here, bare = (register(recording, f"{one}-{recording.name}", IS_PROMPT) for one in ("prompt", "bare"))
    register(recording, here, {"_mlflow_experiment_ids": ",1,7,"})
    for number in (1, 2):
        asked = {**IS_PROMPT, "mlflow.prompt.text": f"Say {number}"}
        version(recording, here, number, "prompt-template", tags=asked)
    alias(recording, here, "production", 2)
    report = send(verify=True)
    assert (report.exit_code, report.names, report.registered, report.differences) == (0, 2, 2, {}), report
    found = there(server, here)
    assert tags(found) == {**IS_PROMPT, "_mlflow_experiment_ids": f",{server.experiments()[recording.name]},"}
    assert found["aliases"] == [{"alias": "production", "version": "2"}] and tags(there(server, bare)) == IS_PROMPT
    made = server.get("model-versions/get", name=here, version="1")["model_version"]
    assert tags(made)["mlflow.prompt.text"] == "Say 1" and made["description"] == "text 1"
    report = send(repair=True)
    assert (report.names, report.registered, report.versions) == (0, 0, 2)
    with open_store(server.url) as store:  # as a source, which finds prompts only if asked for them
        read = {one.name: one for one in store.registered_models()}
    assert [one.tags["mlflow.prompt.text"] for one in read[here].versions] == ["Say 1", "Say 2"]
    assert read[here].versions[1].aliases == ("production",) and read[bare].versions == ()


def test_versions_whose_run_is_not_there_are_told(recording: Recording, server: TrackingServer, send: Send) -> None:
    recording.run()
    name = register(recording, f"odd {recording.name}")
    gone = recording.run(stage="deleted")
    version(recording, name, 1, f"runs:/{gone}/model", gone)
    version(recording, name, 2, str(recording.folder / "elsewhere"), "f" * 32)
    version(recording, name, 3, "s3://bucket/elsewhere")
    report = send(verify=True)
    assert report.unregistered == {f"model {name} version 1": f"run {gone}, which it is of, is not at the server"}
    assert report.registered == 1 and report.exit_code == 3 and report.differences == {}
    assert report.unreadable == [
        f"model {name} version 2: it is of no run or model in the recording, so its files are not there"
    ]
    assert send(accept_damage=True).exit_code == 0 and send().exit_code == 0


def test_a_name_whose_answer_is_lost_or_refused(recording: Recording, server: TrackingServer) -> None:
    first, second = (register(recording, f"{one} {recording.name}") for one in ("a", "b"))
    faults = {("POST registered-models/create", 1): "403", ("POST registered-models/create", 2): "lost"}
    with HostileProxy(server.url, lambda kind, number: faults.get((kind, number), "")) as proxy:
        report = sync(recording.path, proxy.url, Options())
        assert report.exit_code == 1 and report.names == 1, report
        assert list(report.failed) == [f"model {first}"] and "may not" in report.failed[f"model {first}"][0]
        report = sync(recording.path, proxy.url, Options())
        assert report.exit_code == 0 and report.names == 1
    assert there(server, first)["name"] == first and there(server, second)["name"] == second


def whole(found: dict[str, Any]) -> Any:
    """What the tags of a registered model keep of what had to be changed."""
    parts = {one["key"]: one["value"] for one in found["tags"] if one["key"].startswith("labtrack.overflow.")}
    return json.loads("".join(parts[key] for key in sorted(parts)))


def test_a_name_over_the_limits_is_registered_with_the_rest(
    recording: Recording, server: TrackingServer, send: Send
) -> None:
    name = register(
        recording, f"long {recording.name}", {"long": "v" * 6000, "k" * 300: "v", "nul": "a\0b"}, "d" * 7000
    )
    run_id = recording.run(files={"model/MLmodel": b"x"})
    ((place,),) = recording.sql("SELECT artifact_uri FROM runs")
    version(recording, name, 1, f"{place}/model", run_id, tags={"text": "t" * 50_000})
    for said in ("latest", "a b", "good"):
        alias(recording, name, said, 1)
    recording.sql("UPDATE model_versions SET description = ?", "e" * 6000)
    bad = register(recording, f"a/b:{recording.name} {'n' * 300}", {"team": "ocean"})
    report = send(verify=True)
    assert (report.exit_code, report.names, report.registered, report.differences) == (0, 2, 1, {}), report
    found = there(server, name)
    assert found["description"] == "d" * 5000 and tags(found)["long"] == "v" * 5000 and tags(found)["nul"] == "a\ufffdb"
    kept = whole(found)
    assert kept["description"] == "d" * 7000 and kept["tag long"] == {"key": "long", "value": "v" * 6000}
    aliases = {one["alias"] for one in found["aliases"]}
    assert "good" in aliases and len(aliases) == 3
    assert {kept[f"alias {one}"] for one in aliases - {"good"}} == {"latest", "a b"}
    (one,) = server.get("model-versions/search", filter=f"name = '{name}'")["model_versions"]
    assert tags(one)["text"] == "t" * 50_000 and one["description"] == "e" * 5000
    assert whole(one) == {"description": "e" * 6000}
    (safe,) = (
        one for one in server.get("registered-models/search", max_results=1000)["registered_models"]
        if one["name"].startswith(f"a_b_{recording.name}")
    )  # fmt: skip
    assert whole(safe) == {"name": bad} and tags(safe) == {"team": "ocean"}
    assert [one for one in report.notes if "description" in one and name in one], report
    report = send(verify=True)
    assert (report.exit_code, report.names, report.registered, report.differences) == (0, 0, 0, {}), report
    assert report.versions == 1 and not [one for one in report.notes if "overflow" in one]
