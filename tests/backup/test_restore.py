"""Restores in the place of a running server's databases, and on an empty machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest
from backed_up import PROGRAM, RUNS, Machine

STOPPED = ["stop mlflow@1.service mlflow@2.service", "start --no-block mlflow@1.service mlflow@2.service"]


@pytest.fixture
def server(machine: Machine) -> Iterator[Machine]:
    """The server; what restores have kept is removed after the test."""
    machine.asked()
    yield machine
    assert not (machine.folder / "restore/swap.json").exists()
    for kept in machine.folder.glob("main.before-*"):
        shutil.rmtree(kept)


def count(machine: Machine) -> int:
    return int(machine.sql("SELECT count(*) FROM runs")[0])


def now(machine: Machine) -> str:
    return machine.sql("SELECT now()")[0]


def timeline(machine: Machine) -> str:
    return machine.sql("SELECT timeline_id FROM pg_control_checkpoint()")[0]


def test_the_databases_of_a_time_come_back_beside_first_and_what_is_lost_is_said(server: Machine) -> None:
    before, runs = now(server), count(server)
    server.sql(RUNS.format(1001, 1010, 5))
    server.sql("TRUNCATE spans")
    said = server("restore", before, fails=True)
    assert "mlflowdb.runs: 10 rows (the newest run: run 1010, of 1970-01-01 00:00:01)" in said
    assert "mlflowdb.metrics: 50 rows" in said and "--discard-newer" in said
    assert count(server) == runs + 10 and server.asked() == [], "the server has not noticed"

    server("run")
    newest = server.result("run")["backup"]
    said = server("restore", before, "--discard-newer")
    assert count(server) == runs and int(server.sql("SELECT count(*) FROM spans")[0]) > 100_000
    assert server.asked() == STOPPED
    (kept,) = server.folder.glob("main.before-*")
    assert f"The old databases are in {kept}" in said and "10 rows" in said
    assert server.result("run")["backup"] > newest, "there is a backup of the new timeline"
    assert server.sql("SELECT extname FROM pg_extension WHERE extname = 'amcheck'") == []

    server.sql(RUNS.format(1021, 1023, 5))
    assert "archived" in server("check")
    server("drill")
    server("restore", "latest")
    assert count(server) == runs + 3, "and the next restore follows it"
    assert "archived" in server("check")


def test_a_time_after_which_nothing_was_written(server: Machine) -> None:
    runs = count(server)
    server("restore", now(server))
    assert count(server) == runs


def test_what_can_not_be_restored_is_refused_before_anything_is_written(server: Machine) -> None:
    assert "is not a time with its zone" in server("restore", "2026-11-27 03:00:00", fails=True)
    assert "is not a time" in server("restore", "yesterday", fails=True)
    assert "has not come yet" in server("restore", "2999-01-01 00:00:00Z", fails=True)
    assert "that of the oldest" in server("restore", "2020-01-01 00:00:00Z", fails=True)
    said = server("restore", "latest", fails=True, version=17)
    assert f"of PostgreSQL {server.settings['version']}, which alone can read them, and this machine has 17" in said
    assert "has data already: mlflow_auth.users" in server("restore", "latest", "--onto-empty", fails=True)
    assert server.asked() == [] and not (server.folder / "restore").exists()


def test_databases_that_do_not_start_give_way_to_the_old_ones(server: Machine) -> None:
    runs = count(server)
    (server.folder / "fails-to-start").touch()
    assert "the old ones are back" in server("restore", "latest", fails=True)
    assert count(server) == runs and server.asked() == STOPPED
    assert "archived" in server("check")


@pytest.mark.parametrize(
    "moment", [pytest.param("data/PG_VERSION", marks=pytest.mark.long), "data/postmaster.pid", "swap.json"]
)
def test_a_killed_restore_is_finished_by_the_next_call(server: Machine, moment: str) -> None:
    runs, before = count(server), timeline(server)
    with subprocess.Popen(["/usr/bin/python3", PROGRAM, "restore", "latest"], env=server.environment({})) as process:
        end = time.monotonic() + 60
        while not (server.folder / "restore" / moment).exists():
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
    if moment == "swap.json":  # and when the databases were swapped, and nothing else
        server.control("-m", "fast", "stop")
        copy, third = server.folder / "restore/data", server.folder / "third"
        for old, new in ((copy, third), (server.data, copy), (third, server.data)):
            old.rename(new)
        assert "`labtrack-backup restore latest`, which goes on" in server("restore", "2026-11-01T00:00Z", fails=True)
    else:
        assert count(server) == runs, "the old databases are still in use"
    server("restore", "latest")
    assert count(server) == runs and int(timeline(server)) > int(before)
    assert "archived" in server("check")


def test_an_empty_new_machine_gets_the_databases_back(server: Machine) -> None:
    server.sql(RUNS.format(2001, 2003, 5))
    server("check")
    runs = count(server)
    server.control("-m", "immediate", "stop")
    server.data.rename(server.folder / "lost")
    (server.results / "archiving").unlink()
    server.initdb()
    server.control("start")
    server.sql("CREATE DATABASE mlflowdb", "postgres")  # as the role postgresql does
    assert "another database's. On a new machine bring them back first" in server("setup", fails=True)
    server("restore", "latest", "--onto-empty")
    assert count(server) == runs
    assert server("setup") == "" and "archived" in server("check")


def test_a_database_that_was_moved_to_a_newer_postgresql_is_backed_up_further(server: Machine) -> None:
    """Its system identifier is another one; the version here is the same, as there is no other on this machine."""
    runs = count(server)
    system = server.sql("SELECT system_identifier FROM pg_control_system()")[0]
    dump = server.folder / "all.sql"
    dump.write_text(server.as_postgres(server.bin / "pg_dumpall", "-h", server.folder))
    server.control("-m", "fast", "stop")
    server.data.rename(server.folder / "older")
    (server.results / "archiving").unlink()
    server.initdb()
    server.control("start")
    server.as_postgres(server.bin / "psql", "-Xq", "-h", server.folder, "-d", "postgres", "-f", dump)
    came_from = server.data / "labtrack-came-from.json"
    came_from.write_text(json.dumps({"version": "14", "system": "1234"}))
    came_from.chmod(0o644)
    assert "another database's" in server("setup", fails=True)
    came_from.write_text(json.dumps({"version": "14", "system": system}))
    assert server("setup").startswith("changed")
    assert "archived" in server("check") and server("setup") == ""
    server("drill")
    assert server.result("drill")["ok"] and server.result("run")["type"] == "full"
    assert count(server) == runs
