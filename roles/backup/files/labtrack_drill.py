"""The drill of labtrack-backup: a restored copy beside the server's cluster, and whether it is the same.

First the rows are compared, then what MLflow answers on both (labtrack_answers).  It knows nothing of the tool that
makes the backups: it is handed something that lists them and restores the newest.
"""

from __future__ import annotations

import random
import secrets
import signal
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from labtrack_answers import ACCOUNT, Answers
from labtrack_artifacts import of_drill
from labtrack_copy import WHOLE, BackupError, Cluster, Copy

SAMPLED = {"newest": 10, "oldest": 10, "by lot": 30}  # runs
# What MLflow only ever adds to: here a row that the backup has and the server has not is a fault, not a change.
ONLY_ADDED = ("metrics", "params")


class Drill:
    """A restored copy beside the server's cluster."""

    def __init__(self, settings: dict[str, Any], repository: Any) -> None:
        self.settings, self.repository = settings, repository
        self.copy = Copy(settings, Path(settings["scratch"]))
        self.live = Cluster(settings, settings["socket"], settings["port"])
        self.restored = self.copy.cluster
        self.seed = secrets.randbelow(2**31)  # of what is drawn by lot

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
            if table == "users":
                seen["accounts"] += self.restored.count(database, table, f"username <> '{ACCOUNT}'")
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

    def sample(self, database: str) -> list[str]:
        """The runs that are compared in full: the newest, the oldest, and some that are drawn by lot."""
        runs = self.restored.ask("SELECT run_uuid FROM runs ORDER BY start_time DESC NULLS LAST, run_uuid", database)
        newest, oldest, drawn = SAMPLED.values()
        rest, lot = runs[newest : max(newest, len(runs) - oldest)], random.Random(self.seed)  # noqa: S311
        return [*runs[:newest], *runs[newest:][-oldest:], *lot.sample(rest, min(drawn, len(rest)))]

    def _runs(self, database: str, unchanged: str) -> int:
        """Compare some runs with all that was logged to them; how many."""
        chosen = self.sample(database)
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
            answers = Answers(self.settings, self.live, self.restored) if self.settings["mlflow"] else None
            with answers.account() if answers else nullcontext():
                return self._beside(answers)
        finally:
            self.copy.clean()

    def _beside(self, answers: Answers | None) -> dict[str, Any]:
        size = sum(int(line) for line in self.live.ask("SELECT pg_database_size(oid) FROM pg_database"))
        self.copy.room(size, ", or name another folder in backup_scratch")
        backups = self.repository.backups()
        if not backups:
            raise BackupError("There is no backup yet.", "labtrack-backup run.")
        (before,) = self.live.ask("SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint % (2 ^ 32)::bigint")
        archived = self.live.archive()
        start = time.monotonic()
        self.repository.restore(self.copy.data)
        access = answers.access() if answers else {}
        with self.copy.running(signal.SIGQUIT, access, fsync="off"):
            took = time.monotonic() - start
            self.copy.check()  # first: what reads a damaged table says less of it
            seen = self.compare(before)
            parts = [of_drill(self.settings, self.restored)]
            if answers:  # last, as MLflow may write to its copy
                parts.append(answers(self.sample(answers.tracking), self.seed))
        more = {key: value for part in parts for key, value in part.items()}
        if warnings := [part["warning"] for part in parts if "warning" in part]:
            more["warning"] = " ".join(warnings)
        return {
            "backup": backups[-1]["label"], **seen, **more,
            "archive_seconds": round(archived, 1), "restore_seconds": round(took, 1),
            "message": f"{backups[-1]['label']} restored in {took:.1f} s: {seen['rows']} rows in {seen['tables']} "
            f"tables, {seen['runs']} runs and {seen['accounts']} accounts are as the server has them."
            + "".join(part["message"] for part in parts),
        }  # fmt: skip


def differs(where: tuple[str, str], how: str) -> BackupError:
    return BackupError(
        f"The restored copy is not what the server has: {where[0]}.{where[1]} {how}.",
        "look into the table first: somebody may have changed it by SQL. If not, `labtrack-backup run` and "
        "`labtrack-backup drill`; if it stays, the backups are no good: keep the server's disk, and report this.",
    )
