#!/opt/mlflow/current/bin/python
"""Looks after MLflow's databases and says whether the server is well.  Run as root.

mlflowctl heads      the schema revisions that this release needs, as JSON
mlflowctl schema     compare the databases with them: exit code 0 the same, 3 to be upgraded
mlflowctl upgrade    stop the instances, dump both databases and upgrade them; if that fails, all is as it was before
mlflowctl admin      set the password of the account "admin" to the one on standard input
mlflowctl forget     end what the instances remember about passwords and permissions, after a change by hand
mlflowctl health     check database, accounts, object store, instances and certificate; --json; exit code 0 or 1;
                     with --mlflow not the certificate, which is deployed after MLflow
"""

import configparser
import fcntl
import http.client
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

SETTINGS = [Path("/etc/mlflow/settings.env"), Path("/etc/mlflow/secrets.env")]
AUTH_INI = Path("/etc/mlflow/auth.ini")
BACKUPS = Path("/var/backups/mlflow")
SOCKETS = Path("/run/mlflow")
CERTIFICATE = Path("/usr/local/sbin/labtrack-certificate")
LOCK = Path("/run/lock/mlflow-upgrade")
DUMPS_KEPT = 5  # of each database
ENABLED = Path("/etc/systemd/system/multi-user.target.wants")
RELEASE = Path(sys.prefix)
VERSION_TABLE = {"tracking": "alembic_version", "auth": "alembic_version_auth"}
ADMIN = "admin"
SHORTEST_PASSWORD = 12
TIMEOUT = 5  # seconds for each question that health asks


class UpgradeError(Exception):
    """What happened, and how to fix it."""


def settings():
    """The environment of the server, as its unit reads it."""
    values = {}
    for path in SETTINGS:
        for line in path.read_text().splitlines():
            name, sep, value = line.partition("=")
            if sep and not line.startswith("#"):
                values[name] = "".join(shlex.split(value))
    return values


def database(which):
    """Connection arguments for libpq: dbname, user, host.  Root needs no password."""
    if which == "tracking":
        uri = settings()["_MLFLOW_SERVER_FILE_STORE"]
    else:
        ini = configparser.ConfigParser(interpolation=None)
        ini.read(AUTH_INI)
        uri = ini["mlflow"]["database_uri"]
    parts = urlsplit(uri)
    return {
        "dbname": parts.path.lstrip("/"),
        "user": parts.username,
        "host": parse_qs(parts.query)["host"][0],
    }


def connect(which):
    import psycopg2

    connection = psycopg2.connect(**database(which), connect_timeout=TIMEOUT)
    connection.autocommit = True
    return connection


def query(connection, sql, *values):
    with connection.cursor() as cursor:
        cursor.execute(sql, values)
        return cursor.fetchall() if cursor.description else []


def revision(which):
    """The database's schema revision: None without a schema."""
    connection = connect(which)
    try:
        if query(connection, "SELECT to_regclass(%s)", VERSION_TABLE[which]) == [(None,)]:
            return None
        rows = query(connection, f"SELECT version_num FROM {VERSION_TABLE[which]}")  # noqa: S608
        return rows[0][0] if rows else None
    finally:
        connection.close()


def needed():
    """The schema revisions that the release needs, noted when it was installed."""
    return json.loads((RELEASE / ".complete").read_text())


def heads():
    from alembic.script import ScriptDirectory
    from mlflow.server.auth.db import utils as auth
    from mlflow.store.db.utils import _get_latest_schema_revision

    script = ScriptDirectory.from_config(auth._get_alembic_config(""))
    print(json.dumps({"tracking": _get_latest_schema_revision(), "auth": script.get_current_head()}))
    return 0


def schema():
    behind = 0
    for which, head in needed().items():
        found = revision(which)
        print(f"{which}: {found or 'empty'}, the release needs {head}")
        behind = behind or (0 if found == head else 3)
    return behind


def room():
    """Refuse before anything is stopped, where the dumps may not fit: they are at most as large as the databases."""
    size = sum(
        query(connection, "SELECT pg_database_size(current_database())")[0][0]
        for which in VERSION_TABLE
        if revision(which) is not None
        for connection in [connect(which)]
    )
    free = shutil.disk_usage(BACKUPS).free
    if size > free:
        raise UpgradeError(
            f"The dumps of the databases may take {size >> 20} MiB, and {BACKUPS} has {free >> 20} MiB left.",
            f"make room there, or mount a larger disk at {BACKUPS}; older dumps may be moved elsewhere.",
        )


def dump(which):
    """Write a dump that pg_restore reads, of a database that has a schema; give its path."""
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
        raise UpgradeError(f"{where['dbname']} could not be dumped.", "what pg_dump says above.") from error
    part.rename(target)
    print(f"{which}: dumped to {target}")
    for part in BACKUPS.glob(f"{where['dbname']}-*.part"):  # of a dump that was killed
        part.unlink()
    for old in sorted(BACKUPS.glob(f"{where['dbname']}-*.dump"), key=lambda path: path.stat().st_mtime)[:-DUMPS_KEPT]:
        old.unlink()
    return target


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
        raise UpgradeError(
            f"{where['dbname']} could not be put back.", f"restore it from {kept} with pg_restore, as its owner."
        )
    print(f"{which}: as it was before")


def login(where):
    """How psql and its kin are told where to log in."""
    return [f"--host={where['host']}", f"--username={where['user']}", "--no-password"]


def systemctl(action, units):
    if units:
        subprocess.run(["systemctl", action, *units], check=True)


def upgrade():
    """Upgrade both databases while no instance runs.  Where that fails, all is as it was before, the instances too."""
    with LOCK.open("w") as lock:  # an upgrade that a killed run has left at work on the server is waited for
        fcntl.flock(lock, fcntl.LOCK_EX)
        if schema() == 0:
            return 0
        room()
        running = subprocess.run(
            ["systemctl", "list-units", "--plain", "--no-legend", "--state=active,activating", "mlflow@*.service"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        units = [line.split()[0] for line in running.splitlines()]
        systemctl("stop", units)  # old code must not write into a new schema
        dumps = {}
        try:
            for which in VERSION_TABLE:
                dumps[which] = dump(which)
            for which in VERSION_TABLE:
                migrate(which)
        except BaseException as error:  # an interruption too
            for which, kept in dumps.items():
                restore(which, kept)
            systemctl("start", units)
            raise UpgradeError(
                f"The databases could not be upgraded: {error}\nThey are as they were, and what ran before runs again.",
                "what is said above; if MLflow's release itself can't upgrade them, stay with the one before.",
            ) from error
    return 0


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
        raise UpgradeError(f"{which}: upgraded without an error, but not to the release's schema.", "report this.")


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


def check_schema(which):
    found, head = revision(which), needed()[which]
    if found != head:
        raise RuntimeError(f"schema is {found}, the release needs {head}: run the playbook deploy.yml")
    return f"schema {found}"


def check_accounts():
    check_schema("auth")
    rows = query(connect("auth"), "SELECT count(*), count(*) FILTER (WHERE is_admin) FROM users")
    if rows[0][1] == 0:
        raise RuntimeError("no admin account: run the playbook deploy.yml")
    return f"{rows[0][0]} accounts"


def check_store():
    import boto3
    from botocore.config import Config

    values = settings()
    os.environ.update({name: value for name, value in values.items() if name.startswith("AWS_")})
    client = boto3.client(
        "s3",
        endpoint_url=values["MLFLOW_S3_ENDPOINT_URL"],
        config=Config(
            connect_timeout=TIMEOUT, read_timeout=TIMEOUT,
            retries={"total_max_attempts": 1}, s3={"addressing_style": "path"},
        ),
    )  # fmt: skip
    root = values.get("_MLFLOW_SERVER_ARTIFACT_DESTINATION", values["_MLFLOW_SERVER_ARTIFACT_ROOT"])
    bucket, key, body = urlsplit(root).netloc, f"labtrack-health/{uuid.uuid4().hex}", b"labtrack"
    client.put_object(Bucket=bucket, Key=key, Body=body)
    try:
        if client.get_object(Bucket=bucket, Key=key)["Body"].read() != body:
            raise RuntimeError("what was read is not what was written")
    finally:
        client.delete_object(Bucket=bucket, Key=key)
    return f"wrote, read and deleted an object in {bucket}"


class SocketConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path):
        super().__init__("localhost", timeout=TIMEOUT)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


def check_instances():
    wanted = [SOCKETS / f"{unit.stem.partition('@')[2]}.sock" for unit in sorted(ENABLED.glob("mlflow@*.service"))]
    if not wanted:
        raise RuntimeError("none is enabled: run the playbook deploy.yml")
    for path in wanted:
        connection = SocketConnection(path)
        try:
            connection.request("GET", "/health")
            status = connection.getresponse().status
        except OSError as error:
            raise RuntimeError(f"{path}: {error}: see journalctl -u mlflow@{path.stem}") from error
        finally:
            connection.close()
        if status != http.client.OK:
            raise RuntimeError(f"{path} answers {status}: see journalctl -u mlflow@{path.stem}")
    return f"{len(wanted)} answer"


def check_certificate():
    """What the program of the role certificates says; in a deployment that is not there yet."""
    if not CERTIFICATE.exists():
        return "there is none yet"
    done = subprocess.run([CERTIFICATE, "status"], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise RuntimeError(done.stdout.strip() or done.stderr.strip())
    return done.stdout.strip()


def health():
    checks = {
        "database": lambda: check_schema("tracking"),
        "accounts": check_accounts,
        "store": check_store,
        "instances": check_instances,
        "certificate": check_certificate,
    }
    if "--mlflow" in sys.argv:
        del checks["certificate"]
    results = []
    for name, check in checks.items():
        start = time.monotonic()
        try:
            ok, saw = True, check()
        except Exception as error:  # whatever is wrong is the answer
            ok, saw = False, " ".join(str(error).split()) or type(error).__name__
        results.append({"name": name, "ok": ok, "saw": saw, "seconds": round(time.monotonic() - start, 3)})
    if "--json" in sys.argv:
        print(json.dumps({"ok": all(row["ok"] for row in results), "checks": results}))
    else:
        for row in results:
            print(f"{row['name']:<11} {'ok' if row['ok'] else 'FAILED':<7} {row['saw']}")
    return 0 if all(row["ok"] for row in results) else 1


COMMANDS = {"heads": heads, "schema": schema, "upgrade": upgrade, "admin": admin, "forget": forget, "health": health}

if __name__ == "__main__":
    command = COMMANDS.get("".join(sys.argv[1:2]))
    if command is None:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    try:
        sys.exit(command())
    except UpgradeError as failure:
        print(f"{failure.args[0]}\nTo fix: {failure.args[1]}", file=sys.stderr)
        sys.exit(1)
