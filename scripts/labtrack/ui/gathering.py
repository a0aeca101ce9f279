"""Any recordings, also many, as one new database with the tables of the installed MLflow."""

from __future__ import annotations

import contextlib
import math
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from labtrack.stores.model import ACTIVE, DELETED, Experiment, LoggedModel, MetricPoint, ModelPoint, Store
from labtrack.stores.writing import Writer
from labtrack.ui import places

_STATUS = ("RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED")
_LARGEST = 1.7976931348623157e308  # what MLflow's own store writes for infinity
_MODELS = ("logged_model_params", "logged_model_tags", "logged_model_metrics")
# each dataset once, whichever runs read it
_SAME_DATASET = """
    CREATE TEMP TABLE same AS SELECT dataset_uuid AS old,
        first_value(dataset_uuid) OVER (PARTITION BY experiment_id, name, digest ORDER BY dataset_uuid) AS new
        FROM part.datasets;
    CREATE INDEX temp.same_old ON same (old);
    UPDATE part.inputs SET source_id = (SELECT new FROM same WHERE old = source_id) WHERE source_type = 'DATASET';
"""
_LATEST = """
    INSERT INTO latest_metrics (key, value, timestamp, step, is_nan, run_uuid)
    SELECT key, value, timestamp, step, is_nan, run_uuid FROM (SELECT *, row_number() OVER
        (PARTITION BY run_uuid, key ORDER BY step DESC, timestamp DESC, value DESC) AS place FROM metrics)
    WHERE place = 1
"""


class _Points:
    """A store as the writer wants it: points with whole times and steps, and infinity as MLflow writes it."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def points(self, run_id: str) -> Iterator[MetricPoint]:
        return (_plain(point) for point in self._store.points(run_id))

    def model_points(self, model_id: str) -> Iterator[ModelPoint]:
        return (one._replace(point=_plain(one.point)) for one in self._store.model_points(model_id))


def _plain(point: MetricPoint) -> MetricPoint:
    if math.isinf(point.value):
        return point._replace(value=math.copysign(_LARGEST, point.value), recorded=None)
    return point if point.recorded is None else point._replace(recorded=None)


class _Experiments:
    """Experiments of several stores by their names, with numbers as MLflow's databases want them."""

    def __init__(self) -> None:
        self.found: dict[str, Experiment] = {}

    def add(self, store: Store) -> dict[str, str]:
        """Takes a store's; gives for each id of theirs the number here."""
        numbers = {}
        for one in store.experiments(deleted=True):
            known = self.found.get(one.name)
            if known is None:
                taken = {other.id for other in self.found.values()}
                known = one if _is_number(one.id) and one.id not in taken else replace(one, id=_free(taken))
            elif known.lifecycle_stage == DELETED:
                known = replace(known, lifecycle_stage=one.lifecycle_stage)
            self.found[one.name] = known
            numbers[one.id] = known.id
        return numbers


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and int(text) < 1 << 63 and str(int(text)) == text


def _free(taken: set[str]) -> str:
    return str(max((int(one) for one in taken if int(one) < 1 << 62), default=0) + 1)


def gather(stores: Sequence[Store], part: Path, room: Path, step: Callable[[str], None]) -> None:
    """Writes what is in the stores into the file `part`.  room: a folder for artifacts that are no files here."""
    writer = Writer(part, stores[0])
    try:
        experiments, runs, models, names = _Experiments(), set(), set(), set()
        for store in stores:
            step(f"read {store.location}")
            numbers = experiments.add(store)
            points = cast("Store", _Points(store))
            for run in store.runs(deleted=True):
                if run.id not in runs:
                    runs.add(run.id)
                    place = places.address(store, run, room)
                    status = run.status if run.status in _STATUS else "RUNNING"
                    stage = DELETED if run.lifecycle_stage == DELETED else ACTIVE
                    number = numbers.get(run.experiment_id, "0")
                    changed = replace(
                        run, experiment_id=number, artifact_uri=place, status=status, lifecycle_stage=stage
                    )
                    writer.run(changed, points)
            for model in store.logged_models(deleted=True):
                if model.id not in models:
                    models.add(model.id)
                    writer.logged_model(_model(store, model, numbers, room), points)
            for registered in store.registered_models():
                if registered.name not in names:
                    names.add(registered.name)
                    writer.registered_model(registered)
        for experiment in experiments.found.values():
            writer.experiment(experiment)
        writer.close()
    except BaseException:
        writer.abandon()
        raise


def _model(store: Store, model: LoggedModel, numbers: dict[str, str], room: Path) -> LoggedModel:
    place = places.address(store, model, room)
    return replace(model, experiment_id=numbers.get(model.experiment_id, "0"), artifact_location=place)


def pour(part: Path, database: Path) -> None:
    """Takes what `gather` has written into a database that MLflow has made, and that is empty but for its Default."""
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as into:
        into.execute("PRAGMA synchronous = OFF")
        into.execute("ATTACH ? AS part", [str(part)])
        into.execute("BEGIN")
        into.execute("DELETE FROM experiments")
        into.execute("DELETE FROM experiment_tags")
        for statement in _SAME_DATASET.strip().split(";\n"):
            into.execute(statement)
        tables = [name for (name,) in into.execute("SELECT name FROM part.sqlite_master WHERE type = 'table'")]
        for table in tables:
            columns = list(into.execute(f"PRAGMA main.table_info({table})"))
            given = {row[1] for row in into.execute(f"PRAGMA part.table_info({table})")}
            wanted = [(column[1], _value(table, column, given)) for column in columns]
            chosen = [(name, value) for name, value in wanted if value]
            names, values = (", ".join(f'"{one}"' for one, _ in chosen), ", ".join(one for _, one in chosen))
            if chosen:  # nothing of a table that this MLflow does not have
                into.execute(f"INSERT OR IGNORE INTO main.{table} ({names}) SELECT {values} FROM part.{table} AS given")  # noqa: S608
        into.execute(_LATEST)
        into.execute("COMMIT")


def _value(table: str, column: Any, given: set[str]) -> str:
    """What goes into one of MLflow's columns; empty for its default."""
    _, name, kind, required, default, *_ = column
    if name == "experiment_id" and table in _MODELS:
        return "(SELECT experiment_id FROM part.logged_models AS model WHERE model.model_id = given.model_id)"
    if name not in given:
        return ""
    if not required:
        return f'"{name}"'
    otherwise = default if default is not None else "''" if "CHAR" in kind or "TEXT" in kind else "0"
    return f'coalesce("{name}", {otherwise})'
