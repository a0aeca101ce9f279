"""What ends a run where Slurm is not asked: signs of life, exit codes, and what Slurm adds to them."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm, job
from job_recorded import left, read

from labtrack.run import ending, heartbeat, recording, slurm
from labtrack.run.reconcile import reconcile

FIELDS = ("JobID", "State", "ExitCode")


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "c")
    return FakeSlurm(tmp_path / "slurm", monkeypatch, ["sacct", "scontrol", "squeue"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def beat(folder: Path, key: str, age: float = 0, **facts: object) -> None:
    place = recording.job_folder(folder, key)
    place.mkdir(parents=True)
    (place / "heartbeat").write_text(
        json.dumps({"host": "elsewhere", "pid": 1, "boot": "", "at": time.time() - age, **facts})
    )


BEATS = [
    ({}, "RUNNING"),
    ({"age": 3000}, "RUNNING"),
    ({"age": 4000}, "FAILED"),
    ({"age": 4000, "host": socket.gethostname(), "pid": 1}, "RUNNING"),  # it lives, and its disk hangs
    ({"age": 400, "host": socket.gethostname(), "pid": 2**22 + 1}, "FAILED"),
    ({"age": 400, "host": socket.gethostname(), "pid": 1, "boot": "another"}, "FAILED"),
    ({"code": 0}, "FINISHED"),
    ({"code": 143}, "KILLED"),
    ({"code": 1}, "FAILED"),
    ({"at": "x"}, "RUNNING"),
]


def test_without_slurm_the_heartbeat_counts(folder: Path) -> None:
    runs = [left(folder, f"local/a{number}") for number in range(len(BEATS))]
    for number, (facts, _) in enumerate(BEATS):
        beat(folder, f"local/a{number}", **facts)
    reconcile(folder)
    for run_id, (facts, status) in zip(runs, BEATS):
        run = read(folder, run_id)
        assert (facts, run.status) == (facts, status)
        assert ("labtrack.end" in run.tags) == (status != "RUNNING")


def test_heartbeat_that_is_no_heartbeat_is_none(folder: Path) -> None:
    assert heartbeat.read(folder, "local/x") is None
    beat(folder, "local/x")
    (recording.job_folder(folder, "local/x") / "heartbeat").write_text("[1")
    assert heartbeat.read(folder, "local/x") is None


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (0, "FINISHED"),
        (1, "FAILED"),
        (143, "KILLED"),
        (137, "KILLED"),
        (130, "KILLED"),
        (139, "FAILED"),
        (134, "FAILED"),
        (255, "FAILED"),
        (129, "KILLED"),
    ],
)
def test_status_by_exit_code(code: int, status: str) -> None:
    assert ending.status_of(code) == status


def test_command_ends_the_runs_of_its_attempt_only(folder: Path) -> None:
    mine, other = left(folder), left(folder, "c/6/batch")
    earlier = left(folder, tags={"labtrack.attempt": "1"})
    ending.close_runs(folder, "c/5/batch", 0, 143)
    runs = [read(folder, one) for one in (mine, other, earlier)]
    assert [one.status for one in runs] == ["KILLED", "RUNNING", "RUNNING"]
    assert runs[0].tags["labtrack.end"] == "signal SIGTERM" and runs[0].tags["labtrack.exit_code"] == "143"


def test_command_that_requeued_its_job_leaves_its_runs_open(folder: Path) -> None:
    run_id = left(folder)
    ending.close_runs(folder, "c/5/batch", 0, 143, requeued=True)
    run = read(folder, run_id)
    assert run.status == "RUNNING" and run.tags["labtrack.requeued"] == "attempt 0: signal SIGTERM"
    assert "labtrack.end" not in run.tags


@pytest.mark.parametrize(
    ("code", "state", "status"),
    [
        (137, "OUT_OF_MEMORY", "FAILED"),
        (1, "COMPLETED", "FAILED"),  # of a script that goes on after it
    ],
)
def test_slurm_says_why_a_command_failed(fake: FakeSlurm, folder: Path, code: int, state: str, status: str) -> None:
    run_id = left(folder)
    ending.close_runs(folder, "c/5/batch", 0, code)
    before = read(folder, run_id)
    fake.says([job("5", state)])
    assert len(reconcile(folder).changes) == 1
    run = read(folder, run_id)
    assert (run.status, run.tags["slurm.end"], run.end_time) == (status, state, before.end_time)
    assert reconcile(folder).changes == [], "it is not asked again"


def test_a_run_that_the_training_ended_keeps_its_status(fake: FakeSlurm, folder: Path) -> None:
    run_id = left(folder, status="FINISHED", tags={"labtrack.exit_code": "1"})
    fake.says([job("5", "TIMEOUT")])
    reconcile(folder)
    run = read(folder, run_id)
    assert run.status == "FINISHED"


@pytest.mark.parametrize(
    ("said", "requeued"),
    [
        ("JobId=5 JobState=PENDING Restarts=1", True),
        ("JobId=5 JobState=REQUEUED Restarts=0", True),
        ("JobId=5 JobState=RUNNING Restarts=1", True),
        ("JobId=5 JobState=RUNNING Restarts=0", False),
        ("JobId=5 JobState=COMPLETING Restarts=0", False),
        ([1, "Invalid job id specified"], False),
        ([1, "Unable to contact slurm controller"], False),
        ("", False),
    ],
)
def test_requeue_is_seen(fake: FakeSlurm, said: object, requeued: bool) -> None:
    fake.says(scontrol=said)
    assert slurm.was_requeued("5", 0, {"SLURM_JOB_ID": "5"}) is requeued
    assert slurm.was_requeued("5", 0, {}) is False
