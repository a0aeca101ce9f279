"""Backups of local databases."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import recorded
from commandline import labtrack

from labtrack.errors import BadInputError, LabtrackError
from labtrack.local.backup import backup


def test_backup_is_whole_while_somebody_writes(tmp_path: Path) -> None:
    (run,) = recorded.make_sqlite(tmp_path / "mlflow.db")
    stop = threading.Event()

    def write() -> None:
        with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db", timeout=30)) as made:
            step = 0
            while not stop.is_set():
                with made:  # both, or none
                    sql = (
                        "INSERT INTO metrics (key, value, timestamp, step, run_uuid, is_nan) VALUES (?, 1, 1, ?, ?, 0)"
                    )
                    made.executemany(sql, [(key, step, run) for key in "ab"])
                step += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        made = [backup(str(tmp_path / "mlflow.db"), tmp_path / "kept") for _ in range(3)]
    finally:
        stop.set()
        writer.join()
    assert len({one.file for one in made}) == 3
    for one in made:
        with contextlib.closing(sqlite3.connect(one.file)) as copy:
            counts = dict(copy.execute("SELECT key, count(*) FROM metrics GROUP BY key"))
        assert counts.get("a") == counts.get("b")
        assert one.file.stat().st_mode == (tmp_path / "mlflow.db").stat().st_mode and one.runs == 1
    assert not list((tmp_path / "kept").glob(".*"))


def test_backup_has_what_is_only_in_the_log(tmp_path: Path) -> None:
    recorded.make_sqlite(tmp_path / "mlflow.db", wal=True)
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as made:
        made.execute("UPDATE runs SET name = 'in the log'")
        made.commit()
        assert (tmp_path / "mlflow.db-wal").stat().st_size
        file = backup(str(tmp_path / "mlflow.db"), tmp_path / "kept").file
    with contextlib.closing(sqlite3.connect(file)) as copy:
        assert copy.execute("SELECT name FROM runs").fetchall() == [("in the log",)]
        assert copy.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    assert sorted(one.name for one in file.parent.iterdir()) == [file.name]


def test_backup_leaves_out_what_was_not_committed(tmp_path: Path) -> None:
    recorded.make_sqlite(tmp_path / "mlflow.db")
    script = (
        "import os, sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute('PRAGMA cache_size = 1');"
        "db.execute('PRAGMA cache_spill = 1');"
        "db.executemany('INSERT INTO tags VALUES (?, ?, ?)', ((f'k{n}', 'x' * 3000, 'r') for n in range(2000)));"
        "os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "mlflow.db"], check=False)
    assert (tmp_path / "mlflow.db-journal").stat().st_size, "a hot journal"
    before = (tmp_path / "mlflow.db-journal").read_bytes()
    file = backup(str(tmp_path / "mlflow.db"), tmp_path / "kept").file
    with contextlib.closing(sqlite3.connect(file)) as copy:
        assert copy.execute("SELECT count(*) FROM tags").fetchone() == (0,)
    assert (tmp_path / "mlflow.db-journal").read_bytes() == before


def test_backup_keeps_as_many_as_asked_and_removes_only_its_own(tmp_path: Path) -> None:
    recorded.make_sqlite(tmp_path / "mlflow.db")
    kept = tmp_path / "kept"
    kept.mkdir()
    for name in ("mlflow_20250101-000000.db", "mlflow_20250102-000000.db"):
        (kept / name).touch()
    strangers = ["other_20250101-000000.db", "mlflow_notes.db", "mlflow_20250101-000000.db.txt"]
    for name in strangers:
        (kept / name).touch()
    said = labtrack("backup", tmp_path / "mlflow.db", "-o", kept, "--keep", 2)
    assert said.returncode == 0 and "removed" in said.stdout and "without artifacts" in said.stdout
    names = sorted(one.name for one in kept.iterdir())
    assert "mlflow_20250102-000000.db" in names and set(strangers) < set(names) and len(names) == 5
    assert labtrack("backup", tmp_path / "mlflow.db", "-o", kept, "--keep", 0).returncode == 2
    assert len(list(kept.iterdir())) == 5


def test_backup_refuses_what_it_can_not_copy(tmp_path: Path) -> None:
    recorded.make_files(tmp_path / "mlruns")
    with pytest.raises(BadInputError, match="not a SQLite file"):
        backup(str(tmp_path / "mlruns"), tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
    recorded.make_sqlite(tmp_path / "mlflow.db", 400)
    data = bytearray((tmp_path / "mlflow.db").read_bytes())
    data[-30_000:-20_000] = os.urandom(10_000)
    (tmp_path / "mlflow.db").write_bytes(data)
    with pytest.raises(LabtrackError, match="damaged"):
        backup(str(tmp_path / "mlflow.db"), tmp_path / "kept")
    assert not list((tmp_path / "kept").iterdir())
