"""Runs that MLflow wrote into a SQLite file, read with our own SQL.

MLflow itself reads only files of exactly its own version.  Here the schema is looked at: what a column or
table would have held is empty where the version that wrote the file did not have it.
"""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from labtrack.errors import BadInputError
from labtrack.stores import sqlitemodels, sqliteothers, sqliteruns, sqlitetraces
from labtrack.stores.artifacts import LocalArtifacts
from labtrack.stores.database import Database
from labtrack.stores.model import (
    ACTIVE,
    DELETED,
    Artifact,
    Experiment,
    Findings,
    Having,
    LoggedModel,
    MetricPoint,
    ModelPoint,
    Owner,
    Problem,
    RegisteredModel,
    Run,
    Trace,
    identity_of,
    unnamed,
)
from labtrack.stores.numbers import Steps, floor, metric_value, number, text, whole
from labtrack.stores.sqliteruns import GONE
from labtrack.stores.sqlitesummary import Summing
from labtrack.stores.summary import PARTS, Summaries
from labtrack.stores.tables import Tables

PAGE = 20_000  # points per statement: about 20 ms, for which a writer may have to wait
COUNTED = 100_000  # points per statement where they are only counted: about 40 ms
_ASKED = 500  # metrics that one statement can be asked for
RUNS = 200  # runs per statement, below SQLite's old limit of 999 variables
HEADS = 4000  # rows of runs per statement: about 20 ms
IDENTITY = "labtrack_origin"  # the table of an exported file that says which store it is from
_BY_RUN, _BY_KEY = "index_metrics_run_uuid", "index_metrics_run_uuid_key_step"


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
        self._marks: dict[str, tuple[int, Counter[str], Steps]] = {}
        self._counts: dict[str, tuple[int, Counter[str]]] = {}
        self.found = Findings()
        self._lost: dict[tuple[str, str], dict[int, str]] = {}  # points that can't be read, by row
        self._files = LocalArtifacts(path.absolute().parent, self.found)
        self._tables = Tables(self._db, str(path), self.found)

    @property
    def location(self) -> str:
        return str(self.path)

    @property
    def identity(self) -> str:
        if self._db.columns(IDENTITY):
            for (origin,) in self._db.rows(f"SELECT identity FROM {IDENTITY}"):  # noqa: S608 a constant
                return str(origin)
        return identity_of(self._with_a_row(deleted=True))

    def experiments(self, *, deleted: bool = False) -> list[Experiment]:
        return self._with_a_row(deleted=deleted) + [self._lost_experiment(number) for number in self._without_a_row()]

    def _with_a_row(self, *, deleted: bool) -> list[Experiment]:
        tags = self._tables.texts("experiment_tags", "experiment_id")
        fields = ("experiment_id", "name", "artifact_location", "lifecycle_stage", "creation_time", "last_update_time")
        found = []
        for row, name, location, stage, *times in self._tables.select("experiments", fields, "1 ORDER BY rowid"):
            if stage == DELETED and not deleted:
                continue
            number, said = text(row), text(name)
            if not said.strip():
                self.found.warning(self.location, f"the experiment {number} has no name", None, number)
            born, changed = (
                self._tables.time(value, self.location, f"{what} time of the experiment {number}", None, number)
                for what, value in zip(("creation", "last update"), times)
            )
            called = said if said.strip() else unnamed(number)
            found.append(
                Experiment(number, called, text(location), text(stage) or ACTIVE, born, changed, tags.get(row, {}))
            )
        return found

    def _without_a_row(self) -> list[str]:
        """The experiments that runs, models or traces belong to and that the file does not have."""
        found: dict[str, None] = {}
        for table in ("runs", "logged_models", "trace_info"):
            lost = "experiment_id NOT IN (SELECT experiment_id FROM experiments) GROUP BY experiment_id"
            found.update({text(number): None for (number,) in self._tables.select(table, ("experiment_id",), lost)})
        return list(found)

    def _lost_experiment(self, number: str) -> Experiment:
        what = f"the experiment {number}, which was recorded in, is not in it: its name is lost; the rest is read"
        self.found.problem(self.path, what, experiment_id=number)
        return Experiment(number, unnamed(number))

    def runs(self, experiment_id: str | None = None, *, deleted: bool = False, having: Having = ()) -> Iterator[Run]:
        ids = sqliteruns.ids_having(self._tables, having)
        for page in self._pages_of_runs(RUNS if ids is None else HEADS, experiment_id, deleted=deleted):
            some = page if ids is None else [row for row in page if row[1] in ids]
            for at in range(0, len(some), RUNS):
                yield from self._readable(some[at : at + RUNS])

    def heads(self, *, deleted: bool = False) -> Iterator[Run]:
        for page in self._pages_of_runs(HEADS, None, deleted=deleted):
            if all(row[3] for row in page):
                yield from sqliteruns.heads(self._tables, page)
            else:  # before MLflow 2 the name was only in a tag
                for at in range(0, len(page), RUNS):
                    yield from self._readable(page[at : at + RUNS])

    def _pages_of_runs(self, size: int, experiment_id: str | None, *, deleted: bool) -> Iterator[list[Any]]:
        condition, values = "1", []
        if experiment_id is not None:
            condition, values = "experiment_id = ?", [experiment_id]
        if not deleted:
            condition += (
                f" AND (lifecycle_stage = 'active' OR lifecycle_stage IS NULL) AND experiment_id NOT IN ({GONE})"
            )
        last = -1
        while True:
            page = sqliteruns.rows(
                self._tables, f"rowid > ? AND {condition} ORDER BY rowid LIMIT {size}", [last, *values]
            )
            yield page
            if len(page) < size:
                return
            last = page[-1][0]

    def _readable(self, page: Sequence[Any]) -> Iterator[Run]:
        """The runs in some rows; where the file is damaged in the place of one of them, that one is told."""
        try:
            yield from sqliteruns.whole(self._tables, page)
        except BadInputError:
            for row in page:
                try:
                    yield from sqliteruns.whole(self._tables, [row])
                except BadInputError as error:
                    run_id = text(row[1])
                    self.found.problem(self.location, f"the run {run_id} was left out: {error.what}", run_id)

    def run(self, run_id: str) -> Run:
        found = sqliteruns.whole(self._tables, sqliteruns.rows(self._tables, "run_uuid = ?", [run_id]))
        if not found:
            raise unknown_run(run_id, self.location, (name for (name,) in self._db.rows("SELECT run_uuid FROM runs")))
        return found[0]

    def metric_keys(self, run_id: str) -> dict[str, int]:
        try:
            return self._counted(run_id) if self._db.columns("metrics") else {}
        except BadInputError as error:
            self.found.problem(self.location, f"points of the run were left out: {error.what}", run_id)
            return dict(self._counts.get(run_id, (-1, Counter()))[1])

    def _counted(self, run_id: str) -> dict[str, int]:
        last, seen = self._counts.get(run_id) or self._first_count(run_id)
        hint = self._hint(_BY_RUN)
        page = f"SELECT key, rowid AS row FROM metrics {hint} WHERE run_uuid = ? AND rowid > ? "  # noqa: S608 constants
        page += f"ORDER BY rowid LIMIT {COUNTED}"
        while True:
            rows = self._db.rows(f"SELECT key, count(*), max(row) FROM ({page}) GROUP BY key", [run_id, last])  # noqa: S608
            new: Counter[str] = Counter()
            for key, count, _ in rows:
                new[text(key)] += count
            seen = seen + new
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
            ((count,),) = self._db.rows(counted, [run_id, key, last])
            seen[text(key)] += count

    def points(
        self, run_id: str, skip: Mapping[str, int] | None = None, keys: Collection[str] | None = None
    ) -> Iterator[MetricPoint]:
        left = Counter(skip or {})
        for point in self._points(run_id, left, keys):
            if left[point.key] > 0:
                left[point.key] -= 1
            elif keys is None or point.key in keys:
                yield point

    def summaries(
        self, run_ids: Sequence[str], keys: Collection[str] | None = None, parts: Collection[str] = PARTS
    ) -> Summaries:
        return Summing(self._db, self).summaries(run_ids, keys, parts)

    def _points(self, run_id: str, skip: Counter[str], keys: Collection[str] | None) -> Iterator[MetricPoint]:
        """In the order of their recording, which is that of SQLite's row ids; a page at a time.

        Pages that an earlier call has seen and that are skipped whole are not read again, and taken off `skip`.
        Of some keys all that may be one of them is read.
        """
        columns = self._db.columns("metrics")
        if not columns:
            return
        step, is_nan = (name if name in columns else f"0 AS {name}" for name in ("step", "is_nan"))
        sql = (
            f"SELECT key, value, timestamp, {step}, {is_nan}, rowid FROM metrics {self._hint(_BY_RUN)} "  # noqa: S608
            f"WHERE run_uuid = ? AND rowid > ? {{}} ORDER BY rowid LIMIT {PAGE}"
        )
        some = sorted(keys)[:_ASKED] if keys is not None and len(keys) <= _ASKED else ()
        # a name that is a BLOB may be any
        sql = sql.format(f"AND (key IN ({', '.join('?' * len(some))}) OR typeof(key) != 'text')" if some else "")
        last, seen, steps = (-1, Counter(), Steps()) if some else self._marks.get(run_id, (-1, Counter(), Steps()))
        if any(skip[key] < count for key, count in seen.items()):
            last, seen, steps = -1, Counter(), Steps()
        steps = steps.copy()
        skip.subtract(seen)
        while True:
            try:
                page = self._db.rows(sql, [run_id, last, *some])
            except BadInputError as error:
                self.found.problem(self.location, f"points of the run were left out: {error.what}", run_id)
                return
            points = list(self._points_in(page, steps, run_id))
            yield from points
            last = page[-1][-1] if page else last
            seen = seen + Counter(point.key for point in points)
            if not some:
                self._marks[run_id] = last, seen, steps.copy()
            if len(page) < PAGE:
                return

    def _points_in(self, page: list[Any], steps: Steps, run_id: str) -> Iterator[MetricPoint]:
        for row in page:
            key, value, timestamp, step, is_nan, _ = row
            if type(value) is float and type(timestamp) is int and type(step) is int and not is_nan:
                given = steps.of(key if type(key) is str else text(key), step)
                if given == step and type(key) is str:
                    yield MetricPoint(key, value, timestamp, given)
                    continue
            else:
                given = steps.of(text(key), step)
            yield from self._odd_point(row, given, run_id)

    def _odd_point(self, row: Any, given: int, run_id: str) -> tuple[MetricPoint, ...]:
        """One point with a step that was given to it; none, and a problem, where its value is no number."""
        key, value, timestamp, step, is_nan, number_of_row = row
        key = text(key)
        found = math.nan if number(is_nan) else metric_value(value)
        if found is None:
            lost = self._lost.setdefault((run_id, key), {})
            lost[number_of_row] = f"{value!r:.60} at step {step!r}"
            what = f"{len(lost)} point(s) of the metric {key} were left out, whose values are no numbers: "
            what += ", ".join(list(lost.values())[:3])
            self.found.problem(self.location, what, run_id, about=f"values of {key}")
            return ()
        time = floor(timestamp)
        odd = time is None or given != whole(step) or time != number(timestamp)
        return (MetricPoint(key, found, time or 0, given, (timestamp, step) if odd else None),)

    def _hint(self, index: str) -> str:
        """The words for reading by this index; without them SQLite may sort all points by another one."""
        found = self._db.rows("SELECT 1 FROM sqlite_master WHERE type = 'index' AND name = ?", [index])
        return f"INDEXED BY {index}" if found else "NOT INDEXED" if index == _BY_RUN else ""

    def appends(self, run_id: str) -> bool:
        return True

    def artifacts(self, owner: Owner) -> Iterator[Artifact]:
        return self._files.list(owner)

    def local_path(self, owner: Owner, path: str) -> Path | None:
        return self._files.path(owner, path)

    def open_artifact(self, owner: Owner, path: str) -> BinaryIO:
        return self._files.open(owner, path)

    def logged_models(self, *, deleted: bool = False) -> Iterator[LoggedModel]:
        return sqlitemodels.logged_models(self._tables, deleted=deleted)

    def model_points(self, model_id: str) -> Iterator[ModelPoint]:
        return sqlitemodels.points(self._tables, model_id, PAGE)

    def registered_models(self) -> list[RegisteredModel]:
        return sqlitemodels.registered_models(self._tables)

    def traces(self, experiment_id: str | None = None) -> Iterator[Trace]:
        return sqlitetraces.traces(self._tables, experiment_id)

    def spans(self, trace: Trace) -> bytes | None:
        found = sqlitetraces.spans(self._tables, trace.id)
        return found if found is not None else self._files.trace_data(trace)

    def unread(self) -> Mapping[str, int]:
        return sqliteothers.counts(self._tables)

    def problems(self) -> list[Problem]:
        danger = [Problem(str(self.path), self._db.danger, damage=False)] if self._db.danger else []
        return danger + self.found.problems()

    @property
    def schema(self) -> str:
        """The revision of MLflow's schema that the file says it has; empty where it says none."""
        found = self._db.rows("SELECT version_num FROM alembic_version") if self._db.columns("alembic_version") else ()
        return text(found[0][0]) if found else ""

    def free_bytes(self) -> int:
        """What SQLite's VACUUM would free."""
        facts = [self._db.rows(f"PRAGMA {name}")[0][0] for name in ("freelist_count", "page_size")]
        return int(facts[0]) * int(facts[1])

    def copy_to(self, target: Path) -> None:
        """Writes all of the file, as it is at one moment, into a new one: see `Database.copy_to`."""
        self._db.copy_to(target)

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> SqliteStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def unknown_run(run_id: str, location: str, known: Iterable[str]) -> BadInputError:
    """The error for a run id that is not there, with ids that look like it."""
    ids = list(known)
    near = [one for one in ids if one.startswith(run_id)] or difflib.get_close_matches(run_id, ids, 3, 0.7)
    hint = f"is it {' or '.join(near[:3])}?" if near else "its ids are 32 hexadecimal digits, as MLflow shows them."
    return BadInputError(f"There is no run {run_id} among the {len(ids)} of {location}.", hint)
