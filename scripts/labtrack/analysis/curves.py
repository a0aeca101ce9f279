"""The course of a metric: points in the order of a run, mean and spread over several runs, and fewer points to draw."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

from labtrack.analysis.columns import real
from labtrack.analysis.statistics import spread
from labtrack.stores.model import MetricPoint, Store
from labtrack.stores.summing import mean_of

if TYPE_CHECKING:
    from labtrack.stores.server import ServerStore

STEP, TIME = "step", "time"
LARGEST = 1e300  # from here on there is no place for a number on an axis
_UNITS = ((172_800.0, 86_400.0, "d"), (7_200.0, 3_600.0, "h"), (120.0, 60.0, "min"))  # from how many seconds on


class Point(NamedTuple):
    """x: a step, or seconds.  y: may be nan or infinite."""

    x: float
    y: float


class Curve:
    """One metric of one run, by step or time; numbers in 16 bytes a point, as there are millions."""

    __slots__ = ("_xs", "_ys")

    def __init__(self, points: Iterable[tuple[float, float]] = ()) -> None:
        self._xs, self._ys = array("d"), array("d")
        for x, y in points:
            self._xs.append(x)
            self._ys.append(y)

    def __len__(self) -> int:
        return len(self._xs)

    @property
    def points(self) -> list[Point]:
        """All points."""
        return list(map(Point, self._xs, self._ys))

    @property
    def finite(self) -> list[Point]:
        """The points that can be drawn."""
        return [Point(x, y) for x, y in zip(self._xs, self._ys) if abs(y) < LARGEST]

    def pieces(self, above: float = -math.inf) -> list[list[Point]]:
        """The points between those that can't be drawn, which break the line.  above: smaller ones can't be either."""
        found: list[list[Point]] = [[]]
        for one in self.points:
            if abs(one.y) < LARGEST and one.y > above:
                found[-1].append(one)
            elif found[-1]:
                found.append([])
        return [piece for piece in found if piece]

    @property
    def unfinite(self) -> int:
        """How many are nan or infinite."""
        return sum(not abs(y) < LARGEST for y in self._ys)


class Mean(NamedTuple):
    """The mean of n runs at x.  low, high: mean minus and plus the spread, or the two ends of a range."""

    x: float
    y: float
    low: float
    high: float
    n: int


def curves(points: Iterable[MetricPoint], x: str = STEP, start: int | None = None) -> dict[str, Curve]:
    """The curves of one run, by metric.

    x: step, or time in seconds since `start` (ms; the first point's time where it is None).
    """
    found: dict[str, list[tuple[int, int, float]]] = {}
    for one in points:
        found.setdefault(one.key, []).append((one.step, one.timestamp, real(one.value)))
    if x == TIME and start is None:
        start = min((timestamp for some in found.values() for _, timestamp, _ in some), default=0)
    made = {}
    for key in sorted(found):
        some = sorted(found[key], key=lambda one: one[:2])
        if x == TIME:
            some.sort(key=lambda one: one[1])
            made[key] = Curve(((timestamp - (start or 0)) / 1000, y) for _, timestamp, y in some)
        else:
            made[key] = Curve((step, y) for step, _, y in some)
    return made


def metrics_of(store: Store, run_id: str) -> dict[str, int]:
    """Each metric's number of points; of a server, which tells none, 1 where it ends at step 0, else 2."""
    if store.kind == "server":
        return {key: 2 if one.step else 1 for key, one in cast("ServerStore", store).latest(run_id).items()}
    return store.metric_keys(run_id)


def unit(seconds: float) -> tuple[float, str]:
    """By what to divide times, and how that is called, where the longest is so many seconds."""
    return next(((by, name) for least, by, name in _UNITS if seconds >= least), (1.0, "s"))


def fewer(points: Sequence[Point], most: int) -> list[Point]:
    """At most about `most` points that look the same: of each part the first, the last, the least and the greatest."""
    if len(points) <= most:
        return list(points)
    parts = max(most // 4, 1)
    first, last = points[0].x, points[-1].x
    width = (last - first) / parts or 1.0
    kept: dict[int, None] = {0: None}
    places: dict[int, list[int]] = {}
    for at, point in enumerate(points):
        places.setdefault(min(int((point.x - first) / width), parts - 1), []).append(at)
    for some in places.values():
        extremes = {min(some, key=lambda at: points[at].y), max(some, key=lambda at: points[at].y)}
        chosen = {some[0], some[-1], *extremes}
        kept.update(dict.fromkeys(sorted(chosen)))
    kept[len(points) - 1] = None
    return [points[at] for at in sorted(kept)]


def mean(some: Sequence[Curve], kind: str = "std", most: int = 200) -> list[Mean]:
    """Mean and spread of some runs along x.

    kind: as of `statistics.spread`.  Where there are at most `most` different x, each is taken by itself, with the
    last value that a run has there; else x is cut into so many parts, and of each a run gives its mean.  A run counts
    only where it has a value: n says how many do.
    """
    everything = sorted({one.x for curve in some for one in curve.finite})
    if not everything:
        return []
    exact = len(everything) <= most
    first = everything[0]
    width = (everything[-1] - first) / most or 1.0
    cells: dict[int, list[list[Point]]] = {}
    index = {x: at for at, x in enumerate(everything)} if exact else {}
    for curve in some:
        own: dict[int, list[Point]] = {}
        for point in curve.finite:
            at = index[point.x] if exact else min(int((point.x - first) / width), most - 1)
            own.setdefault(at, []).append(point)
        for at, points in own.items():
            cells.setdefault(at, []).append(points)
    found = []
    for at in sorted(cells):
        values = [points[-1].y if exact else mean_of([one.y for one in points]) for points in cells[at]]
        x = everything[at] if exact else mean_of([one.x for points in cells[at] for one in points])
        cell = spread(values, kind)
        if isinstance(cell.spread, tuple):
            low, high = cell.spread
        else:
            low, high = cell.value - (cell.spread or 0.0), cell.value + (cell.spread or 0.0)
        found.append(Mean(x, cell.value, low, high, cell.n))
    return found
