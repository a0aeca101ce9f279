"""Folders of recordings, written here by hand, as the recorder writes them."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recorded import KINDS, kept

from labtrack.stores import open_store
from labtrack.stores.journals import Header, Table, frame
from labtrack.stores.recordings import RecordingsStore

RUN = "f" * 31 + "1"
OTHER = "f" * 31 + "2"
T0 = 1_700_000_000_000


def _header(kind: str = "process") -> Header:
    """That of MLflow 3.17.2."""
    with contextlib.closing(sqlite3.connect(kept("3.17.2") / KINDS["sqlite"])) as database:
        tables = {}
        sql = "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        for name, made in database.execute(sql).fetchall():
            facts = database.execute("SELECT name, pk FROM pragma_table_info(?)", [name]).fetchall()
            key = tuple(one for one, at in sorted(facts, key=lambda one: one[1]) if at)
            columns = tuple(one for one, _ in facts)
            tables[name] = Table(name, made, columns, key or columns)
        ((revision,),) = database.execute("SELECT version_num FROM alembic_version").fetchall()
    return Header("3.17.2", revision, "node1", 7, T0, kind=kind, tables=tables)


HEADER = _header()


def row(table: str, **values: Any) -> list[Any]:
    return [values.get(one) for one in HEADER.tables[table].columns]


def experiment(number: int = 0, name: str = "Default", born: int = T0) -> tuple[Any, ...]:
    return "i", "experiments", row(
        "experiments", experiment_id=number, name=name, artifact_location=f"labtrack:artifacts/{number}",
        lifecycle_stage="active", creation_time=born, last_update_time=born, workspace="default",
    )  # fmt: skip


def run(run_id: str = RUN, kind: str = "i", **more: Any) -> tuple[Any, ...]:
    facts = {
        "run_uuid": run_id, "name": "unet", "user_id": "ada", "status": "RUNNING", "start_time": T0,
        "lifecycle_stage": "active", "artifact_uri": f"labtrack:artifacts/0/{run_id}/artifacts", "experiment_id": 0,
    }  # fmt: skip
    return kind, "runs", row("runs", **{**facts, **more})


def points(run_id: str = RUN, key: str = "loss", steps: Sequence[int] = range(3)) -> tuple[Any, ...]:
    return "m", run_id, [[key, step / 2, T0 + step, step, 0] for step in steps]


def tag(key: str, value: str, run_id: str = RUN) -> tuple[Any, ...]:
    return "u", "tags", row("tags", run_uuid=run_id, key=key, value=value)


def lines(records: Sequence[tuple[Any, ...]], clock: int = T0, header: Header = HEADER) -> list[bytes]:
    first = [("h", header.data()), ("h", header.data())]
    return [frame(at, clock + at, *one) for at, one in enumerate([*first, *records])]


def write(root: Path, name: str, *records: tuple[Any, ...], clock: int = T0, header: Header = HEADER) -> Path:
    path = root / "recordings" / f"{name}.journal"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(lines(records, clock, header)))
    return path


def opened(root: Path) -> RecordingsStore:
    store = open_store(root)
    assert isinstance(store, RecordingsStore)
    return store
