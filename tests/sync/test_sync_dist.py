"""What `make dist` makes, on the oldest and the newest Python of this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sync_recording import Recording
from sync_server import TrackingServer

ROOT = Path(__file__).resolve().parents[2]


def pythons() -> list[str]:
    """The oldest and the newest Python from 3.9 to 3.13, as long as they can make environments."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    found = {}
    for minor in range(9, 14):
        here = [shutil.which(f"python3.{minor}"), *map(str, sorted(pyenv.glob(f"3.{minor}.*/bin/python")))]
        for one in filter(None, [sys.executable if sys.version_info[1] == minor else None, *here]):
            asked = f"import ensurepip, ssl, sqlite3, sys; assert sys.version_info[:2] == (3, {minor})"
            if subprocess.run([one, "-c", asked], capture_output=True, check=False).returncode == 0:
                found.setdefault(minor, one)
    return list(dict.fromkeys([found[min(found)], found[max(found)]]))


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder."""
    folder = tmp_path_factory.mktemp("dist") / "dist"
    subprocess.run([sys.executable, ROOT / "scripts" / "dev" / "dist.py", folder], check=True, capture_output=True)
    return folder


def sends(command: list[str | Path], recording: Recording, server: TrackingServer, tmp_path: Path) -> None:
    """Whether a command sends a recording and finds it whole."""
    recording.run(params={"a": "1"}, metrics={"loss": [0.5, 0.25]}, files={"model/weights.bin": b"w" * 1000})
    arguments = ["sync", "-s", recording.path, "-d", server.url, "--verify", "--json"]
    # -I: nothing of this checkout, its environment or its current folder
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["verified"], report["differences"], report["counts"]["artifacts"]) == (1, {}, 1)


@pytest.mark.parametrize("python", pythons())
def test_pyz_runs_with(python: str, dist: Path, recording: Recording, server: TrackingServer, tmp_path: Path) -> None:
    sends([python, "-I", dist / "labtrack.pyz"], recording, server, tmp_path)


@pytest.mark.parametrize("python", pythons())
def test_wheels_install_without_network_on(
    python: str, dist: Path, recording: Recording, server: TrackingServer, tmp_path: Path
) -> None:
    place = tmp_path / "venv"
    subprocess.run([python, "-m", "venv", place], check=True)
    pip = [place / "bin" / "pip", "install", "--quiet", "--no-index", "--find-links", dist]
    subprocess.run([*pip, "labtrack"], check=True, env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    sends([place / "bin" / "labtrack"], recording, server, tmp_path)
    say = "import labtrack, importlib.util as u; print(labtrack.sync.__name__, u.find_spec('boto3'))"
    done = subprocess.run([place / "bin" / "python", "-I", "-c", say], capture_output=True, text=True, check=True)
    assert done.stdout == "labtrack.sync None\n"
    subprocess.run([*pip, "labtrack[s3]"], check=True)
