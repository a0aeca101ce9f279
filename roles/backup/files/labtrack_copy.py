"""What the drill and the restore of labtrack-backup share: clusters, restored ones among them, and what errors mean."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

WHOLE = 100_000  # rows: tables up to here are compared row by row
SCHEMA = "labtrack_check"  # for what pg_amcheck installs
ARCHIVED_WITHIN = 120  # seconds, that the log may take to reach the repository
PR_SET_PDEATHSIG = 1  # linux/prctl.h
STARTED_WITHIN = 3600  # seconds, that the scratch cluster may replay the log

CAUSES = {
    "certificate": "name the CA of the store in lab_backup.ca_file and deploy.",
    **dict.fromkeys(
        ("CryptoError", "FormatError"),
        "secret_backup_cipher_pass in secrets.yml is not the one that the backups were made with: put the old one back "
        "(ansible-vault edit) and deploy; without it they can't be read. If it is the right one, they are damaged.",
    ),
    "do not match": "the backups are another database's. On a new machine bring them back first, by "
    "`site.yml -e restore=latest`; to begin anew beside them, name another bucket in lab_backup.",
    "NoSuchBucket": "the bucket of lab_backup is not there: make it in the backup's project, or name the right one.",
    "404 (": "the bucket of lab_backup is not there: make it in the backup's project, or name the right one.",
    "403 (": "the store refuses the key: secret_backup_access_key_id and secret_backup_secret_access_key in "
    "secrets.yml have to be of the project that owns the bucket of lab_backup, and the server's clock right.",
    "HostConnectError": "the server does not reach lab_backup.endpoint: it is a wrong one, or the store is down.",
    "unable to get address": "the name in lab_backup.endpoint is not known to the server's DNS.",
    "archive_command": "run playbooks/deploy.yml: PostgreSQL does not archive its log.",
    "before configured recovery target": "nothing was written after that time, or its log is not in the "
    "repository: name an earlier time, or `latest`.",
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


# What may still be at work in a copy, and how it is stopped at once.
ENDED_BY = {"postgres": signal.SIGQUIT, "pgbackrest": signal.SIGTERM}


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

    def databases(self) -> list[str]:
        return self.ask("SELECT datname FROM pg_database WHERE NOT datistemplate AND datallowconn ORDER BY 1")

    def tables(self) -> list[tuple[str, str]]:
        """All tables of all databases."""
        listed = "SELECT quote_ident(relname) FROM pg_stat_user_tables WHERE schemaname = 'public' ORDER BY 1"
        return [(database, table) for database in self.databases() for table in self.ask(listed, database)]

    def rows(self, database: str, table: str, where: str = "true") -> set[str]:
        """The rows of a table, each as a sum."""
        return set(self.ask(f"SELECT md5(t::text) FROM {table} t WHERE {where}", database))  # noqa: S608

    def count(self, database: str, table: str, where: str = "true") -> int:
        return int(self.ask(f"SELECT count(*) FROM {table} WHERE {where}", database)[0])  # noqa: S608

    def archive(self) -> float:
        """Have what was written up to now in the repository; how long that took, in seconds."""
        start = time.monotonic()
        # where nothing was written since the last switch, there is no other; and a time is only found before a commit
        self.ask("SELECT pg_current_xact_id()")
        (segment,) = self.ask("SELECT pg_walfile_name(pg_switch_wal())")

        def there() -> bool:
            return self.ask("SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver")[0][:24] >= segment

        wait("What PostgreSQL writes does not reach the repository", there, ARCHIVED_WITHIN)
        return time.monotonic() - start


class Copy:
    """A restored cluster, on a socket in a folder that nobody else can enter."""

    def __init__(self, settings: dict[str, Any], folder: Path) -> None:
        self.settings, self.folder, self.data = settings, folder, folder / "data"
        self.cluster = Cluster(settings, str(folder), settings["port"])

    def clean(self) -> None:
        """Remove it, also what a call that was killed has left; first what is still at work there ends."""
        wait(f"What works in {self.folder} does not stop", self._idle, 60)
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def _idle(self) -> bool:
        """End the cluster and what restores it, which name the folder; a process that has ended names nothing."""
        found = False
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):  # it has ended
                program, *arguments = os.fsdecode(file.read_bytes()).split("\0")
                quick = ENDED_BY.get(Path(program).name)
                if quick and any(str(self.folder) in one for one in arguments):
                    found = True
                    os.kill(int(file.parent.name), quick)
        return not found

    def make(self) -> None:
        """Make the empty folders."""
        self.clean()
        self.data.mkdir(mode=0o700, parents=True)
        for folder in (self.folder, self.data):
            folder.chmod(0o700)

    def room(self, size: int, setting: str) -> None:
        """Refuse before anything is written, where the copy of size bytes would fill the disk."""
        free = shutil.disk_usage(self.folder.parent).free
        if size * 1.2 > free:
            raise BackupError(
                f"The restored copy takes {size >> 20} MiB, and {self.folder.parent} has {free >> 20} MiB left.",
                f"make room there{setting}.",
            )

    @contextmanager
    def running(self, stop: signal.Signals, access: Mapping[str, str] | None = None, **more: str) -> Iterator[Cluster]:
        """Run it; nothing of it is archived.

        stop: how it ends, QUIT at once, INT so that it could be the server's.  access: hba_file and ident_file for
        MLflow, which comes by a socket in its folder.  more: further settings.
        """
        log, sockets = self.folder / "log", str(self.folder)
        contents = {"config_file": "", "hba_file": "local all all peer\n", "ident_file": ""} | dict(access or {})
        files = {name: self.folder / f"{name}.conf" for name in contents}
        for name, text in contents.items():
            files[name].write_text(text)
        if access:
            sockets += f",{self.settings['mlflow']['sockets']}"
        given = {
            **files, "listen_addresses": "", "unix_socket_directories": sockets, "port": self.settings["port"],
            "archive_mode": "off", "hot_standby": "off", "shared_buffers": "64MB", "autovacuum": "off", **more,
        }  # fmt: skip
        options = [part for name, value in given.items() for part in ("-c", f"{name}={value}")]
        # to PostgreSQL, QUIT is to stop at once
        command, tie = (f"{self.settings['bin']}/postgres", "-D", str(self.data), *options), tied(signal.SIGQUIT)
        with (
            log.open("wb") as output,
            subprocess.Popen(command, stdout=output, stderr=output, cwd="/", preexec_fn=tie) as process,  # noqa: PLW1509
        ):
            try:
                wait("The restored cluster does not start", lambda: self._answers(process, log), STARTED_WITHIN)
                yield self.cluster
            finally:
                process.send_signal(stop)

    def _answers(self, process: subprocess.Popen[bytes], log: Path) -> bool:
        if process.poll() is not None:
            raise failed("The restored cluster does not start", log.read_text(errors="replace"))
        try:
            return self.cluster.ask("SELECT pg_is_in_recovery()") == ["f"]
        except BackupError:
            return False

    def check(self) -> None:
        """Look for damage that no comparison finds, in tables and indexes of the running copy."""
        command = [f"{self.settings['bin']}/pg_amcheck", "--all", "--no-strict-names", f"--install-missing={SCHEMA}"]
        place = ["-h", str(self.folder), "-p", str(self.settings["port"])]
        self._in_all(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
        done = subprocess.run([*command, *place], capture_output=True, text=True, check=False, cwd="/")
        if done.returncode:
            raise failed("The restored copy is damaged", done.stdout + done.stderr)
        self._in_all(f"DROP SCHEMA {SCHEMA} CASCADE")  # the copy may become the server's

    def _in_all(self, sql: str) -> None:
        for database in self.cluster.ask("SELECT datname FROM pg_database WHERE datallowconn"):
            self.cluster.ask(f"SET client_min_messages = warning; {sql}", database)


def wait(what: str, is_so: Any, seconds: float, fix: str = "journalctl -u 'postgresql@*' says why.") -> None:
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            raise BackupError(f"{what} within {seconds:.0f} s.", fix)
        time.sleep(0.2)
