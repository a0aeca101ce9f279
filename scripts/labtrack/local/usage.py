"""`labtrack usage`: what takes the space of a recording."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from labtrack.stores import Store, journals, open_stores, tree
from labtrack.stores.model import DELETED, Owner
from labtrack.stores.sqlite import SqliteStore


@dataclass
class Item:
    """Something that takes space.

    kind: `run`, `model`, `database`, `log` (of a database, or its journal), or `records` (the files of an mlruns folder
    without artifacts).  bytes: of artifacts, or of the file.  deleted: in MLflow's trash; `mlflow gc` frees it.
    """

    kind: str
    name: str
    id: str
    experiment: str
    bytes: int
    files: int = 0
    points: int = 0
    deleted: bool = False
    note: str = ""


@dataclass
class Usage:
    """All of it.  elsewhere: how many runs have artifacts that are not on this machine, and are not counted."""

    location: str
    items: list[Item] = field(default_factory=list)
    elsewhere: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(one.bytes for one in self.items)

    @property
    def deleted(self) -> int:
        """Bytes of what is in MLflow's trash."""
        return sum(one.bytes for one in self.items if one.deleted)

    def experiments(self) -> list[Item]:
        """The runs and models of each experiment together, the largest first."""
        found: dict[str, Item] = {}
        for one in self.items:
            if one.kind in ("run", "model"):
                known = found.setdefault(one.experiment, Item("experiment", one.experiment, "", one.experiment, 0))
                known.bytes += one.bytes
                known.files += one.files
                known.points += one.points
                known.note = str(int(known.note or 0) + (one.kind == "run"))
        return sorted(found.values(), key=lambda one: -one.bytes)


def measure(where: str) -> Usage:
    """Adds up what a recording, or all recordings in a folder, take.  Sizes are those of `ls -l`, not of blocks."""
    stores = open_stores(where)
    usage = Usage(", ".join(store.location for store in stores))
    try:
        for store in stores:
            usage.items += _of_store(store, usage)
            usage.problems += [str(one) for one in store.problems() if one.damage]
    finally:
        for store in stores:
            store.close()
    usage.items.sort(key=lambda one: (-one.bytes, one.id))
    return usage


def _of_store(store: Store, usage: Usage) -> Iterator[Item]:
    names = {one.id: (one.name, one.lifecycle_stage) for one in store.experiments(deleted=True)}
    artifacts = 0
    for run in store.runs(deleted=True):
        name, stage = names.get(run.experiment_id, (run.experiment_id, ""))
        size, files = _artifacts(store, run)
        artifacts += size
        usage.elsewhere += _is_elsewhere(run.artifact_uri)
        points = sum(store.metric_keys(run.id).values())
        gone = DELETED in (run.lifecycle_stage, stage)
        yield Item("run", run.name or run.id, run.id, name, size, files, points, gone)
    for model in store.logged_models(deleted=True):
        size, files = _artifacts(store, model)
        artifacts += size
        name, stage = names.get(model.experiment_id, (model.experiment_id, ""))
        gone = DELETED in (model.lifecycle_stage, stage)
        yield Item("model", model.name or model.id, model.id, name, size, files, 0, gone)
    path = Path(store.location)
    if type(store) is SqliteStore:
        yield Item("database", path.name, "", "", path.stat().st_size, 1, note=_free(store))
        for suffix in ("-wal", "-shm", "-journal"):
            beside = path.with_name(path.name + suffix)
            if beside.is_file():
                yield Item("log", beside.name, "", "", beside.stat().st_size, 1)
    elif store.kind == "recordings":
        sizes = [_size(one) for one in journals.journals(path)]
        yield Item("records", journals.FOLDER, "", "", sum(sizes), len(sizes))
    elif store.kind == "files":
        sizes = [_size(one) for one in tree.files(path, lambda *_: None)]
        yield Item("records", path.name, "", "", max(0, sum(sizes) - artifacts), len(sizes))


def _artifacts(store: Store, owner: Owner) -> tuple[int, int]:
    sizes = [one.size for one in store.artifacts(owner)]
    return sum(sizes), len(sizes)


def _is_elsewhere(uri: str) -> bool:
    scheme = uri.partition(":")[0] if ":/" in uri else ""
    return scheme not in ("", "file", "mlflow-artifacts")


def _free(store: SqliteStore) -> str:
    share = store.free_bytes()
    return f"{share} bytes in it are free" if share else ""


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.lstat().st_size
    return 0
