"""Backups by the role's settings: made, archived, restored and compared, and told where they are no good."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest
from backed_up import BUCKET, CIPHER, PROGRAM, RUNS, Machine

CHANGES = """
    UPDATE runs SET name = 'renamed' WHERE run_uuid = md5('3');
    DELETE FROM tags WHERE run_uuid = md5('4');
    DELETE FROM metrics WHERE run_uuid = md5('5');
    DELETE FROM params WHERE run_uuid = md5('5');
    DELETE FROM tags WHERE run_uuid = md5('5');
    DELETE FROM runs WHERE run_uuid = md5('5');
    """


@pytest.fixture
def drilled(machine: Machine) -> Machine:
    """The server, with nothing left of a drill."""
    assert list(machine.drills.iterdir()) == []
    return machine


def scratch_clusters(machine: Machine) -> list[str]:
    """The processes of restored clusters that run."""
    listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if str(machine.drills) in line]


def wrapped(machine: Machine, script: str) -> str:
    """A pgBackRest that does something else, too; its path."""
    file = machine.folder / "wrapped"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return str(file)


def meanwhile(machine: Machine, sql: str) -> str:
    """A pgBackRest in whose restore somebody goes on writing to the server; its path."""
    (machine.folder / "meanwhile.sql").write_text(sql)
    change = f"{machine.bin}/psql -Xq -h {machine.folder} -d mlflowdb -f {machine.folder}/meanwhile.sql"
    return wrapped(machine, f'pgbackrest "$@" || exit\ncase "$*" in *restore) {change};; esac')


def of_the_backup(machine: Machine) -> str:
    """A pgBackRest that restores the state of the backup, without the log after it; its path."""
    early = "--type=immediate --target-action=promote"
    return wrapped(machine, f'case "$*" in *restore) set -- "$@" {early};; esac\nexec pgbackrest "$@"')


def test_the_first_backup_is_full_and_the_next_keeps_the_difference(machine: Machine) -> None:
    assert machine("setup") == "", "there is one"
    first = machine.result("run")
    assert first["ok"] and first["type"] == "full"
    assert machine.store.multipart > 0, "the large file went in parts"
    assert first["backup"] in machine("run")
    second = machine.result("run")
    assert second["type"] == "diff" and second["backup"].startswith(first["backup"])
    assert second["stored_bytes"] < first["stored_bytes"] / 10

    past = f"""sed -E 's/"(start|stop)":[0-9]+/"\\1":{int(time.time()) - 7 * 86400}/g'"""
    old = wrapped(machine, f'case "$*" in *info*) pgbackrest "$@" | {past};; *) exec pgbackrest "$@";; esac')
    assert "F: " in machine("run", pgbackrest=old), "a week later it is a full one again"


def test_what_is_written_is_in_the_store_within_a_minute(machine: Machine) -> None:
    (timeout,) = machine.sql("SELECT setting FROM pg_settings WHERE name = 'archive_timeout'")
    assert int(timeout) <= 60
    machine.sql("INSERT INTO params VALUES ('acknowledged', '1', md5('1'))")
    (segment,) = machine.sql("SELECT pg_walfile_name(pg_switch_wal())")
    end = time.monotonic() + 60
    while not any(segment in key for key in machine.store.buckets[BUCKET]):
        assert time.monotonic() < end, f"{segment} is not archived"
        time.sleep(0.05)
    assert "archived" in machine("check")


def test_nothing_in_the_store_can_be_read_and_no_secret_by_others(machine: Machine) -> None:
    kept = machine.store.buckets[BUCKET]
    assert kept and [key for key, body in kept.items() if not body.startswith(b"Salted__")] == []
    assert machine.store.buckets["climate-mlflow"] == {}
    config = machine.config.stat()
    assert stat.S_IMODE(config.st_mode) == 0o640 and config.st_uid == 0
    shown = machine.settings_file.read_text() + machine.as_postgres("cat", *machine.results.glob("*.json"))
    assert CIPHER not in shown and machine.store.secret_key not in shown


@pytest.mark.parametrize("name", ["labtrack-backup@drill", "labtrack-backup@artifacts", "labtrack-drill@"])
def test_the_services_are_sandboxed(machine: Machine, name: str) -> None:
    unit = machine.folder / f"{name}.service"
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", unit],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "ignoring" not in done.stderr, done.stdout[-300:] + done.stderr


def test_a_drill_finds_all_as_the_server_has_it_also_what_changes_meanwhile(drilled: Machine) -> None:
    drilled.sql("INSERT INTO params VALUES ('after', 'the backup', md5('2'))")
    drilled.sql("SELECT pg_switch_wal()")  # an idle server has nothing to archive
    said = drilled("drill", pgbackrest=meanwhile(drilled, CHANGES + RUNS.format(301, 310, 5)))
    result = drilled.result("drill")
    assert result["ok"] and result["message"] in said
    assert (result["tables"], result["runs"], result["accounts"]) == (6, 50, 2)
    assert result["rows"] > 120_000 and result["restore_seconds"] > 0
    assert list(drilled.drills.iterdir()) == [] == scratch_clusters(drilled)


def test_a_drill_fails_where_the_server_has_an_old_row_otherwise(drilled: Machine) -> None:
    changed = "UPDATE params SET value = value || 'x' WHERE key = 'lr';"
    said = drilled("drill", fails=True, pgbackrest=meanwhile(drilled, changed))
    assert "mlflowdb.params has 50 rows that the server has otherwise or not at all" in said
    assert "To fix: look into the table first" in said
    result = drilled.result("drill")
    assert not result["ok"] and result["last_ok"] < result["time"] and "mlflowdb.params" in result["message"]
    assert list(drilled.drills.iterdir()) == [] == scratch_clusters(drilled)
    assert '"ok": false' in drilled("status", fails=True)


def test_a_drill_fails_where_a_row_is_missing(drilled: Machine) -> None:
    drilled.sql("INSERT INTO users (username, password_hash) VALUES ('grace', 'z')", "mlflow_auth")
    assert "mlflow_auth.users lacks 1 rows that the server has" in drilled(
        "drill", fails=True, pgbackrest=of_the_backup(drilled)
    )
    drilled("drill")


@pytest.mark.long
@pytest.mark.parametrize("relation", ["spans", "tags_pkey"])
def test_a_drill_fails_where_a_table_or_an_index_was_restored_damaged(drilled: Machine, relation: str) -> None:
    """A block is spoilt between the restore and the start of the copy; the log after the backup does not mend it."""
    drilled("run")
    (path,) = drilled.sql(f"SELECT pg_relation_filepath('{relation}')")
    spoil = (
        f"dd if=/dev/urandom of={drilled.drills}/scratch/data/{path} bs=8192 count=1 seek=1 conv=notrunc status=none"
    )
    said = drilled(
        "drill",
        fails=True,
        pgbackrest=wrapped(drilled, f'pgbackrest "$@" || exit\ncase "$*" in *restore) {spoil};; esac'),
    )
    assert "The restored copy is damaged" in said and "invalid page in block 1" in said
    assert not drilled.result("drill")["ok"]
    assert list(drilled.drills.iterdir()) == [] == scratch_clusters(drilled)
    drilled("drill")


def test_a_bucket_that_is_gone_and_a_key_that_is_refused(drilled: Machine) -> None:
    kept = drilled.store.buckets.pop(BUCKET)
    try:
        for job in ("drill", "run", "check"):
            said = drilled(job, fails=True)
            assert "the bucket of lab_backup is not there" in said and not drilled.result(job)["ok"]
        drilled.store.buckets[BUCKET] = {}
        assert "There is no" in drilled("drill", fails=True) + drilled("check", fails=True)
    finally:
        drilled.store.buckets[BUCKET] = kept
    key = drilled.config_with(drilled.store.secret_key, "another")
    said = drilled("drill", fails=True, config=key)
    assert "the store refuses the key" in said and "another" not in said


def test_a_wrong_cipher_pass_an_unknown_ca_and_a_store_that_is_down(drilled: Machine) -> None:
    said = drilled("drill", fails=True, config=drilled.config_with(CIPHER, "another-pass"))
    assert "secret_backup_cipher_pass" in said and "another-pass" not in said
    unknown = drilled.config_with(f"repo1-storage-ca-file={drilled.store.ca}\n", "io-timeout=5\n")
    assert "lab_backup.ca_file" in drilled("check", fails=True, config=unknown)
    down = drilled.config_with("repo1-storage-port=", "io-timeout=5\nrepo1-storage-port=1\n#")
    assert "does not reach lab_backup.endpoint" in drilled("check", fails=True, config=down)


@pytest.mark.parametrize(
    "moment", [pytest.param("data/PG_VERSION", marks=pytest.mark.long, id="restoring"),
               pytest.param("data/postmaster.pid", id="comparing")],
)  # fmt: skip
def test_a_killed_drill_leaves_nothing_behind_after_the_next(drilled: Machine, moment: str) -> None:
    with subprocess.Popen(["/usr/bin/python3", PROGRAM, "drill"], env=drilled.environment({})) as process:
        end = time.monotonic() + 60
        while not (drilled.drills / "scratch" / moment).exists():
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    assert (drilled.drills / "scratch").exists()
    drilled("drill")
    assert list(drilled.drills.iterdir()) == [] == scratch_clusters(drilled)
    assert drilled.result("drill")["ok"]


def test_what_a_killed_drill_has_left_at_work_ends_before_the_next_begins(drilled: Machine) -> None:
    """Two that write into one folder would look like damage of the backup."""
    restoring = ["pgbackrest", "-c", "import time; time.sleep(300)", f"--pg1-path={drilled.drills}/scratch/data"]
    with subprocess.Popen(restoring, executable="/usr/bin/python3", user="postgres") as left:
        drilled("drill")
        assert left.poll() == -signal.SIGTERM
    assert drilled.result("drill")["ok"]


def test_a_disk_without_room_is_told_before_anything_is_written(drilled: Machine) -> None:
    small = Path(drilled.folder, "small")
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", small], check=False).returncode == 0
    if not mounted:
        pytest.skip("needs a machine that may mount")
    try:
        shutil.chown(small, "postgres")
        assert f"and {small} has 4 MiB left" in drilled("drill", fails=True, scratch=str(small / "scratch"))
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_server_stops_soon_and_loses_nothing_while_the_store_is_away(machine: Machine) -> None:
    machine("check")
    with machine.store.cut_off():
        for _ in range(2):
            machine.sql("INSERT INTO spans VALUES ('\\x00')")
            machine.sql("SELECT pg_switch_wal()")
        start = time.monotonic()
        machine.control("-m", "fast", "stop")
        assert time.monotonic() - start < 25
    machine.control("start")
    assert "archived" in machine("check")


def test_turned_off_the_log_is_not_kept_and_turned_on_again_the_gap_is_closed(machine: Machine) -> None:
    machine("run")
    newest = machine.result("run")["backup"]
    with machine.store.cut_off():
        (machine.results / "archiving").unlink()  # the first thing that remove.yml does
        machine.sql("INSERT INTO spans VALUES ('\\x00')")
        (segment,) = machine.sql("SELECT pg_walfile_name(pg_switch_wal())")
        end = time.monotonic() + 40
        while machine.sql("SELECT last_archived_wal FROM pg_stat_archiver") < [segment]:
            assert time.monotonic() < end, "an attempt that was at work ends, and no other begins"
            time.sleep(0.1)
        start = time.monotonic()
        machine.control("-m", "fast", "stop")
        assert time.monotonic() - start < 5
    machine.control("start")
    assert not any(segment in key for key in machine.store.buckets[BUCKET])
    assert "log is not archived.\nTo fix: run playbooks/deploy.yml" in machine("check", fails=True)
    assert "changed" in machine("setup")
    assert machine.result("run")["backup"] > newest
    assert machine("setup") == "" and "archived" in machine("check")
