"""A folder of recordings as one SQLite file in the user's cache, which is brought up to the journals when asked."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import socket
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from labtrack import files
from labtrack.errors import BadInputError, Exit, LabtrackError
from labtrack.stores import journals
from labtrack.stores.journals import Header
from labtrack.stores.replay import OWN, BrokenRecordError, Replay

_JOURNALS, _TOLD, _WRITERS = f"{OWN}journals", f"{OWN}told", f"{OWN}writers"
_LAYOUT = "2"  # of the tables that are ours; another one makes the file anew
_OLD = 60.0  # seconds after which the torn end of a journal is no write that is under way
_HEADERS = 2  # of a journal
_PATIENCE = 60.0  # seconds for which another process may be bringing the file up to date


class Told(NamedTuple):
    """What could not be read of a journal: the number of places, and the first of them.  damage: see `Problem`."""

    journal: str
    what: str
    damage: bool


class _Place(NamedTuple):
    offset: int
    number: int  # of the last record


class Replayed:
    """The file for one folder.  path: where it is.  remade: grows each time it is made anew."""

    def __init__(self, root: Path) -> None:
        """Makes or finds the file, and brings it up to the journals.  Raises LabtrackError where that can't be done."""
        self.root = root
        self.remade = 0
        self._private: tempfile.TemporaryDirectory[str] | None = None
        self._headers: dict[str, Header] = {}
        self._why: dict[str, str] = {}  # a journal's header is not understood
        self.path = self._place()
        self.told: list[Told] = []
        self._newest: tuple[int, ...] = ()
        self._inode = 0
        try:
            self.refresh()
        except BadInputError:
            raise
        except LabtrackError:
            if self._private:
                raise
            self._elsewhere()
            self.refresh()

    def refresh(self) -> bool:
        """Brings it up to the journals; says whether anything was new."""
        try:
            with self._lock():
                try:
                    changed = self._update()
                except sqlite3.DatabaseError:
                    self.path.unlink(missing_ok=True)  # a cache, that can be made again
                    changed = self._update()
        except (sqlite3.Error, OSError) as error:
            what = f"{self.root} can't be read, since {self.path} can't be written: {error}."
            raise LabtrackError(what, f"look at `df -h {self.path.parent}`, or set XDG_CACHE_HOME.") from error
        inode = self.path.stat().st_ino
        if inode != self._inode:  # made anew, by this process or by another
            self._inode = inode
            self.remade += 1
        return changed

    def close(self) -> None:
        """Removes the file where it is only for this process."""
        if self._private is not None:
            self._private.cleanup()
            self._private = None

    def writers(self, run_id: str) -> int:
        """How many journals have points of a run."""
        with contextlib.closing(self._connect()) as database:
            found = database.execute(f"SELECT count(*) FROM {_WRITERS} WHERE run = ?", [run_id])  # noqa: S608
            return int(found.fetchone()[0])

    def identity(self) -> str:
        """What stays the same of the folder when it is moved, copied or grows."""
        try:
            said = (self.root / journals.NAME_FILE).read_text().strip()
            if re.fullmatch("[0-9a-f]{32}", said):
                return said
        except (OSError, UnicodeDecodeError):
            pass
        with contextlib.suppress(OSError):
            first = next((one.name for one in journals.journals(self.root)), "")
            return hashlib.sha256(f"labtrack\n{first}".encode("utf-8", "surrogatepass")).hexdigest()[:32]
        return hashlib.sha256(b"labtrack\n").hexdigest()[:32]

    def _place(self) -> Path:
        base = Path(os.environ.get("XDG_CACHE_HOME") or files.home(os.environ) / ".cache")
        folder = base / "labtrack" / journals.FOLDER
        try:
            files.make_private_folder(folder)
            if not os.access(folder, os.W_OK):
                raise LabtrackError(f"{folder} can't be written to.")
        except LabtrackError:
            return self._elsewhere()
        # not shared by machines, whose locks may not be, nor by what came before a crash of the machine
        told = f"{self.root.resolve()}\n{socket.gethostname()}\n{files.boot_id()}\n{_LAYOUT}"
        return folder / f"{hashlib.sha256(os.fsencode(told)).hexdigest()[:24]}.db"

    def _elsewhere(self) -> Path:
        self._private = tempfile.TemporaryDirectory(prefix="labtrack-recordings-")
        self.path = Path(self._private.name) / "recordings.db"
        return self.path

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                with files.lock(self.path.with_suffix(".lock"), "reading recordings", str(self.root), needed=False):
                    yield
                    return
            except LabtrackError as error:
                if error.code != Exit.LOCKED or time.monotonic() > end:
                    raise
                time.sleep(0.05)

    def _connect(self) -> sqlite3.Connection:
        if not self.path.exists():
            os.close(os.open(self.path, os.O_CREAT | os.O_WRONLY, 0o600))
        database = sqlite3.connect(self.path, isolation_level=None, timeout=_PATIENCE)
        database.execute("PRAGMA synchronous = OFF")
        database.execute("PRAGMA trusted_schema = 0")
        return database

    def _update(self) -> bool:
        try:
            found = journals.journals(self.root)
        except OSError as error:
            where = self.root / journals.FOLDER
            raise BadInputError(f"{where} can't be read: {error.strerror}.", f"look at `ls -ld {where}`.") from error
        sizes = {one.name: _size(one) for one in found}
        with contextlib.closing(self._connect()) as database:
            database.execute(f"CREATE TABLE IF NOT EXISTS {_JOURNALS} (name TEXT PRIMARY KEY, offset, number)")
            places = database.execute(f"SELECT name, offset, number FROM {_JOURNALS}")  # noqa: S608
            known = {name: _Place(*place) for name, *place in places}
            if known and self._must_be_made_anew(found, known, sizes):
                database.close()
                self.path.unlink()
                return self._update()
            grown = [one for one in found if one.name not in known or sizes[one.name] > known[one.name].offset]
            database.execute("BEGIN IMMEDIATE")
            changed = self._take(database, grown, known)
            told = database.execute(f"SELECT journal, what, damage FROM {_TOLD}").fetchall()  # noqa: S608
            database.execute("COMMIT")
            self.told = [Told(journal, what, bool(damage)) for journal, what, damage in told] + self._torn(
                database, found
            )
            return changed

    def _must_be_made_anew(self, found: list[Path], known: dict[str, _Place], sizes: dict[str, int]) -> bool:
        """Where a journal is gone or has shrunk, or one is of a later MLflow than the file."""
        if any(sizes.get(name, -1) < place.offset for name, place in known.items()):
            return True
        if not self._newest:
            self._newest = max((_version(self._header(one)) for one in found if one.name in known), default=())
        new = max((_version(self._header(one)) for one in found if one.name not in known), default=())
        return new > self._newest

    def _take(self, database: sqlite3.Connection, grown: list[Path], known: dict[str, _Place]) -> bool:
        replay = Replay(database, f"{self.root.absolute()}/")
        replay.prepare()
        database.execute(f"CREATE TABLE IF NOT EXISTS {_TOLD} (journal, what, damage, PRIMARY KEY (journal, what))")
        database.execute(f"CREATE TABLE IF NOT EXISTS {_WRITERS} (run, journal, PRIMARY KEY (run, journal))")
        # the latest schema first, which has all that the others have
        headers = {one.name: self._header(one) for one in grown}
        for header in sorted((one for one in headers.values() if one), key=_version, reverse=True):
            replay.schema(header)
            self._newest = max(self._newest, _version(header))
        for one in grown:
            self._replay(database, replay, one, headers[one.name], known.get(one.name, _Place(0, -1)))
        known_ones = [one for one in headers.values() if one is not None]
        if known_ones:
            replay.again(known_ones[0])
        return bool(grown)

    def _replay(
        self, database: sqlite3.Connection, replay: Replay, path: Path, header: Header | None, place: _Place
    ) -> None:
        told: list[tuple[str, bool]] = []
        damaged, runs = 0, set()
        offset, number = place
        try:
            for one in journals.read(path, offset):
                offset = one.end
                if one.record is None:
                    damaged += one.size > 1  # an empty line ends a torn one
                    continue
                if one.record[2] == "h":  # there twice, since nothing can be read without it
                    number = max(number, one.record[0]) if offset > one.size and number >= 0 else one.record[0]
                    continue
                if header is None or one.record[0] <= number:
                    continue
                missing, number = one.record[0] - number - 1, one.record[0]
                if missing > damaged:
                    told.append((f"{missing - damaged} records before the record {number} are missing", True))
                damaged = _tell_damaged(damaged, number, told)
                try:
                    replay.apply(header, one.record)
                    runs |= {one.record[3]} if one.record[2] == "m" else set()
                except BrokenRecordError as error:
                    told.append((f"the record {number} can't be used: {error}", True))
        except OSError as error:
            database.execute(f"DELETE FROM {_TOLD} WHERE journal = ? AND what LIKE 'it can''t be read%'", [path.name])  # noqa: S608
            told.append((f"it can't be read from byte {offset} on: {error.strerror}", True))
        if damaged:
            told.append((f"{damaged} records at its end are damaged, and were left out", True))
        if header is None and offset:
            told.append((self._why.get(path.name, "its first record is damaged, so nothing of it can be read"), True))
        database.executemany(f"INSERT OR IGNORE INTO {_TOLD} VALUES (?, ?, ?)", [(path.name, *one) for one in told])  # noqa: S608
        database.executemany(f"INSERT OR IGNORE INTO {_WRITERS} VALUES (?, ?)", [(run, path.name) for run in runs])  # noqa: S608
        if offset:
            database.execute(f"INSERT OR REPLACE INTO {_JOURNALS} VALUES (?, ?, ?)", [path.name, offset, number])  # noqa: S608

    def _header(self, path: Path) -> Header | None:
        if path.name not in self._headers:
            try:
                first = [one.record for one in itertools.islice(journals.read(path), _HEADERS)]
                found = next((one for one in first if one is not None and one[2] == "h"), None)
                if found is None:  # just being begun, or damaged
                    return None
                self._headers[path.name] = Header.of(found[3])
            except ValueError as error:
                self._why[path.name] = f"nothing of it can be read: {error}"
                return None
            except OSError:
                return None
        return self._headers[path.name]

    def _torn(self, database: sqlite3.Connection, found: list[Path]) -> list[Told]:
        """Journals that end in the middle of a record, and are not being written any more."""
        told = []
        places = dict(database.execute(f"SELECT name, offset FROM {_JOURNALS}").fetchall())  # noqa: S608
        for one in found:
            left = _size(one) - places.get(one.name, 0)
            try:
                old = time.time() - one.stat().st_mtime > _OLD
            except OSError:
                continue
            if left > 0 and old:
                what = f"its last {left} bytes are no whole record: the process was killed while it wrote"
                told.append(Told(one.name, what, False))
        return told


def _tell_damaged(damaged: int, number: int, told: list[tuple[str, bool]]) -> int:
    if damaged:
        told.append((f"{damaged} records before the record {number} are damaged, and were left out", True))
    return 0


def _version(header: Header | None) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", header.mlflow)[:3]) if header else ()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
