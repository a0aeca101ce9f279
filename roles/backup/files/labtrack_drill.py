"""The drill of labtrack-backup: a restored copy beside the server's cluster, and whether it is the same.

It knows nothing of the tool that makes the backups: it is handed something that lists them and restores the newest.
"""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Any

from labtrack_artifacts import of_drill
from labtrack_copy import WHOLE, BackupError, Cluster, Copy

SAMPLED = 50  # runs
# What MLflow only ever adds to: here a row that the backup has and the server has not is a fault, not a change.
ONLY_ADDED = ("metrics", "params")


class Drill:
    """A restored copy beside the server's cluster."""

    def __init__(self, settings: dict[str, Any], repository: Any) -> None:
        self.settings, self.repository = settings, repository
        self.copy = Copy(settings, Path(settings["scratch"]))
        self.live = Cluster(settings, settings["socket"], settings["port"])
        self.restored = self.copy.cluster

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
        self.copy.make()
        try:
            size = sum(int(line) for line in self.live.ask("SELECT pg_database_size(oid) FROM pg_database"))
            self.copy.room(size, ", or name another folder in backup_scratch")
            backups = self.repository.backups()
            if not backups:
                raise BackupError("There is no backup yet.", "labtrack-backup run.")
            (before,) = self.live.ask("SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint % (2 ^ 32)::bigint")
            archived = self.live.archive()
            start = time.monotonic()
            self.repository.restore(self.copy.data)
            with self.copy.running(signal.SIGQUIT, fsync="off"):
                took = time.monotonic() - start
                seen = self.compare(before)
                artifacts = of_drill(self.settings, self.restored)
                self.copy.check()
        finally:
            self.copy.clean()
        return {
            "backup": backups[-1]["label"], **seen, **artifacts,
            "archive_seconds": round(archived, 1), "restore_seconds": round(took, 1),
            "message": f"{backups[-1]['label']} restored in {took:.1f} s: {seen['rows']} rows in {seen['tables']} "
            f"tables, {seen['runs']} runs and {seen['accounts']} accounts are as the server has them."
            f"{artifacts['message']}",
        }  # fmt: skip


def differs(where: tuple[str, str], how: str) -> BackupError:
    return BackupError(
        f"The restored copy is not what the server has: {where[0]}.{where[1]} {how}.",
        "look into the table first: somebody may have changed it by SQL. If not, `labtrack-backup run` and "
        "`labtrack-backup drill`; if it stays, the backups are no good: keep the server's disk, and report this.",
    )
