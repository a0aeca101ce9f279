"""A folder of recordings as jobs leave it, written without MLflow: the tables are those of MLflow 3.17.2."""

from __future__ import annotations

import sqlite3
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recorded import KINDS, kept

from labtrack.stores.journals import FOLDER, Header, Table, frame

_VERSION = "3.17.2"


def schema() -> dict[str, Table]:
    """MLflow's tables."""
    with sqlite3.connect(kept(_VERSION) / KINDS["sqlite"]) as database:
        tables = database.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table' AND sql <> ''").fetchall()
        found = {}
        for name, sql in tables:
            columns = database.execute(f"PRAGMA table_info({name})").fetchall()
            key = [one[1] for one in sorted(columns, key=lambda one: one[5]) if one[5]]
            found[name] = Table(name, sql, tuple(one[1] for one in columns), tuple(key))
    return found


def record(
    folder: Path, *, status: str = "RUNNING", tags: Mapping[str, str] | None = None, user: str = "", name: str = "a run"
) -> str:
    """One process's recording of one run; gives its id."""
    tables = schema()
    with sqlite3.connect(kept(_VERSION) / KINDS["sqlite"]) as database:
        (revision,) = database.execute("SELECT version_num FROM alembic_version").fetchone()
    now = int(time.time() * 1000)
    run_id = uuid.uuid4().hex
    header = Header(_VERSION, revision, "node1", 1, now, tables=tables)

    def row(table: str, **values: Any) -> list[Any]:
        return [values.get(column) for column in tables[table].columns]

    records: list[tuple[Any, ...]] = [
        ("h", header.data()),
        ("i", "experiments", row(
            "experiments", experiment_id=7, name="jobs", lifecycle_stage="active", creation_time=now,
            artifact_location="labtrack:artifacts", workspace="default",
        )),
        ("i", "runs", row(
            "runs", run_uuid=run_id, name=name, source_type="LOCAL", user_id=user, status=status, start_time=now,
            lifecycle_stage="active", artifact_uri=f"labtrack:artifacts/{run_id}", experiment_id=7,
        )),
        *(("i", "tags", row("tags", key=key, value=value, run_uuid=run_id)) for key, value in (tags or {}).items()),
    ]  # fmt: skip
    place = folder / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    lines = [frame(number, now, *one) for number, one in enumerate(records)]
    (place / f"{now}-node1-{run_id[:8]}.journal").write_bytes(b"".join(lines))
    return run_id
