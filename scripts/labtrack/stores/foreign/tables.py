"""Tables to which a tracker appends rows, and runs of which only the times of their files are known."""

from __future__ import annotations

import csv
import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Union

from labtrack.stores.model import RUNNING, Findings
from labtrack.stores.values import QUIET

_AT_ONCE = 60.0  # seconds: files that a copy has written are not further apart
_MEASURED = re.compile(r"^-?[0.]*[1-9](?:\.?\d){5}")  # six digits or more
_NATURAL = re.compile(r"(\d+)")
Natural = tuple[tuple[int, Union[int, str]], ...]


class Table:
    """A CSV or TSV file with a head.

    rows, damaged, cut: what there was when it was read last: how many whole rows, how many damaged ones, and whether
    there is the beginning of one at the end.
    """

    def __init__(self, path: Path, delimiter: str) -> None:
        self.path, self._delimiter = path, delimiter
        self.damaged, self.cut = 0, False

    def rows(self) -> Iterator[dict[str, str]]:
        """The cells of each row by their column; a row without an end is left for a later call.  Raises OSError."""
        self.damaged, self.cut, head = 0, False, None
        with self.path.open("rb") as file:
            for raw in file:
                if not raw.endswith(b"\n"):
                    self.cut = True
                    return
                cells = self._cells(raw)
                if head is None:
                    head = cells
                elif len(cells) == len(head):
                    yield dict(zip(head, cells))
                else:
                    self.damaged += bool(raw.strip())

    def head(self) -> list[str]:
        """The names of the columns; none where they are not written yet.  Raises OSError."""
        with self.path.open("rb") as file:
            first = file.readline(1 << 20)
        return self._cells(first) if first.endswith(b"\n") else []

    def _cells(self, raw: bytes) -> list[str]:
        try:
            return next(csv.reader([raw.decode("utf-8", "replace").rstrip("\r\n")], delimiter=self._delimiter), [])
        except csv.Error:
            return []

    def tell(self, found: Findings, run_id: str, *, running: bool) -> None:
        """Tells what could not be read of it."""
        if self.damaged:
            found.problem(self.path, f"{self.damaged} rows are damaged and were left out", run_id)
        if self.cut and running:
            found.warning(self.path, "its last row is being written", run_id)
        elif self.cut:
            found.problem(self.path, "its last row has no end and was left out", run_id)


def first_row(table: Table, unread: dict[Path, str]) -> dict[str, str] | None:
    """The first row; None where there is none yet, and where it can't be read, which is noted in `unread`."""
    unread.pop(table.path, None)
    try:
        return next(table.rows(), None)
    except OSError as error:
        unread[table.path] = f"it can't be read: {error.strerror}"
        return None


class Files:
    """The times of the files of a run, in ms; all that is known of its own times where it notes none."""

    def __init__(self, paths: Iterable[Path]) -> None:
        times = []
        for path in paths:
            try:
                times.append(path.stat().st_mtime_ns // 1_000_000)
            except OSError:
                continue
        self.first, self.last = min(times, default=0), max(times, default=0)

    def status(self) -> str:
        """RUNNING where one was written in the last hour, and not all at once as by a copy; else FINISHED."""
        fresh = time.time() - self.last / 1000 < QUIET
        return RUNNING if fresh and self.last - self.first > _AT_ONCE * 1000 else "FINISHED"


def names_in_id(folder: Path, cells: Iterable[str], usual: str = "") -> tuple[str, ...]:
    """The names that are a part of a run's id, where nothing that is recorded is sure to be this run's alone.

    cells: of its first row.  usual: a name that says nothing.  The name of the folder, since the same training may be
    repeated into another; and where none of the cells looks measured (a learning rate, an epoch), that of the folder
    above, too.
    """
    whole = folder.resolve()
    name = whole.parent.name if whole.name == usual else whole.name
    return (name,) if any(_MEASURED.search(cell) for cell in cells) else (whole.parent.name, whole.name)


def natural(path: Path) -> Natural:
    """For sorting version_2 before version_10."""
    parts = _NATURAL.split(os.fspath(path))
    return tuple((0, int(part)) if part.isdecimal() else (1, part) for part in parts)
