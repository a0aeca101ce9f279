"""SQLite files of another machine, copied while somebody may be writing them.

rsync copies a database and its journal at different moments.  So they are copied, and then compared with what is there,
byte by byte: where nothing has changed from the copy of the first to the comparison of the last, all of it is as it was
at the moment in between, and SQLite makes of it what it would make after a crash at that moment.  What is written all
the time is copied at the far side, by labtrack there, through SQLite's backup interface.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from labtrack.errors import LabtrackError
from labtrack.files import make_private_folder, write_private
from labtrack.stores.database import HEADER
from labtrack.stores.pull.ssh import SILENCE, Connection, remote_labtrack

SUFFIXES = (".db", ".sqlite", ".sqlite3")
_JOURNALS = ("-journal", "-wal")
_FOLDERS = ("mlruns", "mlflow")  # in which a database may be, too
_PATTERNS = [f"*{suffix}{beside}" for suffix in SUFFIXES for beside in ("", *_JOURNALS, "-shm")]
_ONLY = [f"--include=/{name}/" for name in _FOLDERS]
NOT_DATABASES = [f"--exclude=/{above}{one}" for above in ("", *(f"{name}/" for name in _FOLDERS)) for one in _PATTERNS]
"""rsync's options for everything else."""
_TRIES = 3
MAGIC = b"labtrack-backup 1 "  # then the size, a line end, the file, and its SHA-256 in hex
_GREETING = 65536  # bytes that a shell of the far side may print before
_BLOCK = 2**20


class Fetched:
    """The databases of one source."""

    def __init__(self, connection: Connection, folder: Path, env: Mapping[str, str]) -> None:
        self.connection, self.folder, self.env = connection, folder, env
        self.staging, self._marks = folder / "staging", folder / "databases.json"
        self.count = 0

    def fetch(self, path: str, place: Path, single: str = "") -> dict[str, tuple[str, bool]]:
        """Copies the databases of the folder `path`, or the one `single` file, to `place`.

        Gives those that could not be copied: by name, why, and whether an earlier copy is there.
        """
        if single:
            path = f"{path[: -len(single)]}" or "./"
            beside = ("", *_JOURNALS)
            names = single.translate({ord(one): f"\\{one}" for one in "*?[\\"})  # for rsync's patterns
            chosen = [*(f"--include=/{names}{one}" for one in beside), "--exclude=*"]
        else:
            chosen = [
                *_ONLY,
                *(f"--include={one}" for one in _PATTERNS if not one.endswith("-shm")),
                "--exclude=*",
                "--prune-empty-dirs",
            ]
        known = self._known()
        doubtful: dict[str, str] = {}
        names_now: dict[str, list[object]] = {}
        for number in range(_TRIES):
            changed = self._copy(path, chosen, again=number > 0)
            names_now = {name: self._looks(name) for name in self._names(single)}
            new = [name for name, looks in names_now.items() if known.get(name) != looks or not (place / name).exists()]
            if not new and not changed:
                break
            moving = self._compare(path, chosen) if new else set()
            doubtful = {name: "is being written all the time" for name in new if self._parts(name) & moving}
            for name in new:
                if name not in doubtful:
                    why = self._publish(name, place)
                    if why:
                        doubtful[name] = why
                    else:
                        known[name] = names_now[name]
            if not doubtful:
                break
        self.count = len(names_now)
        for name in list(doubtful):
            if self._from_there(f"{path.rstrip('/')}/{name}", name, place):
                del doubtful[name]
            known.pop(name, None)
        self._forget(place, names_now, known, single)
        write_private(self._marks, json.dumps({name: known[name] for name in known if name in names_now}).encode())
        return {
            name: (
                f"{name} {why}; " + ("it is read as it was before" if there else "it is left for the next time"),
                there,
            )
            for name, why in doubtful.items()
            for there in ((place / name).exists(),)
        }

    def _copy(self, path: str, chosen: list[str], *, again: bool) -> bool:
        partial, temporary = self.folder / "partial", self.folder / "tmp"
        how = ["-rti", *self.connection.follow, "--chmod=Du+rwx,Fu+rw", "--delete", SILENCE, f"--partial-dir={partial}"]
        how += [f"--temp-dir={temporary}", *(["--ignore-times"] if again else [])]
        done = self.connection.rsync([*how, *chosen], path, self.staging)
        return any(line.startswith((">f", "*deleting")) for line in done.out.splitlines())

    def _compare(self, path: str, chosen: list[str]) -> set[str]:
        """The files that are not, or not any more, as they were copied."""
        how = ["-rtin", *self.connection.follow, "--checksum", "--delete", SILENCE]
        done = self.connection.rsync([*how, *chosen], path, self.staging)
        lines = [line.split(maxsplit=1) for line in done.out.splitlines()]
        return {line[1] for line in lines if len(line) > 1 and line[0].startswith((">f", "*deleting"))}

    def _names(self, single: str) -> list[str]:
        files = (one for one in self.staging.rglob("*") if one.is_file())
        names = sorted(one.relative_to(self.staging).as_posix() for one in files)
        return [one for one in names if (one == single if single else one.endswith(SUFFIXES))]

    def _parts(self, name: str) -> set[str]:
        return {f"{name}{beside}" for beside in ("", *_JOURNALS)}

    def _looks(self, name: str) -> list[object]:
        found: list[object] = []
        for part in sorted(self._parts(name)):
            with contextlib.suppress(FileNotFoundError):
                facts = (self.staging / part).stat()
                found += [part, facts.st_size, facts.st_mtime_ns]
        return found

    def _known(self) -> dict[str, list[object]]:
        try:
            found = json.loads(self._marks.read_bytes())
            return found if isinstance(found, dict) else {}
        except (OSError, ValueError):
            return {}

    def _publish(self, name: str, place: Path) -> str:
        """Makes what is read of a copied database; gives why it can't."""
        source, target = self.staging / name, place / name
        make_private_folder(target.parent)
        with source.open("rb") as file:
            if file.read(len(HEADER)) != HEADER:
                _put(source, target)
                return ""
        with tempfile.TemporaryDirectory(prefix="work-", dir=self.folder) as work:
            for part in self._parts(name):
                if (self.staging / part).exists():
                    shutil.copyfile(self.staging / part, Path(work, Path(part).name))
            return pour(Path(work, source.name), target)

    def _from_there(self, path: str, name: str, place: Path) -> bool:
        """Has labtrack at the far side copy a database, where it can."""
        with tempfile.TemporaryDirectory(prefix="work-", dir=self.folder) as work:
            stream, copy = Path(work, "stream"), Path(work, "copy.db")
            with stream.open("wb") as out:
                done = self.connection.run([*remote_labtrack(self.env), "backup", path, "--stdout"], out)
            if done.code:
                return False
            try:
                with stream.open("rb") as file, copy.open("wb") as target:
                    receive(file, target)
            except LabtrackError:
                return False
            make_private_folder((place / name).parent)
            return not pour(copy, place / name)

    def _forget(self, place: Path, now: Mapping[str, object], known: Mapping[str, object], single: str) -> None:
        """Removes what is not there any more."""
        gone = [one for one in self._known() if one not in now and one not in known and not single]
        gone += [one for one in known if one not in now and not single]
        for name in gone:
            for part in self._parts(name):
                (place / part).unlink(missing_ok=True)


def pour(source: Path, target: Path) -> str:
    """Puts a database, with the journal beside it, into another one that may be open; gives why it can't.

    The target has at each moment all of the old or all of the new content, also after a kill.
    """
    try:
        with contextlib.closing(sqlite3.connect(source, isolation_level=None)) as database:
            said = [str(row[0]) for row in database.execute("PRAGMA quick_check(3)")]
            if said != ["ok"]:
                return f"came over damaged, or is damaged there: {'; '.join(said)}"
            os.close(os.open(target, os.O_RDWR | os.O_CREAT, 0o600))
            try:
                _backup(database, target)
            except sqlite3.DatabaseError:
                for beside in ("", *_JOURNALS, "-shm"):  # a copy that is no database any more
                    target.with_name(target.name + beside).unlink(missing_ok=True)
                os.close(os.open(target, os.O_RDWR | os.O_CREAT, 0o600))
                _backup(database, target)
    except sqlite3.DatabaseError as error:
        return f"came over damaged, or is damaged there: {error}"
    return ""


def _backup(database: sqlite3.Connection, target: Path) -> None:
    with contextlib.closing(sqlite3.connect(target, isolation_level=None)) as copy:
        database.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")


def _put(source: Path, target: Path) -> None:
    part = target.with_name(f".{target.name}.part")
    shutil.copy2(source, part)
    part.replace(target)


def send(file: Path, out: IO[bytes]) -> None:
    """Writes a file so that `receive` knows whether all of it has come."""
    digest = hashlib.sha256()
    out.write(MAGIC + str(file.stat().st_size).encode() + b"\n")
    with file.open("rb") as source:
        for block in _blocks(source, file.stat().st_size):
            digest.update(block)
            out.write(block)
    out.write(digest.hexdigest().encode() + b"\n")
    out.flush()


def receive(stream: IO[bytes], target: IO[bytes]) -> None:
    """Reads what `send` wrote, whatever a shell printed before it.  Raises LabtrackError where it is not all there."""
    head = stream.read(_GREETING + len(MAGIC))
    start = head.find(MAGIC)
    number, end, _ = head[start + len(MAGIC) :].partition(b"\n")
    if start < 0 or not end or not number.isdigit():
        raise LabtrackError("What came is no backup of labtrack.")
    stream.seek(start + len(MAGIC) + len(number) + 1)
    digest, left = hashlib.sha256(), int(number)
    for block in _blocks(stream, left):
        digest.update(block)
        target.write(block)
        left -= len(block)
    if left or stream.read(64) != digest.hexdigest().encode():
        raise LabtrackError("The backup broke off.")
    target.flush()


def _blocks(file: IO[bytes], left: int) -> Iterator[bytes]:
    while left > 0:
        block = file.read(min(_BLOCK, left))
        if not block:
            return
        yield block
        left -= len(block)
