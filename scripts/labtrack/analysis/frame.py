"""Runs as a table, from any store: what every command about results begins with."""

from __future__ import annotations

import contextlib
import gc
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from labtrack.analysis import columns
from labtrack.analysis.columns import Column, best_step, real
from labtrack.analysis.rows import Row
from labtrack.analysis.table import what_is_left_out
from labtrack.errors import BadInputError, LabtrackError
from labtrack.stores.filters import having
from labtrack.stores.model import Problem, Store
from labtrack.stores.opening import find_stores, open_store
from labtrack.stores.summary import LAST, PARTS
from labtrack.stores.summing import value_at
from labtrack.tracking.names import SOURCE_RUN

if TYPE_CHECKING:
    from pathlib import Path

    from labtrack.stores.filters import Wanted
    from labtrack.stores.server import ServerStore

FINISHED = "FINISHED"
FAILED = ("FAILED", "KILLED")
OPEN = ("RUNNING", "SCHEDULED")
_LOOKED_AT = 50  # runs whose metrics' names are looked at where one is unknown


@dataclass(frozen=True)
class Needs:
    """What is read of the runs' metrics.

    keys: these; None for all.  parts: see `labtrack.stores.summary`.  at: (metric, max or min, another metric): values
    of the one where the other was best.
    """

    keys: frozenset[str] | None = frozenset()
    parts: frozenset[str] = frozenset()
    at: tuple[tuple[str, str, str], ...] = ()

    @classmethod
    def of(cls, asked: Iterable[Column]) -> Needs:
        """What some columns need."""
        some = list(asked)
        keys = frozenset(key for one in some for key in one.keys)
        parts = frozenset(part for one in some for part in one.parts)
        at = dict.fromkeys((one.name, *one.at) for one in some if one.at and not one.step)
        return cls(keys, parts, tuple(at))


@dataclass
class Frame:
    """Runs of one or more stores.

    rows: in the order in which they were recorded.  problems: what could not be read.  left_out: how many runs are
    not in it, by what they are (`RUNNING`).  notes: what else a person should know.  known_metrics: names of metrics
    of some runs, where one was asked for that none has.
    """

    rows: list[Row] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    sources: tuple[str, ...] = ()
    known_metrics: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    @property
    def damaged(self) -> bool:
        """Whether something that was recorded is missing because it can't be read."""
        return any(one.damage for one in self.problems)

    def resolve(self, asked: Sequence[Column]) -> list[Column]:
        """What bare names of columns stand for.  Raises BadInputError as `columns.resolve` does."""
        try:
            return columns.resolve(asked, self.rows, lambda: self.known_metrics)
        except BadInputError as error:
            said = what_is_left_out(self.left_out)
            raise BadInputError(f"{error.what.rstrip('.')} ({said})." if said else error.what, error.hint) from None

    def names(self, kind: str) -> list[str]:
        """The names that some run has of `params`, `tags` or `metrics`."""
        found: dict[str, None] = {}
        for row in self.rows:
            found.update(dict.fromkeys(row.metrics if kind == "metrics" else getattr(row.run, kind)))
        return sorted(found)

    def records(self) -> list[dict[str, Any]]:
        """A flat dict for each run: attributes, `params.x`, `tags.x`, and the last values `metrics.x`."""
        found = []
        for row in self.rows:
            run = row.run
            record: dict[str, Any] = {
                "run_id": run.id, "name": run.name, "experiment": row.experiment, "status": run.status,
                "user": run.user_id, "start_time": run.start_time, "end_time": run.end_time, "source": row.source,
            }  # fmt: skip
            record.update({f"params.{name}": value for name, value in run.params.items()})
            record.update({f"tags.{name}": value for name, value in run.tags.items()})
            record.update({f"metrics.{name}": real(one.last) for name, one in row.metrics.items()})
            found.append(record)
        return found

    def to_pandas(self) -> Any:
        """The records as a pandas.DataFrame, with times as timestamps.  Raises BadInputError without pandas."""
        try:
            import pandas  # type: ignore[import-untyped, unused-ignore]
        except ModuleNotFoundError:
            raise BadInputError("pandas is not installed.", "pip install pandas, or use .records()") from None
        made = pandas.DataFrame(self.records())
        for name in ("start_time", "end_time"):
            if name in made:
                made[name] = pandas.to_datetime(made[name], unit="ms", utc=True)
        return made


Chooses = Callable[[Frame], Iterable[Row]]


def frame(
    source: str | Path | Sequence[str | Path] = ".",
    metrics: Collection[str] | None = None,
    filter: str | None = None,
) -> Frame:
    """Reads the runs of a source, or of several, as a table.

    source: what `open_store` takes, also a folder of many recordings.  metrics: only these; all where it is None.
    filter: which runs, in the language of `labtrack sync --filter`.

    Gives a `Frame`: `.rows`, `.records()`, `.to_pandas()`, and `.problems` for what could not be read.
    Raises BadInputError for a source or a filter that can't be used.
    """
    from labtrack.stores import filters

    sources = [source] if isinstance(source, str) or not isinstance(source, Sequence) else list(source)
    needs = Needs(None if metrics is None else frozenset(metrics), PARTS - {"mean", "first"})
    return collect([str(one) for one in sources], needs, filters.chosen(filter))


def collect(
    sources: Sequence[str],
    needs: Needs = Needs(),
    wanted: Wanted | None = None,
    *,
    statuses: Collection[str] | None = None,
    deleted: bool = False,
    signs: bool = False,
    whole: Chooses | None = None,
) -> Frame:
    """Reads the runs of some sources, each run once.

    statuses: runs with other ones are counted in `left_out`, and their metrics are not read; None for all runs.
    signs: also when runs that have not ended last recorded anything.  whole: chooses the runs of which parameters and
    tags are needed, which spares reading those of the others; only without `wanted`, and of one store.
    """
    with opened(sources) as (stores, problems), _without_collector():
        found = read(stores, needs, wanted, statuses=statuses, deleted=deleted, signs=signs, whole=whole)
        found.problems[:0] = problems
        return found


@contextlib.contextmanager
def opened(sources: Sequence[str]) -> Iterator[tuple[list[Store], list[Problem]]]:
    """The stores of some sources, closed at the end, and what of several can't be opened.

    Raises BadInputError where there is none, or where the only one can't be opened.
    """
    places = list(dict.fromkeys(place for one in sources for place in find_stores(one)))
    problems: list[Problem] = []
    with contextlib.ExitStack() as stack:
        stores: list[Store] = []
        for place in places:
            try:
                stores.append(stack.enter_context(_open(place)))
            except LabtrackError as error:
                if len(places) == 1 or place in sources:
                    raise
                problems.append(Problem(place, error.what))
        yield stores, problems


def _open(place: str) -> Store:
    store = open_store(place)
    if store.kind == "server":
        from labtrack.analysis.served import Served

        return cast("Store", Served(cast("ServerStore", store)))
    return store


def read(
    stores: Sequence[Store],
    needs: Needs,
    wanted: Wanted | None = None,
    *,
    statuses: Collection[str] | None = None,
    deleted: bool = False,
    signs: bool = False,
    whole: Chooses | None = None,
) -> Frame:
    """`collect` for stores that are open."""
    found = Frame(sources=tuple(store.location for store in stores))
    left_out: Counter[str] = Counter()
    seen: set[str] = set()
    twice = 0
    light = whole is not None and wanted is None and len(stores) == 1
    for store in stores:
        experiments = {one.id: one.name for one in store.experiments(deleted=True)}
        rows = []
        place = store.location
        for run in store.heads(deleted=deleted) if light else store.runs(deleted=deleted, having=having(wanted)):
            if wanted is not None and not wanted(store, run):
                continue
            own = {run.id, run.tags.get(SOURCE_RUN, run.id)}  # a copy at a server has the id of what it is a copy of
            if seen & own:
                twice += 1
                continue
            seen |= own
            if statuses is not None and run.status not in statuses:
                left_out[run.status] += 1
                continue
            rows.append(Row(run, experiments.get(run.experiment_id, run.experiment_id), place))
        read_metrics(store, rows, needs)
        if signs:
            waiting = {row.run.id: row for row in rows if row.run.status in OPEN}
            for run_id, metrics in store.summaries(list(waiting), None, {LAST}).items():
                waiting[run_id].last_time = max((one.latest or 0 for one in metrics.values()), default=None)
        if needs.keys and not all(any(key in row.metrics for row in rows) for key in needs.keys):
            some = [row.run.id for row in rows[:_LOOKED_AT]]
            found.known_metrics |= {key for one in store.summaries(some, None, {LAST}).values() for key in one}
        found.rows += rows
    for row in whole(found) if whole and light else ():
        row.run = stores[0].run(row.run.id)
    found.problems = list(dict.fromkeys(one for store in stores for one in store.problems()))
    if twice:
        found.notes.append(f"{twice} runs are in more than one source, and are taken from the first")
    order = ("RUNNING", "SCHEDULED", "FAILED", "KILLED", FINISHED)
    found.left_out = {one: left_out[one] for one in sorted(left_out, key=lambda one: (*_place(order, one), one))}
    return found


def _place(order: Sequence[str], one: str) -> tuple[int]:
    return (order.index(one) if one in order else len(order),)


def read_metrics(store: Store, rows: Sequence[Row], needs: Needs) -> None:
    """Adds to some runs of a store what is needed of their metrics."""
    if needs.keys is not None and not needs.keys:
        return
    by_id = {row.run.id: row for row in rows}
    parts = needs.parts or frozenset({LAST})
    for run_id, metrics in store.summaries(list(by_id), needs.keys, parts).items():
        by_id[run_id].metrics = metrics
    for row in rows if needs.at else ():
        steps: dict[int, set[str]] = {}
        for key, how, other in needs.at:
            summary = row.metrics.get(other)
            step = best_step(summary, how) if summary else None
            if step is not None and key in row.metrics:
                steps.setdefault(step, set()).add(key)
        for step, keys in steps.items():
            values = value_at(store.points(row.run.id, keys=keys), dict.fromkeys(keys, step))
            row.values_at.update({(key, step): value for key, value in values.items()})


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Python's collector looks for circles among all runs again and again, and there are none."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
