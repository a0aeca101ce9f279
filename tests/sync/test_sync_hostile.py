"""Every kind of call fails in every way, and the server has in the end what a quiet network gives."""

from __future__ import annotations

from pathlib import Path

import pytest
from sync_proxy import HostileProxy
from sync_recording import mixed
from sync_server import TrackingServer, snapshot

from labtrack.sync import Options, sync

FAULTS = ("lost", "504", "503", "429", "reset", "hang", "late")
KINDS = {
    "POST experiments/search", "POST experiments/create", "POST runs/search", "POST runs/create", "POST runs/log-batch",
    "POST runs/log-inputs", "POST runs/outputs", "POST runs/update", "POST runs/delete", "PUT artifacts",
    "GET artifacts", "POST logged-models", "POST logged-models/search", "PATCH logged-models/ID",
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_every_kind_of_call(
    fault: str, server: TrackingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    original = mixed(tmp_path / "original")
    assert sync(original.path, server.url, Options(experiment=f"quiet {fault}", deleted=True)).exit_code == 0
    quiet = snapshot(server, f"quiet {fault}")
    server.forget()
    # the first of each kind, and some later ones; a hanging call costs seconds, so only one of each hangs
    hit_ones = (1,) if fault == "hang" else (1, 2, 6)
    with HostileProxy(server.url, lambda _, number: fault if number in hit_ones else "") as proxy:
        report = sync(original.path, proxy.url, Options(experiment=f"hostile {fault}", deleted=True))
    assert report.exit_code == 0, report
    hit = {kind for (kind, said), count in proxy.faults.items() if said == fault and count}
    assert not KINDS - hit
    assert snapshot(server, f"hostile {fault}") == quiet


def test_a_create_that_comes_late_leaves_no_second_run(server: TrackingServer, tmp_path: Path) -> None:
    """An error at first, and carried out long after the client has looked: told apart by who made it."""
    recording = mixed(tmp_path / "recording")
    with HostileProxy(server.url, lambda kind, _: "late" if kind == "POST runs/create" else "") as proxy:
        report = sync(recording.path, proxy.url, Options(experiment="late creates"))
    assert report.exit_code == 0, report
    active = [one for one in server.runs("late creates") if one["info"]["lifecycle_stage"] == "active"]
    assert len(active) == 10
