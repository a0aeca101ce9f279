"""The app's site settings, and an environment with labtrack and MLflow as a lab has it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path += [str(Path(__file__).resolve().parents[1] / name) for name in ("sync", "unit")]  # recordings and MLflow

import ood_app
from sync_server import mlflow_bin


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a Python environment's, with `labtrack` and `mlflow` in it."""
    folder = tmp_path_factory.mktemp("environment")
    (folder / "bin").mkdir()
    for name, program in (
        ("labtrack", Path(sys.executable).with_name("labtrack")),
        ("mlflow", mlflow_bin() / "mlflow"),
    ):
        (folder / "bin" / name).symlink_to(program)
    return folder


@pytest.fixture(scope="session")
def etc(tmp_path_factory: pytest.TempPathFactory, environment: Path) -> Path:
    """The settings of a site."""
    text = (
        f"portal: https://ondemand.example.org\nclusters: [one]\nvenv: {environment}\nmlflow: {mlflow_bin()}/mlflow\n"
    )
    return ood_app.site(tmp_path_factory.mktemp("etc"), text)


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No login or setting of the caller."""
    for name in os.environ:
        if name.startswith(("AWS_", "MLFLOW_", "LABTRACK_")):
            monkeypatch.delenv(name)
