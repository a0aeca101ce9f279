"""Walking the folders in which other trackers record."""

from __future__ import annotations

import os
import re
from collections.abc import Container, Iterator
from pathlib import Path

from labtrack.stores import tree

META = "meta.yaml"  # of an experiment or a run of MLflow, whose artifacts are not looked into
_RUN_ID = re.compile(r"[0-9a-f]{32}")
_NOBODYS = frozenset({"node_modules", "site-packages", "__pycache__", "mlartifacts"})
_DEPTH = 12


def walk(root: Path, tells: tree.Tells) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Each folder with the sorted names of its files and folders, those above first.

    Links to folders, hidden folders and those of MLflow are not entered, nor those that the caller takes from the list.
    """

    def failed(error: OSError) -> None:
        tells(Path(error.filename or root), f"can't be read: {error.strerror}")

    for place, folders, names in os.walk(root, onerror=failed):
        here = Path(place)
        ends = (here != root and META in names) or len(here.parts) - len(root.parts) > _DEPTH
        folders[:] = [] if ends else sorted(name for name in folders if _is_looked_into(here, name))
        yield here, sorted(name for name in names if not tree.is_clutter(name)), folders


def _is_looked_into(above: Path, name: str) -> bool:
    if name.startswith(".") or name in _NOBODYS or tree.is_clutter(name):
        return False
    return not (name == "artifacts" and _RUN_ID.fullmatch(above.name)) and not (above / name).is_symlink()


def placed(root: Path, folder: Path, runs: Container[Path]) -> tuple[str, str]:
    """What the experiment and the run of a folder are called: as the folder that is read, and by the way from there.

    A folder that is a run itself is a part of the folder that it is in, so that both are read alike.
    """
    base = root.resolve()
    base = base.parent if root in runs else base
    return base.name or "Default", folder.resolve().relative_to(base).as_posix()
