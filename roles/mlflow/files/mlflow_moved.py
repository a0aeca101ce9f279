"""A lab's databases on their way to another server: what `mlflowctl leave` and `arrive` do.

The bucket is another one there.  MLflow writes whole addresses into its rows when they are made, and looks them up as
they are for ever; so those that begin with the old bucket get the new one.  Nothing else is touched: what people have
written stays, whatever it names.
"""

import json
import os
import subprocess
import time

from mlflow_databases import VERSION_TABLE, connect, database, needed, query, revision, settings
from mlflow_dumps import ControlError, login, restore, room

OF = "of.json"  # what the dumps are of: written last
# Table, column and which rows: addresses of artifacts.  A test looks at all columns of MLflow's schema, so that one
# that comes with a new version is not forgotten.
ADDRESSES = (
    ("experiments", "artifact_location", "true"),
    ("runs", "artifact_uri", "true"),
    ("logged_models", "artifact_location", "true"),
    ("model_versions", "source", "true"),
    ("model_versions", "storage_location", "true"),
    ("trace_tags", "value", "key IN ('mlflow.artifactLocation', 'mlflow.trace.archiveLocation')"),
    ("workspaces", "default_artifact_root", "true"),
    ("workspaces", "trace_archival_location", "true"),
)
# The same with JSON in it, of which some strings are addresses.
DOCUMENTS = (
    ("datasets", "dataset_source", "true"),
    ("tags", "value", "key = 'mlflow.log-model.history'"),
)
COLUMNS = "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public'"
TABLES = "SELECT quote_ident(tablename) FROM pg_tables WHERE schemaname = 'public' ORDER BY 1"
BUCKETS = "SELECT DISTINCT split_part(artifact_uri, '/', 3) FROM runs WHERE artifact_uri LIKE 's3://%%' ORDER BY 1"
# What somebody has recorded, but for the runs of doctor; experiments and accounts are made by the kit, too.
RECORDED = {
    "runs": "runs WHERE NOT (lifecycle_stage = 'deleted' AND name = 'doctor')",
    "models": "logged_models",
    "registered models": "registered_models",
    "traces": "trace_info",
}


def readdress(connection, old, new):
    """Have all addresses in the bucket `old` name `new` instead, in one transaction; how many rows of which column."""
    if old == new:
        return {}
    before, after = f"s3://{old}", f"s3://{new}"
    there = set(query(connection, COLUMNS))
    changed = {}
    with connection.cursor() as cursor:
        cursor.execute("BEGIN")
        for table, column, which in ADDRESSES:
            if (table, column) not in there:
                continue  # of another version of MLflow
            begins = f"(starts_with({column}, %(before)s || '/') OR {column} = %(before)s)"
            value = f"%(after)s || substr({column}, length(%(before)s) + 1)"
            change = f"UPDATE {table} SET {column} = {value} WHERE {begins} AND {which}"  # noqa: S608
            cursor.execute(change, {"before": before, "after": after})
            changed[f"{table}.{column}"] = cursor.rowcount
        # where a string begins with it: after a quotation mark that is none of the string's own
        pattern = rf'(?<!\\)"{before.replace(".", "[.]")}(?=[/"])'
        for table, column, which in DOCUMENTS:
            value = f"regexp_replace({column}, %(pattern)s, %(after)s, 'g')"
            change = f"UPDATE {table} SET {column} = {value} WHERE {column} ~ %(pattern)s AND {which}"  # noqa: S608
            cursor.execute(change, {"pattern": pattern, "after": f'"{after}'})
            changed[f"{table}.{column}"] = cursor.rowcount
        cursor.execute("COMMIT")
    return {name: number for name, number in changed.items() if number}


def rows(connection):
    """How many rows each table has."""
    return {table: count(connection, table) for (table,) in query(connection, TABLES)}


def count(connection, where):
    return query(connection, f"SELECT count(*) FROM {where}")[0][0]  # noqa: S608


def leave(folder):
    """Dump both databases into a folder that only its owner can enter; of.json says what they are."""
    idle()
    room(folder)
    of = {
        "version": 1, "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "bucket": bucket(settings()),
        "postgresql": major(connect("tracking")), "schema": {}, "rows": {},
    }  # fmt: skip
    os.umask(0o077)
    for which in VERSION_TABLE:
        where = database(which)
        of["schema"][which] = revision(which)
        of["rows"][which] = rows(connect(which))
        file = folder / f"{which}.dump"
        command = ["pg_dump", "--format=custom", "--no-owner", "--no-acl", f"--file={file}", *login(where)]
        if subprocess.run([*command, where["dbname"]], check=False).returncode:
            raise ControlError(f"{where['dbname']} could not be dumped.", "what pg_dump says above, and try again.")
    part = folder / f"{OF}.part"
    part.write_text(json.dumps(of) + "\n")
    part.rename(folder / OF)
    print(f"{total(of)} rows of {', '.join(VERSION_TABLE)} were dumped.")
    return 0


def arrive(folder, values):
    """Make both databases those of the dumps, and their addresses those of this server's bucket.

    What was there is gone; killed anywhere, the same call begins anew.
    """
    idle()
    of = json.loads((folder / OF).read_text())
    for which, head in needed().items():
        if of["schema"][which] != head:
            raise ControlError(
                f"The dump of {which} has the schema {of['schema'][which]}, and this server's MLflow wants {head}.",
                "deploy both servers with the same version of the kit (site.yml, with the same lab_mlflow_version).",
            )
    if major(connect("tracking")) < of["postgresql"]:
        raise ControlError(
            f"The dumps are of PostgreSQL {of['postgresql']}, and here is {major(connect('tracking'))}.",
            "set lab_image to the Debian of the other server, or a newer one.",
        )
    for which in VERSION_TABLE:
        restore(which, folder / f"{which}.dump")
        connection = connect(which)
        found, wanted = rows(connection), of["rows"][which]
        if found != wanted:
            other = sorted(table for table in found.keys() | wanted.keys() if found.get(table) != wanted.get(table))
            raise ControlError(
                f"{which} has other rows than its dump: {', '.join(other)}.", "try again, and report it."
            )
        query(connection, "ANALYZE")
    new = bucket(values)
    changed = readdress(connect("tracking"), of["bucket"], new)
    told = ", ".join(f"{number} in {name}" for name, number in changed.items())
    print(f"{total(of)} rows arrived; addresses in {new} instead of {of['bucket']}: {told or 'none'}.")
    if other := [name for (name,) in query(connect("tracking"), BUCKETS) if name != new]:
        print(f"Artifacts of some runs are in {', '.join(other)}, and stay there.")
    return 0


def vacant():
    """Refuse where somebody has recorded anything."""
    connection = connect("tracking")
    found = {what: count(connection, where) for what, where in RECORDED.items()}
    if any(found.values()):
        listed = ", ".join(f"{number} {what}" for what, number in found.items() if number)
        raise ControlError(
            f"This server has {listed}, which would be lost.",
            "move into a new lab; or, where that is of no worth, take the server away, and make it anew "
            "(playbooks/destroy.yml).",
        )
    return 0


def idle():
    """Refuse where an instance runs, which would write."""
    shown = ["systemctl", "list-units", "--plain", "--no-legend", "--state=active,activating", "mlflow@*.service"]
    if running := subprocess.run(shown, capture_output=True, text=True, check=True).stdout.split():
        raise ControlError(f"MLflow runs: {running[0]}.", "systemctl stop 'mlflow@*', and start them again afterwards.")


def total(of):
    return sum(number for tables in of["rows"].values() for number in tables.values())


def major(connection):
    return int(query(connection, "SHOW server_version_num")[0][0]) // 10000


def bucket(values):
    """The bucket of a server, from its settings."""
    root = values.get("_MLFLOW_SERVER_ARTIFACT_DESTINATION", values["_MLFLOW_SERVER_ARTIFACT_ROOT"])
    return root.removeprefix("s3://").partition("/")[0]
