"""Runs ranked by a metric, swept over a parameter, summed up for a dataset, listed."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from labtrack.analysis import columns
from labtrack.analysis.choice import NO_CHOICE, Choice
from labtrack.analysis.columns import Column
from labtrack.analysis.frame import FAILED, FINISHED, OPEN, Chooses, Frame, Needs, collect
from labtrack.analysis.named import Alike, named
from labtrack.analysis.rows import Row
from labtrack.analysis.table import NOTHING, Moment, Table
from labtrack.errors import BadInputError
from labtrack.stores.filters import Wanted, both, chosen

_VANISHED = 24 * 3600 * 1000  # ms without a sign of life
_FACTS = ("dataset", "stage", "model", "scenario")
_SMALL_IS_GOOD = ("loss", "error", "err", "rmse", "mse", "mae", "mape", "perplexity", "crps")
_BEST_OF_A_DATASET = ("f1", "accuracy", "auc", "mcc")


@dataclass(frozen=True)
class Asked:
    """Which runs of which sources.

    sources: what `open_store` takes, or folders of many recordings.  expression: as of --filter.  facts: by name, as
    dataset and stage.  every: also runs that have not finished, or have no value.
    """

    sources: Sequence[str]
    expression: str | None = None
    facts: Mapping[str, str | None] = ()  # type: ignore[assignment]
    only: Sequence[str] = ()
    exclude: Sequence[str] = ()
    every: bool = False

    def wanted(self) -> Wanted | None:
        """Whether a run is meant; None where all are."""
        expression = chosen(self.expression, self.only, self.exclude)
        alike = Alike(dict(self.facts))
        if not alike:
            return expression
        return both(alike, expression)

    def collect(self, needs: Needs, whole: Chooses | None = None) -> Frame:
        """The runs, finished ones unless all are asked for.  whole: see `frame.collect`."""
        return collect(self.sources, needs, self.wanted(), statuses=None if self.every else (FINISHED,), whole=whole)

    def query(self, **more: Any) -> dict[str, Any]:
        """What was asked, for who reads the table later."""
        facts = {name: value for name, value in dict(self.facts).items() if value is not None}
        found = {"sources": list(self.sources), "filter": self.expression, **facts, "all": self.every, **more}
        return {name: value for name, value in found.items() if value not in (None, (), [])}


def smallest_first(column: Column, direction: str | None) -> tuple[bool, str]:
    """Whether the smallest value is the best, and a note where that was not said.

    direction: `min` or `max` where somebody said it.  Else it is what stands in front of the metric; else a name that
    speaks of a loss or an error is ranked from the smallest, and that is told.
    """
    if direction:
        return direction == "min", ""
    if column.how in ("min", "max"):
        return column.how == "min", ""
    words = [one for one in _SMALL_IS_GOOD if one in column.name.lower().replace("/", "_").replace(".", "_").split("_")]
    if words or any(one in column.name.lower() for one in ("loss", "error")):
        return True, f"{column.name} is taken for a loss: the smallest is the best (--max for the largest)"
    return False, ""


def rank(rows: Sequence[tuple[Any, Any]], *, smallest: bool) -> list[tuple[Any, Any]]:
    """Pairs of a value and something, best first; nan never wins, and what has no value comes last."""

    def key(pair: tuple[Any, Any]) -> tuple[int, float]:
        value = _number(pair[0])
        if isinstance(value, (int, float)) and not math.isnan(value):
            return 0, value if smallest else -value
        return (1 if isinstance(value, float) else 2), 0.0

    return sorted(rows, key=key)


def _number(value: Any) -> Any:
    """A parameter's text as the number that it may be."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def value_of(column: Column, row: Row) -> Any:
    """A cell: NOTHING of a metric that a failed run does not have."""
    found = column.value(row)
    if found is None and column.kind == columns.METRIC and row.run.status in FAILED:
        return NOTHING
    if column.kind == columns.ATTRIBUTE and column.name in ("start_time", "end_time") and found is not None:
        return Moment(found)
    return found


def leaderboard(
    asked: Asked,
    metric: str,
    top: int = 10,
    direction: str | None = None,
    *,
    choice: Choice = NO_CHOICE,
) -> tuple[Table, Frame]:
    """Ranks runs by a metric.

    metric: a column, as `f1`, `max:f1`, `f1@min:val_loss`.  choice: more columns, or others.
    Raises BadInputError that names near metrics where no run has this one.
    """  # fmt: skip
    column = columns.parse(metric)
    smallest, note = smallest_first(column, direction)

    def shown_of(frame: Frame) -> list[Row]:
        """The runs that will be shown; all where the column may be a parameter."""
        if not any(column.name in row.metrics or column.at for row in frame.rows):
            return frame.rows
        return [row for _, row in ranking(frame, replace(column, kind=columns.METRIC))[:top]]

    def ranking(frame: Frame, by: Column) -> list[tuple[Any, Row]]:
        return rank([(value_of(by, row), row) for row in frame.rows], smallest=smallest)

    few = top > 0 and column.kind in (columns.BARE, columns.METRIC) and choice.is_plain
    frame = asked.collect(choice.needs(column), shown_of if few else None)
    (column,) = frame.resolve([column])
    ranked = ranking(frame, column)
    more = choice.resolved(frame)
    with_value = [pair for pair in ranked if pair[0] is not None and pair[0] is not NOTHING]
    left_out = dict(frame.left_out)
    if not asked.every:
        if len(ranked) > len(with_value):
            left_out[f"without {column.label}"] = len(ranked) - len(with_value)
        ranked = with_value
    shown = ranked[:top] if top else ranked
    own = 0
    if choice.only:
        names, cells = [one.label for one in more], [[value_of(one, row) for one in more] for _, row in shown]
    else:
        facts = [[named(row.run, one) or "" for one in _FACTS] for _, row in shown]
        with_facts = any(any(one) for one in facts)
        names = ["run_id", *(_FACTS if with_facts else ("name",)), "value"]
        own = len(names)
        names += [one.label for one in more]
        cells = [
            [row.run.id, *(some if with_facts else [row.run.name]), value, *(value_of(one, row) for one in more)]
            for (value, row), some in zip(shown, facts)
        ]
    names, cells = choice.changed(names, cells, own)
    said = f"top {top}" if top else "all"
    title = f"Leaderboard: {column.label} ({said}{', smallest first' if smallest else ''})"
    query = asked.query(command="leaderboard", metric=metric, top=top, best="min" if smallest else "max")
    return Table(title, names, cells, left_out, query, [note] if note else []), frame


def sweep(asked: Asked, param: str, metric: str, direction: str | None = None) -> tuple[Table, Frame]:
    """Sums up a metric by the values of a parameter: how many runs, smallest, largest, mean; best mean first."""
    column = columns.parse(metric)
    smallest, note = smallest_first(column, direction)
    frame = asked.collect(Needs.of([column]))
    (column,) = frame.resolve([column])
    name, renamed = _parameter(param, frame)
    groups: dict[str, list[float]] = {}
    missing = without = nans = 0
    for row in frame.rows:
        value, group = value_of(column, row), row.run.params.get(name)
        if group is None:
            without += 1
        elif value is None or value is NOTHING:
            missing += 1
        elif math.isnan(value):
            nans += 1
        else:
            groups.setdefault(group, []).append(value)
    found = [(math.fsum(some) / len(some), group, some) for group, some in groups.items()]
    ranked = rank([(mean, (group, some)) for mean, group, some in found], smallest=smallest)
    cells = [[group, len(some), float(min(some)), float(max(some)), mean] for mean, (group, some) in ranked]
    left_out = dict(frame.left_out)
    left_out.update(
        {f"without {param}": without, f"without {column.label}": missing, f"with nan as {column.label}": nans}
    )
    notes = [one for one in (note, renamed) if one]
    query = asked.query(command="sweep", param=name, metric=metric)
    title = f"Sweep: {param} → {column.label}"
    table = Table(title, ["param_value", "count", "min", "max", "mean"], cells, left_out, query, notes)
    return table, frame


def _parameter(param: str, frame: Frame) -> tuple[str, str]:
    """The parameter that is meant: configurations become nested, and `lr` then is `training.lr`."""
    name = param[len("params.") :] if param.startswith("params.") else param
    known = {one for row in frame.rows for one in row.run.params}
    if name in known:
        return name, ""
    ends = sorted(one for one in known if one.endswith((f".{name}", f"/{name}")))
    if len(ends) == 1:
        return ends[0], f"no run has a parameter {name}; {ends[0]} is taken for it"
    if len(ends) > 1:
        raise BadInputError(f"No run has a parameter {name!r}, and several end so.", f"name one: {', '.join(ends)}")
    return name, f"no run has a parameter {name!r}: {columns.near(name, sorted(known))}" if known else ""


def dataset(asked: Asked, name: str) -> tuple[list[Table], Frame]:
    """The runs of a dataset, whatever became of them, and the best value of each of the usual metrics."""
    asked = Asked(asked.sources, asked.expression, {**dict(asked.facts), "dataset": name}, every=True)
    wanted = [columns.parse(one) for one in _BEST_OF_A_DATASET]
    frame = asked.collect(Needs.of(wanted))
    rows = [
        [row.run.id, *(named(row.run, one) or "" for one in ("model_arch", "model_size", "stage", "use_kd")),
         row.run.status]
        for row in frame.rows
    ]  # fmt: skip
    best = []
    for one in sorted(wanted, key=lambda column: column.name):
        values = [(columns.real(row.metrics[one.name].last), row) for row in frame.rows
                  if row.run.status == FINISHED and one.name in row.metrics]  # fmt: skip
        for value, row in rank(values, smallest=False)[:1]:
            facts = [named(row.run, fact) or "" for fact in ("model", "scenario")]
            best.append([one.name, row.run.id, *facts, value])
    query = asked.query(command="dataset")
    names = ["run_id", "model_type", "scale", "stage", "has_kd", "status"]
    tables = [Table("Runs", names, rows, query=query)]
    tables += [Table("Best metrics", ["metric_name", "run_id", "model", "scenario", "best_value"], best, query=query)]
    return tables, frame


def runs(
    asked: Asked,
    *,
    failed: bool = False,
    now: int | None = None,
    choice: Choice = NO_CHOICE,
) -> tuple[Table, Frame]:
    """Lists runs, the latest first, whatever became of them.

    failed: those that failed or were killed, and those that say RUNNING and have recorded nothing for a day, which may
    have vanished with their job: their last sign of life is told, not what became of them.  now: ms since 1970.
    """  # fmt: skip
    every = replace(asked, every=True)
    frame = collect(every.sources, choice.needs(), every.wanted(), signs=failed)
    more = choice.resolved(frame)
    found = sorted(frame.rows, key=lambda row: -(row.run.start_time or 0))
    left_out: dict[str, int] = {}
    if failed:
        moment = now if now is not None else int(time.time() * 1000)
        vanished = [row for row in found if row.run.status in OPEN and moment - last_sign(row) > _VANISHED]
        found = [row for row in found if row.run.status in FAILED or row in vanished]
    names = ["run_id", "name", "status", "start_time", "duration", "dataset", "stage", "model"]
    cells = []
    for row in found:
        begun, ended = row.run.start_time, row.run.end_time
        took = None if begun is None or ended is None else (ended - begun) / 1000
        facts = [named(row.run, one) or "" for one in ("dataset", "stage", "model")]
        cells.append([row.run.id, row.run.name, row.run.status, None if begun is None else Moment(begun), took, *facts])
    kept = [at for at in range(len(names)) if at < 5 or any(row[at] for row in cells)]  # noqa: PLR2004
    names, cells = [names[at] for at in kept], [[row[at] for at in kept] for row in cells]
    if failed:
        names.append("last_sign")
        for row, some in zip(found, cells):
            sign = last_sign(row)
            some.append(Moment(sign) if sign else None)
    if choice.only:
        names, cells = [], [[] for _ in found]
    own = len(names)
    names += [one.label for one in more]
    for row, some in zip(found, cells):
        some += [value_of(one, row) for one in more]
    names, cells = choice.changed(names, cells, own)
    title = "Failed runs" if failed else "Runs"
    return Table(title, names, cells, left_out, asked.query(command="runs", failed=failed or None)), frame


def last_sign(row: Row) -> int:
    """When a run last gave a sign of life, in ms: its end, its last point, its start."""
    return max(row.run.end_time or 0, row.last_time or 0, row.run.start_time or 0)
