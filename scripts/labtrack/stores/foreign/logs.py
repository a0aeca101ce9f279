"""Files to which a tracker appends while a run goes on, and runs that are in one or several of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Callable, Generic, TypeVar

from labtrack.stores.foreign.tfrecord import Damage, Record
from labtrack.stores.model import RUNNING, Findings, MetricPoint

_NAMED = 3


@dataclass
class Seen:
    """What a file has up to a place."""

    offset: int = 0
    counts: dict[str, int] = field(default_factory=dict)  # of the points of each metric
    others: dict[str, dict[str, int]] = field(default_factory=dict)  # by kind and key, what is no number
    damaged: int = 0  # places with bytes that are no records
    cut: int = 0  # bytes at the end that are the beginning of a record

    def other(self, kind: str, key: str) -> None:
        """Notes something that can't be a metric."""
        keys = self.others.setdefault(kind, {})
        keys[key] = keys.get(key, 0) + 1


SeenT = TypeVar("SeenT", bound=Seen)


class Log(Generic[SeenT]):
    """A file, which may be growing.  Only what is new is read to say how much there is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen = self._nothing()

    def _nothing(self) -> SeenT:
        """What is seen of a file before it is looked at."""
        raise NotImplementedError

    def _records(self, file: BinaryIO, start: int) -> Iterator[Record | Damage]:
        raise NotImplementedError

    def _points(self, record: Record, seen: SeenT | None) -> Iterable[MetricPoint]:
        """The points in a record; what else is in it is noted.  Raises ValueError where it can't be read."""
        raise NotImplementedError

    def scan(self) -> SeenT:
        """What is there now.  Raises OSError."""
        size = self.path.stat().st_size
        if size < self.seen.offset:
            self.seen = self._nothing()
        seen = self.seen
        if size > seen.offset + seen.cut:
            counts = seen.counts
            for point in self._read(seen.offset, seen):
                counts[point.key] = counts.get(point.key, 0) + 1
        return seen

    def points(self, left: dict[str, int]) -> Iterator[MetricPoint]:
        """The points without the first left[key] of each key, which are counted down.  Raises OSError."""
        seen, start = self.seen, self._nothing().offset
        if all(left.get(key, 0) >= count for key, count in seen.counts.items()):
            start = seen.offset
            for key, count in seen.counts.items():
                left[key] -= count
        for point in self._read(start, None):
            if left.get(point.key):
                left[point.key] -= 1
            else:
                yield point

    def _read(self, start: int, seen: SeenT | None) -> Iterator[MetricPoint]:
        """The points from a place on; what else is found there is noted in `seen`."""
        with self.path.open("rb") as file:
            for one in self._records(file, start):
                if isinstance(one, Damage):
                    if seen is not None and one.cut:
                        seen.cut = one.end - one.start
                    elif seen is not None:
                        seen.damaged, seen.offset, seen.cut = seen.damaged + 1, one.end, 0
                    continue
                try:
                    yield from self._points(one, seen)
                except (ValueError, RecursionError):
                    if seen is not None:
                        seen.damaged += 1
                if seen is not None:
                    seen.offset, seen.cut = one.end, 0


LogT = TypeVar("LogT", bound=Log)  # type: ignore[type-arg]


class LoggedRun(Generic[LogT]):
    """A run in files that are joined in the order in which they were begun."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.unread: dict[Path, str] = {}

    @property
    def logs(self) -> Sequence[LogT]:
        """The files, in order."""
        raise NotImplementedError

    @property
    def id(self) -> str:
        raise NotImplementedError

    def status(self) -> str:
        """RUNNING where the run may go on."""
        raise NotImplementedError

    @property
    def appends(self) -> bool:
        return sum(1 for log in self.logs if log.seen.counts) <= 1

    def scan(self) -> None:
        """Looks at what is there now."""
        for log in self.logs:
            self.reading(log.path, log.scan)

    def counts(self) -> dict[str, int]:
        self.scan()
        return added(log.seen.counts for log in self.logs)

    def points(self, skip: Mapping[str, int]) -> Iterator[MetricPoint]:
        yield from self.rest(dict(skip))

    def rest(self, left: dict[str, int]) -> Iterator[MetricPoint]:
        """The points in the files without the first left[key] of each key, which are counted down."""
        for log in self.logs:
            try:
                yield from log.points(left)
            except OSError as error:
                self.unread[log.path] = f"it can't be read: {error.strerror}"

    def reading(self, path: Path, read: Callable[[], object]) -> None:
        """Does something that reads a file; if it can't be read, that will be told."""
        self.unread.pop(path, None)
        try:
            read()
        except (OSError, ValueError) as error:
            self.unread[path] = f"it can't be read: {' '.join(str(error).split())[:200]}"

    def tell(self, found: Findings) -> None:
        """Tells what could not be read, as far as the files were looked at."""
        for path, why in self.unread.items():
            found.problem(path, why, self.id)
        running = self.status() == RUNNING
        others: dict[str, list[Mapping[str, int]]] = {}
        for log in self.logs:
            seen = log.seen
            if seen.damaged:
                what = f"it is damaged in {seen.damaged} places, and what was recorded there is lost"
                found.problem(log.path, what, self.id)
            if seen.cut and running:
                found.warning(log.path, "its last record is being written", self.id)
            elif seen.cut:
                found.problem(log.path, f"its last record is cut after {seen.cut} bytes and lost", self.id)
            for kind, keys in seen.others.items():
                others.setdefault(kind, []).append(keys)
        if others:
            found.warning(
                self.folder,
                f"what is no number is no metric: {said({kind: added(keys) for kind, keys in others.items()})}",
                self.id,
            )


def added(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Several counts in one."""
    found: dict[str, int] = {}
    for one in counts:
        for key, count in one.items():
            found[key] = found.get(key, 0) + count
    return found


def said(others: Mapping[str, Mapping[str, int]]) -> str:
    """What is no number, in words: kinds, with how many there are and some of their keys."""
    parts = []
    for kind, keys in sorted(others.items()):
        some = ", ".join(sorted(keys)[:_NAMED]) + ", ..." * (len(keys) > _NAMED)
        parts.append(f"{kind} {sum(keys.values())} ({some})")
    return ", ".join(parts)
