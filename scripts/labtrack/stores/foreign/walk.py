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

    Hidden folders and those of MLflow are not entered, nor those that the caller takes from the list; a link to a
    folder is where it leads out of `root`, since what is in there comes anyway.
    """
    whole, seen = root.resolve(), set()

    def failed(error: OSError) -> None:
        tells(Path(error.filename or root), f"can't be read: {error.strerror}")

    for place, folders, names in os.walk(root, onerror=failed, followlinks=True):
        here = Path(place)
        try:
            facts = here.stat()
        except OSError:
            continue
        if (facts.st_dev, facts.st_ino) in seen:
            folders[:] = []
            continue
        seen.add((facts.st_dev, facts.st_ino))
        ends = (here != root and META in names) or len(here.parts) - len(root.parts) > _DEPTH
        folders[:] = [] if ends else sorted(name for name in folders if _is_looked_into(here, name, whole))
        yield here, sorted(name for name in names if not tree.is_clutter(name)), folders


def _is_looked_into(above: Path, name: str, root: Path) -> bool:
    if name.startswith(".") or name in _NOBODYS or tree.is_clutter(name):
        return False
    if name == "artifacts" and _RUN_ID.fullmatch(above.name):
        return False
    path = above / name
    try:
        return not path.is_symlink() or root not in (path.resolve(), *path.resolve().parents)
    except (OSError, RuntimeError):  # RuntimeError: a ring of links, in Python < 3.13
        return False


def placed(root: Path, folder: Path, runs: Container[Path]) -> tuple[str, str]:
    """What the experiment and the run of a folder are called: as the folder that is read, and by the way from there.

    A folder that is a run itself is a part of the folder that it is in, so that both are read alike.
    """
    base = root.resolve()
    base = base.parent if root in runs else base
    return base.name or "Default", _below(folder, root, base)


def _below(folder: Path, root: Path, base: Path) -> str:
    """The way to a folder from `base`, by the names of links in it."""
    return (root.resolve() / folder.relative_to(root)).relative_to(base).as_posix()
