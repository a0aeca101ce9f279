"""Curves of some runs, drawn with characters."""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from labtrack.analysis import columns, scale
from labtrack.analysis.curves import STEP, TIME, Curve, Point, curves, fewer, metrics_of, unit
from labtrack.analysis.frame import OPEN, Needs, opened, read
from labtrack.analysis.pick import one_of
from labtrack.analysis.rows import Row
from labtrack.errors import BadInputError, Exit, LabtrackError
from labtrack.printable import one_line
from labtrack.stores.model import Store
from labtrack.stores.opening import open_store

MOST = 20  # curves in one drawing, which is as many as can be told apart
NARROWEST, LOWEST, HIGHEST = 30, 8, 24  # columns and lines of one drawing
_LETTERS = "abcdefghijklmnopqrst"
_COLORS = ("blue", "orange", "green", "red", "magenta", "cyan", "yellow", "white")
_RETRIES = (LabtrackError, OSError, sqlite3.Error)
# lines and marks of a drawing, for a terminal that has only ASCII
_ASCII = str.maketrans("┌┐└┘├┤┬┴┼─│…", "+++++++++-|~")
_LONGEST_NAME = 40


@dataclass(frozen=True)
class Paper:
    """What is drawn on.  colors: whether escape sequences are understood.  ascii: that nothing else can be shown."""

    width: int = 80
    height: int = 24
    colors: bool = False
    ascii: bool = False


@dataclass
class Drawn:
    """Lines to print, which are safe to print as they are, and what a person should know beside them."""

    lines: list[str]
    notes: list[str] = field(default_factory=list)
    running: bool = False
    marks: tuple[Any, ...] = ()


class Plotter:
    """Draws metrics of some runs, as often as asked.

    sources: what `open_store` takes.  texts: runs by id, the beginning of one, or name; without any the latest run.
    keys: metrics, also patterns as `val_*`.  x: step or time.  log: a logarithmic scale for y.
    Raises BadInputError for what is not there, is too much, or without the package plotext.
    """

    def __init__(
        self, sources: Sequence[str], texts: Sequence[str], keys: Sequence[str], x: str = STEP, *, log: bool = False
    ) -> None:
        _plotext()
        if len(texts) > MOST:
            raise _too_many(f"{len(texts):,} runs")
        self._keys, self._x, self._log = list(keys), x, log
        self.notes: list[str] = []
        with opened(sources) as (stores, problems):
            frame = read(stores, Needs(), deleted=bool(texts))
            if not frame.rows:
                raise BadInputError("There are no runs here.", "-s SOURCE names a recording.")
            if texts:
                self._rows = list({row.run.id: row for row in (one_of(frame.rows, text) for text in texts)}.values())
            else:
                self._rows = [max(frame.rows, key=lambda row: row.run.start_time or 0)]
                if len(frame.rows) > 1:
                    self.notes.append(f"the latest of {len(frame.rows):,} runs: {one_line(self._rows[0].run.name)}")
        frame.problems[:0] = problems
        self.frame = frame

    def draw(self, paper: Paper, *, waiting: bool = False) -> Drawn:
        """The curves as they are now.  waiting: a metric that is not there yet is no error."""
        found: list[tuple[Row, dict[str, Curve]]] = []
        running = False
        for row in self._rows:
            with open_store(row.source) as store:  # without a cache: the run may be growing
                run = store.run(row.run.id)
                running = running or run.status in OPEN
                asked = self._asked(store, run.id, waiting=waiting)
                points = store.points(run.id, keys=asked) if asked else ()
                found.append((row, curves(points, self._x, run.start_time)))
        metrics = sorted({key for _, some in found for key in some}, key=self._place)
        if len(metrics) * len(found) > MOST * 4 or len(metrics) > MOST:
            raise _too_many(f"{len(metrics)} metrics of {len(found)} runs")
        marks = tuple(len(curve) for _, some in found for curve in some.values())
        if not metrics:
            return Drawn(["no points yet"], running=running, marks=(*marks, running))
        height = max(LOWEST, min(HIGHEST, (paper.height - 1) // len(metrics) - 2))
        lines: list[str] = []
        notes = []
        for metric in metrics:
            some = [(row, found_curves[metric]) for row, found_curves in found if metric in found_curves]
            drawn, said = _panel(metric, some, paper, height, self._x, log=self._log)
            lines += drawn
            notes += said
            missing = [one_line(row.run.name) or row.run.id for row, own in found if metric not in own]
            if missing:
                notes.append(f"{one_line(metric)}: {', '.join(missing)} without it")
        return Drawn(lines, notes, running, (*marks, running))

    def _place(self, metric: str) -> tuple[int, str]:
        named = [at for at, key in enumerate(self._keys) if columns.means(key, metric)]
        return (named[0] if named else len(self._keys)), metric

    def _asked(self, store: Store, run_id: str, *, waiting: bool) -> list[str]:
        """The metrics that are meant, of one run.  Raises BadInputError where a run has none of a name."""
        known = metrics_of(store, run_id)
        if not self._keys:
            if waiting or len(self._rows) > 1:
                raise BadInputError("Which metric?", "-m loss")
            names = ", ".join(columns.quoted(one) for one in sorted(known)[:8])
            raise BadInputError("Which metric?", f"-m NAME; the run has {names}." if known else "the run has none.")
        found: dict[str, None] = {}
        for key in self._keys:
            meant = [one for one in known if columns.means(key, one)]
            if not meant and not waiting and len(self._rows) == 1:
                raise BadInputError(f"The run has no metric {key!r}.", columns.near(key, known))
            found.update(dict.fromkeys(meant))
        if not found and not waiting and known and len(self._rows) > 1:
            name = self._keys[0]
            raise BadInputError(f"The run {run_id} has no metric {name!r}.", columns.near(name, known))
        return list(found)


def _plotext() -> Any:
    try:
        import plotext
    except ModuleNotFoundError:
        raise BadInputError(
            "`labtrack plot` draws with the Python package plotext, which is not installed.",
            "pip install 'labtrack[plot]'   (`labtrack report -o results.html` draws without it)",
        ) from None
    return plotext


def _too_many(what: str) -> BadInputError:
    return BadInputError(
        f"{what} are more than can be told apart here: at most {MOST} runs.",
        "`labtrack report -o results.html` draws the means of thousands; `labtrack leaderboard` names the best few.",
    )


def _panel(
    metric: str, some: Sequence[tuple[Row, Curve]], paper: Paper, height: int, x: str, *, log: bool
) -> tuple[list[str], list[str]]:
    """One metric: lines, and notes on what is not in them."""
    plotext = _plotext()
    width = max(paper.width, NARROWEST)
    notes = []
    drawable: list[tuple[Row, list[list[Point]]]] = []
    for row, curve in some:
        pieces = curve.pieces(above=0.0 if log else -math.inf)
        drawn = sum(map(len, pieces))
        name = f"{one_line(row.run.name) or row.run.id} " if len(some) > 1 else ""
        if curve.unfinite:
            notes.append(f"{one_line(metric)}: {name}{_points(curve.unfinite)} nan or infinite, not drawn")
        if drawn < len(curve.finite):
            count = len(curve.finite) - drawn
            notes.append(f"{one_line(metric)}: {name}{_points(count)} 0 or less, which a log scale has no place for")
        if len(curve) == 1:
            notes.append(f"{one_line(metric)}: {name}1 point: a metric that was logged once")
        drawable.append((row, [fewer(piece, 4 * width) for piece in pieces]))
    shown = [(row, [one for piece in pieces for one in piece]) for row, pieces in drawable]
    shown = [(row, points) for row, points in shown if points]
    by, of = unit(max((one.x for _, points in shown for one in points), default=0.0)) if x == TIME else (1.0, "step")
    title = f"{one_line(metric)}{' (log)' if log else ''} by {x if x == STEP else f'time ({of})'}"
    if not shown:
        return [title, "  nothing that can be drawn"], notes
    plotext.clear_figure()
    plotext.limit_size(False, False)
    plotext.plotsize(width, height)
    plotext.theme("clear")
    several = len(some) > 1
    legend = []
    for number, (row, pieces) in enumerate(drawable):
        marker = _marker(number, paper, several=several)
        color: dict[str, Any] = {"color": _COLORS[number % len(_COLORS)]} if paper.colors else {}
        for piece in pieces:
            xs, ys = [one.x / by for one in piece], [math.log10(one.y) if log else one.y for one in piece]
            if len(piece) == 1:
                plotext.scatter(xs, ys, marker=marker if several else "o", **color)
            else:
                plotext.plot(xs, ys, marker=marker, **color)
        if several:
            label = one_line(row.run.name) or row.run.id
            label = label if len(label) <= _LONGEST_NAME else f"{label[: _LONGEST_NAME - 1]}…"
            legend.append((_sign(number, paper), label, row.run.id[:8]))
    _ticks(plotext, [(row, some) for row, some in shown], log=log, by=by, whole=x == STEP)
    text: str = plotext.build()
    text = text if paper.colors else plotext.uncolorize(text)
    lines = [line.rstrip() for line in text.rstrip("\n").split("\n")]
    if paper.ascii:
        lines = [line.translate(_ASCII) for line in lines]
    return [title, *lines, *(f"  {sign} {label}  {run_id}" for sign, label, run_id in legend)], notes


def _points(count: int) -> str:
    return f"{count} point{'s are' if count > 1 else ' is'}"


def _marker(number: int, paper: Paper, *, several: bool) -> str:
    """What a curve is drawn with: what tells it from others where there are no colors."""
    if several and not paper.colors:
        return _LETTERS[number % len(_LETTERS)]
    return "*" if paper.ascii else "braille"


def _sign(number: int, paper: Paper) -> str:
    if not paper.colors:
        return _LETTERS[number % len(_LETTERS)]
    code = {"blue": 34, "orange": 33, "green": 32, "red": 31, "magenta": 35, "cyan": 36, "yellow": 93, "white": 37}
    return f"\x1b[{code[_COLORS[number % len(_COLORS)]]}m■\x1b[0m"


def _ticks(plotext: Any, drawable: Sequence[tuple[Row, list[Point]]], *, log: bool, by: float, whole: bool) -> None:
    """Round numbers at both axes.  by: what x is divided by."""
    xs = [one.x / by for _, points in drawable for one in points]
    ys = [math.log10(one.y) if log else one.y for _, points in drawable for one in points]
    places = scale.ticks(min(xs), max(xs), 6, whole=whole)
    plotext.xticks(places, [scale.said(one) for one in places])
    if log:
        places = scale.log_ticks(min(ys), max(ys), 5)
        plotext.yticks(places, [scale.said(10**one) for one in places])
    else:
        places = scale.ticks(min(ys), max(ys), 5)
        plotext.yticks(places, [scale.said(one) for one in places])


def watch(
    plotter: Plotter, paper: Callable[[], Paper], every: float, sleep: Callable[[float], None] = time.sleep
) -> Iterator[Drawn]:
    """A drawing now, and one whenever there is more, until no run is being recorded any more.

    every: seconds between two looks.  A recording that can't be read at this moment is looked at again; that is told
    with the last drawing.  Raises what the first look raises, unless the recording is only locked.
    """
    last: Drawn | None = None
    trouble = ""
    size: Paper | None = None
    while True:
        now = paper()
        try:
            drawn = plotter.draw(now, waiting=True)
            if not drawn.running:
                drawn.notes.append("no run is being recorded any more")
            if last is None or drawn.marks != last.marks or trouble or now != size:
                yield drawn
            last, trouble, size = drawn, "", now
            if not drawn.running:
                return
        except _RETRIES as error:
            if last is None and not (isinstance(error, LabtrackError) and error.code == Exit.LOCKED):
                raise
            words = " ".join(str(getattr(error, "what", error)).split())
            if words != trouble:
                trouble = words
                lines = last.lines if last else []
                yield Drawn(lines, [*(last.notes if last else []), f"can't be read at this moment: {words}"], True)
        sleep(every)
