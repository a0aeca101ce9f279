"""The restore of labtrack-backup: the databases of a time, beside the running server first, then in its place.

Killed anywhere, the old databases are still there, and the same call begins anew; from the file SWAP on it goes on.
Like the drill, it knows nothing of the tool that makes the backups.
"""

from __future__ import annotations

import ctypes
import datetime
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from labtrack_copy import WHOLE, BackupError, Cluster, Copy, wait

SWAP = "swap.json"  # {"to": what was asked for, "before": the folder that the old databases get}
RESTORED = "labtrack-restored"  # a file in the restored databases, wherever they are, until the restore has ended
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
# What pgBackRest writes into the cluster's own settings, for the copy alone.
FOR_THE_COPY = ("archive_mode", "restore_command", "recovery_target_time", "recovery_target_action")
OF_THE_SCHEMA = "alembic_version"  # tables that are full where nobody has written anything


def chosen(text: str) -> str:
    """The time that was asked for, as PostgreSQL and the repository write it; empty for the latest."""
    if text == "latest":
        return ""
    try:
        when = datetime.datetime.fromisoformat(text)
    except ValueError:
        when = None
    if when is None or when.tzinfo is None:
        raise BackupError(
            f"{text!r} is not a time with its zone.", "write `latest`, or a time like '2026-11-27 03:00:00+00:00'."
        )
    if when.timestamp() > time.time():
        raise BackupError(f"{text} has not come yet.", "write `latest`, or an earlier time.")
    return f"{when.astimezone(datetime.timezone.utc):%Y-%m-%d %H:%M:%S.%f}+00"


class Restore:
    """Databases of a time, to be put into the place of the server's."""

    def __init__(self, settings: dict[str, Any], repository: Any, to: str, discard: bool) -> None:
        """to: see chosen.  discard: whether what the server has since then may be lost."""
        self.settings, self.repository, self.to, self.discard = settings, repository, to, discard
        self.name = to or "the newest backup"
        self.copy = Copy(settings, Path(settings["restore"]))
        self.live = Cluster(settings, settings["socket"], settings["port"])
        self.data, self.swapping = Path(settings["data"]), Path(settings["restore"], SWAP)

    def begun(self) -> bool:
        """Whether a call that was killed has begun to swap.  Raises BackupError where that was to another time."""
        if not self.swapping.exists():
            return False
        to = self._swap()["to"]
        if to != self.to:
            raise BackupError(
                f"A restore to {to or 'the newest backup'} was interrupted when it had begun to swap the databases.",
                f"first `labtrack-backup restore {repr(to) if to else 'latest'}`, which goes on with it.",
            )
        return True

    def _swap(self) -> dict[str, str]:
        found: dict[str, str] = json.loads(self.swapping.read_text())
        return found

    def beside(self, onto_empty: bool) -> None:
        """Restore beside the server, and look whether it is sound and has what the server has.

        onto_empty: refuse to replace any data.
        """
        if onto_empty and (full := [".".join(one) for one in self.live.tables() if self._written(*one)]):
            raise BackupError(
                f"The server has data already: {', '.join(full[:5])}.",
                "where an earlier run has restored them and was interrupted, leave out `-e restore=...`; to put a "
                "backup in their place, playbooks/restore.yml.",
            )
        size = self._backup()
        self.copy.make()
        self.copy.room(size, "")
        self._archive()
        print(f"Restoring {self.name} beside the server ...", flush=True)
        self.repository.restore(self.copy.data, self.to)
        if any((self.copy.data / "pg_tblspc").iterdir()):
            raise BackupError("There are tablespaces, which this can't restore.", "restore by hand, with pgbackrest.")
        with self.copy.running(signal.SIGINT) as cluster:
            for name in FOR_THE_COPY:
                cluster.ask(f"ALTER SYSTEM RESET {name}")
            self.copy.check()
            self._refuse(self._lost(cluster))

    def _written(self, database: str, table: str) -> bool:
        return not table.startswith(OF_THE_SCHEMA) and self.live.count(database, table) > 0

    def _backup(self) -> int:
        """The size of what will be restored, in bytes.  Raises BackupError where nothing can be."""
        backups = self.repository.backups()
        if not backups:
            raise BackupError("There is no backup.", "see that lab_backup has the endpoint and bucket of the backups.")
        version, here = self.repository.version(), str(self.settings["version"])
        if version != here:
            raise BackupError(
                f"The backups are of PostgreSQL {version}, which alone can read them, and this machine has {here}.",
                f"restore on a machine with PostgreSQL {version} (15 is in Debian 12, 17 in Debian 13), and move the "
                f"databases to {here} by pg_dumpall and psql.",
            )
        if self.to and datetime.datetime.fromisoformat(self.to).timestamp() < backups[0]["time"]:
            oldest = datetime.datetime.fromtimestamp(backups[0]["time"], datetime.timezone.utc)
            raise BackupError(f"No backup is as old as {self.to}.", f"name a time after {oldest}, that of the oldest.")
        return int(backups[-1]["size"])

    def _archive(self) -> None:
        """Have what the server has written in the repository, where it runs and archives."""
        try:
            self.live.ask("SELECT 1")
        except BackupError:
            return
        try:
            if Path(self.settings["archiving"]).exists():
                self.live.archive()
        except BackupError:
            if not self.discard:
                raise

    def _lost(self, cluster: Cluster) -> list[str]:
        """What the server has, and the running copy not, or not so."""
        if not (self.data / "PG_VERSION").exists():
            return []
        try:
            tables = self.live.tables()
        except BackupError:
            return ["its databases, which can't be asked what they have: PostgreSQL does not run"]
        there, lost = set(cluster.tables()), []
        for base, table in tables:
            number, copied = self.live.count(base, table), 0
            if (base, table) in there:
                copied = cluster.count(base, table)
                if number <= WHOLE:
                    copied = number - len(self.live.rows(base, table) - cluster.rows(base, table))
            if number > copied:
                lost.append(f"{base}.{table}: {number - copied} rows{self._newest(base, table)}")
        return lost

    def _newest(self, base: str, table: str) -> str:
        newest = "SELECT name, to_timestamp(start_time / 1000)::timestamp(0) FROM runs ORDER BY start_time DESC LIMIT 1"
        if table != "runs" or not (found := self.live.ask(newest, base)):
            return ""
        name, _, begun = found[0].rpartition("|")
        return f" (the newest run: {name}, of {begun})"

    def _refuse(self, lost: list[str]) -> None:
        if not lost:
            return
        listed = "\n".join(f"  {line}" for line in lost)
        if not self.discard:
            raise BackupError(
                f"The server has what {self.name} has not, or has otherwise:\n{listed}",
                "to lose that, `--discard-newer`, or `-e restore_discard_newer=true` for playbooks/restore.yml. Else "
                "name a later time, or `latest`.",
            )
        print(f"What the server has and {self.name} has not is given up:\n{listed}", flush=True)

    def commit(self) -> None:
        """Now that nobody writes: look again what would be lost, and decide to swap."""
        if self.swapping.exists():
            return
        with self.copy.running(signal.SIGINT) as cluster:
            if not self.discard:
                self._refuse(self._lost(cluster))
            (current,) = cluster.ask("SELECT pg_walfile_name(pg_current_wal_lsn())")
        self._to_be_archived(current)
        before = self.data.with_name(f"{self.data.name}.before-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
        (self.data / RESTORED).unlink(missing_ok=True)  # of a restore that was killed at its very end
        (self.copy.data / RESTORED).touch()
        part = self.swapping.with_suffix(".part")
        part.write_text(json.dumps({"to": self.to, "before": str(before)}))
        os.sync()
        part.replace(self.swapping)
        os.sync()

    def _to_be_archived(self, current: str) -> None:
        """Have the server archive what the copy has written of its own timeline, up to the segment that it goes on in.

        Without its history, the timeline of the next restore would have the same number, and other segments.
        """
        wal = self.copy.data / "pg_wal"
        mine = [file.name for file in wal.iterdir() if re.fullmatch(f"{current[:8]}[0-9A-F]{{16}}", file.name)]
        for name in [f"{current[:8]}.history", *(one for one in mine if one < current)]:
            (wal / "archive_status" / f"{name}.ready").touch()

    def swap(self) -> None:
        """Put the copy into the place of the databases, which are kept; PostgreSQL has stopped."""
        if (self.copy.data / RESTORED).exists():
            exchange(self.copy.data, self.data)
        if self.copy.data.exists():
            self.copy.data.rename(self._swap()["before"])
        os.sync()

    def back(self) -> None:
        """Put the old databases back."""
        before = Path(self._swap()["before"])
        exchange(before, self.data)
        before.rename(self.copy.folder / "does-not-start")
        self.swapping.unlink()
        raise BackupError(
            "PostgreSQL did not start with the restored databases; the old ones are back.",
            f"journalctl -u {self.settings['unit']} says why; {self.copy.folder} has the restored ones.",
        )

    def end(self) -> None:
        """Go on with the log and the backups, from here."""
        wait("PostgreSQL does not answer", lambda: self.live.ask("SELECT pg_is_in_recovery()") == ["f"], 60)
        before, restored = self._swap()["before"], self.data / RESTORED
        if not restored.exists():  # killed when the old ones were put back
            self.swapping.unlink()
            raise BackupError("The old databases are in use.", "begin anew, by the same call.")
        Path(self.settings["archiving"]).touch()  # of now, so that the next backup is made at once
        shutil.rmtree(self.copy.folder)
        restored.unlink()
        print(f"changed: {self.name} is in place.")
        print(f"The old databases are in {before}: remove them when all is well.", flush=True)


def exchange(one: Path, other: Path) -> None:
    """Swap two folders at once, so that there are databases in their place at any moment."""
    if not other.exists():
        other.mkdir(mode=0o700)
    names = AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(*names):
        raise OSError(ctypes.get_errno(), f"{one} and {other} can't be swapped")
