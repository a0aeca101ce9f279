"""`labtrack sync -s ssh://...`: recordings of another machine reach the server as if they were synced there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from sync_recording import Recording
from sync_server import TrackingServer

sys.path.append(str(Path(__file__).resolve().parents[1] / "pull"))
import sshd as servers


@pytest.fixture(scope="module")
def _sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Sshd]:
    with servers.running(tmp_path_factory.mktemp("pull") / "sshd") as found:
        yield found


@pytest.fixture
def sshd(_sshd: servers.Sshd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> servers.Sshd:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, value in _sshd.env.items():
        monkeypatch.setenv(name, value)
    return _sshd


def sync(source: str | Path, server: TrackingServer, *more: str) -> dict:
    command = [sys.executable, "-m", "labtrack", "sync", "-s", str(source), "-d", server.url, "--json", *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_pulled_and_synced_there_are_the_same_runs(
    sshd: servers.Sshd, recording: Recording, server: TrackingServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = recording.run()
    recording.points(first, "loss", [3.0, 2.0, 1.0])
    assert sync(recording.path, server)["counts"]["new"] == 1
    second = recording.run()
    recording.points(second, "loss", [3.0])
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "laptop"))  # another machine knows of no earlier sync
    source = sshd.address + quote(str(recording.folder))
    assert sync(source, server, "--verify")["counts"]["new"] == 1
    assert sync(source, server)["counts"]["new"] == 0
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert sync(recording.path, server)["counts"]["new"] == 0
    assert len(server.runs(recording.name)) == 2


def test_watch_pulls_again_until_the_run_has_ended(
    sshd: servers.Sshd, recording: Recording, server: TrackingServer
) -> None:
    run_id = recording.run(status="RUNNING")
    recording.points(run_id, "loss", [3.0])
    source = sshd.address + quote(str(recording.path))
    process = subprocess.Popen(
        [sys.executable, "-m", "labtrack", "sync", "-s", source, "-d", server.url, "--watch", "10", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ.copy(),
    )  # fmt: skip
    assert process.stderr is not None
    until = time.monotonic() + 60
    while time.monotonic() < until and recording.name not in server.experiments():
        assert process.poll() is None
    recording.points(run_id, "loss", [2.0, 1.0], first=1)
    recording.end(run_id)
    out, said = process.communicate(timeout=120)
    assert process.returncode == 0, out + said
    (run,) = server.runs(recording.name)
    assert run["info"]["status"] == "FINISHED"
    assert [one[1] for one in server.history(run["info"]["run_id"], "loss")] == [0, 1, 2]


def test_machine_that_cannot_be_reached_is_told_once(server: TrackingServer, sshd: servers.Sshd) -> None:
    command = [sys.executable, "-m", "labtrack", "sync", "-s", "ssh://127.0.0.1:1/runs", "-d", server.url]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr.count("can't be reached by ssh") == 1
    assert "Traceback" not in done.stderr
