"""Summaries of metrics, made from their points."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

from labtrack.stores.model import MetricPoint, Store
from labtrack.stores.summary import MEAN, PARTS, Summaries, Summary, order


class _Running:
    """A metric's points so far."""

    __slots__ = ("count", "first", "last", "latest", "max", "max_step", "min", "min_step", "values")

    def __init__(self, point: MetricPoint, *, mean: bool) -> None:
        self.count = 0
        self.latest = point.timestamp
        self.first = self.last = (order(point.step, point.timestamp, point.value), point.value)
        self.min = self.max = math.nan
        self.min_step: int | None = None
        self.max_step: int | None = None
        self.values: list[float] | None = [] if mean else None

    def add(self, point: MetricPoint) -> None:
        value, step = point.value, point.step
        self.count += 1
        self.latest = max(self.latest, point.timestamp)
        place = order(step, point.timestamp, value)
        if place > self.last[0]:
            self.last = place, value
        elif place < self.first[0]:
            self.first = place, value
        if self.values is not None:
            self.values.append(value)
        if value == value:  # noqa: PLR0124 - not nan
            if self.min_step is None or self.max_step is None:
                self.min = self.max = value
                self.min_step = self.max_step = step
            else:
                if value < self.min or (value == self.min and step < self.min_step):
                    self.min, self.min_step = value, step
                if value > self.max or (value == self.max and step < self.max_step):
                    self.max, self.max_step = value, step

    def end(self) -> Summary:
        mean = mean_of(self.values) if self.values is not None else None
        (last, _, _), (first, _, _) = self.last[0], self.first[0]
        return Summary(
            self.count,
            self.last[1],
            last,
            self.min,
            self.max,
            self.min_step,
            self.max_step,
            self.first[1],
            first,
            mean,
            self.latest,
        )


def mean_of(values: Sequence[float]) -> float:
    """The mean of some values, of which there is at least one; of infinities what IEEE 754 makes of them."""
    try:
        return math.fsum(values) / len(values)
    except (ValueError, OverflowError):  # both infinities, or a sum that is too large
        return sum(values) / len(values)


def summarise(points: Iterable[MetricPoint], parts: Collection[str] = PARTS) -> dict[str, Summary]:
    """What some points of one run come to, by metric."""
    found: dict[str, _Running] = {}
    for point in points:
        running = found.get(point.key)
        if running is None:
            running = found[point.key] = _Running(point, mean=MEAN in parts)
        running.add(point)
    return {key: running.end() for key, running in found.items()}


def of_points(
    store: Store, run_ids: Iterable[str], keys: Collection[str] | None = None, parts: Collection[str] = PARTS
) -> Summaries:
    """`Store.summaries` for a store that has nothing quicker than its points."""
    return {run_id: summarise(store.points(run_id, keys=keys), parts) for run_id in run_ids}


def value_at(points: Iterable[MetricPoint], steps: Mapping[str, int]) -> dict[str, float]:
    """The last value of some metrics at one step each."""
    found: dict[str, tuple[tuple[int, int, float], float]] = {}
    for point in points:
        if steps.get(point.key) == point.step:
            place = order(point.step, point.timestamp, point.value)
            if point.key not in found or place > found[point.key][0]:
                found[point.key] = place, point.value
    return {key: value for key, (_, value) in found.items()}
