"""What real MLflow versions recorded (tests/fixtures/stores), and small stores made by hand."""

from __future__ import annotations

import functools
import json
import shutil
import sqlite3
import tarfile
import tempfile
import uuid
from pathlib import Path
from typing import Any

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "stores"
VERSIONS = sorted(path.name[: -len(".tar.xz")] for path in FIXTURES.glob("*.tar.xz"))
KINDS = {"sqlite": "sqlite/mlflow.db", "files": "files/mlruns"}
_kept: list[tempfile.TemporaryDirectory[str]] = []


def unpack(version: str, place: Path) -> Path:
    """What one version recorded, at `place`; the paths in it are those of the machine that made it."""
    with tarfile.open(FIXTURES / f"{version}.tar.xz") as tar:
        tar.extractall(place, filter="data") if hasattr(tarfile, "data_filter") else tar.extractall(place)  # noqa: S202
    return place


@functools.cache
def kept(version: str) -> Path:
    """The same, unpacked once for tests that only read."""
    folder = tempfile.TemporaryDirectory(prefix="labtrack-recorded-")
    _kept.append(folder)
    return unpack(version, Path(folder.name))


def witness(version: str, kind: str) -> dict[str, Any]:
    """What that MLflow itself reads from it."""
    found: dict[str, Any] = json.loads((kept(version) / f"{kind}.json").read_text())
    return found


@functools.cache
def _empty() -> Path:
    """A database with all tables and nothing in them."""
    path = kept("3.17.2") / "empty.db"
    with sqlite3.connect(kept("3.17.2") / KINDS["sqlite"]) as source, sqlite3.connect(path) as made:
        for (sql,) in source.execute("SELECT sql FROM sqlite_master WHERE sql NOT NULL AND name NOT LIKE 'sqlite_%'"):
            made.execute(sql)
    source.close()
    made.close()
    return path


def make_sqlite(path: Path, runs: int = 1, wal: bool = False) -> list[str]:
    """A database with the tables of MLflow 3.17 and some runs without points; gives their ids."""
    shutil.copyfile(_empty(), path)
    made = sqlite3.connect(path)
    made.execute("PRAGMA synchronous = OFF")
    if wal:
        made.execute("PRAGMA journal_mode=WAL")
    made.execute(
        "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage, creation_time, workspace) "
        "VALUES (0, 'Default', ?, 'active', 1700000000000, 'default')",
        [str(path.parent / "mlruns" / "0")],
    )
    ids = [uuid.uuid4().hex for _ in range(runs)]
    for number, run_id in enumerate(ids):
        made.execute(
            "INSERT INTO runs (run_uuid, name, user_id, status, start_time, lifecycle_stage, artifact_uri, "
            "experiment_id) VALUES (?, ?, 'ada', 'RUNNING', ?, 'active', ?, 0)",
            [run_id, f"run {number}", 1_700_000_000_000 + number, f"{path.parent}/mlruns/0/{run_id}/artifacts"],
        )
    made.commit()
    made.close()
    return ids


def add_points(path: Path, run_id: str, points: list[tuple[str, float, int, int]]) -> None:
    """Adds (key, value, timestamp, step)."""
    with sqlite3.connect(path) as made:
        made.execute("PRAGMA synchronous = OFF")
        made.executemany(
            "INSERT INTO metrics (key, value, timestamp, step, run_uuid, is_nan) VALUES (?, ?, ?, ?, ?, 0)",
            [(*point, run_id) for point in points],
        )
    made.close()


def make_files(root: Path, runs: int = 1) -> list[str]:
    """An mlruns folder as MLflow 2.x writes it; gives the runs' ids."""
    ids = [uuid.uuid4().hex for _ in range(runs)]
    (root / "0").mkdir(parents=True)
    (root / "0" / "meta.yaml").write_text(
        f"artifact_location: file://{root}/0\ncreation_time: 1700000000000\nexperiment_id: '0'\n"
        "last_update_time: 1700000000000\nlifecycle_stage: active\nname: Default\n"
    )
    for number, run_id in enumerate(ids):
        folder = root / "0" / run_id
        for part in ("params", "metrics", "tags", "artifacts"):
            (folder / part).mkdir(parents=True)
        (folder / "meta.yaml").write_text(
            f"artifact_uri: file://{root}/0/{run_id}/artifacts\nend_time: null\nexperiment_id: '0'\n"
            f"lifecycle_stage: active\nrun_id: {run_id}\nrun_name: run {number}\nrun_uuid: {run_id}\n"
            f"start_time: {1_700_000_000_000 + number}\nstatus: 1\nuser_id: ada\n"
        )
        (folder / "tags" / "mlflow.runName").write_text(f"run {number}")
    return ids
