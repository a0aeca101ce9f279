"""Following runs that are being recorded; two syncs at once; stopping."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sync_proxy import HostileProxy
from sync_recording import Recording
from sync_server import TrackingServer

WRITER = Path(__file__).with_name("sync_writer.py")


def command(recording: Recording, url: str, *more: str) -> list[str]:
    return [sys.executable, "-m", "labtrack", "sync", "-s", str(recording.path), "-d", url, *more]


def writer(recording: Recording, run_id: str, points: int, pause: float) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, WRITER, run_id, recording.path, str(points), str(pause)])


def steps(server: TrackingServer, recording: Recording) -> list[int]:
    runs = server.runs(recording.name) if recording.name in server.experiments() else []
    return [one[1] for run in runs for one in server.history(run["info"]["run_id"], "loss")]


@pytest.fixture
def watching(recording: Recording, server: TrackingServer) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command(recording, server.url, "--watch", "1", "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.wait()


def test_points_are_visible_within_5_s_and_it_ends_with_the_run(
    recording: Recording, server: TrackingServer, watching: subprocess.Popen[str]
) -> None:
    run_id = recording.run(status="RUNNING")
    process = writer(recording, run_id, points=60, pause=0.1)
    late = []
    while process.poll() is None:
        written = recording.sql("SELECT max(step), max(timestamp) FROM metrics")[0]
        seen = max(steps(server, recording), default=-1)
        if written[0] is not None and seen < written[0]:
            # the oldest point that is not there yet
            oldest = recording.sql("SELECT min(timestamp) FROM metrics WHERE step > ?", seen)[0][0]
            late.append(time.time() - oldest / 1000)
        time.sleep(0.2)
    assert late and max(late) < 5, late
    out, err = watching.communicate(timeout=20)
    assert watching.returncode == 0, err
    report = json.loads(out)
    assert report["counts"]["points"] == 60 and report["counts"]["new"] == 1
    (run,) = server.runs(recording.name)
    assert run["info"]["status"] == "FINISHED"
    assert steps(server, recording) == list(range(60))


def test_six_jobs_record_while_it_watches(
    recording: Recording, server: TrackingServer, watching: subprocess.Popen[str]
) -> None:
    ids = [recording.run(name=f"job {one}", status="RUNNING") for one in range(6)]
    jobs = [writer(recording, one, points=80, pause=0.02) for one in ids]
    assert [job.wait() for job in jobs] == [0] * 6
    _, err = watching.communicate(timeout=60)
    assert watching.returncode == 0, err
    runs = server.runs(recording.name)
    assert len(runs) == 6
    for run in runs:
        assert run["info"]["status"] == "FINISHED"
        assert [one[1] for one in server.history(run["info"]["run_id"], "loss")] == list(range(80))


def test_a_run_that_ends_while_it_is_sent_is_sent_as_ended(recording: Recording, server: TrackingServer) -> None:
    run_id = recording.run(status="RUNNING", metrics={"loss": [1.0]})

    def ends(kind: str, _count: int) -> str:
        if kind == "POST runs/log-batch":  # the sync has read it as running
            recording.end(run_id)
        return ""

    with HostileProxy(server.url, ends) as proxy:
        done = subprocess.run(
            command(recording, proxy.url, "--watch", "0.5"), capture_output=True, text=True, check=False, timeout=60
        )
        assert proxy.counts["POST runs/log-batch"] > 0
    assert done.returncode == 0, done.stderr
    (run,) = server.runs(recording.name)
    assert run["info"]["status"] == "FINISHED"


def test_it_outlives_a_server_that_is_away(recording: Recording, server: TrackingServer) -> None:
    run_id = recording.run(status="RUNNING", metrics={"loss": [1.0]})
    away = threading.Event()
    environment = {**os.environ, "LABTRACK_SYNC_PATIENCE": "2"}
    with HostileProxy(server.url, lambda *_: "reset" if away.is_set() else "") as proxy:
        process = subprocess.Popen(
            command(recording, proxy.url, "--watch", "0.5"), env=environment, stderr=subprocess.PIPE, text=True
        )
        until(lambda: steps(server, recording) == [0])
        away.set()
        recording.points(run_id, "loss", [0.5, 0.4], first=1)
        time.sleep(6)
        assert process.poll() is None and steps(server, recording) == [0]
        away.clear()
        until(lambda: steps(server, recording) == [0, 1, 2])
        recording.end(run_id)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err


def test_it_waits_for_a_server_that_is_away_at_its_start(recording: Recording, server: TrackingServer) -> None:
    run_id = recording.run(status="RUNNING", metrics={"loss": [1.0]})
    away = threading.Event()
    away.set()
    environment = {**os.environ, "LABTRACK_SYNC_PATIENCE": "1"}
    with HostileProxy(server.url, lambda *_: "reset" if away.is_set() else "") as proxy:
        process = subprocess.Popen(
            command(recording, proxy.url, "--watch", "0.5"), env=environment, stderr=subprocess.PIPE, text=True
        )
        until(lambda: proxy.counts["POST experiments/search"] > 4)
        assert process.poll() is None
        away.clear()
        until(lambda: steps(server, recording) == [0])
        recording.end(run_id)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err


def test_a_dead_run_that_the_filter_leaves_out_does_not_keep_it(recording: Recording, server: TrackingServer) -> None:
    recording.run(status="RUNNING", name="dead")
    recording.run(name="good")
    line = command(recording, server.url, "--watch", "0.5", "--filter", "name = 'good'")
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert [one["info"]["run_name"] for one in server.runs(recording.name)] == ["good"]


def test_a_terminated_watch_sends_once_more_what_there_is(recording: Recording, server: TrackingServer) -> None:
    run_id = recording.run(status="RUNNING", metrics={"loss": [1.0]})
    process = subprocess.Popen(
        command(recording, server.url, "--watch", "60", "--json"), stdout=subprocess.PIPE, text=True
    )
    until(lambda: steps(server, recording) == [0])
    recording.points(run_id, "loss", [0.5, 0.4], first=1)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert steps(server, recording) == [0, 1, 2]
    assert process.returncode == 0 and json.loads(out)["counts"]["points"] == 3


def test_it_asks_for_what_has_grown_alone(
    recording: Recording, server: TrackingServer, watching: subprocess.Popen[str]
) -> None:
    for number in range(5):
        recording.run(name=str(number))
    run_id = recording.run(status="RUNNING")
    writer(recording, run_id, points=40, pause=0.1).wait()
    out, err = watching.communicate(timeout=30)
    assert watching.returncode == 0, err
    report = json.loads(out)
    assert report["counts"]["points"] == 40 and len(report["planned"]) == 6
    assert {one["ending"] for one in report["planned"]} == {"whole"}


def until(holds: Any, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.2)


def test_the_second_says_who_holds_the_lock(
    recording: Recording, server: TrackingServer, watching: subprocess.Popen[str]
) -> None:
    run_id = recording.run(status="RUNNING", metrics={"loss": [1.0]})
    until(lambda: steps(server, recording) == [0])
    done = subprocess.run(command(recording, server.url), capture_output=True, text=True, check=False)
    assert done.returncode == 75
    assert (
        f"process {watching.pid} of" in done.stderr and "since 20" in done.stderr and str(recording.path) in done.stderr
    )
    recording.end(run_id)
    assert watching.wait(timeout=20) == 0


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_it_stops_cleanly_and_says_what_is_left(
    recording: Recording, server: TrackingServer, sent: signal.Signals
) -> None:
    for number in range(30):
        recording.run(name=f"run {number}", metrics={"loss": [float(number)] * 100}, files={"a.txt": b"a"})
    slow = HostileProxy(server.url, lambda *_: time.sleep(0.1) or "")  # type: ignore[func-returns-value]
    with slow:
        process = subprocess.Popen(
            command(recording, slow.url), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        until(lambda: recording.name in server.experiments() and len(server.runs(recording.name)) > 4)
        process.send_signal(sent)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
    assert "runs are left: the same command goes on with them" in err and "Traceback" not in err
    assert subprocess.run(command(recording, server.url), check=False, capture_output=True).returncode == 0
    assert len(server.runs(recording.name)) == 30
