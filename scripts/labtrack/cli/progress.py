"""Showing how far a sync is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from labtrack.cli import output
from labtrack.printable import clean
from labtrack.sync.progress import Shows, Totals

_EVERY = 10.0  # seconds between plain lines
_REDRAW = 0.1  # seconds


def shows(*, quiet: bool = False, verbose: bool = False) -> Shows:
    """What fits this terminal.  Everything goes to standard error."""
    return Bar() if sys.stderr.isatty() and not quiet else Lines(quiet=quiet, verbose=verbose)


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:  # noqa: PLR2004
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


class Lines:
    """Plain lines, for a job's log."""

    def __init__(self, *, quiet: bool, verbose: bool) -> None:
        self._quiet, self._verbose = quiet, verbose
        self._totals, self._began, self._last, self._said = Totals(), time.monotonic(), 0.0, 0.0

    def begin(self, totals: Totals) -> None:
        self._totals, self._began = totals, time.monotonic()
        self._last = self._began

    def update(self, runs: int, points: int, sent: int) -> None:
        now = time.monotonic()
        if self._quiet or now - self._last < _EVERY:
            return
        self._last = now
        rate = points / max(now - self._began, 0.001)
        output.line(
            f"{runs:,} of {self._totals.runs:,} runs, {points:,} of {self._totals.points:,} points ({rate:,.0f}/s), "
            f"{size(sent)} of {size(self._totals.bytes)}",
            err=True,
        )

    def say(self, text: str) -> None:
        now = time.monotonic()
        if not self._quiet and (self._verbose or now - self._said > _EVERY):
            self._said = now
            output.line(f"... {text}", err=True)

    def end(self) -> None:
        pass


class Bar:
    """A bar of rich, with rates and the time left."""

    def __init__(self) -> None:
        self._progress: Any = None
        self._task: Any = None
        self._began, self._drawn, self._totals = 0.0, 0.0, Totals()

    def begin(self, totals: Totals) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.end()
        if not totals.runs:
            return
        self._totals, self._began = totals, time.monotonic()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[said]}", markup=False),
        )
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._progress.add_task(
            "", total=max(1, _weight(totals.runs, totals.points, totals.bytes)), said=""
        )
        self._progress.start()

    def update(self, runs: int, points: int, sent: int) -> None:
        now = time.monotonic()
        if self._progress is None or now - self._drawn < _REDRAW:
            return
        self._drawn, took = now, max(now - self._began, 0.001)
        text = (
            f"{runs}/{self._totals.runs} runs, {points:,}/{self._totals.points:,} points ({points / took:,.0f}/s), "
            f"{size(sent)} ({size(sent / took)}/s)"
        )
        self._progress.update(self._task, completed=_weight(runs, points, sent), description=text, said="")

    def say(self, text: str) -> None:
        if self._progress is not None:
            self._progress.update(self._task, said=clean(text))

    def end(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _weight(runs: int, points: int, sent: int) -> float:
    """One measure of work for all three: about what each costs a server (a call, a point, a KiB)."""
    return runs * 100 + points + sent / 1024
