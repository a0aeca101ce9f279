"""Summaries of metrics in a SQLite file: SQLite adds up what is plainly typed, the reader of points the rest.

A metric of a run of which one row is odd (a step that is no whole number, a value that is a text or a BLOB) is read
point by point, since the steps of its other rows depend on that one: see `numbers.Steps`.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, Protocol

from labtrack.errors import BadInputError
from labtrack.stores.database import Database
from labtrack.stores.model import MetricPoint
from labtrack.stores.numbers import text
from labtrack.stores.summary import FIRST, LAST, MEAN, STEPS, Summaries, Summary, order
from labtrack.stores.summing import mean_of, summarise

_SHORT, _LONG = 0.015, 0.05  # seconds that a statement should take: a job's commit waits for it
_RUNS, _KEYS, _GROUPS = 200, 500, 150  # in one statement, below SQLite's old limit of 999 variables
_BY_KEY, _BY_RUN = "index_metrics_run_uuid_key_step", "index_metrics_run_uuid"


class Reader(Protocol):
    """What reads the points one by one."""

    def points(self, run_id: str, skip: Any = None, keys: Collection[str] | None = None) -> Iterator[MetricPoint]:
        """The points of a run."""


class _Group:
    """A metric of a run of which all rows are plain."""

    __slots__ = ("count", "first_step", "key", "last_step", "latest", "max", "min", "run_id")

    def __init__(self, row: Sequence[Any]) -> None:
        self.run_id, self.key, self.count, self.min, self.max, self.first_step, self.last_step, self.latest = row[:8]


class Summing:
    """Adds up the metrics of one file."""

    def __init__(self, database: Database, reader: Reader) -> None:
        self._db, self._reader = database, reader
        columns = database.columns("metrics")
        self._step, self._nan = (f"m.{name}" if name in columns else "0" for name in ("step", "is_nan"))
        indexes = {name for (name,) in database.rows("SELECT name FROM sqlite_master WHERE type = 'index'")}
        self._by = next((f"INDEXED BY {name}" for name in (_BY_KEY, _BY_RUN) if name in indexes), "")
        self._page = 20  # runs in one statement, as many as it does in the time

    def summaries(self, run_ids: Sequence[str], keys: Collection[str] | None, parts: Collection[str]) -> Summaries:
        """What `Store.summaries` gives."""
        found: Summaries = {run_id: {} for run_id in run_ids}
        if not self._db.columns("metrics") or (keys is not None and not keys):
            return found
        asked = None if keys is None else sorted(keys)
        portions = [None] if asked is None else [asked[at : at + _KEYS] for at in range(0, len(asked), _KEYS)]
        odd_keys = self._runs_with_odd_keys()
        for portion in portions:
            place = 0
            while place < len(run_ids):
                some = run_ids[place : place + self._page]
                place += len(some)
                try:
                    plain, odd = self._portion(some, portion, parts)
                except BadInputError:  # the file is damaged there; the reader tells what is lost
                    plain, odd = {}, dict.fromkeys(some)
                odd.update(dict.fromkeys(one for one in some if one in odd_keys))
                for (run_id, key), summary in plain.items():
                    found[run_id][key] = summary
                for run_id, of_it in odd.items():
                    points = self._reader.points(run_id, keys=keys if of_it is None else of_it)
                    found[run_id].update(summarise(points, parts))
        return found

    def _portion(
        self, run_ids: Sequence[str], keys: Sequence[str] | None, parts: Collection[str]
    ) -> tuple[dict[tuple[str, str], Summary], dict[str, set[str] | None]]:
        """The plain metrics of some runs, and by run the others."""
        only_last = set(parts) <= {LAST}
        groups, odd = self._groups(run_ids, keys, only_last=only_last)
        last = self._at_a_step(groups, [one.last_step for one in groups], max) if LAST in parts else {}
        if not only_last:
            return dict(self._completed(groups, last, parts)), odd
        found = {}
        for one in groups:
            value, moment = last.get((one.run_id, one.key), (None, None))
            if value is None:
                odd.setdefault(one.run_id, set()).add(one.key)  # type: ignore[union-attr]
            else:
                found[one.run_id, one.key] = Summary(last=value, last_step=one.last_step, latest=moment)
        return found, odd

    def _runs_with_odd_keys(self) -> set[str]:
        """Runs with a metric whose name is no text for SQLite; the primary key sorts BLOBs last."""
        found = self._db.rows("SELECT DISTINCT run_uuid FROM metrics WHERE key >= x''")
        return {text(run_id) for (run_id,) in found}

    def _groups(
        self, run_ids: Sequence[str], keys: Sequence[str] | None, *, only_last: bool
    ) -> tuple[list[_Group], dict[str, set[str] | None]]:
        """The plain metrics of some runs, and by run the others.

        only_last: only the steps have to be plain, which SQLite reads from the index alone.
        """
        only = f"AND m.key IN ({_marks(keys)})" if keys is not None else ""
        plain = f"typeof(m.value) = 'real' AND typeof(m.timestamp) = 'integer' AND typeof({self._step}) = 'integer'"
        value = f"CASE WHEN {self._nan} = 0 THEN m.value END" if self._nan != "0" else "m.value"
        if self._nan != "0":
            plain += f" AND typeof({self._nan}) = 'integer'"
        what = f"min({value}), max({value}), min({self._step}), max({self._step}), max(m.timestamp), sum({plain})"
        if only_last:
            what = f"NULL, NULL, NULL, max({self._step}), NULL, sum(typeof({self._step}) = 'integer')"
        sql = (
            f"SELECT m.run_uuid, m.key, count(*), {what} FROM metrics m {self._by} "  # noqa: S608 names we know
            f"WHERE m.run_uuid IN ({_marks(run_ids)}) {only} GROUP BY 1, 2"
        )
        began = time.perf_counter()
        rows = self._db.rows(sql, [*run_ids, *(keys or ())])
        self._pace(len(run_ids), time.perf_counter() - began)
        groups = []
        odd: dict[str, set[str] | None] = defaultdict(set)
        for row in rows:
            if row[2] == row[8] and type(row[1]) is str:
                groups.append(_Group(row))
            else:
                some = odd[row[0]]
                if some is not None:
                    some.add(text(row[1]))
        return groups, dict(odd)

    def _pace(self, runs: int, seconds: float) -> None:
        if seconds > _LONG:
            self._page = max(1, self._page // 2)
        elif seconds < _SHORT and runs == self._page:
            self._page = min(_RUNS, self._page * 2)

    def _completed(
        self, groups: Sequence[_Group], last: dict[tuple[str, str], tuple[float, int]], parts: Collection[str]
    ) -> Iterator[tuple[tuple[str, str], Summary]]:
        """Groups with the parts that need another statement."""
        first = self._at_a_step(groups, [one.first_step for one in groups], min) if FIRST in parts else {}
        steps = self._steps(groups) if STEPS in parts else {}
        means = self._means(groups) if MEAN in parts else {}
        none = (None, None)
        for one in groups:
            place = (one.run_id, one.key)
            lowest, highest = (math.nan if found is None else found for found in (one.min, one.max))
            yield place, Summary(
                one.count, last.get(place, none)[0], one.last_step, lowest, highest, *steps.get(place, none),
                first.get(place, none)[0], one.first_step, means.get(place), one.latest,
            )  # fmt: skip

    def _at_a_step(
        self, groups: Sequence[_Group], steps: Sequence[int], pick: Any
    ) -> dict[tuple[str, str], tuple[float, int]]:
        """Value and time at one step of each group, of several the last or the first; none where a row there is odd."""
        found: dict[tuple[str, str], Any] = {}
        odd: set[tuple[str, str]] = set()
        sql = f"SELECT g.r, g.k, m.timestamp, m.value, {self._nan}"
        on = f"AND {self._step} = g.a"
        given = ((one.run_id, one.key, step, None) for one, step in zip(groups, steps))
        for run_id, key, moment, value, is_nan in self._joined(sql, on, given):
            if type(value) is not float or type(moment) is not int or type(is_nan) is not int:
                odd.add((run_id, key))
                continue
            real = math.nan if is_nan else value
            place = (order(0, moment, real), real, moment)
            before = found.get((run_id, key))
            found[run_id, key] = place if before is None else pick(before, place, key=_order)
        return {place: (value, moment) for place, (_, value, moment) in found.items() if place not in odd}

    def _steps(self, groups: Sequence[_Group]) -> dict[tuple[str, str], tuple[int | None, int | None]]:
        """The first steps with the smallest and with the largest value."""
        cases = (f"min(CASE WHEN m.value = g.{name} AND NOT {self._nan} THEN {self._step} END)" for name in "ab")
        given = ((one.run_id, one.key, one.min, one.max) for one in groups)
        rows = self._joined(f"SELECT g.r, g.k, {', '.join(cases)}", "", given, "GROUP BY 1, 2")
        return {(run_id, key): (low, high) for run_id, key, low, high in rows}

    def _means(self, groups: Sequence[_Group]) -> dict[tuple[str, str], float]:
        values: dict[tuple[str, str], list[float]] = defaultdict(list)
        given = ((one.run_id, one.key, None, None) for one in groups)
        for run_id, key, value, is_nan in self._joined(f"SELECT g.r, g.k, m.value, {self._nan}", "", given):
            values[run_id, key].append(math.nan if is_nan else value)
        return {place: mean_of(some) for place, some in values.items()}

    def _joined(self, select: str, on: str, given: Iterable[tuple[Any, ...]], more: str = "") -> Iterator[Any]:
        """Rows of the points of some groups, each with two values a and b of its own."""
        waiting = list(given)
        size = max(1, min(_GROUPS, self._page))
        for at in range(0, len(waiting), size):
            some = waiting[at : at + size]
            values = ", ".join(["(?, ?, ?, ?)"] * len(some))
            sql = (
                f"WITH g(r, k, a, b) AS (VALUES {values}) {select} FROM g CROSS JOIN metrics m {self._by} "
                f"ON m.run_uuid = g.r AND m.key = g.k {on} {more}"
            )
            yield from self._db.rows(sql, [value for one in some for value in one])


def _order(place: tuple[Any, ...]) -> Any:
    return place[0]


def _marks(values: Collection[str]) -> str:
    return ", ".join("?" * len(values))
