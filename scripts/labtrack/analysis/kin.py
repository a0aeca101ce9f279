"""How runs belong together: parents, teachers, what was resumed and what was forked.

mlflow.parentRunId (tag)                              parent
teacher_run_id (tag or parameter; an id or a name)    teacher
resumedRun=True with training.run_id (Anemoi)         resumed
forkedRun=True with training.fork_run_id (Anemoi)     forked
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from labtrack.analysis.rows import Row
from labtrack.stores.model import Run
from labtrack.tracking.names import SOURCE_RUN

PARENT, TEACHER, RESUMED, FORKED = "parent", "teacher", "resumed", "forked"
_TEACHERS = ("teacher_run_id", "teacher_run", "teacher_id")
_RESUMED = ("training.run_id", "config.training.run_id", "metadata.run_id")
_FORKED = ("forkedRunId", "training.fork_run_id", "config.training.fork_run_id")
_NONE = ("", "None", "null", "none")


class Link(NamedTuple):
    """A run and one that it comes from.

    related: that run's id, where it is known; else what is written.  found: whether it is among the runs.
    """

    run_id: str
    related: str
    relation: str
    found: bool
    written: str


def index(rows: Sequence[Row]) -> tuple[dict[str, Run], dict[str, list[Run]]]:
    """Runs by id, also by the id that they had where they were recorded, and by name."""
    by_id: dict[str, Run] = {}
    by_name: dict[str, list[Run]] = {}
    for row in rows:
        by_name.setdefault(row.run.name, []).append(row.run)
        origin = row.run.tags.get(SOURCE_RUN)
        if origin:
            by_id.setdefault(origin, row.run)
    by_id.update({row.run.id: row.run for row in rows})
    return by_id, by_name


def links(run: Run, by_id: Mapping[str, Run], by_name: Mapping[str, Sequence[Run]]) -> Iterator[Link]:
    """What a run comes from."""
    seen: set[tuple[str, str]] = set()
    for relation, written in _written(run):
        found = by_id.get(written)
        if found is None and relation == TEACHER:
            known = [one for one in by_name.get(written, ()) if one.id != run.id]
            found = known[-1] if known else None  # the latest of that name
        related = found.id if found else written
        if related != run.id and (relation, related) not in seen:
            seen.add((relation, related))
            yield Link(run.id, related, relation, found is not None, written)


def _written(run: Run) -> Iterator[tuple[str, str]]:
    resumed = run.tags.get("resumedRun", "").lower() == "true"
    forked = run.tags.get("forkedRun", "").lower() == "true" or "forkedRunId" in run.tags
    if run.parent_id:
        yield (RESUMED if resumed else PARENT), run.parent_id
    for names, relation, here in ((_TEACHERS, TEACHER, True), (_RESUMED, RESUMED, resumed), (_FORKED, FORKED, forked)):
        for name in names if here else ():
            written = run.tags.get(name, run.params.get(name, ""))
            if written not in _NONE:
                yield relation, written
                break
