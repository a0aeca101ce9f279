"""A SQLite file, read while somebody else may be writing it, without a trace left in it or beside it.

What SQLite would do on its own and must not here: roll back a dead job's journal in the job's own
folder, make `-wal` and `-shm` files, hold a lock while the caller is busy (a job's commit waits for it).
So every statement is read to its end at once, and what can't be read in place is read from a copy.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from labtrack.errors import BadInputError, Exit, LabtrackError
from labtrack.stores.mounts import mount_of

PATIENCE = 60.0  # seconds that a locked file is asked again; MLflow itself waits 20 s for a lock
HEADER = b"SQLite format 3\0"
_WAL_VERSION = 2  # bytes 18 and 19 of the header (https://sqlite.org/fileformat2.html)
_BESIDE = ("-journal", "-wal")
_Looks = tuple[tuple[int, int, int], ...]
_NEEDS_RECOVERY = "readonly database"  # SQLITE_READONLY_ROLLBACK and _RECOVERY: a hot journal or log
_STEP = 2000  # pages of a copy that are read at once: a few ms, for which a writer may have to wait
_IN_STEPS = 10.0  # seconds: a file that is written all the time is then read in one go


class Database:
    """Read-only access to one SQLite file.

    danger: a sentence, where the way it is written makes what is read here doubtful.
    """

    def __init__(self, path: Path, patience: float = PATIENCE) -> None:
        """Opens `path`.  Raises BadInputError where it isn't a SQLite file that can be read."""
        self.path = path
        self.patience = patience
        self.danger = ""
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        self._connection: sqlite3.Connection | None = None
        self._watched: _Looks | None = None  # how the file looked, where SQLite would not see it change
        self._columns: dict[str, frozenset[str]] = {}
        self._open()

    def rows(self, sql: str, values: Iterable[Any] = ()) -> list[Any]:
        """All rows of one statement.

        Raises LabtrackError with Exit.LOCKED when the file stays locked for `patience` seconds, and
        BadInputError when it is damaged.
        """
        values = tuple(values)
        deadline = time.monotonic() + self.patience
        while True:
            try:
                found = self._live().execute(sql, values).fetchall()
            except sqlite3.OperationalError as error:
                self._recover(error, deadline)
                continue
            except sqlite3.DatabaseError as error:
                raise _damaged(self.path, error) from error
            if self._watched is None or self._watched == _looks(self.path):
                return found
            if self._copy and time.monotonic() > deadline:
                return found  # as it was when the copy was made
            self.close()  # somebody began to write: what was read is old, or torn
            self._open()

    def copy_to(self, target: Path) -> None:
        """Writes the whole file, as it is at one moment, into a new one by SQLite's backup interface.

        Commits of a job that writes meanwhile pass.  The copy is in no WAL mode.  Raises what `rows` raises, and
        LabtrackError when the disk is full.
        """
        deadline = time.monotonic() + self.patience
        while True:
            self.rows("SELECT count(*) FROM sqlite_master")  # what has to be recovered first comes up here
            target.write_bytes(b"")  # of an earlier try; its mode stays
            try:
                with contextlib.closing(sqlite3.connect(target, isolation_level=None)) as copy:
                    self._backup(copy, deadline)
                    copy.execute("PRAGMA journal_mode = DELETE")
            except sqlite3.OperationalError as error:
                if "disk is full" in str(error):
                    what = f"The disk is full: {self.path} was not copied to {target}."
                    raise LabtrackError(what, f"free some space (`df -h {target.parent}`).") from error
                self._recover(error, deadline)
                continue
            except sqlite3.DatabaseError as error:
                raise _damaged(self.path, error) from error
            if self._watched is None or self._watched == _looks(self.path) or time.monotonic() > deadline:
                return
            self.close()
            self._open()

    def _backup(self, copy: sqlite3.Connection, deadline: float) -> None:
        begun = time.monotonic()

        def watch(status: int, left: int, pages: int) -> None:
            if left and time.monotonic() > begun + _IN_STEPS:
                raise TimeoutError
            if status and time.monotonic() > deadline:
                raise sqlite3.OperationalError("database is locked")

        try:
            # after each step a writer may come in between; then SQLite begins anew
            self._live().backup(copy, pages=_STEP, progress=watch, sleep=0.01)
        except TimeoutError:
            self._live().backup(copy)

    def columns(self, table: str) -> frozenset[str]:
        """The names of a table's columns; none where there is no such table."""
        if table not in self._columns:
            found = frozenset(name for (name,) in self.rows("SELECT name FROM pragma_table_info(?)", (table,)))
            if not found:
                return found  # the job may be about to make it
            self._columns[table] = found
        return self._columns[table]

    def close(self) -> None:
        """Lets go of the file and of the copy."""
        if self._connection:
            self._connection.close()
            self._connection = None
        if self._copy:
            self._copy.cleanup()
            self._copy = None

    def _live(self) -> sqlite3.Connection:
        if self._connection is None:
            raise LabtrackError(f"{self.path} was closed.")
        return self._connection

    def _open(self) -> None:
        self._watched = None
        if not _is_wal(self.path):
            self._connect(self.path, "mode=ro")
            return
        log, index = (self.path.with_name(self.path.name + suffix) for suffix in ("-wal", "-shm"))
        mount = mount_of(self.path)
        if mount is not None and mount.network:
            self.danger = (
                f"{self.path} is in WAL mode on a {mount.kind} file system: what a job on another machine is writing "
                "may be missing or torn here, and two machines that write to it can destroy it. To fix: read it on the "
                f"machine that writes it, and when nothing has it open run "
                f"`sqlite3 '{self.path}' 'PRAGMA journal_mode=DELETE'`."
            )
        if not log.exists():
            self._watched = _looks(self.path)
            self._connect(self.path, "mode=ro&immutable=1")  # else SQLite would make both files
        elif index.exists():
            self._connect(self.path, "mode=ro&readonly_shm=1")
        else:
            self._open_copy()

    def _connect(self, path: Path, how: str) -> None:
        address = f"file:{quote(str(path.absolute()))}?{how}"
        try:
            # autocommit, so that no statement leaves a transaction and with it a lock behind
            self._connection = sqlite3.connect(
                address, uri=True, timeout=min(5, self.patience), isolation_level=None, check_same_thread=False
            )
            self._connection.text_factory = _text
            self._connection.execute("PRAGMA query_only = 1")
            self._connection.execute("PRAGMA trusted_schema = 0")  # the file may be somebody else's
        except sqlite3.OperationalError as error:
            raise _unreadable(self.path, error) from error

    def _recover(self, error: sqlite3.OperationalError, deadline: float) -> None:
        """Does what makes the next try worth it, or raises."""
        said = str(error)
        if ("locked" in said or "busy" in said) and time.monotonic() < deadline:
            time.sleep(0.05)
        elif "locked" in said or "busy" in said:
            raise LabtrackError(
                f"{self.path} is locked by another program for more than {self.patience:.0f} s.",
                f"`fuser {self.path}` says by which; run the same command again when it has ended.",
                Exit.LOCKED,
            ) from error
        elif (_NEEDS_RECOVERY in said or "unable to open" in said) and self._copy is None:
            self.close()
            if _is_wal(self.path) and not self.path.with_name(self.path.name + "-wal").exists():
                self._open()  # the writer has just tidied up
            else:
                self._open_copy()
        elif "no such table" in said or "no such column" in said:
            raise BadInputError(f"{self.path} is not laid out as any MLflow does it ({said}).") from error
        else:
            raise _damaged(self.path, error) from error

    def _open_copy(self) -> None:
        """A copy with its journal, on which SQLite may finish or undo what a killed job left."""
        size = sum(path.stat().st_size for path in self._parts())
        self._copy = tempfile.TemporaryDirectory(prefix="labtrack-store-")
        place = Path(self._copy.name)
        if shutil.disk_usage(place).free < size + 1_000_000:
            self.close()
            raise LabtrackError(
                f"A job that wrote {self.path} was killed in the middle. Reading it needs a copy of {size / 1e6:.0f} "
                f"MB, and {place.parent} has no room for that.",
                "set TMPDIR to a folder with room and run the same command again.",
            )
        for _ in range(5):
            before = _looks(self.path)
            for path in self._parts():
                with contextlib.suppress(FileNotFoundError):
                    shutil.copyfile(path, place / path.name)
            if before == _looks(self.path):
                break
            for path in place.iterdir():
                path.unlink()
        else:
            self.close()
            raise LabtrackError(
                f"{self.path} changes all the time, and can't be read in place.",
                "run the same command again when the job has ended.",
                Exit.LOCKED,
            )
        self._watched = before
        self._connect(place / self.path.name, "mode=rw")

    def _parts(self) -> list[Path]:
        beside = (self.path.with_name(self.path.name + suffix) for suffix in _BESIDE)
        return [self.path, *(path for path in beside if path.exists())]


def _is_wal(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(20)
    except OSError as error:
        raise _unreadable(path, error) from error
    if not head:
        raise BadInputError(
            f"{path} is an empty file.", "if a job has just begun, wait until it has logged; else name another file."
        )
    if not head.startswith(HEADER):
        raise BadInputError(f"{path} is not a SQLite file.", "name the file that MLflow wrote, often mlflow.db.")
    return _WAL_VERSION in head[18:20]


def _looks(path: Path) -> _Looks:
    """What changes when somebody writes."""
    found: list[tuple[int, int, int]] = []
    for suffix in ("", *_BESIDE):
        try:
            facts = path.with_name(path.name + suffix).stat()
        except FileNotFoundError:
            found.append((0, 0, 0))
        else:
            found.append((facts.st_ino, facts.st_size, facts.st_mtime_ns))
    return tuple(found)


# MLflow writes UTF-8; a byte that isn't must not lose the run.  Nothing of it is Python: it is called for each text.
_text = functools.partial(str, encoding="utf-8", errors="replace")


def _unreadable(path: Path, error: Exception) -> LabtrackError:
    said = error.strerror if isinstance(error, OSError) else str(error)
    return BadInputError(f"{path} can't be read: {said}.", f"look at `ls -l {path}`; reading needs no more than `r`.")


def _damaged(path: Path, error: Exception) -> LabtrackError:
    return BadInputError(
        f"{path} is damaged, or is just being copied ({error}).",
        f"copy it again while nothing writes it, or try `sqlite3 '{path}' .recover | sqlite3 recovered.db`.",
    )
