"""Directories of Pebble for a server that is a folder, with Debian's certbot."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from acme_server import Directory, Server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server, and nothing on it yet."""
    for program in ("certbot", "pebble", "pebble-challtestsrv"):
        if not shutil.which(program):
            pytest.skip(f"needs {program}: apt install certbot pebble")
    with Server.running(tmp_path / "server") as made:
        yield made


@pytest.fixture
def directory(server: Server, tmp_path: Path) -> Iterator[Directory]:
    """An ACME directory with a CA of its own."""
    with Directory.running(tmp_path / "directory", server) as made:
        yield made
