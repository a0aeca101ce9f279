"""Environments with MLflow and with the recorder in them, as `pip install labtrack` makes them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "sync"))

from sync_server import CACHE, mlflow_bin  # noqa: E402 - of the tests of sync

OLD = "2.9.2"
_OLD_PACKAGES = (f"mlflow=={OLD}", "sqlalchemy<2.1", "setuptools<81")  # as they were then


def python_of(version: str) -> Path:
    """The Python of an environment, made once, with `newest` (the server's MLflow), `oldest`, or `snakemake`."""
    if version == "newest":
        return mlflow_bin() / "python"
    if version == "snakemake":
        return mlflow_bin(ROOT / "requirements" / "workflows.txt") / "python"
    folder = CACHE.parent / "mlflow-recorder" / OLD
    if not (folder / ".complete").exists():
        uv = Path(sys.executable).with_name("uv")
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, folder], check=True)
        subprocess.run([uv, "pip", "install", "-q", "--python", folder / "bin/python", *_OLD_PACKAGES], check=True)
        (folder / ".complete").touch()
    return folder / "bin" / "python"


def entry_points(folder: Path) -> Path:
    """A folder that says what pyproject.toml says of entry points, as an installed package has it."""
    info = folder / "labtrack-0.1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: labtrack\nVersion: 0.1.0\n")
    found = re.findall(r'\[project\.entry-points\."([\w.]+)"\]\n((?:\w+ = "[^"]+"\n)+)', _pyproject())
    assert len(found) == 3
    (info / "entry_points.txt").write_text("".join(f"[{group}]\n{lines}\n".replace('"', "") for group, lines in found))
    return folder


def _pyproject() -> str:
    return (ROOT / "pyproject.toml").read_text()


class Training:
    """Programs that record into a folder by one MLflow."""

    def __init__(self, version: str, folder: Path) -> None:
        self.python, self.version = python_of(version), version
        self.root = folder / "runs"
        self.folder = folder
        plain = {
            key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "LABTRACK_", "PYTHON"))
        }
        self.env = {
            **plain,
            "PYTHONPATH": f"{entry_points(folder / 'installed')}:{ROOT / 'scripts'}",
            "MLFLOW_TRACKING_URI": f"labtrack://{self.root}",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "GIT_PYTHON_REFRESH": "quiet",
        }

    def start(self, code: str, **more: Any) -> subprocess.Popen[str]:
        """Starts a program.  more: variables."""
        env = {**self.env, **{key: str(value) for key, value in more.items()}}
        return subprocess.Popen(
            [self.python, "-c", code], env=env, cwd=self.folder, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def run(self, code: str, *, fails: bool = False, **more: Any) -> str:
        """Runs a program to its end; gives what it prints, and what it warns of."""
        process = self.start(code, **more)
        out, err = process.communicate(timeout=300)
        assert bool(process.returncode) == fails, f"{process.returncode}\n{out}\n{err}"
        self.warned = err
        return out
