"""Whether the training's Python can use labtrack's recorder, and lending it where labtrack is not installed there."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import labtrack

_GROUPS = ("mlflow.tracking_store", "mlflow.model_registry_store", "mlflow.artifact_repository")
_ASKED = 20.0  # seconds for a Python on a cold network file system
_PYTHON = re.compile(r"python[0-9.]*")
_NOT_LENT = ("roles", "cloud", "cli", "ui", "sync", "analysis", "doctor", "envfile", "newlab", "run", "local")
_SCRIPT = """
import importlib.metadata as found, importlib.util as modules, json, sys
points = found.entry_points()
group = "mlflow.tracking_store"
points = points.select(group=group) if hasattr(points, "select") else points.get(group, ())
said = {name: modules.find_spec(name) is not None for name in ("mlflow", "sqlalchemy")}
plugins = [one for one in points if one.name == "labtrack"]
said["plugin"] = bool(plugins)
try:
    for one in plugins[:1]:
        one.load() if said["mlflow"] else None
except Exception as error:
    said["plugin"], said["why"] = False, f"{type(error).__name__}: {error}"[:300]
sys.stdout.write(json.dumps(said))
"""
_QUICK_SCRIPT = _SCRIPT.replace('one.load() if said["mlflow"] else None', "pass")


@dataclass(frozen=True)
class Python:
    """What the training's Python has.  asked: whether it could be asked."""

    asked: bool = False
    mlflow: bool = False
    plugin: bool = False
    sqlalchemy: bool = False
    why: str = ""


def python_of(command: Sequence[str], env: Mapping[str, str]) -> str:
    """The Python that a command runs, if it names one, else the one of the PATH; empty where there is none."""
    path = env.get("PATH")
    for word in command:
        if is_python(word):
            found = shutil.which(word, path=path)
            if found:
                return found
    return next(filter(None, (shutil.which(one, path=path) for one in ("python", "python3"))), "")


def is_python(word: str) -> bool:
    """Whether a word of a command names a Python."""
    return _PYTHON.fullmatch(Path(word).name) is not None


def look_at(python: Sequence[str], env: Mapping[str, str], *, loads: bool = False) -> Python:
    """Asks a Python.  python: the words that start it; none where there is none.

    loads: whether the recorder is imported, too, which takes as long as MLflow does.
    """
    if not python:
        return Python(why="there is no python on the PATH")
    script = _SCRIPT if loads else _QUICK_SCRIPT
    try:
        done = subprocess.run(
            [*python, "-c", script], cwd="/", env=dict(env), capture_output=True, timeout=_ASKED, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        said = json.loads(done.stdout.splitlines()[-1])
        return Python(True, said["mlflow"], said["plugin"], said["sqlalchemy"], said.get("why", ""))
    except subprocess.TimeoutExpired:
        return Python(why=f"{' '.join(python)} said nothing within {_ASKED:.0f} s")
    except (OSError, ValueError, KeyError, IndexError):
        return Python(why=f"{' '.join(python)} could not be asked")


def lend(folder: Path) -> Path | None:
    """A zip file in `folder` with the recorder, for PYTHONPATH; None where labtrack itself can't be read as files.

    One file, so that it costs one inode and is seen in a container that has the folder.  Raises OSError.
    """
    package = Path(labtrack.__file__ or "").parent
    points = _entry_points()
    if not package.is_dir() or not points:
        return None
    files = [one for one in sorted(package.rglob("*.py")) if one.relative_to(package).parts[0] not in _NOT_LENT]
    facts = [(str(one.relative_to(package)), one.stat().st_size, one.stat().st_mtime_ns) for one in files]
    name = hashlib.sha256(json.dumps([facts, points]).encode()).hexdigest()[:12]
    target = folder / f"labtrack-{labtrack.__version__}-{name}.zip"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{target.name}.{os.getpid()}"
    try:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
            for one in files:
                archive.write(one, Path("labtrack") / one.relative_to(package))
            about = f"labtrack-{labtrack.__version__}.dist-info"
            archive.writestr(
                f"{about}/METADATA", f"Metadata-Version: 2.1\nName: labtrack\nVersion: {labtrack.__version__}\n"
            )
            archive.writestr(f"{about}/entry_points.txt", points)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target


def with_path(env: Mapping[str, str], place: Path) -> dict[str, str]:
    """An environment whose Python finds what is at `place`, behind what the user has put there."""
    return {**env, "PYTHONPATH": os.pathsep.join(filter(None, (env.get("PYTHONPATH", ""), str(place))))}


def _entry_points() -> str:
    """labtrack's entry points for MLflow, as a file has them."""
    try:
        found = metadata.distribution("labtrack").entry_points
    except metadata.PackageNotFoundError:
        return ""
    lines = []
    for group in _GROUPS:
        mine = [f"{one.name} = {one.value}" for one in found if one.group == group]
        lines += [f"[{group}]", *mine, ""] if mine else []
    return "\n".join(lines)
