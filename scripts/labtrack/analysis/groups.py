"""Runs that differ only in their seed, taken together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from labtrack.analysis import columns, statistics
from labtrack.analysis.board import Asked, rank, smallest_first, value_of
from labtrack.analysis.choice import NO_CHOICE, Choice
from labtrack.analysis.columns import Column
from labtrack.analysis.frame import Frame
from labtrack.analysis.named import named
from labtrack.analysis.rows import Row
from labtrack.analysis.table import NOTHING, Spread, Table
from labtrack.errors import BadInputError

SEEDS = ("seed", "random_seed", "random_state", "trial")
_FACTS = ("dataset", "stage", "model", "model_size", "scenario", "use_kd")
_FEW = 8  # names in a note


@dataclass
class Group:
    """Runs of one configuration.  facts: what they have in common, by the names of `Grouping.names`."""

    facts: tuple[Any, ...]
    rows: list[Row] = field(default_factory=list)


@dataclass
class Grouping:
    """How runs were taken together.  names: what differs between the groups.  notes: for a person."""

    over: tuple[str, ...]
    names: list[str]
    groups: list[Group]
    notes: list[str] = field(default_factory=list)

    def seed(self, row: Row) -> str:
        """What tells a run from the others of its group."""
        return ", ".join(_fact(row, name) for name in self.over if _fact(row, name))


def names_of(over: str) -> tuple[str, ...]:
    """The names in --over: `seed` stands for all names that seeds have."""
    asked = tuple(one.strip().replace("params.", "", 1) for one in over.split(",") if one.strip())
    return SEEDS if asked in ((), ("seed",)) else asked


def _fact(row: Row, name: str) -> str:
    return row.run.params.get(name, row.run.tags.get(name, ""))


def group(rows: Sequence[Row], over: Sequence[str], by: Sequence[Column] = ()) -> Grouping:
    """Takes runs together.

    over: parameters or tags that may differ in a group.  by: what is equal in a group; else all other parameters are,
    the experiment, and the dataset, stage and model.  A parameter that differs in every run (a path, a host) splits no
    group, if no seed is then twice in one; `notes` says so.
    """
    if by:
        made = _made(rows, [(one.label, one.value) for one in by])
        return Grouping(tuple(over), [one.label for one in by], made)
    splits: dict[str, Callable[[Row], Any]] = {"experiment": lambda row: row.experiment}
    splits.update({one: _named(one) for one in _FACTS})
    params = sorted({name for row in rows for name in row.run.params} - set(over))
    splits.update({f"params.{one}": _param(one) for one in params})
    alone = [f"params.{one}" for one in params if _differs_everywhere(rows, one)]
    fewer = {name: get for name, get in splits.items() if name not in alone}
    notes = []
    if alone:
        made = _made(rows, list(fewer.items()))
        grouping = Grouping(tuple(over), [], made)
        if _has_no_seed_twice(grouping):
            splits = fewer
            shown = ", ".join(alone[:_FEW]) + (f" and {len(alone) - _FEW} more" if len(alone) > _FEW else "")
            notes.append(f"{shown}: different in every run, so not taken for what tells groups apart (--by says it)")
    made = _made(rows, list(splits.items()))
    differing = [at for at in range(len(splits)) if len({one.facts[at] for one in made}) > 1]
    names = [list(splits)[at] for at in differing]
    # a fact that a parameter of the same name tells already
    keep = [at for at, name in zip(differing, names) if f"params.{name}" not in names]
    shown_names = [list(splits)[at] for at in keep]
    for one in made:
        one.facts = tuple(one.facts[at] for at in keep)
    found = Grouping(tuple(over), shown_names, made, notes)
    twice = [one for one in made if len(one.rows) > 1 and not _each_once(found, one)]
    if twice:
        found.notes.append(f"in {len(twice)} of {len(made)} groups a seed is there twice or missing; all runs count")
    return found


def _named(name: str) -> Callable[[Row], Any]:
    return lambda row: named(row.run, name)


def _param(name: str) -> Callable[[Row], Any]:
    return lambda row: row.run.params.get(name)


def _differs_everywhere(rows: Sequence[Row], name: str) -> bool:
    values = [row.run.params.get(name) for row in rows]
    return len(rows) > 1 and len(set(values)) == len(values)


def _has_no_seed_twice(grouping: Grouping) -> bool:
    return all(_each_once(grouping, one) for one in grouping.groups)


def _each_once(grouping: Grouping, one: Group) -> bool:
    seeds = [grouping.seed(row) for row in one.rows]
    return len(set(seeds)) == len(seeds) and ("" not in seeds or len(seeds) == 1)


def _made(rows: Sequence[Row], splits: Sequence[tuple[str, Callable[[Row], Any]]]) -> list[Group]:
    found: dict[tuple[Any, ...], Group] = {}
    for row in rows:
        facts = tuple(get(row) for _, get in splits)
        found.setdefault(facts, Group(facts)).rows.append(row)
    return list(found.values())


def over_seeds(
    asked: Asked,
    metric: str,
    over: str = "seed",
    *,
    by: Sequence[Column] = (),
    top: int = 10,
    direction: str | None = None,
    spread: str = "std",
    vs: str | None = None,
    choice: Choice = NO_CHOICE,
) -> tuple[Table, Frame]:
    """Ranks groups of runs by the mean of a metric.

    over, by: see `group`.  spread: see `statistics.spread`.  vs: the group that the others are compared with: a run in
    it, or a value that only it has.  choice: more columns.
    Raises BadInputError where that can't be told, has fewer than three runs, or scipy is needed and missing.
    """  # fmt: skip
    column = columns.parse(metric)
    smallest, note = smallest_first(column, direction)
    frame = asked.collect(choice.needs(column, *by))
    column, *by = frame.resolve([column, *by])
    extra = choice.resolved(frame)
    with_value = [row for row in frame.rows if _is_value(value_of(column, row))]
    grouping = group(with_value, names_of(over), by)
    left_out = dict(frame.left_out)
    if len(with_value) < len(frame.rows):
        left_out[f"without {column.label}"] = len(frame.rows) - len(with_value)
    cells = [(statistics.spread(values(column, one), spread), one) for one in grouping.groups]
    ranked = rank([(cell.value, (cell, one)) for cell, one in cells], smallest=smallest)
    shown = ranked[:top] if top else ranked
    names = [*grouping.names, "value"]
    rows = [[*one.facts, cell] for _, (cell, one) in shown]
    if vs is not None:
        groups = [one for _, (_, one) in shown]
        base = baseline(grouping, vs)
        names += ["n", "difference", "ci95_low", "ci95_high", "p", "test"]
        rows = [row + beside for row, beside in zip(rows, _against(grouping, groups, base, column))]
    own = len(names)
    names += [one.label for one in extra]
    rows = [row + [together(more, one, spread) for more in extra] for row, (_, (_, one)) in zip(rows, shown)]
    if choice.only:
        names, rows, own = names[own:], [row[own:] for row in rows], 0
    names, rows = choice.changed(names, rows, own)
    notes = [one for one in (note, *grouping.notes) if one]
    said = ", ".join(one for one in grouping.over if any(_fact(row, one) for row in with_value)) or over or "seed"
    title = f"Leaderboard: {column.label} over {said} ({f'top {top}' if top else 'all'}"
    title += f"{', smallest first' if smallest else ''})"
    query = asked.query(command="leaderboard", metric=metric, over=list(grouping.over), spread=spread, vs=vs, top=top)
    return Table(title, names, rows, left_out, query, notes), frame


def _is_value(value: Any) -> bool:
    return value is not None and value is not NOTHING


def values(column: Column, one: Group) -> list[float]:
    """The values of a group's runs."""
    return [float(value) for value in (value_of(column, row) for row in one.rows) if _is_value(value)]


def together(column: Column, one: Group, spread: str) -> Any:
    """A column of a group: a metric's spread, or the one value that its runs have."""
    found = [value_of(column, row) for row in one.rows]
    there = [value for value in found if _is_value(value)]
    if column.kind == columns.METRIC and there:
        return statistics.spread([float(value) for value in there], spread)
    different = list(dict.fromkeys(found))
    return different[0] if len(different) == 1 else f"{len(different)} values"


def baseline(grouping: Grouping, text: str) -> Group:
    """The group that is meant: by a run's id or name, or a value that it has and no other group."""
    groups = grouping.groups
    name, sign, value = text.partition("=")
    if sign and name.strip() in grouping.names:
        at = grouping.names.index(name.strip())
        found = [one for one in groups if str(one.facts[at]) == value.strip().strip("'\"")]
    else:
        found = [one for one in groups if any(text in (row.run.id, row.run.name) for row in one.rows)]
        found = found or [one for one in groups if text in map(str, one.facts)]
    if len(found) == 1:
        return found[0]
    known = sorted({f"{name}={fact}" for one in groups for name, fact in zip(grouping.names, one.facts)})
    if found:
        raise BadInputError(f"--vs {text}: {len(found)} groups are that.", "name what only one has, or a run in it.")
    raise BadInputError(f"--vs {text}: no group is that.", columns.near(text, known) if known else "there is but one.")


def _against(grouping: Grouping, groups: Sequence[Group], base: Group, column: Column) -> list[list[Any]]:
    def by_seed(one: Group) -> dict[str, float]:
        found: dict[str, float] = {}
        for number, row in enumerate(one.rows):
            seed = grouping.seed(row)
            value = value_of(column, row)
            # a seed that is missing or there twice is like no other
            found[seed if seed and seed not in found else f"{id(one)} {number}"] = float(value)
        return found

    own = by_seed(base)
    if len(own) < statistics.SMALLEST:
        raise BadInputError(
            f"--vs: the baseline has {len(own)} runs, and below {statistics.SMALLEST} nothing can be said.",
            "run it with more seeds.",
        )
    found = [None if one is base else statistics.compare(by_seed(one), own) for one in groups]
    corrected = statistics.holm([one.p if one else None for one in found])
    rows: list[list[Any]] = []
    for comparison, p in zip(found, corrected):
        if comparison is None:
            rows.append([str(len(own)), None, None, None, None, "baseline"])
        else:
            test = f"{comparison.test}: {comparison.why}" if comparison.why else comparison.test
            ends = comparison.low, comparison.high
            rows.append([comparison.n, comparison.difference, *ends, p, test])
    return rows


def is_within(value: float, best: Any) -> bool:
    """Whether a value lies within the spread of the best."""
    if not isinstance(best, Spread) or best.spread is None:
        return value == (best.value if isinstance(best, Spread) else best)
    if isinstance(best.spread, tuple):
        return best.spread[0] <= value <= best.spread[1]
    return math.isfinite(value) and abs(value - best.value) <= best.spread
