"""An sshd for all tests, and a recording behind it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sshd as servers

sys.path.append(str(Path(__file__).resolve().parents[1] / "unit"))


@pytest.fixture(scope="session")
def _sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Sshd]:
    with servers.running(tmp_path_factory.mktemp("pull") / "sshd") as found:
        yield found


@pytest.fixture
def sshd(_sshd: servers.Sshd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> servers.Sshd:
    """It takes the test's key for anything; cache and state are the test's own."""
    for name in os.environ:
        if name.startswith(("MLFLOW_", "LABTRACK_", "AWS_")):
            monkeypatch.delenv(name)
    for name, value in _sshd.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    _sshd.authorize()
    return _sshd


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """A folder at the far side."""
    folder = tmp_path / "far side" / "runs"
    folder.mkdir(parents=True)
    return folder
