"""The MLflow that is installed here: where it is, which version, which schema of database it reads.

labtrack needs no MLflow; what shows pages or deletes through MLflow's interface does.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from labtrack.errors import BadInputError

_WHERE = "import importlib.util, sys; sys.stdout.write(getattr(importlib.util.find_spec('mlflow'), 'origin', '') or '')"
_SHEBANG = re.compile(rb"""^(?:#!\s*|'''exec'\s+"?)(/[^"\n]*?python[^\s"]*)""", re.MULTILINE)
_REVISION = re.compile(r"""^(revision|down_revision)\s*(?::[^=]+)?=\s*["'](\w+)["']""", re.MULTILINE)
_ASKED = 60  # seconds for a Python on a cold network file system to say where MLflow is


@dataclass(frozen=True)
class Mlflow:
    """An installed MLflow.

    python: the Python that it is installed for.  package: its folder.  said: how it was found, in words.
    """

    python: Path
    package: Path
    version: str
    said: str = ""

    @property
    def has_ui(self) -> bool:
        """Whether the pages are there: `mlflow-skinny` has none."""
        return (self.package / "server" / "js" / "build" / "index.html").is_file()

    @property
    def on_uvicorn(self) -> bool:
        """Whether its server runs under uvicorn; before 3.3 it was gunicorn."""
        return (self.package / "server" / "fastapi_app.py").is_file()

    @cached_property
    def revisions(self) -> frozenset[str]:
        """The schemas of databases that it can upgrade, and its own."""
        return frozenset(one for one, _ in self._migrations)

    @cached_property
    def schema(self) -> str:
        """The schema that its databases have; empty where that can't be seen."""
        before = {above for _, above in self._migrations}
        newest = [one for one, _ in self._migrations if one not in before]
        return newest[0] if len(newest) == 1 else ""

    @cached_property
    def _migrations(self) -> tuple[tuple[str, str], ...]:
        found = []
        for file in (self.package / "store" / "db_migrations" / "versions").glob("*.py"):
            facts = dict(_REVISION.findall(file.read_text(encoding="utf-8", errors="replace")))
            if "revision" in facts:
                found.append((facts["revision"], facts.get("down_revision", "")))
        return tuple(found)


def find_mlflow(where: str | os.PathLike[str] | None = None, *, ui: bool = True) -> Mlflow:
    """The MLflow to use.

    where: its `mlflow`, the Python it is installed for, or the folder of its environment; otherwise that of labtrack's
    own environment, or the `mlflow` on the PATH.  ui: whether its pages are needed.
    Raises BadInputError that says what to install.
    """
    if where is not None:
        found = _in_python(_python_of(Path(where).expanduser()), f"of {where}")
        if found is None:
            raise BadInputError(
                f"There is no MLflow in {where}.",
                "name its `mlflow`, as `which mlflow` says where it is installed, or the folder of its environment.",
            )
        return _with_ui(found) if ui else found
    found = _in_python(Path(sys.executable), "of this environment")
    program = shutil.which("mlflow")
    if program and (found is None or (ui and not found.has_ui)):
        found = _in_python(_python_of(Path(program)), f"of {program}") or found
    if found is None:
        raise BadInputError(
            f"MLflow is not installed in this environment ({sys.prefix}), and there is no `mlflow` on the PATH.",
            f"{sys.executable} -m pip install mlflow\nor name another environment's: --mlflow PATH",
        )
    return _with_ui(found) if ui else found


def _with_ui(found: Mlflow) -> Mlflow:
    if not found.has_ui:
        raise BadInputError(
            f"MLflow {found.version} in {found.package.parent} has no pages: it is mlflow-skinny.",
            f"{found.python} -m pip install mlflow=={found.version}\nor name another environment's: --mlflow PATH",
        )
    return found


def _python_of(path: Path) -> Path:
    """The Python of an `mlflow` script, of an environment's folder, or the path itself."""
    if path.is_dir():
        return path / "bin" / "python"
    if not path.is_file():
        raise BadInputError(f"There is no {path}.", "name the `mlflow` that `which mlflow` says, or its environment.")
    if path.name.startswith("python"):
        return path
    with path.open("rb") as file:
        found = _SHEBANG.search(file.read(1000))
    return Path(os.fsdecode(found[1])) if found else path.with_name("python")


def _in_python(python: Path, said: str) -> Mlflow | None:
    try:
        # in /, since a folder called mlflow in the current one would be taken for the package
        asked = subprocess.run(
            [python, "-c", _WHERE], cwd="/", capture_output=True, text=True, timeout=_ASKED, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    place = Path(asked.stdout.strip() or "/nowhere").parent
    try:
        version = re.search(r"""VERSION\s*(?::[^=]+)?=\s*["']([^"']+)""", (place / "version.py").read_text())
    except OSError:
        return None
    return Mlflow(python, place, version[1] if version else "?", said)
