"""The server that recordings are sent to, and recordings."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sync_recording import Recording
from sync_server import TrackingServer, postgresql_bin, server_with_a_file, tracking_server

from labtrack.sync import Options, Report, sync


@pytest.fixture(scope="session")
def server() -> Iterator[TrackingServer]:
    """One for all tests: each has an experiment of its own."""
    if postgresql_bin() is None:
        pytest.skip("PostgreSQL is not installed (apt install postgresql)")
    with tracking_server(workers=2) as found:
        yield found


@pytest.fixture(scope="session")
def second(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrackingServer]:
    """A second server, with a SQLite file, as a source."""
    with server_with_a_file(tmp_path_factory.mktemp("source")) as found:
        yield found


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No login, setting or journal of the caller."""
    for name in os.environ:
        if name.startswith(("AWS_", "MLFLOW_", "LABTRACK_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    """An empty one."""
    return Recording(tmp_path / "recording")


@pytest.fixture
def send(server: TrackingServer, recording: Recording) -> Callable[..., Report]:
    """Sends the recording."""

    def sent(source: Path | str | None = None, to: str = "", **options: object) -> Report:
        return sync(source or recording.path, to or server.url, Options(**options))  # type: ignore[arg-type]

    return sent
