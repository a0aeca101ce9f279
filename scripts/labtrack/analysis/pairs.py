"""Runs side by side: their metrics, their parameters, and where they come from."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

from labtrack.analysis import columns, kin
from labtrack.analysis.frame import Frame, Needs
from labtrack.analysis.named import named
from labtrack.analysis.pick import pick
from labtrack.analysis.table import ABSENT, Table
from labtrack.stores.summary import LAST


def compare(sources: Sequence[str], run_a: str, run_b: str, keys: Collection[str] | None = None) -> tuple[Table, Frame]:
    """The last values of all metrics of two runs, and b - a.

    keys: only these metrics.  Raises BadInputError for a run that there is not, or a name that several have.
    """
    (a, b), frame = pick(sources, [run_a, run_b], Needs(None if keys is None else frozenset(keys), frozenset({LAST})))
    facts = [_both(named(a.run, one), named(b.run, one)) for one in ("model", "scenario")]
    rows = []
    for key in sorted({*a.metrics, *b.metrics}):
        one, other = (columns.real(row.metrics[key].last) if key in row.metrics else None for row in (a, b))
        rows.append([*facts, key, one, other, delta(one, other)])
    names = ["model", "scenario", "metric_name", "value_a", "value_b", "delta"]
    query = {"command": "compare", "sources": list(sources), "a": a.run.id, "b": b.run.id}
    return Table(f"Compare: {run_a} vs {run_b}", names, rows, query=query), frame


def delta(one: float | None, other: float | None) -> float | None:
    """How much more the other is; nothing where one is missing, nan where there is no difference to tell."""
    if one is None or other is None:
        return None
    return math.nan if math.isinf(one) and one == other else other - one


def _both(one: str | None, other: str | None) -> str:
    return one or "" if one == other else f"{one or '-'} / {other or '-'}"


def diff(sources: Sequence[str], run_a: str, run_b: str, *, tags: bool = False) -> tuple[Table, Frame]:
    """The parameters that differ between two runs, sorted; None where a run does not have one.

    tags: also tags, but those that MLflow and labtrack set.
    """
    (a, b), frame = pick(sources, [run_a, run_b], Needs())
    rows = _differing(a.run.params, b.run.params, "")
    if tags:
        own = ("mlflow.", "labtrack.")
        mine, others = ({k: v for k, v in row.run.tags.items() if not k.startswith(own)} for row in (a, b))
        rows += _differing(mine, others, "tags.")
    query = {"command": "diff", "sources": list(sources), "a": a.run.id, "b": b.run.id}
    return Table(f"Config diff: {run_a} vs {run_b}", ["param", "value_a", "value_b"], rows, query=query), frame


def _differing(a: Any, b: Any, prefix: str) -> list[list[Any]]:
    keys = sorted(key for key in {*a, *b} if a.get(key) != b.get(key))
    return [[f"{prefix}{key}", a.get(key, ABSENT), b.get(key, ABSENT)] for key in keys]


def lineage(sources: Sequence[str], text: str, metrics: Sequence[str] = ()) -> tuple[list[Table], Frame]:
    """What a run comes from and what came from it, to the first and the last of them, with its metrics beside theirs.

    metrics: only these.  Raises BadInputError as `compare` does.
    """
    (row,), frame = pick(sources, [text], Needs(), every=True)
    by_id, by_name = kin.index(frame.rows)
    rows = {one.run.id: one for one in frame.rows}
    links = [link for one in frame.rows for link in kin.links(one.run, by_id, by_name)]
    up: dict[str, list[kin.Link]] = {}
    down: dict[str, list[kin.Link]] = {}
    for link in links:
        up.setdefault(link.run_id, []).append(link)
        down.setdefault(link.related, []).append(link)
    found = [*_walk(row.run.id, up, upward=True), *_walk(row.run.id, down, upward=False)]
    ids = [row.run.id, *(one for one, _, _ in found if one in rows)]
    needs = Needs(frozenset(metrics) or None, frozenset({LAST}))
    picked, again = pick(sources, ids, needs)
    frame.problems = again.problems
    own, others = picked[0], {one.run.id: one for one in picked[1:]}
    query = {"command": "lineage", "sources": list(sources), "run": row.run.id}
    kin_rows = [[relation, run_id, rows[run_id].run.name if run_id in rows else None,
                 rows[run_id].run.status if run_id in rows else "not found", level]
                for run_id, relation, level in found]  # fmt: skip
    tables = [Table(f"Lineage: {text}", ["relation", "run_id", "name", "status", "level"], kin_rows, query=query)]
    deltas = []
    for run_id, relation, _ in found:
        other = others.get(run_id)
        for key in sorted(own.metrics) if other else ():
            if other and key in other.metrics:
                mine, theirs = (columns.real(one.metrics[key].last) for one in (own, other))
                deltas.append([relation, other.run.name or run_id, key, mine, theirs, delta(theirs, mine)])
    if kin_rows:
        names = ["relation", "of", "metric_name", "value", "value_there", "delta"]
        tables.append(Table(f"{text} minus each of them", names, deltas, query=query))
    return tables, frame


_BACK = {kin.PARENT: "child", kin.TEACHER: "student", kin.RESUMED: "resumed by", kin.FORKED: "fork"}
_FORTH = {kin.PARENT: "parent", kin.TEACHER: "teacher", kin.RESUMED: "resumed from", kin.FORKED: "forked from"}


def _walk(start: str, links: dict[str, list[kin.Link]], *, upward: bool) -> list[tuple[str, str, int]]:
    """Run ids with their relation and how many links away they are: circles are walked once."""
    found, seen, level = [], {start}, [start]
    distance = 0
    while level:
        distance += 1
        above: list[str] = []
        for run_id in level:
            for link in links.get(run_id, ()):
                other = link.related if upward else link.run_id
                if other not in seen:
                    seen.add(other)
                    above.append(other)
                    found.append((other, (_FORTH if upward else _BACK)[link.relation], distance))
        level = above
    return found
