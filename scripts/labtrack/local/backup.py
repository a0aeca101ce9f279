"""`labtrack backup`: copies of a database that are whole, whoever writes it meanwhile."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import sqlite3
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from labtrack.errors import BadInputError, LabtrackError
from labtrack.stores import open_store
from labtrack.stores.pull.databases import send
from labtrack.stores.sqlite import SqliteStore


@dataclass(frozen=True)
class Backup:
    """The file that was made, its size in bytes, how many runs are in it, and older ones that were removed."""

    file: Path
    size: int
    runs: int
    removed: tuple[Path, ...]


def backup(source: str, folder: Path, keep: int | None = None) -> Backup:
    """Copies a database by SQLite's backup interface to `folder`/NAME_YYYYMMDD-HHMMSS.db, and checks the copy.

    keep: how many of the backups of this database stay in the folder, the newest; all others of them are removed, and
    nothing else.  Artifacts are not in a database.
    Raises BadInputError where the source is no SQLite file, LabtrackError where the copy can't be made or is damaged.
    """
    if keep is not None and keep < 1:
        raise BadInputError(f"--keep {keep} would keep no backup.", "--keep 1 or more")
    with open_store(source) as store:
        if type(store) is not SqliteStore:
            raise BadInputError(
                f"{store.location} is not a SQLite file.", "an mlruns folder is copied with `rsync -a` or `tar`."
            )
        stem = store.path.stem
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix=f".{stem}.", suffix=".tmp", dir=folder)
        except OSError as error:
            raise LabtrackError(
                f"{folder} can't be written to: {error.strerror}.", f"look at `ls -ld {folder}`."
            ) from error
        os.close(descriptor)
        part = Path(name)
        try:
            store.copy_to(part)
            runs = _checked(part, store.path)
            part.chmod(stat.S_IMODE(store.path.stat().st_mode) & 0o666)  # for those who may read the original
            file = _placed(part, folder, stem)
        except OSError as error:
            raise LabtrackError(f"No backup in {folder}: {error.strerror}.", f"look at `df -h {folder}`.") from error
        finally:
            part.unlink(missing_ok=True)
    removed = []
    if keep is not None:
        for old in sorted(_backups(folder, stem))[:-keep]:
            old.unlink()
            removed.append(old)
    return Backup(file, file.stat().st_size, runs, tuple(removed))


def stream(source: str, out: IO[bytes]) -> None:
    """Writes such a copy to `out`, so that `labtrack.stores.pull` at the other end knows whether all of it came.

    Raises what `backup` raises.
    """
    with open_store(source) as store, tempfile.TemporaryDirectory(prefix="labtrack-backup-") as folder:
        if type(store) is not SqliteStore:
            raise BadInputError(f"{store.location} is not a SQLite file.", "only one of those is copied this way.")
        copy = Path(folder, "copy.db")
        store.copy_to(copy)
        _checked(copy, store.path)
        send(copy, out)


def _checked(copy: Path, source: Path) -> int:
    """The number of runs in a copy.  Raises LabtrackError where it is damaged."""
    with contextlib.closing(sqlite3.connect(copy)) as database:
        try:
            said = [str(row[0]) for row in database.execute("PRAGMA integrity_check(5)")]
            runs = int(database.execute("SELECT count(*) FROM runs").fetchone()[0])
        except sqlite3.DatabaseError as error:
            said, runs = [str(error)], 0
    if said != ["ok"]:
        raise LabtrackError(
            f"{source} is damaged, and no backup was made: {'; '.join(said)}.",
            f"keep the older backups, and try `sqlite3 '{source}' .recover | sqlite3 recovered.db`.",
        )
    return runs


def _placed(part: Path, folder: Path, stem: str) -> Path:
    """Gives the copy its name, which no other call has taken."""
    with part.open("rb") as file:
        os.fsync(file.fileno())
    moment = datetime.datetime.now()
    while True:
        place = folder / f"{stem}_{moment:%Y%m%d-%H%M%S}.db"
        try:
            os.link(part, place)
        except FileExistsError:
            moment += datetime.timedelta(seconds=1)
            continue
        except OSError:  # a file system without links
            part.replace(place)
        return place


def _backups(folder: Path, stem: str) -> list[Path]:
    name = re.compile(rf"{re.escape(stem)}_\d{{8}}-\d{{6}}\.db")
    return [one for one in folder.iterdir() if name.fullmatch(one.name) and one.is_file() and not one.is_symlink()]
