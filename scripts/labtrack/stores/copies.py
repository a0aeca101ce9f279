"""Runs whose folder was copied into a second experiment of the same `mlruns`.

A run's id is that of one run, so it is read once: from the experiment that its meta.yaml names.  What a copy
has beyond that would be lost with it, and is told as such.
"""

from __future__ import annotations

from pathlib import Path

from labtrack.stores import tree
from labtrack.stores.model import Findings, shown

_PARTS = ("metrics", "params", "tags", "artifacts")


class Copies:
    """Tells the folder that is read from its copies."""

    def __init__(self, found: Findings) -> None:
        """found: where copies are told."""
        self._found = found

    def is_first(self, folder: Path, place: Path) -> bool:
        """Whether `folder` is the one that is read, which is `place`."""
        if folder == place:
            return True
        self.tell(folder, place, folder.name)
        return False

    def tell(self, folder: Path, place: Path | None, run_id: str) -> None:
        """Tells of a copy that is not read.  place: the run's own folder, None where there is none."""
        if place is None:
            what = f"the run was left out: it is the run {run_id} in a folder of another name; rename the folder"
            self._found.problem(folder, what, run_id)
            return
        more = _beyond(folder, place)
        what = f"it is a copy of the run {run_id} in {shown(place.parent)}, which is read in its place"
        if more:
            self._found.problem(folder, f"{what}, and its {shown(more)} is only here", run_id)
        else:
            self._found.warning(folder, what, run_id)


def _beyond(copy: Path, place: Path) -> str:
    """A file that a copy has, and the other has not or has shorter; empty where there is none."""
    for part in _PARTS:
        for path in sorted(tree.files(copy / part, lambda *_: None)):
            name = path.relative_to(copy)
            try:
                if not tree.is_file(place / name) or (place / name).stat().st_size < path.stat().st_size:
                    return name.as_posix()
            except OSError:
                return name.as_posix()
    return ""
