"""Single runs, by what a person writes: an id, the beginning of one, or a name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from labtrack.analysis.columns import near
from labtrack.analysis.frame import Frame, Needs, opened, read, read_metrics
from labtrack.analysis.rows import Row
from labtrack.analysis.table import moment
from labtrack.errors import BadInputError
from labtrack.tracking.names import SOURCE_RUN

if TYPE_CHECKING:
    from labtrack.stores.filters import Wanted
    from labtrack.stores.model import Store

_SHORTEST = 4  # characters of an id that are taken for one
_LISTED = 5
_ID = re.compile("[0-9a-f]{32}")


def pick(
    sources: Sequence[str],
    texts: Sequence[str],
    needs: Needs,
    wanted: Wanted | None = None,
    *,
    every: bool = False,
) -> tuple[list[Row], Frame]:
    """The runs that are meant, with their metrics, and all runs without.

    every: all runs with their parameters and tags.

    Raises BadInputError where there is none, or more than one.
    """  # fmt: skip
    with opened(sources) as (stores, problems):
        frame = None if every or wanted else _by_id(stores, texts)
        if frame is None:
            frame = read(stores, Needs(), wanted, deleted=True, whole=None if every else _none)
        picked = [one_of(frame.rows, text) for text in texts]
        places = {store.location: store for store in stores}
        for row in () if every else {one.run.id: one for one in picked}.values():
            row.run = places[row.source].run(row.run.id)
        for store in stores:
            rows = {row.run.id: row for row in picked if row.source == store.location}
            read_metrics(store, list(rows.values()), needs)
        frame.problems = [*problems, *dict.fromkeys(one for store in stores for one in store.problems())]
    return picked, frame


def _by_id(stores: Sequence[Store], texts: Sequence[str]) -> Frame | None:
    """The runs with these ids, without looking at others; None where one of the texts is no id of any."""
    found = Frame(sources=tuple(store.location for store in stores))
    for text in dict.fromkeys(texts):
        if not _ID.fullmatch(text):
            return None
        for store in stores:
            try:
                run = store.run(text)
            except BadInputError:
                continue
            names = {one.id: one.name for one in store.experiments(deleted=True)}
            found.rows.append(Row(run, names.get(run.experiment_id, run.experiment_id), store.location))
            break
        else:
            return None
    return found


def _none(_: Frame) -> tuple[Row, ...]:
    return ()


def one_of(rows: Sequence[Row], text: str) -> Row:
    """The run that a text means: by id, by the beginning of an id, by name.  Raises BadInputError as `pick` does."""
    found = [row for row in rows if row.run.id == text]
    if not found:
        alive = [row for row in rows if row.run.lifecycle_stage == "active"]
        found = [row for row in alive if row.run.name == text]
        if not found and len(text) >= _SHORTEST:
            found = [row for row in alive if row.run.id.startswith(text.lower())]
        if not found:  # the id that it had where it was recorded
            found = [row for row in alive if row.run.tags.get(SOURCE_RUN) == text]
    if len(found) == 1:
        return found[0]
    if found:
        lines = "\n".join(f"  {described(row)}" for row in found[:_LISTED])
        more = f"\n  and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
        raise BadInputError(f"{len(found)} runs are called {text!r}:\n{lines}{more}", "name one by its id.")
    names = {row.run.name for row in rows} | {row.run.id for row in rows if row.run.id[:2] == text[:2].lower()}
    raise BadInputError(
        f"Run not found: {text!r}", near(text, sorted(names)) if rows else "there are no runs here: -s SOURCE"
    )


def described(row: Row) -> str:
    """A run in words that tell it from others of its name."""
    begun = moment(row.run.start_time) if row.run.start_time is not None else "no start time"
    return f"{row.run.id}  {begun}  {row.run.status}  {row.experiment}"


def facts(row: Row) -> Mapping[str, str]:
    """What a run is, for a result that is read by programs."""
    return {"run_id": row.run.id, "name": row.run.name, "status": row.run.status, "source": row.source}
