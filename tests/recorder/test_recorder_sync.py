"""A folder of recordings on its way to a server, and what is removed then."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from recorder_env import Training
from sync_server import TrackingServer, server_with_a_file

from labtrack.local import recordings
from labtrack.recorder import amend
from labtrack.stores import open_store
from labtrack.sync import Options, sync
from labtrack.sync.main import opened
from labtrack.sync.progress import Quiet
from labtrack.sync.watch import watch


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrackingServer]:
    with server_with_a_file(tmp_path_factory.mktemp("server")) as found:
        yield found


RUNS = """
import mlflow, sys
mlflow.set_experiment("recorded")
for number in range(2):
    with mlflow.start_run(run_name=f"run {number}") as run:
        mlflow.log_param("number", number)
        for step in range(300): mlflow.log_metric("loss", step / 2, step=step)
        mlflow.log_text("x", "a/b.txt")
"""


def _old(root: Path) -> None:
    for path in (root / "recordings").iterdir():
        os.utime(path, (time.time() - 7200, time.time() - 7200))


def test_recordings_are_sent_once_verified_amended_and_removed(newest: Training, server: TrackingServer) -> None:
    newest.run(RUNS)
    source = newest.env["MLFLOW_TRACKING_URI"]
    assert not recordings.plan(source).journals  # nothing was sent
    report = sync(source, server.url, Options(verify=True))
    assert (report.failed, report.damaged, report.stopped, len(report.outcomes)) == ({}, {}, "", 2)
    again = sync(str(newest.root), server.url, Options(verify=True))
    assert again.outcomes == []
    with open_store(newest.root) as store:
        runs = list(store.runs())
    amend(newest.root, runs[0].id, tags={"slurm.end": "COMPLETED"})
    report = sync(source, server.url, Options(verify=True))
    assert [one.run_id for one in report.outcomes] == [runs[0].id]
    (sent,) = [one for one in server.runs("recorded") if one["info"]["run_name"] == "run 0"]
    assert {"key": "slurm.end", "value": "COMPLETED"} in sent["data"]["tags"]

    assert recordings.plan(source).kept == {"written within the last hour": 2}
    _old(newest.root)
    plan = recordings.plan(source)
    assert (len(plan.journals), len(plan.runs), plan.kept) == (2, 2, {})
    assert recordings.plan(source, older_than=3600).kept == {"not old enough": 2}
    before = recordings.inodes(newest.root)
    recordings.remove(plan)
    assert recordings.inodes(newest.root) == before - plan.inodes
    assert list((newest.root / "recordings").iterdir()) == []
    assert not [path for path in (newest.root / "artifacts").rglob("*") if path.is_file()]
    assert len(server.runs("recorded")) == 2


def test_recordings_that_are_being_written_are_followed(newest: Training, server: TrackingServer) -> None:
    code = """
import mlflow, time
mlflow.set_experiment("followed")
with mlflow.start_run():
    for step in range(40):
        mlflow.log_metric("loss", step, step=step)
        time.sleep(0.1)
"""
    process = newest.start(code)
    while not list((newest.root / "recordings").glob("*.journal")):
        assert process.poll() is None
        time.sleep(0.05)  # of a loop that polls
    with opened(str(newest.root), server.url, Options(), Quiet()) as syncer:
        report = watch(syncer, every=0.5)
    assert process.wait(60) == 0
    assert (report.failed, report.damaged) == ({}, {})
    (run,) = server.runs("followed")
    assert run["info"]["status"] == "FINISHED"
    history = server.get("metrics/get-history", run_id=run["info"]["run_id"], metric_key="loss")["metrics"]
    assert [one["step"] for one in history] == list(range(40))
