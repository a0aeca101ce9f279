#!/opt/mlflow/current/bin/python
"""Looks after MLflow's databases and says whether the server is well.  Run as root.

mlflowctl heads      the schema revisions that this release needs, as JSON
mlflowctl schema     compare the databases with them: exit code 0 the same, 3 to be upgraded, or not to the end yet
mlflowctl upgrade    stop the instances, dump both databases, upgrade them and try the new release on them; if one of
                     that fails, all is as it was before, also where an earlier call was killed on the way
mlflowctl back DUMP DUMP   stop the instances and put both databases back from the dumps of an upgrade, for the release
                     of then; what was recorded since is dumped, and no longer in them
mlflowctl indexes    make the indexes and statistics that MLflow's schema lacks; prints those that it made
mlflowctl trial      start the new release beside what runs, where no proxy looks, and see whether it answers
mlflowctl admin      set the password of the account "admin" to the one on standard input
mlflowctl forget     end what the instances remember about passwords and permissions, after a change by hand
mlflowctl gc --days N   take away for good what was deleted N days ago and longer, with its artifacts; --dry-run, --json
mlflowctl gc --versions N  the same of the versions that the bucket keeps of objects
mlflowctl leave DIR  put all of both databases into a folder, for another server; no instance may run
mlflowctl vacant     whether nobody has recorded anything yet: exit code 0, else 1
mlflowctl arrive DIR   make both databases what another server has left, with the addresses of this one's bucket
mlflowctl check      what MLflow needs: a line of JSON for each of database, accounts, connections, wal, store, quota
                     and instances, or those named; exit code 0 ok, 1 warnings, 2 failed
mlflowctl figures    what the lab has recorded, in numbers, for labtrack-report: a line of JSON
mlflowctl health     the same as check and all else of the server as a table: labtrack-status
"""

import fcntl
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.append("/usr/local/lib/mlflowctl")
from mlflow_databases import (
    AUTH_INI,
    INDEXES,
    STATISTICS,
    VERSION_TABLE,
    connect,
    database,
    needed,
    query,
    revision,
    settings,
)
from mlflow_dumps import BACKUPS, ControlError, begin, begun, chosen, dump, end, restore, room, systemctl

SOCKETS = Path("/run/mlflow")
STATUS = Path("/usr/local/sbin/labtrack-status")
TRIAL = "mlflow-trial@trial.service"  # its unit is the new release's
TRIAL_UNIT = Path("/etc/systemd/system/mlflow-trial@.service")
LOCK = Path("/run/lock/mlflow-upgrade")
ADMIN = "admin"
SHORTEST_PASSWORD = 12
LOOK = f"`journalctl -u {TRIAL}` says why; what ran before runs on. Report it, and stay with the version before."


def migrations(which):
    """The release's own, of a database: alembic's ScriptDirectory."""
    from alembic.script import ScriptDirectory

    if which == "tracking":
        from mlflow.store.db.utils import _get_alembic_config
    else:
        from mlflow.server.auth.db.utils import _get_alembic_config
    return ScriptDirectory.from_config(_get_alembic_config(""))


def heads():
    print(json.dumps({which: migrations(which).get_current_head() for which in VERSION_TABLE}))
    return 0


def schema():
    behind = 0
    for which, head in needed().items():
        found = revision(which)
        print(f"{which}: {found or 'empty'}, the release needs {head}")
        if found not in (None, head):
            refuse_newer(which, found)
        if half := begun(which):
            print(f"{which}: was upgraded from {half}, and not tried")
        behind = behind or (0 if found == head and not half else 3)
    return behind


def refuse_newer(which, found):
    """Refuse a database of which this release has never heard: MLflow's migrations are named, and lead upwards."""
    from alembic.util import CommandError
    from mlflow import __version__

    try:
        migrations(which).get_revision(found)
    except CommandError:
        raise ControlError(
            f"{which}: the database has the schema {found} of a newer MLflow, and {__version__} can't read it. "
            "This call has stopped and changed nothing.",
            "set lab_mlflow_version to the newer one again. Where you have to go back, and may lose what was recorded "
            'since the upgrade: "Back to an older MLflow" in docs/admin/upgrade.md.',
        ) from None


def upgrade():
    """Upgrade both databases while no instance runs.  Where that fails, all is as it was before, the instances too."""
    with LOCK.open("w") as lock:  # an upgrade that a killed run has left at work on the server is waited for
        fcntl.flock(lock, fcntl.LOCK_EX)
        if begun("auth") and not begun("tracking"):  # see end(): killed after the trial, and there is nothing to undo
            end("auth")
        if schema() == 0:
            return 0
        if instances("active"):  # whoever has answered since may have written: an earlier dump is no way back
            for which in VERSION_TABLE:
                end(which)
        halves = {which: half for which in VERSION_TABLE if (half := begun(which))}
        if len(halves) < len(VERSION_TABLE):
            room(BACKUPS)
        units = instances("all")
        systemctl("stop", units)  # old code must not write into a new schema
        dumps = dict(halves)
        try:
            # with one alone nothing has changed yet, and nothing is put back
            dumps.update({which: dump(which) for which in VERSION_TABLE if which not in dumps})
            # not in the first deployment, which has nothing to go back to
            for which in [which for which, kept in dumps.items() if kept and which not in halves]:
                begin(which, dumps[which])
            for which in VERSION_TABLE:
                migrate(which)
            if TRIAL_UNIT.exists():
                trial()
            for which in VERSION_TABLE:
                end(which)
        except BaseException as error:  # an interruption too
            raise undone("The upgrade failed", dumps, units, error) from error
    return 0


def back():
    """Put both databases back from dumps.  The instances stay stopped: the release in use can't read that schema."""
    kept = chosen(Path(one) for one in sys.argv[2:])
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        room(BACKUPS)
        units = instances("all")
        systemctl("stop", units)
        now = {}
        try:
            now.update({which: dump(which, kept.values()) for which in VERSION_TABLE})
            for which, file in kept.items():
                restore(which, file)
        except BaseException as error:  # an interruption too
            raise undone("The way back failed", now, units, error) from error
    print(
        f"What was recorded since is in {' and '.join(str(file) for file in now.values() if file)}. "
        "Now deploy with the lab_mlflow_version of then: until it has run, the server takes no requests."
    )
    return 0


def undone(what, dumps, units, error):
    """Put the databases back from their dumps and start the instances that ran; the ControlError that says so."""
    for which in reversed(VERSION_TABLE):  # see end()
        if which in dumps:
            restore(which, dumps[which])
    systemctl("start", units)
    return ControlError(
        f"{what}: {error}\nThe databases are as they were, and what ran before runs again.",
        error.args[1] if isinstance(error, ControlError) else "what is said above; else stay with what was before.",
    )


def instances(which):
    """MLflow's instances: those that are "active", or "all" that are to run.

    All that systemd has loaded: it keeps an instance that starts at boot, also one that a killed call has stopped.
    """
    option = "--all" if which == "all" else f"--state={which}"
    command = ["systemctl", "list-units", option, "--plain", "--no-legend", "mlflow@*.service"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [line.split()[0] for line in listed.splitlines()]


def migrate(which):
    """Have MLflow upgrade a database."""
    commands = {
        "tracking": ["-m", "mlflow", "db", "upgrade"],
        "auth": ["-m", "mlflow.server.auth", "db", "upgrade", "--url"],
    }
    where = database(which)
    uri = f"postgresql+psycopg2://{where['user']}@/{where['dbname']}?host={where['host']}"
    subprocess.run([sys.executable, *commands[which], uri], check=True)
    if revision(which) != needed()[which]:
        raise ControlError(f"{which}: upgraded without an error, but not to the release's schema.", "report this.")


def indexes():
    """Make the kit's own indexes and statistics; as long as one is made, runs can be read and not written."""
    connection = connect("tracking")
    try:
        for name, columns in INDEXES.items():
            if query(connection, "SELECT to_regclass(%s)", name) == [(None,)]:
                query(connection, f"CREATE INDEX {name} ON {columns}")
                print(f"made {name}")
        for name, columns in STATISTICS.items():
            if not query(connection, "SELECT 1 FROM pg_statistic_ext WHERE stxname = %s", name):
                query(connection, f"CREATE STATISTICS {name} {columns}")
                query(connection, f"ANALYZE {columns.rpartition(' ')[2]}")  # else they are empty until it changes
                print(f"made the statistics {name}")
    finally:
        connection.close()
    return 0


def trial():
    """Start the new release on a socket that no proxy looks at: it serves nobody until it is seen to answer."""
    from mlflow_checks import SocketConnection

    try:
        systemctl("restart", [TRIAL])  # started is answering: see its unit; one that a killed run has left is another
        connection = SocketConnection(SOCKETS / "trial.sock")
        host = {"Host": settings()["MLFLOW_SERVER_ALLOWED_HOSTS"]}
        connection.request("GET", "/api/2.0/mlflow/experiments/search?max_results=1", headers=host)
        status = connection.getresponse().status
        if status != http.client.UNAUTHORIZED:
            raise ControlError(f"The new release answers {status} to who has not logged in.", LOOK)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ControlError(f"The new release does not run: {error}", LOOK) from error
    finally:
        subprocess.run(["systemctl", "stop", TRIAL], check=False)
        subprocess.run(["systemctl", "reset-failed", TRIAL], check=False, capture_output=True)
        for left in SOCKETS.glob("trial.*"):
            left.unlink(missing_ok=True)
    return 0


def admin():
    from werkzeug.security import check_password_hash, generate_password_hash

    password = sys.stdin.readline().rstrip("\n")
    if len(password) < SHORTEST_PASSWORD:
        print(f"The admin's password must have at least {SHORTEST_PASSWORD} characters.", file=sys.stderr)
        return 2
    connection = connect("auth")
    rows = query(connection, "SELECT password_hash, is_admin FROM users WHERE username = %s", ADMIN)
    if rows and rows[0][1] and check_password_hash(rows[0][0], password):
        print("unchanged")
        return 0
    AUTH_INI.touch()  # the instances remember who has logged in: they are started again after this file
    insert = (
        "INSERT INTO users (username, password_hash, is_admin) VALUES (%s, %s, true) "
        "ON CONFLICT (username) DO UPDATE SET password_hash = excluded.password_hash, is_admin = true"
    )
    query(connection, insert, ADMIN, generate_password_hash(password))
    forget_all()
    print("changed")
    return 0


def forget_all():
    """Change the time of the files that the instances look at, see caches.py of labtrack_server."""
    for epoch in SOCKETS.glob("*.epoch"):
        os.utime(epoch, ns=(time.time_ns(), time.time_ns()))


def forget():
    """Make all instances ask the databases again.  They do by themselves after each change that they make."""
    forget_all()
    print("The next request of each account is checked in full.")
    return 0


def check():
    from mlflow_checks import CHECKS, row

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the store's check cleans up
    codes = {"ok": 0, "skipped": 0, "warning": 1, "failed": 2}
    worst = 0
    asked = sys.argv[2:] or list(CHECKS)
    for name in sorted(asked, key=lambda name: [*CHECKS, name].index(name)):
        found = row(name)
        print(json.dumps(found), flush=True)
        worst = max(worst, codes[found["status"]])
    return worst


def figures():
    from mlflow_figures import main

    return main()


def health():
    if not STATUS.exists():
        raise ControlError(f"{STATUS} is not there.", "run playbooks/deploy.yml.")
    os.execv(STATUS, [STATUS, *sys.argv[2:]])  # noqa: S606


def leave():
    from mlflow_moved import leave

    return leave(Path(sys.argv[2]))


def vacant():
    from mlflow_moved import vacant

    return vacant()


def arrive():
    from mlflow_moved import arrive

    return arrive(Path(sys.argv[2]), settings())


def gc():
    from mlflow_garbage import main

    # MLflow's own account can't read the files, and has what is in them from its unit
    try:
        return main(settings() if os.geteuid() == 0 else dict(os.environ), sys.argv[2:])
    finally:
        forget_all()  # a run that is gone may come back by its id, in another experiment


COMMANDS = {
    "heads": heads,
    "schema": schema,
    "upgrade": upgrade,
    "back": back,
    "indexes": indexes,
    "trial": trial,
    "admin": admin,
    "forget": forget,
    "gc": gc,
    "leave": leave,
    "vacant": vacant,
    "arrive": arrive,
    "check": check,
    "figures": figures,
    "health": health,
}

NAMED = {leave: 1, arrive: 1, back: 2}  # how many folders or files a command wants

if __name__ == "__main__":
    command = COMMANDS.get("".join(sys.argv[1:2]))
    if command is None or NAMED.get(command) not in (None, len(sys.argv) - 2):
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    try:
        sys.exit(command())
    except ControlError as failure:
        print(f"{failure.args[0]}\nTo fix: {failure.args[1]}", file=sys.stderr)
        sys.exit(1)
