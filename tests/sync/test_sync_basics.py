"""One run and many, sent once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sync_recording import T0, Recording
from sync_server import TrackingServer, tag

from labtrack.sync import Report

Send = Callable[..., Report]


def test_a_run_arrives_whole(recording: Recording, server: TrackingServer, send: Send) -> None:
    run_id = recording.run(
        params={"lr": "0.1", "empty": ""},
        tags={"mlflow.note.content": "line 1\nline 2", "kind": "fäst"},
        metrics={"loss": [1.0, 0.5, float("nan")], "best": [float("inf")]},
        files={"a.txt": b"one", "plots/b c.bin": b"\0" * 70_000},
        status="KILLED",
    )
    report = send()
    assert report.exit_code == 0, report
    (run,) = server.runs(recording.name)
    info = run["info"]
    assert (info["status"], info["start_time"], info["end_time"]) == ("KILLED", T0, T0 + 5000)
    assert (info["run_name"], info["user_id"]) == ("a run", "ada")
    assert {one["key"]: one.get("value", "") for one in run["data"]["params"]} == {"lr": "0.1", "empty": ""}
    assert tag(run, "kind") == "fäst" and tag(run, "mlflow.note.content") == "line 1\nline 2"
    assert tag(run, "labtrack.source_run_id") == run_id
    loss = server.history(info["run_id"], "loss")
    assert [one[:2] for one in loss] == [(T0, 0), (T0 + 10, 1), (T0 + 20, 2)]
    assert [one[2] for one in loss[:2]] == [1.0, 0.5] and loss[2][2] != loss[2][2]
    assert server.history(info["run_id"], "best") == [(T0, 0, 1.7976931348623157e308)]
    assert server.files(info["artifact_uri"]) == {"a.txt": b"one", "plots/b c.bin": b"\0" * 70_000}


def test_a_second_sync_sends_nothing(recording: Recording, server: TrackingServer, send: Send) -> None:
    for number in range(3):
        recording.run(name=f"run {number}", metrics={"loss": [1.0] * 50}, files={"a.txt": b"x"})
    send()
    before = server.runs(recording.name)
    report = send()
    assert server.runs(recording.name) == before
    assert [one.todo for one in report.planned] == ["there"] * 3
    assert set(report.calls) == {"POST experiments/search", "POST runs/search"}


def test_small_runs_take_seven_calls(recording: Recording, send: Send) -> None:
    for number in range(10):
        recording.run(
            params={f"p{one}": str(one) for one in range(10)},
            metrics={"loss": [float(number)] * 100},
            files={"a.txt": b"1", "b.txt": b"2"},
        )
    report = send()
    assert sum(report.calls.values()) - 7 * 10 <= 5, report.calls  # once: experiments, copies (2), a new one, doubles


def test_big_runs_go_in_full_batches(recording: Recording, server: TrackingServer, send: Send) -> None:
    run_id = recording.run(
        params={f"p{one}": str(one) for one in range(250)},
        metrics={f"m{one}": [float(step) for step in range(2500)] for one in range(4)},
        files={f"f{one}.bin": bytes([one]) * 1000 for one in range(20)},
    )
    report = send()
    assert report.calls["POST runs/log-batch"] == 11
    (run,) = server.runs(recording.name)
    assert len(run["data"]["params"]) == 250
    for key in range(4):
        assert len(server.history(run["info"]["run_id"], f"m{key}")) == 2500
    assert len(server.files(run["info"]["artifact_uri"])) == 20
    recording.points(run_id, "m0", [1.0] * 10, first=2500)
    report = send()
    assert report.calls["POST runs/log-batch"] == 1 and report.outcomes[0].points == 10
    assert len(server.history(run["info"]["run_id"], "m0")) == 2510


def test_verify_finds_what_differs(recording: Recording, server: TrackingServer, send: Send) -> None:
    recording.run(params={"a": "1"}, metrics={"loss": [1.0, 2.0]}, files={"a.txt": b"one"})
    assert send(verify=True).differences == {}
    (run,) = server.runs(recording.name)
    run_id = run["info"]["run_id"]
    server.post("runs/set-tag", run_id=run_id, key="mlflow.user", value="eve")
    server.post("runs/log-metric", run_id=run_id, key="loss", value=9.0, timestamp=T0, step=77)
    (server.folder / "artifacts" / run["info"]["experiment_id"] / run_id / "artifacts" / "a.txt").write_bytes(b"two")
    report = send(verify=True, dry_run=True)
    (differences,) = report.differences.values()
    assert report.exit_code == 1
    assert any("tag mlflow.user is 'eve'" in one for one in differences)
    assert any("loss: 1 points at the server are not in the recording (step 77: 9.0)" in one for one in differences)
    assert any("a.txt has other bytes" in one for one in differences)
    assert len(differences) == 3, differences


@pytest.mark.parametrize("stage", ["active", "deleted"])
def test_deleted_runs_only_when_asked(recording: Recording, server: TrackingServer, send: Send, stage: str) -> None:
    run_id = recording.run(stage=stage)
    send(run_ids=[run_id])
    assert len(server.runs(recording.name)) == (stage == "active")
    send(deleted=True)
    send(deleted=True)
    (run,) = server.runs(recording.name)
    assert run["info"]["lifecycle_stage"] == stage
    assert run["info"]["status"] == "FINISHED"
