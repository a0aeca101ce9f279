"""What mlflowctl looks at: MLflow's databases, its store and its instances, a function each.

A check gives what it saw, or "skipped" and why.  Problem is what is wrong and how to fix it; any other exception is a
failure in its own words.
"""

import contextlib
import functools
import http.client
import socket
import time
import uuid
from datetime import datetime, timedelta, timezone
from pathlib import Path
from urllib.parse import urlsplit

import mlflow_databases
from mlflow_databases import TIMEOUT, connect, needed, query, revision, settings

SOCKETS = Path("/run/mlflow")
ENABLED = Path("/etc/systemd/system/multi-user.target.wants")
CLUSTERS = Path("/var/lib/postgresql")
DEPLOY = "run playbooks/deploy.yml."
DATABASE = "`systemctl status 'postgresql@*'` and `journalctl -u 'postgresql@*'`; a full disk has a row of its own."
STORE = (
    "in what the store says: a key that it does not know, a bucket that is gone, an address that does not answer, a "
    "clock that is wrong, a quota that is full; `labtrack doctor` asks it from elsewhere."
)
HINTS = {"database": DATABASE, "accounts": DATABASE, "connections": DATABASE, "wal": DATABASE, "store": STORE}
KEYS = "labtrack-health/"  # where the store is tried
LEFT = timedelta(hours=1)  # what is older was left by a check that was killed
SWEPT = 100  # of these at once
FULL, NEARLY = 0.95, 0.80  # failed, warning
WAITED, WAITED_LONG = 300, 1800  # seconds that a segment of the log may wait for the archive: warning, failed


class Problem(Exception):
    """A status, what was seen, and how to fix it."""


def level(share, seen, hint):
    """Judge how much of something is used."""
    if share < NEARLY:
        return seen
    raise Problem("failed" if share >= FULL else "warning", seen, hint)


def mebibytes(number):
    return f"{number / 2**20:,.0f} MiB"


def schema(which):
    found, head = revision(which), needed()[which]
    if found != head:
        raise Problem("failed", f"schema is {found}, the release needs {head}", DEPLOY)
    return f"schema {found}"


def database():
    return schema("tracking")


def accounts():
    schema("auth")
    rows = query(connect("auth"), "SELECT count(*), count(*) FILTER (WHERE is_admin) FROM users")
    if rows[0][1] == 0:
        raise Problem("failed", "no admin account", DEPLOY)
    return f"{rows[0][0]} accounts"


def connections():
    """How many of those that PostgreSQL takes are in use."""
    allowed = "current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"
    counted = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
    ((used, most),) = query(connect("tracking"), f"SELECT ({counted}), {allowed}")
    hint = "`SELECT usename, application_name, state FROM pg_stat_activity` names who has them; lab_mlflow_instances."
    return level(used / most, f"{used} of {most} connections in use", hint)


def wal():
    """Whether PostgreSQL's log gets into the archive, and what waits for it."""
    sql = (
        "SELECT current_setting('archive_mode'), failed_count, "
        "last_failed_time > coalesce(last_archived_time, '-infinity') FROM pg_stat_archiver"
    )
    ((mode, failures, failing),) = query(connect("tracking"), sql)
    if mode == "off":
        return "skipped", "nothing is archived: lab_backup is not set"
    waiting = []
    for path in CLUSTERS.glob("*/main/pg_wal/archive_status/*.ready"):
        with contextlib.suppress(FileNotFoundError):  # archived meanwhile
            waiting.append(path.stat().st_mtime)
    oldest = time.time() - min(waiting, default=time.time())
    seen = f"{len(waiting)} segments wait for the archive"
    if waiting:
        seen += f", the oldest for {oldest / 60:.0f} minutes"
    if failing:
        seen += f"; the last attempt failed ({failures} did since the statistics began)"
    if oldest < WAITED:  # one attempt that failed is no news: it is made again each minute
        return seen
    hint = "`labtrack-backup check` says why; what waits fills the disk of the database."
    raise Problem("failed" if oldest >= WAITED_LONG else "warning", seen, hint)


@functools.cache
def bucket():
    """A client of the object store, as MLflow itself has it, and the bucket's name."""
    values = settings()
    mlflow_databases.become()
    once = {"connect_timeout": TIMEOUT, "read_timeout": TIMEOUT, "retries": {"total_max_attempts": 1}}
    client, root = mlflow_databases.store(values, **once)
    return client, urlsplit(root).netloc


def store():
    """Write, read and delete an object; in a bucket with versions the version, so that nothing is left."""
    client, name = bucket()
    key, body, version = f"{KEYS}{uuid.uuid4().hex}", b"labtrack", {}
    try:
        made = client.put_object(Bucket=name, Key=key, Body=body)
        if made.get("VersionId"):
            version = {"VersionId": made["VersionId"]}
        if client.get_object(Bucket=name, Key=key)["Body"].read() != body:
            raise Problem("failed", "what was read is not what was written", STORE)
    finally:
        client.delete_object(Bucket=name, Key=key, **version)
    sweep(client, name, versions=bool(version))
    return f"wrote, read and deleted an object in {name}"


def sweep(client, name, versions):
    """Delete what checks that were killed have left."""
    from botocore.exceptions import ClientError

    with contextlib.suppress(ClientError):  # not each store lists versions; the check itself has passed
        if versions:
            found = client.list_object_versions(Bucket=name, Prefix=KEYS, MaxKeys=SWEPT)
            left = [*found.get("Versions", []), *found.get("DeleteMarkers", [])]
        else:
            left = client.list_objects_v2(Bucket=name, Prefix=KEYS, MaxKeys=SWEPT).get("Contents", [])
        for one in left:
            if datetime.now(timezone.utc) - one["LastModified"] > LEFT:
                version = {"VersionId": one["VersionId"]} if versions else {}
                client.delete_object(Bucket=name, Key=one["Key"], **version)


def usage(client, name):
    """Bytes and objects in the bucket, and limits of it: as Ceph tells its owner; None, None and [] where nobody says.

    Raises BotoCoreError where the store does not answer.
    """
    from botocore.exceptions import ClientError

    def with_usage(request, **_):  # newer Ceph counts only when asked
        request.params = {"read-stats": ""}

    client.meta.events.register("before-sign.s3.HeadBucket", with_usage)
    try:
        said = client.head_bucket(Bucket=name)["ResponseMetadata"]["HTTPHeaders"]
    except ClientError:  # one that does not know the question; what is wrong with it, the check of the store says
        said = {}
    finally:
        client.meta.events.unregister("before-sign.s3.HeadBucket", with_usage)
    if "x-rgw-bytes-used" not in said:
        return None, None, []
    told = [int(said[key]) for key in ("x-rgw-quota-bucket-size", "x-rgw-quota-user-size") if key in said]
    return int(said["x-rgw-bytes-used"]), said.get("x-rgw-object-count"), told


def quota():
    """How full the bucket is.  Ceph tells its owner, Swift only how much is in it."""
    from botocore.exceptions import BotoCoreError

    try:
        used, objects, told = usage(*bucket())
    except BotoCoreError:
        return "skipped", "the store does not answer: see the row `store`"
    if used is None:
        return "skipped", "the store tells neither use nor quota; `labtrack preflight` asks the cloud for the project's"
    seen = f"{mebibytes(used)} in {objects or 'some'} objects"
    if not told:
        return "skipped", f"{seen}; the store tells no quota, `labtrack preflight` asks the cloud for the project's"
    limits = [limit for limit in told if limit > 0]
    if not limits:
        return f"{seen}, no quota"
    hint = "ask the cloud's operator for more, or delete runs and old versions of objects."
    return level(used / min(limits), f"{seen}, of {mebibytes(min(limits))}", hint)


class SocketConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path):
        super().__init__("localhost", timeout=TIMEOUT)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


def instances():
    wanted = [SOCKETS / f"{unit.stem.partition('@')[2]}.sock" for unit in sorted(ENABLED.glob("mlflow@*.service"))]
    if not wanted:
        raise Problem("failed", "none is enabled", DEPLOY)
    wrong = {path.stem: why for path in wanted if (why := why_silent(path))}
    if wrong:
        seen = "; ".join(f"{name}: {why}" for name, why in wrong.items())
        status = "failed" if len(wrong) == len(wanted) else "warning"  # the others go on
        raise Problem(status, seen, f"`journalctl -u mlflow@{next(iter(wrong))}`")
    return f"{len(wanted)} answer"


def why_silent(path):
    """Why an instance does not answer; empty when it does."""
    connection = SocketConnection(path)
    try:
        connection.request("GET", "/health")
        status = connection.getresponse().status
    except OSError as error:
        return str(error)
    finally:
        connection.close()
    return "" if status == http.client.OK else f"answers {status}"


# In this order: from the store on, they are asked by another account, which must not read what the first ones do.
CHECKS = {
    "database": database, "accounts": accounts, "connections": connections, "wal": wal,
    "store": store, "quota": quota, "instances": instances,
}  # fmt: skip


def row(name):
    """A check's row, whatever happens."""
    start = time.monotonic()
    try:
        found = CHECKS[name]()
        status, seen, hint = (*found, "") if isinstance(found, tuple) else ("ok", found, "")
    except Problem as problem:
        status, seen, hint = problem.args
    except Exception as error:  # whatever is wrong is the answer
        seen = " ".join(str(error).split()) or type(error).__name__
        status, hint = "failed", HINTS.get(name, "`journalctl -p warning` on the server.")
    return {"check": name, "status": status, "seen": seen, "hint": hint, "seconds": round(time.monotonic() - start, 3)}
