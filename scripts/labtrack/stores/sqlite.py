"""Runs that MLflow wrote into a SQLite file, read with our own SQL.

MLflow itself reads only files of exactly its own version.  Here the schema is looked at: what a column or
table would have held is empty where the version that wrote the file did not have it.
"""

from __future__ import annotations

import difflib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from labtrack.errors import BadInputError
from labtrack.stores.artifacts import LocalArtifacts
from labtrack.stores.database import Database
from labtrack.stores.model import (
    ACTIVE,
    Artifact,
    DatasetInput,
    Experiment,
    LoggedModel,
    MetricPoint,
    ModelLink,
    ModelPoint,
    ModelVersion,
    Owner,
    Problem,
    RegisteredModel,
    Run,
    identity_of,
)

PAGE = 20_000  # points per statement: about 20 ms, for which a writer may have to wait
COUNTED = 100_000  # points per statement where they are only counted: about 40 ms
RUNS = 200  # runs per statement, below SQLite's old limit of 999 variables
IDENTITY = "labtrack_origin"  # the table of an exported file that says which store it is from
_BY_RUN, _BY_KEY = "index_metrics_run_uuid", "index_metrics_run_uuid_key_step"
MODEL_STATUS = {0: "UNSPECIFIED", 1: "PENDING", 2: "READY", 3: "FAILED"}


class SqliteStore:
    """A SQLite file of MLflow 1.x, 2.x or 3.x."""

    kind = "sqlite"

    def __init__(self, path: Path) -> None:
        """Opens the file.  Raises BadInputError where it isn't one of MLflow's."""
        self.path = path
        self._db = Database(path)
        if not (self._db.columns("experiments") and self._db.columns("runs")):
            self._db.close()
            raise BadInputError(
                f"{path} is a SQLite file, but has none of MLflow's runs in it (no tables experiments and runs).",
                "name the file that MLflow wrote; if a job has just made it, wait until it has logged.",
            )
        # per run: a row, and the points up to it: what was read, and what was counted
        self._marks: dict[str, tuple[int, Counter[str]]] = {}
        self._counts: dict[str, tuple[int, Counter[str]]] = {}
        self._files = LocalArtifacts(path.absolute().parent)

    @property
    def location(self) -> str:
        return str(self.path)

    @property
    def identity(self) -> str:
        if self._db.columns(IDENTITY):
            for (origin,) in self._db.rows(f"SELECT identity FROM {IDENTITY}"):  # noqa: S608 a constant
                return str(origin)
        return identity_of(self.experiments(deleted=True))

    def experiments(self, *, deleted: bool = False) -> list[Experiment]:
        tags = self._grouped("experiment_tags", "experiment_id", ("key", "value"))
        fields = ("experiment_id", "name", "artifact_location", "lifecycle_stage", "creation_time", "last_update_time")
        found = []
        for number, name, location, stage, born, changed in self._select("experiments", fields, "1 ORDER BY rowid"):
            if deleted or stage in (ACTIVE, None):
                labels = dict(tags.get(number, ()))
                found.append(Experiment(str(number), name, location or "", stage or ACTIVE, born, changed, labels))
        return found

    def runs(self, experiment_id: str | None = None, *, deleted: bool = False) -> Iterator[Run]:
        condition, values = "1", []
        if experiment_id is not None:
            condition, values = "experiment_id = ?", [experiment_id]
        if not deleted:
            condition += (
                " AND (lifecycle_stage = 'active' OR lifecycle_stage IS NULL) AND experiment_id NOT IN "
                "(SELECT experiment_id FROM experiments WHERE lifecycle_stage = 'deleted')"
            )
        last = -1
        while True:
            page = self._rows_of_runs(f"rowid > ? AND {condition} ORDER BY rowid LIMIT {RUNS}", [last, *values])
            yield from self._whole(page)
            if len(page) < RUNS:
                return
            last = page[-1][0]

    def run(self, run_id: str) -> Run:
        found = self._whole(self._rows_of_runs("run_uuid = ?", [run_id]))
        if not found:
            raise unknown_run(run_id, self.location, (name for (name,) in self._db.rows("SELECT run_uuid FROM runs")))
        return found[0]

    def metric_keys(self, run_id: str) -> dict[str, int]:
        if not self._db.columns("metrics"):
            return {}
        last, seen = self._counts.get(run_id) or self._first_count(run_id)
        hint = self._hint(_BY_RUN)
        page = f"SELECT key, rowid AS row FROM metrics {hint} WHERE run_uuid = ? AND rowid > ? "  # noqa: S608 constants
        page += f"ORDER BY rowid LIMIT {COUNTED}"
        while True:
            rows = self._db.rows(f"SELECT key, count(*), max(row) FROM ({page}) GROUP BY key", [run_id, last])  # noqa: S608
            seen = seen + Counter({key: count for key, count, _ in rows})
            last = max([last, *(row for _, _, row in rows)])
            self._counts[run_id] = last, seen
            if sum(count for _, count, _ in rows) < COUNTED:
                return dict(seen)

    def _first_count(self, run_id: str) -> tuple[int, Counter[str]]:
        """A row of a run and the points up to it, from the index alone where it has the keys (MLflow >= 2.20).

        Key by key, since a job's commit waits for the longest statement.
        """
        ((last,),) = self._db.rows("SELECT max(rowid) FROM metrics WHERE run_uuid = ?", [run_id])
        if last is None or not self._hint(_BY_KEY):
            return -1, Counter()
        seen: Counter[str] = Counter()
        key = ""
        while True:
            ((key,),) = self._db.rows("SELECT min(key) FROM metrics WHERE run_uuid = ? AND key > ?", [run_id, key])
            if key is None:
                return last, seen
            counted = "SELECT count(*) FROM metrics WHERE run_uuid = ? AND key = ? AND rowid <= ?"
            ((seen[key],),) = self._db.rows(counted, [run_id, key, last])

    def points(self, run_id: str, skip: Mapping[str, int] | None = None) -> Iterator[MetricPoint]:
        left = Counter(skip or {})
        for key, value, timestamp, step, is_nan in self._points(run_id, left):
            if left[key] > 0:
                left[key] -= 1
                continue
            yield MetricPoint(key, math.nan if is_nan or value is None else value, timestamp, step)

    def _points(self, run_id: str, skip: Counter[str]) -> Iterator[Any]:
        """In the order of their recording, which is that of SQLite's row ids; a page at a time.

        Pages that an earlier call has seen and that are skipped whole are not read again, and taken off `skip`.
        """
        columns = self._db.columns("metrics")
        if not columns:
            return
        step, is_nan = (name if name in columns else f"0 AS {name}" for name in ("step", "is_nan"))
        sql = (
            f"SELECT key, value, timestamp, {step}, {is_nan}, rowid FROM metrics {self._hint(_BY_RUN)} "  # noqa: S608
            f"WHERE run_uuid = ? AND rowid > ? ORDER BY rowid LIMIT {PAGE}"
        )
        last, seen = self._marks.get(run_id, (-1, Counter()))
        if any(skip[key] < count for key, count in seen.items()):
            last, seen = -1, Counter()
        skip.subtract(seen)
        while True:
            page = self._db.rows(sql, [run_id, last])
            for *point, last in page:  # noqa: B007 the last one is where the next page begins
                yield point
            seen = seen + Counter(row[0] for row in page)
            self._marks[run_id] = last, seen
            if len(page) < PAGE:
                return

    def _hint(self, index: str) -> str:
        """The words for reading by this index; without them SQLite may sort all points by another one."""
        found = self._db.rows("SELECT 1 FROM sqlite_master WHERE type = 'index' AND name = ?", [index])
        return f"INDEXED BY {index}" if found else "NOT INDEXED" if index == _BY_RUN else ""

    def artifacts(self, owner: Owner) -> Iterator[Artifact]:
        return self._files.list(owner)

    def local_path(self, owner: Owner, path: str) -> Path | None:
        return self._files.path(owner, path)

    def open_artifact(self, owner: Owner, path: str) -> BinaryIO:
        return self._files.open(owner, path)

    def logged_models(self, *, deleted: bool = False) -> Iterator[LoggedModel]:
        fields = (
            *("model_id", "experiment_id", "name", "artifact_location", "status", "status_message", "model_type"),
            *("source_run_id", "lifecycle_stage", "creation_timestamp_ms", "last_updated_timestamp_ms"),
        )
        params = self._grouped("logged_model_params", "model_id", ("param_key", "param_value"))
        tags = self._grouped("logged_model_tags", "model_id", ("tag_key", "tag_value"))
        for row in self._select("logged_models", fields, "1 ORDER BY rowid"):
            model_id, experiment, name, location, status, message, kind, run_id, stage, born, changed = row
            if deleted or stage in (ACTIVE, None):
                yield LoggedModel(
                    model_id, str(experiment), name or "", location or "", MODEL_STATUS.get(status, str(status)),
                    message or "", kind or "", run_id or None, stage or ACTIVE, born, changed,
                    dict(params.get(model_id, ())), dict(tags.get(model_id, ())),
                )  # fmt: skip

    def model_points(self, model_id: str) -> Iterator[ModelPoint]:
        fields = (
            *("metric_name", "metric_value", "metric_timestamp_ms", "metric_step"),
            *("run_id", "dataset_name", "dataset_digest"),
        )
        condition, last = f"model_id = ? AND rowid > ? ORDER BY rowid LIMIT {PAGE}", -1
        while page := self._select("logged_model_metrics", ("rowid", *fields), condition, [model_id, last]):
            for row in page:
                last, key, value, timestamp, step, run_id, name, digest = row
                point = MetricPoint(key, math.nan if value is None else value, timestamp, step)
                yield ModelPoint(point, run_id, name or None, digest or None)

    def registered_models(self) -> list[RegisteredModel]:
        tags = self._grouped("registered_model_tags", "name", ("key", "value"))
        versions = defaultdict(list)
        for version in self._versions():
            versions[version.name].append(version)
        fields = ("name", "description", "creation_time", "last_updated_time")
        return [
            RegisteredModel(name, said or "", born, changed, dict(tags.get(name, ())), tuple(versions[name]))
            for name, said, born, changed in self._select("registered_models", fields, "1 ORDER BY name")
        ]

    def _versions(self) -> Iterator[ModelVersion]:
        tags: dict[Any, dict[str, str]] = defaultdict(dict)
        for name, version, key, value in self._select("model_version_tags", ("name", "version", "key", "value"), "1"):
            tags[name, version][key] = value
        aliases = defaultdict(list)
        for name, version, alias in self._select("registered_model_aliases", ("name", "version", "alias"), "1"):
            aliases[name, version].append(alias)
        fields = (
            *("name", "version", "run_id", "source", "current_stage", "status", "description", "user_id"),
            *("creation_time", "last_updated_time", "storage_location"),
        )
        for row in self._select("model_versions", fields, "1 ORDER BY name, version"):
            name, version, run_id, source, stage, status, said, user, born, changed, place = row
            source = source or ""
            # MLflow 3 writes models:/m-… there, and where that was in the other column
            model_id = source[len("models:/") :] if source.startswith("models:/m-") else _model_in(place or source)
            if stage == "Deleted_Internal":
                continue
            yield ModelVersion(
                name, str(version), run_id or None, model_id, source, stage or "None", status or "READY", said or "",
                user or "", born, changed, tuple(sorted(aliases[name, version])), tags[name, version],
            )  # fmt: skip

    def problems(self) -> list[Problem]:
        danger = [Problem(str(self.path), self._db.danger, damage=False)] if self._db.danger else []
        return danger + self._files.problems

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> SqliteStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _select(self, table: str, fields: Sequence[str], condition: str, values: Iterable[Any] = ()) -> list[Any]:
        """Rows of a table that may not be there, with NULL for columns that aren't."""
        there = self._db.columns(table)
        if not there:
            return []
        columns = ", ".join(name if name in there or name == "rowid" else f"NULL AS {name}" for name in fields)
        return self._db.rows(f"SELECT {columns} FROM {table} WHERE {condition}", values)  # noqa: S608 names we know

    def _grouped(
        self, table: str, by: str, fields: Sequence[str], only: Sequence[Any] | None = None
    ) -> dict[Any, list[Any]]:
        """The rows of a table by one column; `only` those of some of its values."""
        condition = f"{by} IN ({', '.join('?' * len(only))})" if only is not None else "1"
        found = defaultdict(list)
        for first, *rest in self._select(table, (by, *fields), f"{condition} ORDER BY rowid", only or ()):
            found[first].append(rest)
        return found

    def _rows_of_runs(self, condition: str, values: Iterable[Any]) -> list[Any]:
        fields = (
            *("rowid", "run_uuid", "experiment_id", "name", "user_id", "status", "start_time", "end_time"),
            *("lifecycle_stage", "artifact_uri"),
        )
        return self._select("runs", fields, condition, values)

    def _whole(self, page: Sequence[Any]) -> list[Run]:
        """Rows of runs, with all that belongs to them."""
        if not page:
            return []
        ids = [row[1] for row in page]
        params = self._grouped("params", "run_uuid", ("key", "value"), ids)
        tags = self._grouped("tags", "run_uuid", ("key", "value"), ids)
        inputs = self._inputs(ids)
        read = self._links(ids, "RUN_INPUT", "MODEL_INPUT")
        made = self._links(ids, "RUN_OUTPUT", "MODEL_OUTPUT")
        runs = []
        for _, run_id, experiment, name, user, status, start, end, stage, uri in page:
            labels = {key: value or "" for key, value in tags.get(run_id, ())}
            runs.append(
                Run(
                    run_id, str(experiment), name or labels.get("mlflow.runName", ""), user or "", status or "RUNNING",
                    start, end or None, stage or ACTIVE, uri or "",
                    {key: value or "" for key, value in params.get(run_id, ())}, labels, tuple(inputs.get(run_id, ())),
                    tuple(ModelLink(model) for model, _ in read.get(run_id, ())),
                    tuple(ModelLink(model, step) for model, step in made.get(run_id, ())),
                )
            )  # fmt: skip
        return runs

    def _inputs(self, ids: Sequence[str]) -> dict[str, list[DatasetInput]]:
        found: dict[str, list[DatasetInput]] = defaultdict(list)
        marks = ", ".join("?" * len(ids))
        links = self._select(
            "inputs", ("destination_id", "source_id", "input_uuid"),
            f"source_type = 'DATASET' AND destination_type = 'RUN' AND destination_id IN ({marks}) ORDER BY rowid", ids,
        )  # fmt: skip
        if not links:
            return found
        fields = ("name", "digest", "dataset_source_type", "dataset_source", "dataset_schema", "dataset_profile")
        for run_id, dataset, link in links:
            tags = dict(self._select("input_tags", ("name", "value"), "input_uuid = ? ORDER BY rowid", [link]))
            for name, digest, kind, source, schema, profile in self._select(
                "datasets", fields, "dataset_uuid = ?", [dataset]
            ):
                found[run_id].append(
                    DatasetInput(name, digest, kind or "", source or "", schema or None, profile or None, tags)
                )
        return found

    def _links(self, ids: Sequence[str], source: str, destination: str) -> dict[Any, list[Any]]:
        marks = ", ".join("?" * len(ids))
        found = defaultdict(list)
        for run_id, model, step in self._select(
            "inputs", ("source_id", "destination_id", "step"),
            f"source_type = ? AND destination_type = ? AND source_id IN ({marks}) ORDER BY rowid",
            [source, destination, *ids],
        ):  # fmt: skip
            found[run_id].append((model, step))
        return found


def unknown_run(run_id: str, location: str, known: Iterable[str]) -> BadInputError:
    """The error for a run id that is not there, with ids that look like it."""
    ids = list(known)
    near = [one for one in ids if one.startswith(run_id)] or difflib.get_close_matches(run_id, ids, 3, 0.7)
    hint = f"is it {' or '.join(near[:3])}?" if near else "its ids are 32 hexadecimal digits, as MLflow shows them."
    return BadInputError(f"There is no run {run_id} among the {len(ids)} of {location}.", hint)


def _model_in(place: str) -> str | None:
    """The id of the logged model in a path like …/models/m-…/artifacts."""
    for part in place.split("/"):
        if part.startswith("m-") and len(part) == len("m-") + 32:
            return part
    return None
