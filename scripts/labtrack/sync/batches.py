"""Metric points, params and tags in calls of log-batch, several of them under way at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

from labtrack.stores.model import MetricPoint
from labtrack.sync import limits
from labtrack.sync.journal import Entry, Journal
from labtrack.sync.progress import Meter
from labtrack.tracking.destination import BATCH, Destination, point


@dataclass
class Batch:
    """One call.  points: as they are sent.  counts: those of each recorded key."""

    points: list[MetricPoint] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return len(self.points) + len(self.params) + len(self.tags)


ROOM = BATCH - 2  # sync's own tags go into the last one


def batches(
    stream: Iterator[MetricPoint],
    portions: Iterator[tuple[dict[str, str], dict[str, str]]],
    fit: limits.Fit,
    most: int = ROOM,
) -> Iterator[Batch]:
    """Batches as full as the server takes them, params and tags in the first ones.

    most: points of a batch that has nothing else.
    """

    def begun() -> tuple[Batch, int]:
        batch = Batch()
        batch.params, batch.tags = next(portions, ({}, {}))
        return batch, ROOM - batch.size if batch.size else most

    batch, room = begun()
    points, counts = batch.points, batch.counts
    for one in stream:
        if len(points) == room:
            yield batch
            batch, room = begun()
            points, counts = batch.points, batch.counts
        key, fitted = fit.metric(one.key), fit.point(one)
        points.append(fitted if key == one.key else fitted._replace(key=key))
        counts[one.key] = counts.get(one.key, 0) + 1
    yield batch
    for params, tags in portions:
        yield Batch(params=params, tags=tags)


def log(destination: Destination, copy: str, batch: Batch, tags: Mapping[str, str] | None = None) -> None:
    """Sends a batch, and some tags beside its own."""
    if len(batch.points) > BATCH:
        destination.log_points(copy, batch.points)
    else:
        destination.log_batch(copy, map(point, batch.points), batch.params, {**batch.tags, **(tags or {})})


class Batches:
    """Several batches of a run under way at once; the journal takes them in their order."""

    def __init__(
        self,
        destination: Destination,
        journal: Journal,
        pool: Executor,
        meter: Meter,
        *,
        most: int,
        run_id: str,
        copy: str,
        entry: Entry,
    ) -> None:
        """most: how many calls may be under way.  run_id, copy, entry: the run, at the server, in the journal."""
        self._destination, self._journal, self._pool, self._meter = destination, journal, pool, meter
        self._most, self._run_id, self._copy, self._entry = most, run_id, copy, entry
        self._under_way: deque[tuple[Future[None], Batch]] = deque()
        self.points = 0

    def send(self, batch: Batch) -> None:
        """Sends a batch, after waiting for the oldest where too many are under way or wait for their turn."""
        while self._under_way and (len(self._under_way) >= self._most or self._under_way[0][0].done()):
            self._acknowledge()
        self._under_way.append((self._pool.submit(log, self._destination, self._copy, batch), batch))

    def wait(self) -> None:
        """Waits for all.  Raises what the first that failed raised, after the others have ended."""
        while self._under_way:
            self._acknowledge()

    def _acknowledge(self) -> None:
        future, batch = self._under_way.popleft()
        try:
            future.result()
        except BaseException:
            for other, _ in self._under_way:
                other.cancel()
            raise
        known = self._entry.points
        self._journal.add(self._run_id, points={key: known.get(key, 0) + count for key, count in batch.counts.items()})
        self.points += len(batch.points)
        self._meter.points(len(batch.points))
