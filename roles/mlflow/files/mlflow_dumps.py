"""Dumps of MLflow's databases, and putting them back: for mlflowctl and what it calls."""

import contextlib
import os
import shutil
import subprocess
import time
from pathlib import Path

from mlflow_databases import VERSION_TABLE, connect, database, query, revision

BACKUPS = Path("/var/backups/mlflow")
DUMPS_KEPT = 5  # of each database
# The table that a database has from its dump until its upgrade has been tried.  In the database itself, so that it goes
# with whatever takes the upgrade's place: the dump that is put back, or a restored backup.
UNDER_WAY = "labtrack_upgrade"


class ControlError(Exception):
    """What happened, and how to fix it."""

    def __str__(self):
        return self.args[0]


def room(folder):
    """Refuse before anything is changed, where the dumps may not fit: they are at most as large as the databases."""
    size = sum(
        query(connection, "SELECT pg_database_size(current_database())")[0][0]
        for which in VERSION_TABLE
        if revision(which) is not None
        for connection in [connect(which)]
    )
    free = shutil.disk_usage(folder).free
    if size > free:
        raise ControlError(
            f"The dumps of the databases may take {size >> 20} MiB, and {folder} has {free >> 20} MiB left.",
            f"make room there, or mount a larger disk at {folder}; older dumps in {BACKUPS} may be moved elsewhere.",
        )


def dump(which, spare=()):
    """Write a dump that pg_restore reads, of a database that has a schema; give its path.

    The oldest go where there are more than DUMPS_KEPT, but for those that are to be spared.
    """
    found = revision(which)
    if found is None:
        return None
    where = database(which)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    target = BACKUPS / f"{where['dbname']}-{found}-{stamp}.dump"
    part = target.with_suffix(".part")
    os.umask(0o077)
    try:
        subprocess.run(
            ["pg_dump", "--format=custom", f"--file={part}", *login(where), where["dbname"]],
            check=True,
        )
    except subprocess.CalledProcessError as error:
        raise ControlError(f"{where['dbname']} could not be dumped.", "what pg_dump says above.") from error
    part.rename(target)
    print(f"{which}: dumped to {target}")
    for part in BACKUPS.glob(f"{where['dbname']}-*.part"):  # of a dump that was killed
        part.unlink()
    for old in sorted(BACKUPS.glob(f"{where['dbname']}-*.dump"), key=lambda path: path.stat().st_mtime)[:-DUMPS_KEPT]:
        if old.resolve() not in spare:
            old.unlink()
    return target


def chosen(files):
    """Which of two dumps is of which database.  They are named by root, so they are taken as they are."""
    given = list(files)
    found = {}
    for which in VERSION_TABLE:
        name = database(which)["dbname"]
        of_it = [file.resolve() for file in given if file.name.startswith(f"{name}-") and file.is_file()]
        if len(of_it) != 1:
            raise ControlError(
                f"{len(of_it)} of the two files are dumps of {name} that are there.",
                f"name one of each database: {BACKUPS}/DATABASE-SCHEMA-TIME.dump.",
            )
        found[which] = of_it[0]
    return found


def restore(which, kept):
    """Make a database again what its dump has, all or nothing; None: it was empty."""
    where = database(which)
    options = ["--no-psqlrc", "--quiet", "--output=/dev/null", "--single-transaction", "--set=ON_ERROR_STOP=1"]
    psql = ["psql", *options, *login(where)]
    with subprocess.Popen([*psql, where["dbname"]], stdin=subprocess.PIPE) as writer:
        try:
            writer.stdin.write(b"DROP OWNED BY CURRENT_USER;\n")
            writer.stdin.flush()
            if kept:
                subprocess.run(["pg_restore", "--file=-", "--no-owner", kept], stdout=writer.stdin, check=True)
            writer.stdin.close()
        except (OSError, subprocess.CalledProcessError):
            writer.kill()  # before it takes the end of what it reads for the end of the dump
    if writer.returncode:
        raise ControlError(
            f"{where['dbname']} could not be put back.", f"restore it from {kept} with pg_restore, as its owner."
        )
    print(f"{which}: as it was before")


def begin(which, kept):
    """Note that an upgrade begins, and from which dump: for the next run, where this one is killed."""
    end(which)
    with contextlib.closing(connect(which)) as connection:
        query(connection, f"CREATE TABLE {UNDER_WAY} AS SELECT %s::text AS dump", str(kept))


def begun(which):
    """The dump of an upgrade that did not come to its end; None where there is none."""
    with contextlib.closing(connect(which)) as connection:
        if query(connection, "SELECT to_regclass(%s)", UNDER_WAY) == [(None,)]:
            return None
        ((kept,),) = query(connection, f"SELECT dump FROM {UNDER_WAY}")  # noqa: S608
    return Path(kept) if Path(kept).exists() else None


def end(which):
    """Note that an upgrade has come to its end, or that its dump is no way back any more.

    There is no transaction over both databases, so the order says how far a call came that was killed.  Beginnings and
    ends are noted for "tracking" first, and it is put back last: "tracking" alone has a note where the other database
    is as before, "auth" alone only where the upgrade was tried, and has worked.
    """
    with contextlib.closing(connect(which)) as connection:
        query(connection, f"DROP TABLE IF EXISTS {UNDER_WAY}")


def login(where):
    """How psql and its kin are told where to log in."""
    return [f"--host={where['host']}", f"--username={where['user']}", "--no-password"]


def systemctl(action, units):
    if units:
        subprocess.run(["systemctl", action, *units], check=True)
