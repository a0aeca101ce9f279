"""The databases' way from one version of PostgreSQL to the next: dumped beside the data, restored into empty ones.

Both clusters here are of the version that this machine has; which number stands for the newer one is the program's own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sync_server import Postgres, postgresql, postgresql_bin

PROGRAM = Path(__file__).parents[2] / "roles/postgresql/files/labtrack_postgresql.py"
NEWER = "99"
MADE = """CREATE TABLE runs (run_uuid varchar(32) PRIMARY KEY, name text);
INSERT INTO runs SELECT md5(n::text), 'a run' FROM generate_series(1, 500) n; CREATE TABLE "Odd name" (n int)"""


@dataclass
class Move:
    """A folder as /var/lib/postgresql, with the older cluster that runs, and the newer one."""

    root: Path
    older: Postgres
    newer: Postgres

    def __call__(self, *command: str, on: Postgres | None = None, fails: bool = False) -> str:
        stop = self.root / "systemctl"
        stop.write_text(f"#!/bin/sh\ntouch {self.root}/asked-to-$1\ntest ! -e {self.root}/cannot-$1\n")
        stop.chmod(0o755)
        env = {
            **os.environ, "LABTRACK_POSTGRESQL": str(self.root), "LABTRACK_POSTGRESQL_SYSTEMCTL": str(stop),
            "LABTRACK_POSTGRESQL_SOCKET": str((on or self.newer).folder),
        }  # fmt: skip
        done = subprocess.run([sys.executable, PROGRAM, *command], env=env, capture_output=True, text=True, check=False)
        assert (done.returncode != 0) is fails, done.stdout + done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done.stdout + done.stderr


def psql(server: Postgres, database: str, statement: str) -> str:
    programs = postgresql_bin()
    assert programs
    command = [
        programs / "psql",
        "-XqAt",
        "-v",
        "ON_ERROR_STOP=1",
        "-h",
        server.folder,
        "-U",
        "postgres",
        "-d",
        database,
    ]
    return subprocess.run(
        [*command, "-c", statement], check=True, capture_output=True, cwd="/", text=True
    ).stdout.strip()


@pytest.fixture
def move() -> Iterator[Move]:
    if os.geteuid() != 0 or postgresql_bin() is None:
        pytest.skip("needs root and PostgreSQL (apt install postgresql)")
    with postgresql("labtrack-older-") as older, postgresql("labtrack-newer-") as newer:
        root = older.folder.parent
        version = psql(older, "postgres", "SHOW server_version_num")[:2]
        for number, server in ((version, older), (NEWER, newer)):
            (root / number).mkdir()
            (root / number / "main").symlink_to(server.folder / "data")
        for server in (older, newer):
            server.create("mlflowdb")
        psql(older, "mlflowdb", MADE)
        yield Move(root, older, newer)


def test_all_rows_are_in_the_newer_one_and_the_older_data_stay(move: Move) -> None:
    assert "500 rows are dumped" in move("dump", on=move.older)
    assert (move.root / "asked-to-stop").exists()
    assert (move.root / "labtrack-dump").stat().st_mode & 0o077 == 0
    move("check")
    spool = move.root / "pgbackrest-spool/archive/labtrack/out/000000010000000000000001.ok"
    spool.parent.mkdir(parents=True)
    spool.touch()
    assert move("restore", NEWER).startswith("changed")
    assert not spool.exists(), "the newer one's first segment would pass for archived"
    assert psql(move.newer, "mlflowdb", "SELECT count(*), count(DISTINCT run_uuid) FROM runs") == "500|500"
    (kept,) = move.root.glob("*/main.before-99")
    assert (kept / "PG_VERSION").exists() and not (move.root / "labtrack-dump").exists()
    assert move("restore", NEWER) == ""
    assert "has no dump" in move("check", fails=True)


def test_an_interrupted_restore_goes_on(move: Move) -> None:
    move.older.create("another")
    move("dump", on=move.older)
    assert "another" in move("restore", NEWER, fails=True)  # which is not there, so the first database is done alone
    move.newer.create("another")
    assert move("restore", NEWER).startswith("changed")


def test_other_data_is_never_written_over(move: Move) -> None:
    move("dump", on=move.older)
    psql(move.newer, "mlflowdb", "CREATE TABLE runs (run_uuid text); INSERT INTO runs VALUES ('mine')")
    said = move("restore", NEWER, fails=True)
    assert "mlflowdb has other rows than its dump" in said and "public.runs" in said
    assert psql(move.newer, "mlflowdb", "SELECT * FROM runs") == "mine"
    assert (move.root / "labtrack-dump/of.json").exists()


def test_a_dump_is_refused_after_its_database_has_run_again(move: Move) -> None:
    move("dump", on=move.older)
    psql(move.older, "mlflowdb", "INSERT INTO runs VALUES ('late', 'a run')")
    psql(move.older, "mlflowdb", "CHECKPOINT")
    for command in (("check",), ("restore", NEWER)):
        said = move(*command, fails=True)
        assert "has run again after its dump" in said and "playbooks/dump.yml" in said
    assert psql(move.newer, "mlflowdb", "SELECT count(*) FROM pg_tables WHERE tablename = 'runs'") == "0"


def test_a_server_that_is_in_use_is_not_stopped(move: Move) -> None:
    programs = postgresql_bin()
    assert programs
    command = [programs / "psql", "-Xh", move.older.folder, "-U", "postgres", "-d", "mlflowdb"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, env={**os.environ, "PGAPPNAME": "mlflow"}) as busy:
        assert busy.stdin
        connected = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'mlflow'"
        while psql(move.older, "postgres", connected) == "0":
            assert busy.poll() is None
        assert "Somebody is connected to the databases: mlflow" in move("dump", on=move.older, fails=True)
        assert not (move.root / "asked-to-stop").exists()
        busy.stdin.close()


def test_a_dump_that_can_not_be_finished_leaves_postgresql_running(move: Move) -> None:
    (move.root / "cannot-stop").touch()
    said = move("dump", on=move.older, fails=True)
    assert "could not be finished" in said and "To fix: " in said
    assert (move.root / "asked-to-start").exists() and not (move.root / "labtrack-dump/of.json").exists()
    assert "has no dump" in move("check", fails=True)
    (move.root / "cannot-stop").unlink()
    move("dump", on=move.older)
    assert move("restore", NEWER).startswith("changed")
