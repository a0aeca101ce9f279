"""What a process has recorded, as MLflow's own database in its memory; what changes in it goes to the writer.

MLflow's code works on the database as it does on any other, whatever its version.  Triggers note which rows it has
changed; after each call these are read and recorded.  One lock is around all calls: they are short, nothing
of them waits for a disk.  Metric points, of which there are many, are put into the database when somebody asks.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from labtrack.recorder.place import Settings, address_of, shortened
from labtrack.recorder.writer import Point, Writer, log
from labtrack.stores import journals
from labtrack.stores.journals import Header, Table, recorded
from labtrack.stores.replay import OWN, put_points

CHANGES = f"{OWN}changes"
_DERIVED = ("latest_metrics",)  # made from the points by whoever reads
_PIECE = 400  # rows in one statement
_DRAINED = 5000  # points that may wait to be put into the database
_DRAINING = 0.1  # seconds for which the writer does that before it writes again
_MOST = 1_000_000  # points that are kept in memory, some 350 bytes each
_FIRST = 1.0  # seconds that the first record of a run is waited for, so that no run is lost by a kill


class Live:
    """The database in memory, and the journal of what changes in it."""

    def __init__(self, root: Path, settings: Settings) -> None:
        self.root, self.settings = root, settings
        self.base = f"{address_of(root)}/"  # how MLflow is given places in the folder
        self.name = f"file:labtrack-{secrets.token_hex(8)}?mode=memory&cache=shared"
        self.lock = threading.RLock()
        # keeps the database, which ends with its last connection
        self.database = sqlite3.connect(self.name, uri=True, check_same_thread=False, isolation_level=None)
        self.database.execute("PRAGMA read_uncommitted = 1")
        self.database.execute(f"CREATE TABLE {CHANGES} (tbl TEXT, id INTEGER, what TEXT, key TEXT)")
        self._depth = 0
        self._points: deque[Point] = deque()
        self._tables: dict[str, Table] = {}
        self._header: dict[str, Any] = {}
        self._default: list[tuple[Any, ...]] = []
        self._kept = 0  # points in the database
        self.known: set[str] = set()  # runs that may be logged to
        self.resumed: set[str] = set()  # runs of an earlier attempt of the job
        self.looked_for: set[tuple[bytes, ...]] = set()
        self.copying: threading.Thread | None = None  # an artifact, where that hangs
        self.default_tracking: Any = None  # keeps the stores' engine
        self.writer = Writer(self._begin, self._lost, settings.flush, self._drain_some)
        for note in settings.notes:
            log.warning("labtrack: %s", note)

    @property
    def uri(self) -> str:
        """The database's address for SQLAlchemy."""
        return f"sqlite:///{self.name}&check_same_thread=false&uri=true"

    def complete(self) -> None:
        """Makes the keys that other tables refer to unique: MLflow's migrations do, its tables by themselves do not."""
        for (name,) in self.database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            keys: dict[int, tuple[str, list[str]]] = {}
            sql = 'SELECT id, "table", "to" FROM pragma_foreign_key_list(?) ORDER BY id, seq'
            for number, parent, column in self.database.execute(sql, [name]).fetchall():
                keys.setdefault(number, (parent, []))[1].append(column)
            for parent, columns in keys.values():
                if None not in columns and columns != self._key(parent):
                    index = "_".join(["labtrack", parent, *columns])
                    named = ", ".join(f'"{one}"' for one in columns)
                    self.database.execute(f'CREATE UNIQUE INDEX IF NOT EXISTS "{index}" ON "{parent}" ({named})')

    def _key(self, table: str) -> list[str]:
        sql = "SELECT name FROM pragma_table_info(?) WHERE pk > 0 ORDER BY pk"
        return [name for (name,) in self.database.execute(sql, [table]).fetchall()]

    def capture_from_now(self, mlflow: str, revision: str) -> None:
        """Begins to note changes; what is there already is what every recording begins with."""
        with self.lock:
            self._tables = {one.name: one for one in self._schema() if not one.name.startswith(OWN)}
            for table in self._tables.values():
                if table.name not in _DERIVED:
                    self._watch(table)
            indexes = self.database.execute("SELECT sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL")
            header = Header(
                mlflow, revision, "", 0, 0, self.settings.job, tables=self._tables,
                indexes=tuple(sql for (sql,) in indexes.fetchall()),
            )  # fmt: skip
            self._header = header.data()
            experiments = self._tables["experiments"]
            rows = self.database.execute(f"SELECT {_named(experiments)} FROM experiments").fetchall()  # noqa: S608
            self._default = [("i", experiments.name, self._values(row)) for row in rows]

    @contextlib.contextmanager
    def call(self) -> Iterator[None]:
        """Around each call of MLflow's: before it all points are there, after it what has changed is recorded."""
        with self.lock:
            if not self._depth:
                self.drain()
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if not self._depth:
                    self._record()

    def point(self, point: Point) -> None:
        """Takes a metric point of a run that may be logged to."""
        self._points.append(point)
        if not self.settings.silent:
            self.writer.point(point)
        if len(self._points) > _MOST:  # the writer, which does this otherwise, hangs
            self._points.popleft()

    def _drain_some(self) -> None:
        """The writer's: puts points into the database a few at a time, so that nobody waits long for the lock."""
        end = time.monotonic() + _DRAINING
        while len(self._points) > _DRAINED and time.monotonic() < end and self.lock.acquire(blocking=False):
            try:
                if not self._depth:
                    self.drain(_PIECE)
            finally:
                self.lock.release()
            time.sleep(0.001)

    def drain(self, most: int | None = None) -> None:
        """Puts the points that wait into the database, or the first few."""
        if not self._points:
            return
        points: list[Point] = []
        with contextlib.suppress(IndexError):  # others go on appending
            while most is None or len(points) < most:
                points.append(self._points.popleft())
        self.database.execute("BEGIN")
        try:
            put_points(self.database, points)
            self._kept += len(points)
            if self._kept > _MOST:  # what a long training records must not fill its memory
                self._forget()
            self.database.execute(f"DELETE FROM {CHANGES}")  # noqa: S608 they are recorded as points
            self.database.execute("COMMIT")
        except sqlite3.Error as error:
            self.database.execute("ROLLBACK")
            self.writer.warn(
                "drain", f"labtrack: points can't be read back by this process ({error}); they are recorded"
            )

    def _forget(self) -> None:
        """Takes the oldest points out of the database; the last value of each metric stays."""
        sql = "DELETE FROM metrics WHERE rowid IN (SELECT rowid FROM metrics ORDER BY rowid LIMIT ?)"
        self._kept -= self.database.execute(sql, [_MOST // 4]).rowcount
        self.writer.warn(
            "forget",
            f"labtrack: of {_MOST:,} points of metrics that this process has logged it can read back the last.",
        )

    def run_of(self, run_id: str) -> dict[str, Any]:
        """A run's row."""
        cursor = self.database.execute("SELECT * FROM runs WHERE run_uuid = ?", [run_id])
        row = cursor.fetchone()
        return dict(zip((one[0] for one in cursor.description), row)) if row else {}

    @contextlib.contextmanager
    def unrecorded(self) -> Iterator[sqlite3.Connection]:
        """The database, for changes that are another journal's."""
        with self.lock:
            self._record()
            self.database.execute("BEGIN")
            try:
                yield self.database
                self.database.execute(f"DELETE FROM {CHANGES}")  # noqa: S608
                self.database.execute("COMMIT")
            except BaseException:
                self.database.execute("ROLLBACK")
                raise

    def forked(self) -> None:
        """In a child process: what waits is the parent's."""
        self.lock = threading.RLock()
        self._depth = 0
        self._points.clear()
        self.writer.forked()

    def _record(self) -> None:
        """Hands what has changed to the writer."""
        changes = self.database.execute(f"SELECT tbl, id, what, key FROM {CHANGES} ORDER BY rowid").fetchall()  # noqa: S608
        if not changes:
            return
        self.database.execute(f"DELETE FROM {CHANGES}")  # noqa: S608
        rows: dict[str, dict[int, str]] = {}
        gone: dict[tuple[str, str], None] = {}
        for name, row, what, key in changes:
            if what == "d":
                gone[name, key] = None
            else:
                rows.setdefault(name, {}).setdefault(row, what)
        records = [*self._removed(gone), *self._changed(rows)]
        runs = rows.get("runs", {})
        if runs or "experiments" in rows or gone:
            self.known.clear()
        if self.settings.silent:
            return
        if runs:
            at = self._tables["runs"].columns.index("run_uuid")
            self.writer.runs |= {values[at] for _, name, values in records if name == "runs" and len(values) > at}
        self.writer.rows(records)
        if runs:
            self.writer.written(_FIRST)

    def _removed(self, gone: dict[tuple[str, str], None]) -> Iterator[tuple[Any, ...]]:
        for name, key in gone:
            table = self._tables[name]
            values = self.database.execute(f"SELECT {key}").fetchone()
            where = " AND ".join(f'"{one}" IS ?' for one in table.key)
            if not self.database.execute(f'SELECT 1 FROM "{name}" WHERE {where}', values).fetchone():  # noqa: S608
                yield "d", name, self._values(values)

    def _changed(self, rows: dict[str, dict[int, str]]) -> Iterator[tuple[Any, ...]]:
        for name, some in rows.items():
            ids = list(some)
            for start in range(0, len(ids), _PIECE):
                piece = ids[start : start + _PIECE]
                columns, marks = _named(self._tables[name]), ", ".join("?" * len(piece))
                sql = f'SELECT rowid, {columns} FROM "{name}" WHERE rowid IN ({marks})'  # noqa: S608
                for row, *values in self.database.execute(sql, piece).fetchall():
                    yield some[row], name, self._values(values)

    def _values(self, values: Sequence[Any]) -> list[Any]:
        return [self._relative(one) if type(one) is str else recorded(one) for one in values]

    def _relative(self, text: str) -> str:
        """A value with places in the folder written relative to it."""
        short = shortened(text)
        return f"labtrack:{short[len(self.base) :]}" if short.startswith(f"{self.base}{journals.ARTIFACTS}/") else text

    def _watch(self, table: Table) -> None:
        old, new = (" || ',' || ".join(f'quote({which}."{one}")' for one in table.key) for which in ("OLD", "NEW"))
        made = {
            "INSERT": f"INSERT INTO {CHANGES} VALUES ('{table.name}', NEW.rowid, 'i', NULL);",  # noqa: S608 MLflow's names
            "DELETE": f"INSERT INTO {CHANGES} VALUES ('{table.name}', NULL, 'd', {old});",  # noqa: S608
            "UPDATE": f"INSERT INTO {CHANGES} SELECT '{table.name}', NULL, 'd', {old} WHERE {old} IS NOT {new}; "  # noqa: S608
            f"INSERT INTO {CHANGES} VALUES ('{table.name}', NEW.rowid, 'u', NULL);",
        }
        for event, body in made.items():
            self.database.execute(
                f'CREATE TRIGGER "labtrack_{event}_{table.name}" AFTER {event} ON "{table.name}" BEGIN {body} END'
            )

    def _schema(self) -> Iterator[Table]:
        for name, sql in self.database.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
        ).fetchall():
            columns = self.database.execute("SELECT name, pk FROM pragma_table_info(?) ORDER BY cid", [name]).fetchall()
            key = [column for column, at in sorted(columns, key=lambda one: one[1]) if at]
            yield Table(name, sql, tuple(one for one, _ in columns), tuple(key or [one for one, _ in columns]))

    def _begin(self) -> tuple[Path, list[tuple[Any, ...]]]:
        """The writer's: where the journal is, and how it begins."""
        started = int(time.time() * 1000)
        host = socket.gethostname()
        header = ("h", {**self._header, "host": host, "pid": os.getpid(), "started": started})
        name_the_folder(self.root)
        return path_of(self.root, host, self.settings.job), [header, header, *self._default]

    def _lost(self, told: dict[str, str]) -> list[tuple[Any, ...]]:
        table = self._tables["tags"]
        rows = ({"run_uuid": run_id, "key": "labtrack.lost", "value": what} for run_id, what in told.items())
        return [("u", "tags", [row.get(column) for column in table.columns]) for row in rows]


def _named(table: Table) -> str:
    """The columns that can be written: without those that are computed, which `*` would give too."""
    return ", ".join(f'"{one}"' for one in table.columns)


def path_of(root: Path, host: str, job: str) -> Path:
    """A new journal's path: its name is no other's, and says of which job it is."""
    when = time.strftime("%Y%m%dT%H%M%S", time.gmtime()) + f"{time.time() % 1:.3f}"[2:]
    told = "".join(one if one.isalnum() or one in "-_" else "-" for one in host)[:40]
    mark = f"-{job_mark(job)}" if job else ""
    return root / journals.FOLDER / f"{when}-{told}-{os.getpid()}-{secrets.token_hex(4)}{mark}{journals.SUFFIX}"


def job_mark(job: str) -> str:
    """What the names of a job's journals end with."""
    import hashlib

    return "j" + hashlib.sha256(job.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def name_the_folder(root: Path) -> None:
    """Gives a folder its name for good, once; of many processes at the same moment one wins.  Raises OSError."""
    path = root / journals.NAME_FILE
    if path.exists():
        return
    (root / journals.FOLDER).mkdir(parents=True, exist_ok=True)
    part = root / journals.FOLDER / f".{secrets.token_hex(8)}.part"
    part.write_text(secrets.token_hex(16) + "\n")
    try:
        os.link(part, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            os.write(descriptor, part.read_bytes())
            os.close(descriptor)
    finally:
        part.unlink(missing_ok=True)
