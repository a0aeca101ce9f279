"""The drill of labtrack-backup: a restored copy beside the server's cluster, and whether it is the same.

It knows nothing of the tool that makes the backups: it is handed something that lists them and restores the newest.
"""

from __future__ import annotations

import ctypes
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WHOLE = 100_000  # rows: tables up to here are compared row by row, larger ones by the sampled runs
SAMPLED = 50  # runs
ARCHIVED_WITHIN = 120  # seconds, that the log may take to reach the repository
PR_SET_PDEATHSIG = 1  # linux/prctl.h
STARTED_WITHIN = 3600  # seconds, that the scratch cluster may replay the log
# What MLflow only ever adds to: here a row that the backup has and the server has not is a fault, not a change.
ONLY_ADDED = ("metrics", "params")

CAUSES = {
    "certificate": "name the CA of the store in lab_backup.ca_file and deploy.",
    **dict.fromkeys(
        ("CryptoError", "FormatError"),
        "secret_backup_cipher_pass in secrets.yml is not the one that the backups were made with: put the old one back "
        "(ansible-vault edit) and deploy; without it they can't be read. If it is the right one, they are damaged.",
    ),
    "do not match": "the backups are another database's. On a new machine restore them first (docs/admin/backups.md); "
    "to begin anew beside them, name another bucket in lab_backup.",
    "NoSuchBucket": "the bucket of lab_backup is not there: make it in the backup's project, or name the right one.",
    "404 (": "the bucket of lab_backup is not there: make it in the backup's project, or name the right one.",
    "403 (": "the store refuses the key: secret_backup_access_key_id and secret_backup_secret_access_key in "
    "secrets.yml have to be of the project that owns the bucket of lab_backup, and the server's clock right.",
    "HostConnectError": "the server does not reach lab_backup.endpoint: it is a wrong one, or the store is down.",
    "unable to get address": "the name in lab_backup.endpoint is not known to the server's DNS.",
    "archive_command": "run playbooks/deploy.yml: PostgreSQL does not archive its log.",
    "No space left": "make room on the server's disk: df -h, and du -sh /var/lib/postgresql/*.",
}


class BackupError(Exception):
    """What happened, and how to fix it."""


def said(text: str) -> str:
    """What an error of pgBackRest or PostgreSQL says first; what follows are hints and whole answers of stores."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    found = next((line for line in lines if re.search("ERROR: |FATAL: |PANIC: ", line)), "".join(lines[:1]))
    return re.sub("^.*?(ERROR|FATAL|PANIC): +", "", found)


def failed(what: str, text: str) -> BackupError:
    fix = next((fix for word, fix in CAUSES.items() if word in text), "")
    fix = fix or "journalctl -u 'labtrack-backup@*' has all of it."
    return BackupError(f"{what}: {said(text) or 'it said nothing'}", fix)


def tied(number: signal.Signals) -> Callable[[], int]:
    """Has a command ended with this program, however that ends, so that a killed drill leaves nothing at work.

    For preexec_fn.  Not by setpriv, which asks for capabilities that the unit's sandbox has taken away.
    """
    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(PR_SET_PDEATHSIG, int(number))


class Cluster:
    """A cluster behind its socket, asked by psql."""

    def __init__(self, settings: dict[str, Any], socket: str, port: int) -> None:
        self.psql = [f"{settings['bin']}/psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-h", socket, "-p", str(port)]

    def ask(self, sql: str, database: str = "postgres") -> list[str]:
        """The lines of an answer.  Raises BackupError."""
        done = subprocess.run(
            [*self.psql, "-d", database, "-f", "-"], input=sql, capture_output=True, text=True, check=False, cwd="/"
        )
        if done.returncode:
            raise BackupError(
                f"PostgreSQL does not answer: {' '.join(done.stderr.split())}", "systemctl status 'postgresql@*'."
            )
        return done.stdout.splitlines()

    def tables(self) -> list[tuple[str, str]]:
        """All tables of all databases."""
        databases = self.ask("SELECT datname FROM pg_database WHERE NOT datistemplate AND datallowconn ORDER BY 1")
        listed = "SELECT quote_ident(relname) FROM pg_stat_user_tables WHERE schemaname = 'public' ORDER BY 1"
        return [(database, table) for database in databases for table in self.ask(listed, database)]

    def rows(self, database: str, table: str, where: str = "true") -> set[str]:
        """The rows of a table, each as a sum."""
        return set(self.ask(f"SELECT md5(t::text) FROM {table} t WHERE {where}", database))  # noqa: S608

    def count(self, database: str, table: str, where: str = "true") -> int:
        return int(self.ask(f"SELECT count(*) FROM {table} WHERE {where}", database)[0])  # noqa: S608


class Drill:
    """A restored copy beside the server's cluster."""

    def __init__(self, settings: dict[str, Any], repository: Any) -> None:
        self.settings, self.repository = settings, repository
        self.scratch = Path(settings["scratch"])
        self.live = Cluster(settings, settings["socket"], settings["port"])
        self.restored = Cluster(settings, str(self.scratch), settings["port"])

    def clean(self) -> None:
        """Remove what a drill has left, also one that was killed."""
        pid = self.scratch / "data/postmaster.pid"
        if pid.exists():
            number = int(pid.read_text().split()[0])
            command = Path(f"/proc/{number}/cmdline")
            if command.exists() and str(self.scratch) in command.read_text():
                os.kill(number, signal.SIGQUIT)
                wait("The scratch cluster did not stop", lambda: not command.exists(), 60)

        def gone() -> bool:  # what a killed restore has started may write for a moment longer
            shutil.rmtree(self.scratch, ignore_errors=True)
            return not self.scratch.exists()

        wait(f"{self.scratch} can't be removed", gone, 30)

    def room(self) -> None:
        """Refuse before anything is written, where the copy would fill the disk."""
        size = sum(int(line) for line in self.live.ask("SELECT pg_database_size(oid) FROM pg_database"))
        free = shutil.disk_usage(self.scratch.parent).free
        if size * 1.2 > free:
            raise BackupError(
                f"The restored copy takes {size >> 20} MiB, and {self.scratch.parent} has {free >> 20} MiB left.",
                "make room there, or name another folder in backup_scratch.",
            )

    def archive(self) -> float:
        """Have what was written up to now in the repository; how long that took, in seconds."""
        start = time.monotonic()
        # where nothing was written since the last switch, there would be no other
        self.live.ask("SELECT pg_create_restore_point('labtrack-drill')")
        (segment,) = self.live.ask("SELECT pg_walfile_name(pg_switch_wal())")

        def there() -> bool:
            return self.live.ask("SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver")[0][:24] >= segment

        wait("What PostgreSQL writes does not reach the repository", there, ARCHIVED_WITHIN)
        return time.monotonic() - start

    @contextmanager
    def cluster(self) -> Iterator[None]:
        """The restored cluster, running: on a socket in a folder that nobody else can enter."""
        data, log = self.scratch / "data", self.scratch / "log"
        (data / "postgresql.conf").write_text("")
        (data / "pg_hba.conf").write_text("local all all peer\n")
        (data / "pg_ident.conf").write_text("")
        given = {
            "listen_addresses": "", "unix_socket_directories": self.scratch, "port": self.settings["port"],
            "archive_mode": "off", "hot_standby": "off", "shared_buffers": "64MB", "fsync": "off", "autovacuum": "off",
        }  # fmt: skip
        options = [part for name, value in given.items() for part in ("-c", f"{name}={value}")]
        # to PostgreSQL, QUIT is to stop at once
        command, tie = (f"{self.settings['bin']}/postgres", "-D", str(data), *options), tied(signal.SIGQUIT)
        with (
            log.open("wb") as output,
            subprocess.Popen(command, stdout=output, stderr=output, cwd="/", preexec_fn=tie) as process,  # noqa: PLW1509
        ):
            try:
                wait("The restored cluster does not start", lambda: self._answers(process, log), STARTED_WITHIN)
                yield
            finally:
                process.send_signal(signal.SIGQUIT)

    def _answers(self, process: subprocess.Popen[bytes], log: Path) -> bool:
        if process.poll() is not None:
            raise failed("The restored cluster does not start", log.read_text(errors="replace"))
        try:
            return self.restored.ask("SELECT pg_is_in_recovery()") == ["f"]
        except BackupError:
            return False

    def compare(self, before: str) -> dict[str, int]:
        """Compare with the server's databases all that nobody has written since.  Raises BackupError.

        before: the server's oldest transaction that was not over when the log was archived.  What older ones wrote, and
        the server still has as it was, must be restored.
        """
        unchanged = f"age(xmin) > age('{before}'::xid)"
        tables = self.restored.tables()
        if missing := sorted(set(self.live.tables()) - set(tables)):
            raise differs(missing[0], "is not there in the restored copy")
        seen = {"tables": len(tables), "rows": 0, "runs": 0, "accounts": 0}
        for database, table in tables:
            there = self.restored.count(database, table)
            seen["rows"] += there
            seen["accounts"] += there if table == "users" else 0
            if table == "runs":
                seen["runs"] += self._runs(database, unchanged)
            if there <= WHOLE:
                lost = self.live.rows(database, table, unchanged) - self.restored.rows(database, table)
                lacks = len(lost)
            else:
                lacks = self.live.count(database, table, unchanged) - there
            if lacks > 0:
                raise differs((database, table), f"lacks {lacks} rows that the server has, or has them otherwise")
        return seen

    def _runs(self, database: str, unchanged: str) -> int:
        """Compare runs that are drawn by lot with all that was logged to them; how many."""
        runs = self.restored.ask("SELECT run_uuid FROM runs", database)
        chosen = random.sample(runs, min(SAMPLED, len(runs)))
        here = ", ".join(f"'{run}'" for run in chosen) or "''"
        logged = {*ONLY_ADDED, "tags"} & {table for base, table in self.restored.tables() if base == database}
        for table in sorted(logged):
            where = f"run_uuid IN ({here})"
            restored = self.restored.rows(database, table, where)
            if lost := self.live.rows(database, table, f"{where} AND {unchanged}") - restored:
                raise differs((database, table), f"lacks {len(lost)} rows of {len(chosen)} runs that the server has")
            if table not in ONLY_ADDED:
                continue
            left = set(self.live.ask(f"SELECT run_uuid FROM runs WHERE {where}", database))  # noqa: S608
            kept = ", ".join(f"'{run}'" for run in left) or "''"
            restored = self.restored.rows(database, table, f"run_uuid IN ({kept})")
            if other := restored - self.live.rows(database, table, f"run_uuid IN ({kept})"):
                raise differs((database, table), f"has {len(other)} rows that the server has otherwise or not at all")
        return len(chosen)

    def __call__(self) -> dict[str, Any]:
        """The drill itself; what it saw."""
        self.clean()
        (self.scratch / "data").mkdir(mode=0o700, parents=True)
        self.scratch.chmod(0o700)
        (self.scratch / "data").chmod(0o700)
        try:
            self.room()
            backups = self.repository.backups()
            if not backups:
                raise BackupError("There is no backup yet.", "labtrack-backup run.")
            (before,) = self.live.ask("SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint % (2 ^ 32)::bigint")
            archived = self.archive()
            start = time.monotonic()
            self.repository.restore(self.scratch / "data")
            with self.cluster():
                took = time.monotonic() - start
                seen = self.compare(before)
                self.amcheck()
        finally:
            self.clean()
        return {
            "backup": backups[-1]["label"], **seen,
            "archive_seconds": round(archived, 1), "restore_seconds": round(took, 1),
            "message": f"{backups[-1]['label']} restored in {took:.1f} s: {seen['rows']} rows in {seen['tables']} "
            f"tables, {seen['runs']} runs and {seen['accounts']} accounts are as the server has them.",
        }  # fmt: skip

    def amcheck(self) -> None:
        """Look for damage that no comparison finds, in tables and indexes."""
        command = [f"{self.settings['bin']}/pg_amcheck", "--all", "--install-missing", "--no-strict-names"]
        place = ["-h", str(self.scratch), "-p", str(self.settings["port"])]
        done = subprocess.run([*command, *place], capture_output=True, text=True, check=False, cwd="/")
        if done.returncode:
            raise failed("The restored copy is damaged", done.stdout + done.stderr)


def differs(where: tuple[str, str], how: str) -> BackupError:
    return BackupError(
        f"The restored copy is not what the server has: {where[0]}.{where[1]} {how}.",
        "look into the table first: somebody may have changed it by SQL. If not, `labtrack-backup run` and "
        "`labtrack-backup drill`; if it stays, the backups are no good: keep the server's disk, and report this.",
    )


def wait(what: str, is_so: Any, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            raise BackupError(f"{what} within {seconds:.0f} s.", "journalctl -u 'postgresql@*' says why.")
        time.sleep(0.2)
