"""kill -9 anywhere, and again: the server has in the end what an uninterrupted sync gives."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sync_proxy import HostileProxy
from sync_recording import Recording, mixed
from sync_server import TrackingServer, snapshot

from labtrack.sync import Options, sync

DRIVER = Path(__file__).with_name("sync_killed.py")
CHAINS = int(os.environ.get("LABTRACK_TEST_CHAINS", "40"))
SHORT = 10  # of them in `make test`
KILLS = 5  # in each chain: 200 in all
EVENTS = 200  # of one uninterrupted sync: calls and lines of the journal, before and after each


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return mixed(tmp_path_factory.mktemp("killed") / "original")


@pytest.fixture(scope="module")
def whole(original: Recording, server: TrackingServer, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What an uninterrupted sync gives."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        report = sync(original.path, server.url, Options(experiment="whole", deleted=True))
    assert report.exit_code == 0, report
    found = snapshot(server, "whole")
    assert len(found) == 12
    server.forget()
    return found


@pytest.fixture(autouse=True)
def forgotten(server: TrackingServer) -> Iterator[None]:
    """All tests send the same runs, whose copies are found in whatever experiment they are."""
    yield
    server.forget()


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=[pytest.mark.long] * (seed >= SHORT)) for seed in range(CHAINS)]
)
def test_killed_anywhere(
    seed: int, original: Recording, whole: list[Any], server: TrackingServer, tmp_path: Path
) -> None:
    order = {
        "source": str(original.path), "to": server.url, "experiment": f"killed {seed}",
        "state": str(tmp_path / "state"), "seed": seed, "kills": KILLS, "most": EVENTS,
        "forgets": seed % 4 == 3,
    }  # fmt: skip
    command = [sys.executable, DRIVER]
    done = subprocess.run(command, input=json.dumps(order), capture_output=True, text=True, check=True, timeout=120)
    said = json.loads(done.stdout)
    assert said == {"killed": KILLS, "code": 0}, done.stderr
    assert snapshot(server, f"killed {seed}") == whole


@pytest.mark.parametrize("seed", range(3))
def test_killed_by_the_clock(
    seed: int, original: Recording, whole: list[Any], server: TrackingServer, tmp_path: Path
) -> None:
    """The command itself, killed from outside."""
    chance, name = random.Random(seed), f"by the clock {seed}"  # noqa: S311
    command = [sys.executable, "-m", "labtrack", "sync", "-s", original.path, "-d", server.url, "-e", name, "-x"]
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(0.4, 1.6))
        process.kill()
        process.wait()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert snapshot(server, name) == whole


@pytest.mark.parametrize("comes", ["while the next sync works", "after it"])
@pytest.mark.parametrize("kind", ["POST runs/create", "POST logged-models"])
def test_a_create_that_outlives_its_sync(
    kind: str, comes: str, recording: Recording, server: TrackingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server carries out what the killed sync had sent, when the next one has already looked for it."""
    recording.model(recording.run(), "unet", {"MLmodel": b"flavors: {}"})
    held = threading.Event()

    def first(asked: str, number: int) -> str:
        if asked == kind and number == 1:
            held.set()
            return "held"
        return ""

    with HostileProxy(server.url, first) as proxy:
        process = subprocess.Popen([sys.executable, "-m", "labtrack", "sync", "-s", recording.path, "-d", proxy.url])
        assert held.wait(60)
        process.kill()
        process.wait()

        def last(asked: str, _: int) -> str:
            if asked == "POST runs/update" and comes == "while the next sync works":
                proxy.let_go()
            return ""

        monkeypatch.setattr(proxy, "choose", last)
        assert sync(recording.path, proxy.url).exit_code == 0
        if comes == "after it":
            proxy.let_go()
            assert sync(recording.path, proxy.url).exit_code == 0
        assert {one.todo for one in sync(recording.path, proxy.url).planned} == {"there"}
    active = [one for one in server.runs(recording.name) if one["info"]["lifecycle_stage"] == "active"]
    experiment = server.experiments()[recording.name]
    models = server.post("logged-models/search", experiment_ids=[experiment], max_results=50)["models"]
    assert len(active) == 1 and len(models) == 1
    assert models[0]["info"]["status"] == "LOGGED_MODEL_READY"
    assert [one["model_id"] for one in active[0]["outputs"]["model_outputs"]] == [models[0]["info"]["model_id"]]
