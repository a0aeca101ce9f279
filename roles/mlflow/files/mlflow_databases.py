"""Where MLflow's databases and its bucket are, and what they hold: for mlflowctl and what it calls."""

import configparser
import json
import os
import pwd
import shlex
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

SETTINGS = [Path("/etc/mlflow/settings.env"), Path("/etc/mlflow/secrets.env")]
AUTH_INI = Path("/etc/mlflow/auth.ini")
RELEASE = Path(sys.prefix)
VERSION_TABLE = {"tracking": "alembic_version", "auth": "alembic_version_auth"}
# What MLflow's schema lacks: the newest runs of an experiment, in the orders in which MLflow's page and its client ask
# for them, the runs with the highest and lowest number in a metric, and those with a value of a parameter or a tag
# (labtrack_server asks for the latter two by these indexes alone).  Without them each answer sorts all runs of the lab,
# or reads all that have the parameter.  Nothing of MLflow's refers to them, so its migrations keep them.
# A value is longer than a row of an index may be, so it is its beginning that is there.
BEGINNING = 100  # characters
INDEXES = {
    "labtrack_runs_of_page": "runs (experiment_id, lifecycle_stage, (CASE WHEN start_time IS NULL THEN 1 ELSE 0 END), "
    "start_time DESC, run_uuid)",
    "labtrack_numbers_of_metric": "latest_metrics (key, value) WHERE NOT is_nan",
    "labtrack_runs_of_client": "runs (experiment_id, lifecycle_stage, start_time DESC, run_uuid)",
    "labtrack_values_of_param": f"params (key, left(value, {BEGINNING}))",
    "labtrack_values_of_tag": f"tags (key, left(value, {BEGINNING}))",
}
# Which values are common for which key, by the name of the index: whether it is read, or the experiment's runs in their
# order until there are enough with the value, depends on that.  Columns alone don't tell it: of an optimizer's two
# values each is rare among those of all parameters.
STATISTICS = {
    "labtrack_values_of_param": f"(mcv) ON key, value, left(value, {BEGINNING}) FROM params",
    "labtrack_values_of_tag": f"(mcv) ON key, value, left(value, {BEGINNING}) FROM tags",
}
TIMEOUT = 5  # seconds for each question
ACCOUNT = "mlflow"


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


def become():
    """Go on as MLflow's account: it is enough for the store, and the only one that the firewall lets there."""
    if os.geteuid() == 0:
        account = pwd.getpwnam(ACCOUNT)
        os.initgroups(ACCOUNT, account.pw_gid)
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)


def store(values, **more):
    """A client of the object store with the server's key, and the server's folder in it, like s3://bucket/artifacts.

    values: the settings.  more: timeouts and retries, as botocore's Config takes them.
    """
    import boto3
    from botocore.config import Config

    os.environ.update({name: value for name, value in values.items() if name.startswith("AWS_")})
    config = Config(s3={"addressing_style": "path"}, **more)
    client = boto3.client("s3", endpoint_url=values["MLFLOW_S3_ENDPOINT_URL"], config=config)
    return client, values.get("_MLFLOW_SERVER_ARTIFACT_DESTINATION", values["_MLFLOW_SERVER_ARTIFACT_ROOT"])
