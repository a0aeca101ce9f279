"""The runs in a SQLite file of MLflow, from its rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from labtrack.errors import BadInputError
from labtrack.stores.model import ACTIVE, DELETED, DatasetInput, Having, ModelLink, Run
from labtrack.stores.numbers import floor, text
from labtrack.stores.tables import Tables

_PIECE = 40_000  # rows in one statement: about 20 ms
# the rowid that ends the next piece; none at the end of the table
_LAST = f"SELECT (SELECT rowid FROM {{0}} WHERE rowid > ? ORDER BY rowid LIMIT 1 OFFSET {_PIECE - 1})"  # noqa: S608
_HAVING = (
    f"SELECT run_uuid FROM (SELECT * FROM {{0}} WHERE rowid > ? ORDER BY rowid LIMIT {_PIECE}) "  # noqa: S608
    "WHERE (key = ? OR typeof(key) != 'text') AND (value = ? OR typeof(value) != 'text')"
)
GONE = "SELECT experiment_id FROM experiments WHERE lifecycle_stage = 'deleted'"


def rows(tables: Tables, condition: str, values: Iterable[Any]) -> list[Any]:
    """Rows of the table of runs."""
    fields = (
        *("rowid", "run_uuid", "experiment_id", "name", "user_id", "status", "start_time", "end_time"),
        *("lifecycle_stage", "artifact_uri"),
    )
    return tables.select("runs", fields, condition, values)


def ids_having(tables: Tables, having: Having) -> set[Any] | None:
    """The runs that may have all of some parameters and tags; None where that is not known.

    Whoever needs it exactly looks at the runs: what is no text for SQLite may be read as one.
    """
    found: set[Any] | None = None
    for table, key, value in having:
        if not tables.database.columns(table) or "\ufffd" in key + value:  # what stands for bytes that are no text
            continue
        ids: set[Any] = set()
        last = -1
        try:
            while last is not None:
                ids.update(one for (one,) in tables.database.rows(_HAVING.format(table), [last, key, value]))
                ((last,),) = tables.database.rows(_LAST.format(table), [last])
        except BadInputError:  # the file is damaged there; the reader tells what is lost
            continue
        found = ids if found is None else found & ids
    return found


def whole(tables: Tables, page: Sequence[Any]) -> list[Run]:
    """Rows of runs, with all that belongs to them."""
    if not page:
        return []
    ids = [row[1] for row in page]
    params = tables.texts("params", "run_uuid", only=ids)
    tags = tables.texts("tags", "run_uuid", only=ids)
    inputs = _inputs(tables, ids)
    read = _links(tables, ids, "RUN_INPUT", "MODEL_INPUT")
    made = _links(tables, ids, "RUN_OUTPUT", "MODEL_OUTPUT")
    beside = {
        row: (params.get(row, {}), tags.get(row, {}), inputs.get(row, ()), read.get(row, ()), made.get(row, ()))
        for row in ids
    }
    return heads(tables, page, beside)


def heads(tables: Tables, page: Sequence[Any], belongings: Mapping[str, tuple[Any, ...]] | None = None) -> list[Run]:
    """Rows of runs.  belongings: parameters, tags, datasets, models that were read and made, by run."""
    gone = {number for (number,) in tables.database.rows(GONE)}
    nothing: tuple[Any, ...] = ({}, {}, (), (), ())
    runs = []
    for _, row, experiment, name, user, status, start, end, stage, uri in page:
        params, tags, inputs, read, made = (belongings or {}).get(row, nothing)
        run_id = text(row)
        begun = tables.time(start, tables.location, "start time", run_id)
        ended = tables.time(end, tables.location, "end time", run_id)
        runs.append(
            Run(
                run_id, text(experiment), text(name) or tags.get("mlflow.runName", ""), text(user),
                text(status) or "RUNNING", begun, ended or None,
                DELETED if experiment in gone else text(stage) or ACTIVE, text(uri), params, tags, tuple(inputs),
                tuple(ModelLink(model) for model, _ in read), tuple(ModelLink(model, step) for model, step in made),
            )
        )  # fmt: skip
    return runs


def _inputs(tables: Tables, ids: Sequence[str]) -> dict[str, list[DatasetInput]]:
    found: dict[str, list[DatasetInput]] = defaultdict(list)
    marks = ", ".join("?" * len(ids))
    links = tables.select(
        "inputs", ("destination_id", "source_id", "input_uuid"),
        f"source_type = 'DATASET' AND destination_type = 'RUN' AND destination_id IN ({marks}) ORDER BY rowid", ids,
    )  # fmt: skip
    if not links:
        return found
    fields = ("name", "digest", "dataset_source_type", "dataset_source", "dataset_schema", "dataset_profile")
    for run_id, dataset, link in links:
        tags = tables.texts("input_tags", "input_uuid", ("name", "value"), [link]).get(link, {})
        rows = tables.select("datasets", fields, "dataset_uuid = ?", [dataset])
        if not rows:
            what = f"a dataset of the run is not in it ({text(dataset)}) and was left out"
            tables.found.problem(tables.location, what, text(run_id))
        for row in rows:
            name, digest, kind, source, schema, profile = map(text, row)
            found[run_id].append(DatasetInput(name, digest, kind, source, schema or None, profile or None, tags))
    return found


def _links(tables: Tables, ids: Sequence[str], source: str, destination: str) -> dict[Any, list[Any]]:
    marks = ", ".join("?" * len(ids))
    found = defaultdict(list)
    for run_id, model, step in tables.select(
        "inputs", ("source_id", "destination_id", "step"),
        f"source_type = ? AND destination_type = ? AND source_id IN ({marks}) ORDER BY rowid",
        [source, destination, *ids],
    ):  # fmt: skip
        found[run_id].append((text(model), floor(step)))
    return found
