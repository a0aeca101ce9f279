#!/usr/bin/python3
"""Takes the databases from one version of PostgreSQL to the next one's machine.  Run as root.

labtrack-postgresql dump              stop PostgreSQL, and leave beside its data a dump that any newer version reads
labtrack-postgresql check             whether the dump that is there can be restored here
labtrack-postgresql restore VERSION   fill this version's empty databases from it; prints "changed" if it did

The data is on a volume that outlives its machine, the programs that read it are of the machine's Debian.  A dump is
good only as long as nobody has written to the data after it: the cluster's control file, which each start changes, says
so.  Killed anywhere, a dump is made anew and a restore goes on; the old data stays, under another name at the end.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(os.environ.get("LABTRACK_POSTGRESQL", "/var/lib/postgresql"))
SOCKET = os.environ.get("LABTRACK_POSTGRESQL_SOCKET", "/var/run/postgresql")
SYSTEMCTL = os.environ.get("LABTRACK_POSTGRESQL_SYSTEMCTL", "/usr/bin/systemctl")
DUMP = ROOT / "labtrack-dump"  # the dumps, and what they are of: written last
OF = DUMP / "of.json"
# In the new cluster: whose data it has.  The backups ask for it, whose older ones are of that.
CAME_FROM = "labtrack-came-from.json"
# Which segments of the log the backups have: of another cluster, whose segments are called like the first ones here.
SPOOL = ROOT / "pgbackrest-spool"
TABLES = """SELECT format('%I.%I', schemaname, tablename) FROM pg_tables
    WHERE schemaname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1"""
AGAIN = "put the machine of Debian back that has made the data, and run playbooks/dump.yml."


class MoveError(Exception):
    """What went wrong, and how to fix it."""


def as_postgres(*command: object) -> str:
    """What a command of the databases' account prints."""
    done = subprocess.run(
        ["runuser", "-u", "postgres", "--", *map(str, command)], capture_output=True, text=True, check=False, cwd="/"
    )
    if done.returncode:
        raise MoveError(
            f"{Path(str(command[0])).name} failed: {done.stderr.strip()}", "mend what it names, and run this again."
        )
    return done.stdout


def sql(database: str, query: str) -> list[str]:
    """The rows of an answer of the cluster that runs."""
    psql = ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-h", SOCKET, "-d", database, "-c", query]
    return as_postgres(*psql).splitlines()


def databases() -> list[str]:
    return sql(
        "postgres", "SELECT datname FROM pg_database WHERE NOT datistemplate AND datname <> 'postgres' ORDER BY 1"
    )


def rows(database: str) -> dict[str, int]:
    """How many rows each table has."""
    return {table: int(sql(database, f"SELECT count(*) FROM {table}")[0]) for table in sql(database, TABLES)}  # noqa: S608


def cluster(version: object) -> Path:
    return ROOT / str(version) / "main"


def mark(version: object) -> str:
    """What changes whenever the cluster has run."""
    return hashlib.sha256((cluster(version) / "global/pg_control").read_bytes()).hexdigest()


def dump() -> None:
    """Raises MoveError, and leaves PostgreSQL running, where it can't be made."""
    version = sql("postgres", "SHOW server_version_num")[0][:2]
    names = databases()
    if not names:
        raise MoveError("There is no database to dump.", "run playbooks/deploy.yml first.")
    listed = ", ".join(f"'{name}'" for name in names)
    busy = sql("postgres", f"SELECT DISTINCT application_name FROM pg_stat_activity WHERE datname IN ({listed})")  # noqa: S608
    if busy:
        raise MoveError(f"Somebody is connected to the databases: {', '.join(busy)}.", "stop it, and run this again.")
    shutil.rmtree(DUMP, ignore_errors=True)
    of_all = f"SELECT sum(pg_database_size(datname)) FROM pg_database WHERE datname IN ({listed})"  # noqa: S608
    size = int(sql("postgres", of_all)[0])
    free = shutil.disk_usage(ROOT).free
    # the dump, and later the new databases beside the old ones
    if free < 2 * size:
        raise MoveError(
            f"The dump and the new databases may take {2 * size >> 20} MiB, and {ROOT} has {free >> 20} MiB left.",
            "make the volume larger: lab_data_volume_gb, and playbooks/deploy.yml.",
        )
    DUMP.mkdir(mode=0o700)
    shutil.chown(DUMP, "postgres")
    of: dict[str, Any] = {
        "version": version,
        "system": sql("postgres", "SELECT system_identifier FROM pg_control_system()")[0],
        "databases": {name: rows(name) for name in names},
    }
    for name in names:
        as_postgres("pg_dump", "--format=custom", "-h", SOCKET, f"--file={DUMP / name}.dump", name)
    unit = f"postgresql@{version}-main.service"
    try:
        subprocess.run([SYSTEMCTL, "stop", unit], check=True)
        of["mark"] = mark(version)
        part = OF.with_suffix(".part")
        part.write_text(json.dumps(of, indent=1) + "\n")
        part.replace(OF)
    except (OSError, subprocess.CalledProcessError) as error:
        subprocess.run([SYSTEMCTL, "start", unit], check=False)
        raise MoveError(
            f"The dump could not be finished: {error}. PostgreSQL runs again.", "mend that, and run this again."
        ) from error
    counted = sum(count for tables in of["databases"].values() for count in tables.values())
    print(f"{', '.join(names)} of PostgreSQL {version}: {counted} rows are dumped to {DUMP}. PostgreSQL is stopped.")


def usable() -> dict[str, Any]:
    """What the dump is of.  Raises MoveError where there is none, or it is not of what is there."""
    try:
        of: dict[str, Any] = json.loads(OF.read_text())
    except (FileNotFoundError, ValueError):
        raise MoveError(f"{DUMP} has no dump of them.", AGAIN) from None
    if cluster(of["version"]).exists() and mark(of["version"]) != of["mark"]:
        raise MoveError(
            f"PostgreSQL {of['version']} has run again after its dump, which may lack what was written.", AGAIN
        )
    return of


def restore(version: str) -> None:
    """Raises MoveError where the databases here have anything else, or get anything else."""
    if not OF.exists():
        return
    of = usable()
    old = cluster(of["version"])
    if of["version"] == version:  # somebody has gone back to the old machine
        return
    for file in (DUMP, *DUMP.iterdir()):
        shutil.chown(file, "postgres")  # whose number is another one on each machine
    for name, tables in of["databases"].items():
        if not sql(name, TABLES):
            # in one transaction, so all of it or nothing
            as_postgres("pg_restore", "-1", "--exit-on-error", "-h", SOCKET, "-d", name, DUMP / f"{name}.dump")
        found = rows(name)
        if found != tables:
            other = sorted(table for table in found.keys() | tables.keys() if found.get(table) != tables.get(table))
            raise MoveError(
                f"{name} has other rows than its dump: {', '.join(other[:5])}.",
                f"look at both; to have the dump's, drop the database {name} and run this again.",
            )
        as_postgres("vacuumdb", "--analyze-only", "--quiet", "-h", SOCKET, name)
    shutil.rmtree(SPOOL, ignore_errors=True)
    came_from = cluster(version) / CAME_FROM
    came_from.write_text(json.dumps({"version": of["version"], "system": of["system"]}) + "\n")
    came_from.chmod(0o644)
    if old.exists():
        old.rename(old.with_name(f"main.before-{version}"))
    shutil.rmtree(DUMP)
    print(
        f"changed: the databases of PostgreSQL {of['version']} are those of {version}; {old}.before-{version} can go."
    )


def main() -> int:
    command, *more = sys.argv[1:] or [""]
    if command not in ("dump", "check", "restore") or len(more) != (command == "restore"):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        if command == "restore":
            restore(more[0])
        elif command == "dump":
            dump()
        else:
            usable()
    except MoveError as error:
        print(f"{error.args[0]}\nTo fix: {error.args[1]}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{error}\nTo fix: mend that, and run this again; nothing is lost.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
