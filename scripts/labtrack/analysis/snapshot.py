"""One SQLite file of everything about some runs, with the same views whatever the runs were recorded in.

    runs      one row a run: attributes, and a column for each tag and parameter (dataset, stage, seed, ...)
    params, tags           run_id, name, value
    metrics   run_id, name, value (the last), step, count
    best      run_id, name, max, max_step, min, min_step
    history   run_id, name, step, timestamp, value
    lineage   run_id, related_run_id, relation (parent, teacher, resumed, forked), found

The views are stable; the tables behind them, with a `_` in front, are not.
"""

from __future__ import annotations

import contextlib
import math
import os
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from labtrack.analysis import kin
from labtrack.analysis.columns import real
from labtrack.analysis.frame import Frame, Needs, opened, read
from labtrack.analysis.named import NAMES, named
from labtrack.analysis.rows import Row
from labtrack.errors import BadInputError, LabtrackError
from labtrack.stores.filters import Wanted
from labtrack.stores.model import Store
from labtrack.stores.summary import LAST, RANGE, STEPS

VERSION = 1
VIEWS = ("runs", "params", "metrics", "history", "tags", "best", "lineage")
_WIDEST = 1500  # columns, below SQLite's 2000
_OWN = ("mlflow.", "labtrack.")  # tags that are no facts of a person's
ATTRIBUTES = {
    "run_id": "TEXT PRIMARY KEY", "name": "TEXT", "experiment": "TEXT", "experiment_id": "TEXT", "status": "TEXT",
    "user": "TEXT", "start_time": "TEXT", "end_time": "TEXT", "duration": "REAL", "start_ms": "INTEGER",
    "end_ms": "INTEGER", "parent_run_id": "TEXT", "lifecycle_stage": "TEXT", "artifact_uri": "TEXT", "note": "TEXT",
    "git_commit": "TEXT", "source": "TEXT",
}  # fmt: skip
_TABLES = """
CREATE TABLE _param (run INTEGER, name TEXT, value TEXT, PRIMARY KEY (run, name)) WITHOUT ROWID;
CREATE TABLE _tag (run INTEGER, name TEXT, value TEXT, PRIMARY KEY (run, name)) WITHOUT ROWID;
CREATE TABLE _metric (run INTEGER, name TEXT, value REAL, step INTEGER, count INTEGER, max REAL, max_step INTEGER,
    min REAL, min_step INTEGER, is_nan INTEGER, PRIMARY KEY (run, name)) WITHOUT ROWID;
CREATE TABLE _point (run INTEGER, metric INTEGER, step INTEGER, timestamp INTEGER, value REAL, is_nan INTEGER);
CREATE TABLE _name (id INTEGER PRIMARY KEY, name TEXT UNIQUE);
CREATE TABLE _lineage (run_id TEXT, related_run_id TEXT, relation TEXT, found INTEGER, written TEXT);
CREATE TABLE _about (name TEXT PRIMARY KEY, value TEXT);
"""
_JOIN = "JOIN _run ON _run.rowid = run"
_VIEWS = f"""
CREATE VIEW params AS SELECT _run.run_id, _param.name, _param.value FROM _param {_JOIN};
CREATE VIEW tags AS SELECT _run.run_id, _tag.name, _tag.value FROM _tag {_JOIN};
CREATE VIEW metrics AS SELECT _run.run_id, _metric.name, _metric.value, _metric.step, _metric.count, _metric.is_nan
    FROM _metric {_JOIN};
CREATE VIEW best AS SELECT _run.run_id, _metric.name, max, max_step, min, min_step FROM _metric {_JOIN};
CREATE VIEW history AS SELECT _run.run_id, _name.name, step, timestamp, _point.value, is_nan
    FROM _point {_JOIN} JOIN _name ON _name.id = metric;
CREATE VIEW lineage AS SELECT run_id, related_run_id, relation, found, written FROM _lineage;
"""  # noqa: S608 constants


def write(
    sources: Sequence[str], path: Path, wanted: Wanted | None = None, *, history: bool = True, force: bool = False
) -> Frame:
    """Writes the snapshot of some sources to a file: whole or not at all, mode 0600.

    history: also every point.  Gives the runs that are in it, with what could not be read.
    Raises BadInputError where the file is there already and not `force`, and LabtrackError for a full disk.
    """
    if path.is_dir():
        raise BadInputError(f"{path} is a folder.", "name a file: -o results.db")
    if path.exists() and not force:
        raise BadInputError(f"{path} is there already.", "--force writes over it.")
    if not path.parent.is_dir():
        raise BadInputError(f"There is no folder {path.parent}.", f"mkdir -p {path.parent}")
    with opened(sources) as (stores, problems):
        _refuse_a_source(path, stores)
        try:
            descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
            os.close(descriptor)
        except OSError as error:
            raise LabtrackError(f"Can't write {path}: {error.strerror}.", f"look at `ls -ld {path.parent}`.") from error
        part = Path(name)
        try:
            frame = _fill(part, stores, wanted, history=history)
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.replace(path)
        except (OSError, sqlite3.OperationalError) as error:
            raise LabtrackError(f"{path} was not written: {error}.", f"is there room? `df -h {path.parent}`") from error
        finally:
            for one in (part, part.with_name(f"{part.name}-journal")):
                one.unlink(missing_ok=True)
        frame.problems[:0] = problems
        return frame


def _refuse_a_source(path: Path, stores: Sequence[Store]) -> None:
    for store in stores:
        with contextlib.suppress(OSError):
            if path.exists() and path.samefile(store.location):
                raise BadInputError(f"{path} is the recording itself.", "name another file: -o results.db")


def _fill(path: Path, stores: Sequence[Store], wanted: Wanted | None, *, history: bool) -> Frame:
    database = sqlite3.connect(path, isolation_level=None)
    try:
        return fill(database, stores, wanted, history=history)
    finally:
        database.close()


def fill(
    database: sqlite3.Connection,
    stores: Sequence[Store],
    wanted: Wanted | None = None,
    *,
    metrics: bool = True,
    history: bool = True,
) -> Frame:
    """Makes tables and views in an empty database.  metrics, history: whether these have rows."""
    _execute(database, "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; BEGIN")
    needs = Needs(None, frozenset({LAST, RANGE, STEPS})) if metrics else Needs()
    frame = read(stores, needs, wanted)
    rows = frame.rows
    _execute(database, _TABLES)
    _write_runs(database, rows)
    for table, kind in (("_param", "params"), ("_tag", "tags")):
        values = (
            (number, name, value)
            for number, row in enumerate(rows, 1)
            for name, value in getattr(row.run, kind).items()
        )
        database.executemany(f"INSERT INTO {table} VALUES (?, ?, ?)", values)  # noqa: S608 names we know
    database.executemany(f"INSERT INTO _metric VALUES ({_marks(10)})", _metrics(rows))  # noqa: S608 only question marks
    if history:
        _write_history(database, stores, rows)
    database.executemany("INSERT INTO _lineage VALUES (?, ?, ?, ?, ?)", _kin(rows))
    _execute(database, _VIEWS)
    database.execute("INSERT INTO _about VALUES ('version', ?), ('history', ?)", [str(VERSION), str(int(history))])
    _execute(database, "COMMIT; PRAGMA journal_mode = DELETE")
    return frame


def _execute(database: sqlite3.Connection, script: str) -> None:
    """Runs statements in the transaction that is open, which `executescript` would end."""
    for statement in script.split(";"):
        database.execute(statement)


def _kin(rows: Sequence[Row]) -> Iterator[tuple[Any, ...]]:
    by_id, by_name = kin.index(rows)
    for row in rows:
        for link in kin.links(row.run, by_id, by_name):
            yield link.run_id, link.related, link.relation, int(link.found), link.written


def _write_runs(database: sqlite3.Connection, rows: Sequence[Row]) -> None:
    """The wide table: a name that attributes, tags and parameters share is the attribute's, else the tag's."""
    places = _places(rows)
    columns = [f"{_quoted(name)} {kind}" for name, kind in ATTRIBUTES.items()]
    columns += [f"{_quoted(name)} TEXT" for name in places]
    database.execute(f"CREATE TABLE _run ({', '.join(columns)})")
    insert = f"INSERT INTO _run VALUES ({_marks(len(columns))})"  # noqa: S608 only question marks
    database.executemany(insert, (_cells(row, places) for row in rows))
    database.execute("CREATE VIEW runs AS SELECT * FROM _run")


def _places(rows: Sequence[Row]) -> dict[str, tuple[tuple[str, str], ...]]:
    """Each column of tags and parameters with where its value comes from; SQLite's names know no case."""
    count: Counter[tuple[str, str]] = Counter()
    for row in rows:
        count.update(("tags", name) for name in row.run.tags if not name.startswith(_OWN))
        count.update(("params", name) for name in row.run.params)
    places: dict[str, tuple[tuple[str, str], ...]] = dict.fromkeys(NAMES, ())
    taken = {name.lower(): name for name in (*ATTRIBUTES, *places)}
    # the most used first, where there are too many; tags before parameters
    for kind, name in sorted(count, key=lambda one: (-count[one], one[0] != "tags", one[1])):
        if len(places) + len(ATTRIBUTES) >= _WIDEST:
            break
        column, had = name, taken.get(name.lower())
        if (had is not None and had != name) or name in ATTRIBUTES:
            column = f"{kind}.{name}"
            if column.lower() in taken:
                continue
        places[column] = (*places.get(column, ()), (kind, name))
        taken[column.lower()] = column
    fixed = [name for name in places if name in NAMES]
    return {name: tuple(sorted(places[name], reverse=True)) for name in (*fixed, *sorted(set(places) - set(fixed)))}


def _cells(row: Row, places: Mapping[str, Sequence[tuple[str, str]]]) -> list[Any]:
    run = row.run
    begun, ended = run.start_time, run.end_time
    cells: list[Any] = [
        run.id, run.name, row.experiment, run.experiment_id, run.status, run.user_id, iso(begun), iso(ended),
        None if begun is None or ended is None else (ended - begun) / 1000, begun, ended, run.parent_id,
        run.lifecycle_stage, run.artifact_uri, run.tags.get("mlflow.note.content"),
        run.tags.get("mlflow.source.git.commit"), row.source,
    ]  # fmt: skip
    for column, sources in places.items():
        found = next((getattr(run, kind)[name] for kind, name in sources if name in getattr(run, kind)), None)
        cells.append(named(run, column) if found is None and column in NAMES else found)
    return cells


def iso(time: int | None) -> str | None:
    """A time in ms as a text that sorts: `2026-11-26 05:21:58.123`, in UTC."""
    if time is None:
        return None
    from labtrack.analysis.table import moment

    return f"{moment(time)}.{time % 1000:03}"


def _metrics(rows: Sequence[Row]) -> Iterator[tuple[Any, ...]]:
    for number, row in enumerate(rows, 1):
        for name, one in row.metrics.items():
            last = one.last
            is_nan = last is not None and math.isnan(last)
            yield (
                number, name, _storable(last), one.last_step, one.points, _storable(one.max), one.max_step,
                _storable(one.min), one.min_step, int(is_nan),
            )  # fmt: skip


def _storable(value: float | None) -> float | None:
    found: float | None = real(value)
    return found


def _write_history(database: sqlite3.Connection, stores: Sequence[Store], rows: Sequence[Row]) -> None:
    names: dict[str, int] = {}
    places = {store.location: store for store in stores}

    def points() -> Iterator[tuple[Any, ...]]:
        for number, row in enumerate(rows, 1):
            for key, value, timestamp, step, _ in places[row.source].points(row.run.id):
                name = names.get(key)
                if name is None:
                    name = names[key] = len(names) + 1
                yield number, name, step, timestamp, real(value), int(math.isnan(value))

    database.executemany("INSERT INTO _point VALUES (?, ?, ?, ?, ?, ?)", points())
    database.executemany("INSERT INTO _name VALUES (?, ?)", ((number, name) for name, number in names.items()))
    database.execute("CREATE INDEX _point_of_a_metric ON _point (run, metric, step)")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""').replace("\0", "") + '"'


def _marks(count: int) -> str:
    return ", ".join("?" * count)
