"""SQL over the runs of any source, that can read and nothing else."""

from __future__ import annotations

import contextlib
import itertools
import re
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from labtrack.analysis import columns, snapshot
from labtrack.analysis.frame import Frame, opened
from labtrack.analysis.table import Table
from labtrack.errors import BadInputError
from labtrack.stores.database import HEADER

_SAMPLE = 1000  # rows that are looked at for the width of columns
_LONGEST = 100_000_000  # bytes of one value that a statement may make
_OFTEN = 100_000  # steps of SQLite's machine between two looks at Ctrl-C
# action codes of sqlite3_set_authorizer, which not every Python names
_READ, _SELECT, _FUNCTION, _RECURSIVE, _PRAGMA = 20, 21, 31, 33, 19
_ACTIONS = {
    1: "CREATE INDEX", 2: "CREATE TABLE", 3: "CREATE TEMP INDEX", 4: "CREATE TEMP TABLE", 5: "CREATE TEMP TRIGGER",
    6: "CREATE TEMP VIEW", 7: "CREATE TRIGGER", 8: "CREATE VIEW", 9: "DELETE", 10: "DROP INDEX", 11: "DROP TABLE",
    12: "DROP TEMP INDEX", 13: "DROP TEMP TABLE", 14: "DROP TEMP TRIGGER", 15: "DROP TEMP VIEW", 16: "DROP TRIGGER",
    17: "DROP VIEW", 18: "INSERT", 19: "PRAGMA", 22: "a transaction", 23: "UPDATE", 24: "ATTACH", 25: "DETACH",
    26: "ALTER TABLE", 27: "REINDEX", 28: "ANALYZE", 29: "a virtual table", 30: "DROP of a virtual table",
    31: "the function", 32: "a savepoint",
}  # fmt: skip
_PRAGMAS = ("table_info", "table_xinfo", "table_list", "index_list", "index_info", "database_list", "function_list",
            "compile_options", "encoding", "user_version")  # fmt: skip
_WRITERS = ("DROP", "DELETE", "INSERT", "UPDATE", "REPLACE", "CREATE", "ALTER", "ATTACH", "DETACH", "VACUUM", "REINDEX",
            "ANALYZE", "BEGIN", "COMMIT", "END", "ROLLBACK", "SAVEPOINT", "RELEASE")  # fmt: skip
_NO_FUNCTIONS = ("load_extension", "writefile", "readfile", "edit", "fts3_tokenizer")


@contextlib.contextmanager
def asked(sources: Sequence[str], sql: str) -> Iterator[tuple[Table, Frame]]:
    """The answer to one statement.  Its rows are read while they are used, so use them inside.

    sources: what `open_store` takes, or one file that `labtrack snapshot` wrote.
    Raises BadInputError for a statement that SQLite can't read, or that does more than read.
    """
    if not sql.strip():
        raise BadInputError("There is no statement.", "\"SELECT * FROM runs WHERE dataset = 'hcrl_sa'\"")
    with contextlib.ExitStack() as stack:
        if len(sources) == 1 and is_snapshot(sources[0]):
            path, frame = Path(sources[0]).expanduser(), Frame(sources=tuple(sources))
        else:
            _check(sql)
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="labtrack-query-"))
            path = Path(folder) / "results.db"
            frame = _filled(path, sources, sql)
        reading = stack.enter_context(contextlib.closing(_Reading(path)))
        yield reading.ask(sql, sources), frame


def _check(sql: str) -> None:
    """Refuses before anything is read what would be refused after it."""
    with tempfile.TemporaryDirectory(prefix="labtrack-query-") as folder:
        path = Path(folder) / "empty.db"
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as made:
            snapshot.fill(made, ())
        with contextlib.closing(_Reading(path)) as reading:
            try:
                reading.ask(sql, ())
            except BadInputError:
                if reading.refused:
                    raise


def is_snapshot(source: str) -> bool:
    """Whether a source is a file that `labtrack snapshot` wrote."""
    path = Path(source).expanduser()
    try:
        with path.open("rb") as file:
            if file.read(len(HEADER)) != HEADER:
                return False
        with contextlib.closing(sqlite3.connect(_address(path), uri=True)) as database:
            return database.execute("SELECT 1 FROM sqlite_master WHERE name = '_about'").fetchone() is not None
    except (OSError, sqlite3.Error):
        return False


def _address(path: Path) -> str:
    return f"file:{quote(str(path.absolute()))}?mode=ro"


def _filled(path: Path, sources: Sequence[str], sql: str) -> Frame:
    """Writes what a statement needs."""
    words = {one.lower() for one in re.findall(r"\w+", sql)}
    history = bool(words & {"history", "_point"})
    with opened(sources) as (stores, problems), contextlib.closing(sqlite3.connect(path, isolation_level=None)) as made:
        frame = snapshot.fill(made, stores, metrics=bool(words & {"metrics", "best", "_metric"}), history=history)
    frame.problems[:0] = problems
    return frame


class _Reading:
    """A connection that can only read."""

    def __init__(self, path: Path) -> None:
        self.refused = ""
        self._stopped = False
        self._database = sqlite3.connect(_address(path), uri=True, isolation_level=None)
        self._database.execute("PRAGMA query_only = 1")
        self._database.execute("PRAGMA trusted_schema = 0")
        if hasattr(self._database, "setlimit"):  # Python 3.11
            self._database.setlimit(0, _LONGEST)
        self._database.set_authorizer(self._authorize)
        self._database.set_progress_handler(self._look, _OFTEN)

    def close(self) -> None:
        """Lets go of the file."""
        self._database.close()

    def ask(self, sql: str, sources: Sequence[str]) -> Table:
        """The answer to a statement."""
        try:
            answer = self._database.execute(sql)
            names = [one[0] for one in answer.description or ()]
            rows = [list(row) for row in itertools.islice(answer, _SAMPLE)]
        except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
            raise self._told(error, sql) from error
        query = {"command": "query", "sources": list(sources), "sql": sql}
        return Table("", names, rows, query=query, more=self._more(answer, sql))

    def _more(self, answer: sqlite3.Cursor, sql: str) -> Iterator[list[object]]:
        try:
            for row in answer:
                yield list(row)
        except sqlite3.Error as error:
            raise self._told(error, sql) from error

    def _look(self) -> int:
        """Gives Python a moment, in which Ctrl-C is raised: here, where sqlite3 would swallow it."""
        return 0

    def _authorize(self, action: int, first: str | None, second: str | None, *_: object) -> int:
        if action in (_SELECT, _READ, _RECURSIVE):
            return sqlite3.SQLITE_OK
        if action == _FUNCTION and (second or "").lower() not in _NO_FUNCTIONS:
            return sqlite3.SQLITE_OK
        if action == _PRAGMA and (first or "").lower() in _PRAGMAS and (second is None or "_" in (first or "")):
            return sqlite3.SQLITE_OK
        if not self.refused:
            what = second if action == _FUNCTION else first if action == _PRAGMA else ""
            self.refused = f"{_ACTIONS.get(action, 'that')} {what or ''}".strip()
        return sqlite3.SQLITE_DENY

    def _told(self, error: Exception, sql: str) -> BadInputError:
        said = str(error)
        word = re.match(r"\s*(\w*)", sql)
        if word and word[1].upper() in _WRITERS:
            self.refused = word[1].upper()
        if self.refused:
            return BadInputError(f"`query` only reads: {self.refused} is refused.", "ask with SELECT or WITH.")
        if "one statement" in said:
            self.refused = "several statements"
            return BadInputError("`query` takes one statement, and there are several.", "ask them one after the other.")
        if "interrupted" in said:
            raise KeyboardInterrupt from error
        if "readonly" in said or "read-only" in said or "query_only" in said:
            return BadInputError("`query` only reads, and this writes.", "ask with SELECT or WITH.")
        return BadInputError(f"SQLite can't do this: {said}.", self._hint(said))

    def _hint(self, said: str) -> str:
        found = re.match(r"no such (column|table): (.+)", said)
        if not found:
            return "the views are " + ", ".join(snapshot.VIEWS) + "."
        if found[1] == "table":
            return columns.near(found[2], snapshot.VIEWS)
        self._database.set_authorizer(None)
        known = [row[1] for view in snapshot.VIEWS for row in self._database.execute(f"PRAGMA table_info({view})")]
        return columns.near(found[2].rpartition(".")[2], known)
