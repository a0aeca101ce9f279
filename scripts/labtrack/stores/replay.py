"""Puts the records of journals into one SQLite database, as MLflow would have it.

A row may be in several journals: of a process and its children, of a job and its later attempts, of who looked after
a job that was killed.  The later clock wins, in whatever order they come; points of metrics only ever add up.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from labtrack.stores.journals import Header, Table, absolute, value

# what begins so is no table of MLflow's; MLflow 2 takes a database with other tables than its own and alembic's for old
OWN = "alembic_labtrack_"
CLOCKS, WAITING = f"{OWN}clocks", f"{OWN}waiting"
_MADE = re.compile(r"CREATE\s+(TABLE|(UNIQUE\s+)?INDEX)\b", re.IGNORECASE)
_POINT = ("run_uuid", "key", "value", "timestamp", "step", "is_nan")
_NEWER = ("step", "timestamp", "value")


class BrokenRecordError(Exception):
    """A record that is whole and can't be used."""


class Replay:
    """Applies records to a database.

    base: what `labtrack:` stands for in recorded places; ends with a slash.
    """

    def __init__(self, database: sqlite3.Connection, base: str) -> None:
        self._db = database
        self._base = base
        self._columns: dict[str, frozenset[str]] = {}

    def prepare(self) -> None:
        """Makes the tables that are ours."""
        self._db.execute(
            f"CREATE TABLE IF NOT EXISTS {CLOCKS} (tbl TEXT, key TEXT, clock INTEGER, gone INTEGER, "
            "PRIMARY KEY (tbl, key)) WITHOUT ROWID"
        )
        self._db.execute(f"CREATE TABLE IF NOT EXISTS {WAITING} (tbl TEXT, record TEXT)")

    def schema(self, header: Header) -> None:
        """Makes the tables and columns of a journal that are not there yet."""
        for table in header.tables.values():
            there = self._there(table.name)
            if not there and not table.name.startswith((OWN, "sqlite_")):
                self._make(table.sql)
                if table.name == "alembic_version":
                    self._db.execute("INSERT INTO alembic_version VALUES (?)", [header.revision])
            for column in table.columns if there else ():
                if column not in there:
                    self._db.execute(f"ALTER TABLE {_name(table.name)} ADD COLUMN {_name(column)}")
            self._columns.pop(table.name, None)
        runs = [one for one in ("metrics", "latest_metrics", "params", "tags") if one in header.tables]
        # MLflow's migrations make these, its tables by themselves have them not
        made = [f"CREATE INDEX index_{one}_run_uuid ON {one} (run_uuid)" for one in runs]
        for sql in (*header.indexes, *made):
            try:
                self._make(sql)
            except sqlite3.Error:
                continue  # it is there already, or of a column that is not

    def apply(self, header: Header, record: Sequence[Any]) -> None:
        """Applies one record.  Raises BrokenRecordError where it can't be used."""
        _, clock, kind, *what = record
        try:
            if kind == "m":
                run_id, points = what
                put_points(self._db, [(run_id, *point) for point in points])
            elif kind in ("i", "u"):
                table, values = header.tables[what[0]], [absolute(value(one), self._base) for one in what[1]]
                self._row(table, dict(zip(table.columns, values)), clock, made=kind == "i")
            elif kind == "d":
                self._remove(header.tables[what[0]], [value(one) for one in what[1]], clock)
            elif kind == "p":
                self._part(header.tables[what[0]], what[1], what[2], clock)
        except (KeyError, ValueError, TypeError, IndexError, sqlite3.Error, OverflowError) as error:
            raise BrokenRecordError(f"{type(error).__name__}: {error}") from error

    def again(self, header: Header) -> None:
        """Tries once more what was waiting for its row."""
        for table, record in self._db.execute(f"SELECT tbl, record FROM {WAITING}").fetchall():  # noqa: S608
            if table in header.tables:
                self._db.execute(f"DELETE FROM {WAITING} WHERE record = ?", [record])  # noqa: S608
                key, values, clock = json.loads(record)
                self._part(header.tables[table], key, values, clock)

    def _make(self, sql: str) -> None:
        if not _MADE.match(sql):
            raise sqlite3.DatabaseError("it has something else than tables and indexes")
        self._db.execute(sql)

    def _there(self, table: str) -> frozenset[str]:
        if table not in self._columns:
            found = self._db.execute("SELECT name FROM pragma_table_info(?)", [table]).fetchall()
            self._columns[table] = frozenset(name for (name,) in found)
        return self._columns[table]

    def _row(self, table: Table, row: Mapping[str, Any], clock: int, *, made: bool) -> None:
        if table.name == "alembic_version":
            return
        if table.name == "metrics":
            put_points(self._db, [tuple(row.get(one, 0) for one in _POINT)])
            return
        if table.name == "latest_metrics":
            return  # made from the points
        # two processes make the same experiment, each in its own time: the first that was made stays
        newer = not made if table.name == "experiments" else True
        self._write(table, [row[one] for one in table.key], row, clock, newer=newer)

    def _write(self, table: Table, key: list[Any], row: Mapping[str, Any], clock: int, *, newer: bool = True) -> None:
        name = json.dumps(key, default=repr)
        known = self._clock(table.name, name)
        if known is not None and (clock < known[0] or (not newer and not known[1])):
            return
        there = self._there(table.name)
        used = [column for column in row if column in there]
        names, marks = ", ".join(map(_name, used)), ", ".join("?" * len(used))
        conflict = ", ".join(map(_name, table.key))
        changes = ", ".join(f"{_name(one)} = excluded.{_name(one)}" for one in used if one not in table.key)
        then = f"DO UPDATE SET {changes}" if changes else "DO NOTHING"
        self._db.execute(
            f"INSERT INTO {_name(table.name)} ({names}) VALUES ({marks}) ON CONFLICT ({conflict}) {then}",  # noqa: S608
            [row[column] for column in used],
        )
        self._note(table.name, name, clock, gone=False)

    def _remove(self, table: Table, key: list[Any], clock: int) -> None:
        name = json.dumps(key, default=repr)
        known = self._clock(table.name, name)
        if known is not None and clock < known[0]:
            return
        where = " AND ".join(f"{_name(one)} IS ?" for one in table.key)
        self._db.execute(f"DELETE FROM {_name(table.name)} WHERE {where}", key)  # noqa: S608
        self._note(table.name, name, clock, gone=True)

    def _part(self, table: Table, key: Mapping[str, Any], values: Mapping[str, Any], clock: int) -> None:
        """Some columns of a row; kept for later where the row is not there yet."""
        ids = [key[one] for one in table.key]
        name = json.dumps(ids, default=repr)
        known = self._clock(table.name, name)
        if known is None:
            waiting = json.dumps([key, values, clock])
            self._db.execute(f"INSERT INTO {WAITING} VALUES (?, ?)", [table.name, waiting])  # noqa: S608
            return
        if clock < known[0] or known[1]:
            return
        there = self._there(table.name)
        used = [one for one in values if one in there and one not in table.key]
        changes = ", ".join(f"{_name(one)} = ?" for one in used)
        where = " AND ".join(f"{_name(one)} IS ?" for one in table.key)
        given = [absolute(value(values[one]), self._base) for one in used]
        self._db.execute(f"UPDATE {_name(table.name)} SET {changes} WHERE {where}", [*given, *ids])  # noqa: S608
        self._note(table.name, name, clock, gone=False)

    def _clock(self, table: str, name: str) -> tuple[int, int] | None:
        sql = f"SELECT clock, gone FROM {CLOCKS} WHERE tbl = ? AND key = ?"  # noqa: S608
        found: tuple[int, int] | None = self._db.execute(sql, [table, name]).fetchone()
        return found

    def _note(self, table: str, name: str, clock: int, *, gone: bool) -> None:
        self._db.execute(f"INSERT OR REPLACE INTO {CLOCKS} VALUES (?, ?, ?, ?)", [table, name, clock, int(gone)])  # noqa: S608


def put_points(database: sqlite3.Connection, points: Sequence[tuple[Any, ...]]) -> None:
    """Adds points of metrics: run, key, value, timestamp, step, is_nan; and their last values, by MLflow's rule."""
    columns = ", ".join(_POINT)
    database.executemany(f"INSERT OR IGNORE INTO metrics ({columns}) VALUES (?, ?, ?, ?, ?, ?)", points)  # noqa: S608
    latest: dict[tuple[str, str], tuple[Any, ...]] = {}
    for point in points:
        known = latest.get(point[:2])
        if known is None or _rank(point) > _rank(known):
            latest[point[0], point[1]] = point
    marks, changes = ", ".join("?" * len(_POINT)), ", ".join(f"{one} = excluded.{one}" for one in _POINT[2:])
    new, old = (", ".join(f"{which}.{one}" for one in _NEWER) for which in ("excluded", "latest_metrics"))
    sql = (
        f"INSERT INTO latest_metrics ({', '.join(_POINT)}) VALUES ({marks}) "  # noqa: S608
        f"ON CONFLICT (key, run_uuid) DO UPDATE SET {changes} WHERE ({new}) > ({old})"
    )
    database.executemany(sql, list(latest.values()))


def _rank(point: tuple[Any, ...]) -> tuple[Any, ...]:
    _, _, number, timestamp, step, _ = point
    return step, timestamp, number


def _name(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'
