"""How a run ends: whole; whole, changed; incomplete, which every sync says again until it is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sync_proxy import HostileProxy
from sync_recording import T0, Recording, new_id
from sync_server import TrackingServer, tag

from labtrack.sync import Report
from labtrack.tracking.destination import Destination
from labtrack.tracking.http import ApiError, Http

Send = Callable[..., Report]


def state_of(run: dict[str, Any]) -> str:
    return str(json.loads(tag(run, "labtrack.sync_state") or "{}").get("state"))


def dead_link(recording: Recording, run_id: str, name: str = "last.ckpt") -> Path:
    place = recording.file(run_id, "whole.txt", b"whole").with_name(name)
    place.symlink_to("nowhere")
    return place


def test_damage_is_told_by_every_sync_until_it_is_mended(
    recording: Recording, server: TrackingServer, send: Send
) -> None:
    run_id, other = recording.run(metrics={"loss": [1.0]}), recording.run(name="other")
    place = dead_link(recording, run_id)
    for _ in range(2):
        report = send()
        assert report.exit_code == 3 and list(report.damaged) == [run_id] and report.failed == {}
        assert len(report.damaged[run_id]) == 1 and "last.ckpt" in report.damaged[run_id][0]
        runs = {tag(one, "labtrack.source_run_id"): one for one in server.runs(recording.name)}
        assert (state_of(runs[run_id]), state_of(runs[other])) == ("incomplete", "complete")
        assert {one.run_id: one.ending for one in report.planned} == {run_id: "incomplete", other: "whole"}
    place.unlink()
    place.write_bytes(b"weights")
    report = send()
    assert report.exit_code == 0 and {one.ending for one in report.planned} == {"whole"}
    runs = {tag(one, "labtrack.source_run_id"): one for one in server.runs(recording.name)}
    assert state_of(runs[run_id]) == "complete"
    assert server.files(runs[run_id]["info"]["artifact_uri"])["last.ckpt"] == b"weights"


def test_damage_of_a_run_that_was_whole_is_told(recording: Recording, server: TrackingServer, send: Send) -> None:
    run_id = recording.run()
    assert send().exit_code == 0
    dead_link(recording, run_id)
    assert send().exit_code == 3
    assert send().exit_code == 3
    (run,) = server.runs(recording.name)
    assert state_of(run) == "incomplete"


def test_accepted_damage_is_in_a_tag_and_new_damage_is_told(
    recording: Recording, server: TrackingServer, send: Send
) -> None:
    run_id = recording.run()
    dead_link(recording, run_id)
    assert send().exit_code == 3
    report = send(accept_damage=True)
    assert report.exit_code == 0 and "last.ckpt" in report.accepted[run_id][0]
    (run,) = server.runs(recording.name)
    assert "last.ckpt" in (tag(run, "labtrack.accepted_damage") or "") and state_of(run) == "accepted"
    report = send()
    assert report.exit_code == 0 and report.planned[0].todo == "there" and report.planned[0].ending == "accepted"
    dead_link(recording, run_id, "best.ckpt")
    report = send()
    assert report.exit_code == 3 and len(report.damaged[run_id]) == 1 and "best.ckpt" in report.damaged[run_id][0]


def test_what_belongs_to_no_run_can_be_accepted_too(recording: Recording, send: Send, tmp_path: Path) -> None:
    folder = tmp_path / "mlruns" / "1"
    broken, good = new_id(), new_id()
    for run_id, text in ((broken, "start_time: ["), (good, f"start_time: {T0}\nend_time: {T0}\nstatus: 3")):
        (folder / run_id / "metrics").mkdir(parents=True)
        (folder / run_id / "meta.yaml").write_text(f"run_id: {run_id}\n{text}\n")
    (folder / "meta.yaml").write_text(f"name: {recording.name}\nexperiment_id: '1'\ncreation_time: {T0}\n")
    for _ in range(2):
        report = send(folder.parent)
        assert report.exit_code == 3 and list(report.damaged) == [broken], report
    # other runs alone were asked for, or it may be one that the filter wants
    assert send(folder.parent, run_ids=[good]).exit_code == 0
    assert list(send(folder.parent, wanted=lambda *_: False).damaged) == [broken]
    assert send(folder.parent, accept_damage=True).exit_code == 0
    assert send(folder.parent).exit_code == 0


def test_the_command_names_it_and_ends_with_3(recording: Recording, server: TrackingServer) -> None:
    run_id = recording.run(params={"long": "x" * 7000})
    dead_link(recording, run_id)
    command = [sys.executable, "-m", "labtrack", "sync", "-s", str(recording.path), "-d", server.url]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == 3 and f"incomplete: run {run_id}: " in done.stderr and "--accept-damage" in done.stdout
    done = subprocess.run([*command, "--accept-damage", "--json"], capture_output=True, text=True, check=False)
    report = json.loads(done.stdout)
    assert done.returncode == 0 == report["exit_code"] and report["version"] == 2
    assert report["endings"] == {"accepted": 1} and list(report["accepted"]) == [run_id]
    (recording.folder / "artifacts/1" / run_id / "artifacts/last.ckpt").unlink()
    recording.params(run_id, {"more": "1"})
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert json.loads(done.stdout)["endings"] == {"whole, changed": 1}


@pytest.mark.parametrize("often", [1, 100])
def test_a_batch_that_is_acknowledged_and_not_kept(
    often: int, recording: Recording, server: TrackingServer, send: Send
) -> None:
    run_id = recording.run(params={"lr": "1"}, metrics={"loss": [float(one) for one in range(3500)]})

    def drop(kind: str, number: int) -> str:
        return "dropped" if kind == "POST runs/log-batch" and 2 <= number < 2 + often else ""

    with HostileProxy(server.url, drop) as proxy:
        report = send(to=proxy.url, jobs=1)
    (run,) = server.runs(recording.name)
    if often == 1:
        assert report.exit_code == 0, report
        assert len(server.history(run["info"]["run_id"], "loss")) == 3500 and state_of(run) == "complete"
        return
    assert report.exit_code == 1 and "acknowledged" in report.failed[run_id][0]
    assert state_of(run) != "complete"
    assert send(verify=True).exit_code == 0
    (run,) = server.runs(recording.name)
    assert len(server.history(run["info"]["run_id"], "loss")) == 3500 and state_of(run) == "complete"


@pytest.mark.parametrize("pages", ["as MLflow's SQL store", "other tokens", "none"])
def test_points_are_counted_at_any_server(
    pages: str, recording: Recording, server: TrackingServer, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording.run(metrics={"loss": [float(one) for one in range(600)], "f1": [0.5]})
    send()
    (run,) = server.runs(recording.name)
    destination = Destination(Http(server.url, {}), "me")
    ask, read = destination.ask, []

    def other(method: str, path: str, data: dict[str, Any]) -> dict[str, Any]:
        asked = {**data, "page_token": data.get("page_token", "").removeprefix("other ")}
        if pages == "none":
            asked["max_results"] = 25_000
        found = ask(method, path, asked)
        if pages == "other tokens" and found.get("next_page_token"):
            found["next_page_token"] = f"other {found['next_page_token']}"
        read.append(len(found.get("metrics", ())))
        return found

    monkeypatch.setattr(destination, "ask", other)
    counts = (1, 2, 501, 599, 600, 601, 700)
    assert [one for one in counts if destination.has_points(run["info"]["run_id"], "loss", one)] == [600]
    # of few points all are read anyway
    assert (read.count(600) == 2) == (pages == "as MLflow's SQL store")
    assert destination.has_points(run["info"]["run_id"], "f1", 1)
    assert not destination.has_points(run["info"]["run_id"], "f1", 600)


def test_a_value_that_mlflow_cannot_read_is_refused_and_not_dropped(
    recording: Recording, server: TrackingServer, send: Send
) -> None:
    """MLflow answers 200 to a fractional step, and leaves out what stands behind it, the tags too."""
    recording.run()
    send()
    (run,) = server.runs(recording.name)
    destination = Destination(Http(server.url, {}), "me")
    bad = {"key": "loss", "value": 1.0, "timestamp": 1, "step": 0.5}
    with pytest.raises(ApiError):
        destination.log_batch(run["info"]["run_id"], [bad], tags={"behind": "it"})


def test_an_answer_that_is_not_json_is_none(recording: Recording, server: TrackingServer, send: Send) -> None:
    run_id = recording.run(metrics={"loss": [1.0]})

    def page(kind: str, _: int) -> str:
        return "page" if kind == "POST runs/log-batch" else ""

    with HostileProxy(server.url, page) as proxy:
        report = send(to=proxy.url)
    assert report.exit_code == 1 and "not as a tracking server" in report.failed[run_id][0]
