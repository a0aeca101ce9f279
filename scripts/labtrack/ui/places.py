"""Where MLflow's server finds the artifacts of a snapshot: its addresses are those of the files as they are now."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections import defaultdict
from pathlib import Path

from labtrack.errors import LabtrackError
from labtrack.stores.artifacts import as_path
from labtrack.stores.model import LoggedModel, Owner, Run, Store

_LOCAL = ("", "file", "mlflow-artifacts", "windows")
_TRIED = 50  # runs of one folder that are looked for, before it is taken to be gone
_ROOM = 100_000_000  # bytes that are left free
# table, column of the id, column of the address, condition
_ADDRESSES = (
    ("runs", "run_uuid", "artifact_uri", "1"),
    ("logged_models", "model_id", "artifact_location", "1"),
    ("trace_tags", "request_id", "value", "key = 'mlflow.artifactLocation'"),
)
_SOURCES = ("source", "storage_location")  # of model versions


def address(store: Store, owner: Owner, room: Path) -> str:
    """Where the server finds the artifacts of a run or of a logged model.

    room: a folder for what is no file on this machine, as in an exported one; it is put there.
    Raises LabtrackError when the disk has no room for that.
    """
    recorded = owner.artifact_location if isinstance(owner, LoggedModel) else owner.artifact_uri
    here = store.local_path(owner, ".")
    if here is not None and here.is_dir():
        return str(here.absolute())
    if recorded and as_path(recorded)[1] not in _LOCAL:
        return recorded
    place = room / owner.id.replace("/", "_")
    for artifact in store.artifacts(owner):
        to = place / artifact.path
        if place.resolve() not in to.resolve().parents:
            continue
        if shutil.disk_usage(room).free < artifact.size + _ROOM:
            raise LabtrackError(
                f"There is no room in {room} for the artifacts of {store.location}.",
                "set TMPDIR to a folder with room and run the same command again.",
            )
        to.parent.mkdir(parents=True, exist_ok=True)
        with store.open_artifact(owner, artifact.path) as source, to.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
    return str(place)


def relocate(store: Store, copy: Path, room: Path) -> None:
    """Puts into a copy of a database where the artifacts are now.

    Folder by folder, since a database may have 100,000 runs: where one run of an experiment's folder is found, the
    others are taken to be beside it.
    """
    with contextlib.closing(sqlite3.connect(copy)) as database, database:
        moved: dict[str, str] = {}
        for table, owner, column, condition in _ADDRESSES:
            if _has(database, table, column):
                sql = f"SELECT rowid, {owner}, {column} FROM {table} WHERE {condition}"  # noqa: S608 constants
                new = list(_moved(store, database.execute(sql).fetchall(), room, moved))
                database.executemany(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", new)  # noqa: S608
        for column in _SOURCES:
            if _has(database, "model_versions", column):
                rows = database.execute(f"SELECT rowid, {column} FROM model_versions").fetchall()  # noqa: S608
                new = [(found, row) for row, value in rows if (found := _beside(str(value or ""), moved))]
                database.executemany(f"UPDATE model_versions SET {column} = ? WHERE rowid = ?", new)  # noqa: S608


def _has(database: sqlite3.Connection, table: str, column: str) -> bool:
    return any(row[1] == column for row in database.execute(f"PRAGMA table_info({table})"))


def _moved(store: Store, rows: list[tuple[int, str, str]], room: Path, moved: dict[str, str]) -> list[tuple[str, int]]:
    """The new addresses with their rows.  moved: for each folder of recorded addresses, where it is now."""
    groups: dict[str, list[tuple[int, str, str]]] = defaultdict(list)
    new = []
    for row, owner, recorded in rows:
        name, uri = str(owner), str(recorded or "")
        folder, found, rest = uri.rpartition(f"/{name}/")
        if found:
            groups[folder].append((row, name, rest))
        elif as_path(uri)[1] in _LOCAL:  # not a folder of that run: its files are not its own to show
            new.append((str(room / "missing" / name), row))
    for folder, members in groups.items():
        if as_path(folder)[1] in _LOCAL and folder not in moved:
            moved[folder] = _now(store, folder, members) or str(room / "missing")
        to = moved.get(folder)
        new += [(f"{to}/{name}/{rest}", row) for row, name, rest in members if to]
    return new


def _now(store: Store, folder: str, members: list[tuple[int, str, str]]) -> str | None:
    """Where the folder of some runs is; None where none of them is found."""
    path, scheme = as_path(folder)
    if path is not None and scheme in ("", "file") and path.is_absolute() and path.is_dir():
        return str(path)
    for _, name, rest in members[:: max(1, len(members) // _TRIED)]:
        here = store.local_path(Run(name, "", artifact_uri=f"{folder}/{name}/{rest}"), ".")
        if here is not None and name in here.parts and here.is_dir():
            return str(here.absolute().parents[here.absolute().parts[::-1].index(name)])
    return None


def _beside(source: str, moved: dict[str, str]) -> str | None:
    """A model version's source where its run's folder is now."""
    known = [folder for folder in moved if source.startswith(f"{folder}/")]
    folder = max(known, key=len, default=None)
    return moved[folder] + source[len(folder) :] if folder is not None else None
