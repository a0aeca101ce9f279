"""Trainings with the oldest and the newest MLflow."""

from __future__ import annotations

from pathlib import Path

import pytest
from recorder_env import Training


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No cache or journal of the caller; each call of a reader looks at the journals."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("labtrack.stores.recordings._EVERY", 0.0)
    monkeypatch.setattr("labtrack.stores.recordings._SHARE", 0)


# Each starts several processes that import MLflow, for seconds: `make test` has what the oldest records, at all.
@pytest.fixture(params=["newest", pytest.param("oldest", marks=pytest.mark.long)])
def training(request: pytest.FixtureRequest, tmp_path: Path) -> Training:
    return Training(request.param, tmp_path)


@pytest.fixture
def newest(tmp_path: Path) -> Training:
    return Training("newest", tmp_path)
