"""Writes runs into a new SQLite file with MLflow's tables, as far as `labtrack.stores.sqlite` reads them.

It is for a file that is carried elsewhere, not for a store that MLflow goes on with: there are no
indexes but one and no version of MLflow's schema.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from labtrack.stores.model import Experiment, LoggedModel, RegisteredModel, Run, Store
from labtrack.stores.sqlite import IDENTITY
from labtrack.stores.sqlitemodels import MODEL_STATUS

_BATCH = 10_000
_TABLES = {
    "experiments": "experiment_id INTEGER, name TEXT, artifact_location TEXT, lifecycle_stage TEXT, "
    "creation_time BIGINT, last_update_time BIGINT",
    "experiment_tags": "key TEXT, value TEXT, experiment_id INTEGER",
    "runs": "run_uuid TEXT PRIMARY KEY, name TEXT, user_id TEXT, status TEXT, start_time BIGINT, end_time BIGINT, "
    "lifecycle_stage TEXT, artifact_uri TEXT, experiment_id INTEGER",
    "params": "key TEXT, value TEXT, run_uuid TEXT",
    "tags": "key TEXT, value TEXT, run_uuid TEXT",
    "metrics": "key TEXT, value FLOAT, timestamp BIGINT, step BIGINT, run_uuid TEXT, is_nan BOOLEAN",
    "datasets": "dataset_uuid TEXT, experiment_id INTEGER, name TEXT, digest TEXT, dataset_source_type TEXT, "
    "dataset_source TEXT, dataset_schema TEXT, dataset_profile TEXT",
    "inputs": "input_uuid TEXT, source_type TEXT, source_id TEXT, destination_type TEXT, destination_id TEXT, "
    "step BIGINT",
    "input_tags": "input_uuid TEXT, name TEXT, value TEXT",
    "logged_models": "model_id TEXT, experiment_id INTEGER, name TEXT, artifact_location TEXT, status INTEGER, "
    "status_message TEXT, model_type TEXT, source_run_id TEXT, lifecycle_stage TEXT, creation_timestamp_ms BIGINT, "
    "last_updated_timestamp_ms BIGINT",
    "logged_model_params": "model_id TEXT, param_key TEXT, param_value TEXT",
    "logged_model_tags": "model_id TEXT, tag_key TEXT, tag_value TEXT",
    "logged_model_metrics": "model_id TEXT, metric_name TEXT, metric_value FLOAT, metric_timestamp_ms BIGINT, "
    "metric_step BIGINT, run_id TEXT, dataset_name TEXT, dataset_digest TEXT",
    "registered_models": "name TEXT, description TEXT, creation_time BIGINT, last_updated_time BIGINT",
    "registered_model_tags": "name TEXT, key TEXT, value TEXT",
    "registered_model_aliases": "name TEXT, version INTEGER, alias TEXT",
    "model_versions": "name TEXT, version INTEGER, run_id TEXT, source TEXT, current_stage TEXT, status TEXT, "
    "description TEXT, user_id TEXT, creation_time BIGINT, last_updated_time BIGINT, storage_location TEXT",
    "model_version_tags": "name TEXT, version INTEGER, key TEXT, value TEXT",
    IDENTITY: "identity TEXT",
}


class Writer:
    """A new SQLite file.  Call `close` at the end; the same calls give the same bytes."""

    def __init__(self, path: Path, origin: Store) -> None:
        """Makes the file, which says that its runs are those of `origin`."""
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; BEGIN")
        for table, columns in _TABLES.items():
            self._db.execute(f"CREATE TABLE {table} ({columns})")
        self._db.execute("CREATE INDEX index_metrics_run_uuid ON metrics (run_uuid)")
        self._add(IDENTITY, origin.identity)
        self._inputs = 0

    def close(self) -> None:
        """Ends the file."""
        self._db.execute("COMMIT")
        self._db.close()

    def abandon(self) -> None:
        """Lets go of the file, whatever is in it."""
        self._db.close()

    def experiment(self, one: Experiment) -> None:
        """Adds an experiment and its tags."""
        facts = (one.artifact_location, one.lifecycle_stage, one.creation_time, one.last_update_time)
        self._add("experiments", one.id, one.name, *facts)
        self._pairs("experiment_tags", one.tags, one.id)

    def run(self, one: Run, store: Store) -> int:
        """Adds a run and all its points; gives their number."""
        facts = (one.status, one.start_time, one.end_time, one.lifecycle_stage, one.artifact_uri, one.experiment_id)
        self._add("runs", one.id, one.name, one.user_id, *facts)
        self._pairs("params", one.params, one.id)
        self._pairs("tags", one.tags, one.id)
        for data in one.inputs:
            number = f"{self._inputs:08}"
            texts = (data.name, data.digest, data.source_type, data.source, data.schema, data.profile)
            self._add("datasets", number, one.experiment_id, *texts)
            self._link("DATASET", number, "RUN", one.id, None)
            self._add_all("input_tags", ((number, key, value) for key, value in data.tags.items()))
        for link in one.model_inputs:
            self._link("RUN_INPUT", one.id, "MODEL_INPUT", link.model_id, link.step)
        for link in one.model_outputs:
            self._link("RUN_OUTPUT", one.id, "MODEL_OUTPUT", link.model_id, link.step)
        return self._add_all(
            "metrics",
            (
                (key, *_number(value), *(recorded or (timestamp, step)), one.id, math.isnan(value))
                for key, value, timestamp, step, recorded in store.points(one.id)
            ),
        )

    def logged_model(self, one: LoggedModel, store: Store) -> None:
        """Adds a logged model and its points."""
        status = next((number for number, name in MODEL_STATUS.items() if name == one.status), 0)
        times = (one.creation_time, one.last_update_time)
        facts = (one.artifact_location, status, one.status_message, one.model_type, one.source_run_id)
        self._add("logged_models", one.id, one.experiment_id, one.name, *facts, one.lifecycle_stage, *times)
        self._add_all("logged_model_params", ((one.id, key, value) for key, value in one.params.items()))
        self._add_all("logged_model_tags", ((one.id, key, value) for key, value in one.tags.items()))
        self._add_all(
            "logged_model_metrics",
            (
                (one.id, point.key, *_number(point.value), *(point.recorded or point[2:4]), run_id, name, digest)
                for point, run_id, name, digest in store.model_points(one.id)
            ),
        )

    def registered_model(self, one: RegisteredModel) -> None:
        """Adds a registered model with its versions."""
        self._add("registered_models", one.name, one.description, one.creation_time, one.last_update_time)
        self._add_all("registered_model_tags", ((one.name, key, value) for key, value in one.tags.items()))
        for version in one.versions:
            place = f"models:/{version.model_id}" if version.model_id else version.source
            facts = (version.stage, version.status, version.description, version.user_id)
            times = (version.creation_time, version.last_update_time)
            self._add(
                "model_versions", one.name, int(version.version), version.run_id, place, *facts, *times, version.source
            )
            tags = version.tags.items()
            self._add_all("model_version_tags", ((one.name, int(version.version), key, value) for key, value in tags))
            aliases = ((one.name, int(version.version), alias) for alias in version.aliases)
            self._add_all("registered_model_aliases", aliases)

    def _link(self, source_type: str, source: str, kind: str, destination: str, step: int | None) -> None:
        self._add("inputs", f"{self._inputs:08}", source_type, source, kind, destination, step)
        self._inputs += 1

    def _pairs(self, table: str, pairs: Mapping[str, str], owner: str) -> None:
        self._add_all(table, ((key, value, owner) for key, value in pairs.items()))

    def _add(self, table: str, *row: Any) -> None:
        self._add_all(table, [row])

    def _add_all(self, table: str, rows: Iterable[tuple[Any, ...]]) -> int:
        count = 0
        rest: Iterator[tuple[Any, ...]] = iter(rows)
        while batch := list(islice(rest, _BATCH)):
            marks = ", ".join("?" * len(batch[0]))
            self._db.executemany(f"INSERT INTO {table} VALUES ({marks})", batch)  # noqa: S608 one of _TABLES
            count += len(batch)
        return count


def _number(value: float) -> tuple[float]:
    """SQLite keeps no nan; MLflow writes 0 and says in another column that it is one."""
    return (0.0 if math.isnan(value) else value,)
