"""One bad item never stops another: a fault belongs to a point, a file, a run or an experiment."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from sync_proxy import HostileProxy
from sync_recording import Recording
from sync_server import TrackingServer, tag

from labtrack.errors import BadInputError
from labtrack.sync import Report
from labtrack.sync.artifacts import Proxied, StoreDownError

Send = Callable[..., Report]


def test_a_deleted_experiment_keeps_only_its_own_runs_back(
    recording: Recording, server: TrackingServer, send: Send
) -> None:
    lost = recording.run(name="lost")
    recording.experiment(f"{recording.name} other", 2)
    recording.run(name="there", experiment=2)
    number = server.post("experiments/create", name=recording.name)["experiment_id"]
    server.post("experiments/delete", experiment_id=number)
    for dry_run in (True, False):
        report = send(dry_run=dry_run)
        assert report.exit_code == 1 and list(report.failed) == [lost]
        assert f"restore --experiment-id {number}" in report.failed[lost][0]
    assert [one["info"]["run_name"] for one in server.runs(f"{recording.name} other")] == ["there"]
    server.post("experiments/restore", experiment_id=number)
    assert send().exit_code == 0


@pytest.mark.parametrize("name", ["", "  ", "n" * 310, "nul\0 name"])
def test_names_of_experiments_that_the_server_does_not_take(
    name: str, recording: Recording, server: TrackingServer, send: Send
) -> None:
    recorded = name + recording.name if name.strip() else name
    recording.experiment(recorded, 2)
    recording.run(name="odd", experiment=2)
    recording.run(name="other")
    report = send(verify=True)
    assert report.exit_code == 0 and report.differences == {}, report
    odd = "whole, changed" if name.strip() else "whole"
    assert {one.name: one.ending for one in report.planned} == {"odd": odd, "other": "whole"}
    (experiment,) = {one.experiment for one in report.planned} - {recording.name}
    assert 0 < len(experiment) <= 250
    (run,) = (one for one in server.runs(experiment) if tag(one, "labtrack.source_run_id") == report.planned[0].run_id)
    if name.strip():
        whole = json.loads(server.files(run["info"]["artifact_uri"])["labtrack/overflow.json"])
        assert whole["experiments"] == {experiment: {"key": "name", "value": recorded}}
    else:
        assert experiment == "unnamed experiment 2"
    assert {one.todo for one in send().planned} == {"there"}


def test_tags_of_an_experiment_that_are_too_long(recording: Recording, server: TrackingServer, send: Send) -> None:
    for key, value in (("long", "v" * 6000), ("nul", "a\0b"), ("good", "yes"), ("k" * 300, "v")):
        recording.insert("experiment_tags", experiment_id=1, key=key, value=value)
    recording.run()
    report = send(verify=True)
    assert report.exit_code == 0 and report.differences == {}, report
    number = server.experiments()[recording.name]
    found = server.get("experiments/get", experiment_id=number)["experiment"]["tags"]
    tags = {one["key"]: one["value"] for one in found}
    assert tags["good"] == "yes" and tags["long"] == "v" * 5000 and tags["nul"] == "a\ufffdb" and "v" in tags.values()
    (run,) = server.runs(recording.name)
    whole = json.loads(server.files(run["info"]["artifact_uri"])["labtrack/overflow.json"])
    assert whole["experiments"]["tag long"] == {"key": "long", "value": "v" * 6000}


def test_a_run_without_its_experiment(recording: Recording, server: TrackingServer, send: Send) -> None:
    lost, good = recording.run(name="lost", experiment=7), recording.run(name="good")
    report = send()
    assert report.exit_code == 3 and "its name is lost" in report.unreadable[0], report
    assert [tag(one, "labtrack.source_run_id") for one in server.runs(recording.name)] == [good]
    assert lost in [tag(one, "labtrack.source_run_id") for one in server.runs("unnamed experiment 7")]


def test_a_pending_child_whose_copy_was_deleted(recording: Recording, server: TrackingServer, send: Send) -> None:
    parent = recording.run(name="parent")
    child = recording.run(name="child", tags={"mlflow.parentRunId": parent})
    send(run_ids=[child])
    (run,) = server.runs(recording.name)
    server.post("runs/delete", run_id=run["info"]["run_id"])
    report = send(run_ids=[parent])
    assert report.exit_code == 0 and report.failed == {}
    assert send().exit_code == 0


@pytest.mark.parametrize("fault", ["413", "504 at once"])
def test_one_file_that_is_refused_for_ever(
    fault: str, recording: Recording, server: TrackingServer, send: Send
) -> None:
    bad = recording.run(name="bad", files={"a.txt": b"a", "big.bin": b"b" * 50_000, "c.txt": b"c"})
    recording.run(name="good", files={"a.txt": b"a"}, metrics={"loss": [1.0]})
    refuse = HostileProxy(server.url, lambda *_: "")
    refuse.choose_path = lambda path: fault if "big.bin" in path else ""
    with refuse as proxy:
        report = send(to=proxy.url)
    assert report.exit_code == 1 and not report.stopped and list(report.failed) == [bad]
    assert len(report.failed[bad]) == 1 and "big.bin" in report.failed[bad][0] and fault[:3] in report.failed[bad][0]
    runs = {one["info"]["run_name"]: one for one in server.runs(recording.name)}
    assert set(server.files(runs["bad"]["info"]["artifact_uri"])) == {"a.txt", "c.txt"}
    assert len(server.history(runs["good"]["info"]["run_id"], "loss")) == 1
    assert send(verify=True).exit_code == 0


def test_a_file_whose_answers_are_lost_arrives(recording: Recording, server: TrackingServer, send: Send) -> None:
    """A proxy that gives up before the server is done: the file is there, so it is no failure."""
    recording.run(files={"a.txt": b"a"})
    with HostileProxy(server.url, lambda kind, _: "504" if kind == "PUT artifacts" else "") as proxy:
        assert send(to=proxy.url).exit_code == 0
    (run,) = server.runs(recording.name)
    assert server.files(run["info"]["artifact_uri"]) == {"a.txt": b"a"}


def test_calls_that_meet_in_the_servers_database_are_tried_again(
    recording: Recording, server: TrackingServer, send: Send
) -> None:
    for number in range(3):
        recording.dataset(recording.run(), "train", f"d{number}")
    with HostileProxy(server.url, lambda kind, number: "met" if number < 3 else "") as proxy:
        report = send(to=proxy.url)
    assert report.exit_code == 0, report
    assert all(one["inputs"]["dataset_inputs"] for one in server.runs(recording.name))


def test_a_store_that_is_down_is_one_finding(
    recording: Recording, server: TrackingServer, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        recording.run(name=str(number), metrics={"loss": [1.0]}, files={f"{one}.txt": b"x" for one in range(5)})
    tried: list[str] = []

    def down(_: Proxied, path: str, *__: object) -> None:
        tried.append(path)
        raise StoreDownError("The store does not answer", "wait")

    with monkeypatch.context() as patched:
        patched.setattr(Proxied, "put", down)
        report = send(jobs=1)
    assert report.exit_code == 1 and len(report.failed) == 4 and len(tried) == 1
    assert len({line for lines in report.failed.values() for line in lines}) == 1, report.failed
    assert all(one["data"]["metrics"] for one in server.runs(recording.name))
    assert send(verify=True).exit_code == 0


def test_without_a_place_for_files_the_points_are_sent(
    recording: Recording, server: TrackingServer, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where artifacts go straight to S3, and no key is set."""
    run_id = recording.run(metrics={"loss": [1.0]}, params={"long": "x" * 7000}, files={"a.txt": b"a"})

    def no_place(*_: object) -> None:
        raise BadInputError("AWS_ACCESS_KEY_ID is not set.", "source your mlflow_env.sh.")

    with monkeypatch.context() as patched:
        patched.setattr("labtrack.sync.files.target", no_place)
        report = send()
    assert report.exit_code == 1 and "AWS_ACCESS_KEY_ID is not set" in report.failed[run_id][0]
    (run,) = server.runs(recording.name)
    assert len(server.history(run["info"]["run_id"], "loss")) == 1
    assert send(verify=True).exit_code == 0


def test_a_step_after_the_runs_that_is_refused(recording: Recording, server: TrackingServer, send: Send) -> None:
    """What was sent is reported all the same."""
    run_id = recording.run(metrics={"loss": [1.0]})
    with HostileProxy(
        server.url, lambda kind, number: "400" if (kind, number) == ("POST runs/search", 3) else ""
    ) as one:
        report = send(to=one.url)
    assert report.exit_code == 1 and report.outcomes[0].run_id == run_id
    assert "not today" in report.failed["second copies"][0]


def test_a_link_to_a_model_that_is_gone(recording: Recording, server: TrackingServer, send: Send) -> None:
    run_id = recording.run(metrics={"loss": [1.0]})
    model = recording.model(run_id, "unet", {"MLmodel": b"x"})
    recording.sql("DELETE FROM logged_models WHERE model_id = ?", model)
    report = send(verify=True)
    assert report.exit_code == 3 and model in report.damaged[run_id][0] and report.differences == {}
    assert send(accept_damage=True).exit_code == 0 == send(verify=True).exit_code


def test_a_server_that_takes_no_files_at_all_is_asked_a_few_times(
    recording: Recording, server: TrackingServer, send: Send
) -> None:
    """As where the server itself can't reach its store."""
    for number in range(3):
        recording.run(name=str(number), files={f"{one}.txt": b"x" for one in range(8)})
    with HostileProxy(server.url, lambda kind, _: "504 at once" if kind == "PUT artifacts" else "") as proxy:
        report = send(to=proxy.url, jobs=1)
        assert proxy.counts["PUT artifacts"] <= 3 * 8
    assert report.exit_code == 1 and len(report.failed) == 3 and not report.stopped
    assert send().exit_code == 0
