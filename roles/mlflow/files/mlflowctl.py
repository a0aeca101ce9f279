#!/opt/mlflow/current/bin/python
"""Looks after MLflow's databases and says whether the server is well.  Run as root.

mlflowctl heads      the schema revisions that this release needs, as JSON
mlflowctl schema     compare the databases with them: exit code 0 the same, 3 to be upgraded
mlflowctl upgrade    dump both databases and upgrade them; stop the instances first
mlflowctl admin      set the password of the account "admin" to the one on standard input
mlflowctl forget     end what the instances remember about passwords and permissions, after a change by hand
mlflowctl health     check database, accounts, object store and instances; --json; exit code 0 or 1
"""

import configparser
import http.client
import json
import os
import shlex
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

SETTINGS = [Path("/etc/mlflow/settings.env"), Path("/etc/mlflow/secrets.env")]
AUTH_INI = Path("/etc/mlflow/auth.ini")
BACKUPS = Path("/var/backups/mlflow")
SOCKETS = Path("/run/mlflow")
ENABLED = Path("/etc/systemd/system/multi-user.target.wants")
RELEASE = Path(sys.prefix)
VERSION_TABLE = {"tracking": "alembic_version", "auth": "alembic_version_auth"}
ADMIN = "admin"
SHORTEST_PASSWORD = 12
TIMEOUT = 5  # seconds for each question that health asks


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
    """Connection arguments for libpq: dbname, user, password, host."""
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
        "password": unquote(parts.password),
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


def dump(which):
    """Write a dump that pg_restore reads, of a database that has a schema."""
    found = revision(which)
    if found is None:
        return
    where = database(which)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    target = BACKUPS / f"{where['dbname']}-{found}-{stamp}.dump"
    part = target.with_suffix(".part")
    os.umask(0o077)
    subprocess.run(
        [
            "pg_dump",
            "--format=custom",
            f"--file={part}",
            f"--host={where['host']}",
            f"--username={where['user']}",
            "--no-password",
            where["dbname"],
        ],
        env={**os.environ, "PGPASSWORD": where["password"]},
        check=True,
    )
    part.rename(target)
    print(f"{which}: dumped to {target}")


def upgrade():
    commands = {
        "tracking": ["-m", "mlflow", "db", "upgrade"],
        "auth": ["-m", "mlflow.server.auth", "db", "upgrade", "--url"],
    }
    for which in commands:
        dump(which)
    for which, command in commands.items():
        where = database(which)
        # The password goes by the environment: arguments can be seen by everybody.
        uri = f"postgresql+psycopg2://{where['user']}@/{where['dbname']}?host={where['host']}"
        subprocess.run([sys.executable, *command, uri], env={**os.environ, "PGPASSWORD": where["password"]}, check=True)
    if schema() != 0:
        print("The upgrade ended without an error, but the schema is not the release's.", file=sys.stderr)
        return 1
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
    query(
        connection,
        "INSERT INTO users (username, password_hash, is_admin) VALUES (%s, %s, true) "
        "ON CONFLICT (username) DO UPDATE SET password_hash = excluded.password_hash, is_admin = true",
        ADMIN,
        generate_password_hash(password),
    )
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


def check_database():
    found = revision("tracking")
    if found != needed()["tracking"]:
        raise RuntimeError(f"schema is {found}, the release needs {needed()['tracking']}: run the playbook deploy.yml")
    return f"schema {found}"


def check_accounts():
    found = revision("auth")
    if found != needed()["auth"]:
        raise RuntimeError(f"schema is {found}, the release needs {needed()['auth']}: run the playbook deploy.yml")
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
            connect_timeout=TIMEOUT,
            read_timeout=TIMEOUT,
            retries={"total_max_attempts": 1},
            s3={"addressing_style": "path"},
        ),
    )
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


def health():
    checks = {
        "database": check_database,
        "accounts": check_accounts,
        "store": check_store,
        "instances": check_instances,
    }
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
            print(f"{row['name']:<10} {'ok' if row['ok'] else 'FAILED':<7} {row['saw']}")
    return 0 if all(row["ok"] for row in results) else 1


COMMANDS = {"heads": heads, "schema": schema, "upgrade": upgrade, "admin": admin, "forget": forget, "health": health}

if __name__ == "__main__":
    command = COMMANDS.get("".join(sys.argv[1:2]))
    if command is None:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    sys.exit(command())
