"""What a lab has recorded, in numbers and without names: for the weekly report."""

import json
import time

from mlflow_checks import bucket, usage
from mlflow_databases import connect, query

WEEK = 7 * 24 * 3600  # seconds
LONGEST = 60  # seconds, that objects are counted for
RUNS = """
SELECT count(*), count(*) FILTER (WHERE start_time >= %(since)s),
    count(*) FILTER (WHERE start_time >= %(since)s AND status = 'FAILED'),
    count(DISTINCT user_id) FILTER (WHERE start_time >= %(since)s)
FROM runs WHERE lifecycle_stage = 'active'
"""
EXPERIMENTS = """
SELECT count(*), count(*) FILTER (WHERE creation_time >= %(since)s) FROM experiments WHERE lifecycle_stage = 'active'
"""
# The planner's estimate, kept by autovacuum: to count them would read them all.
SIZES = """
SELECT pg_database_size(current_database()),
    (SELECT greatest(reltuples, 0)::bigint FROM pg_class WHERE oid = to_regclass('metrics'))
"""


def recorded():
    """Runs, people, experiments, accounts, points and the size of the database; of the week where it says so."""
    since = {"since": int((time.time() - WEEK) * 1000)}
    tracking = connect("tracking")
    with tracking.cursor() as cursor:
        found = []
        for sql in (RUNS, EXPERIMENTS, SIZES):
            cursor.execute(sql, since)
            found += cursor.fetchone()
    names = ("runs", "runs_week", "failed_week", "people_week", "experiments", "experiments_week", "database", "points")
    ((accounts,),) = query(connect("auth"), "SELECT count(*) FROM users")
    return dict(zip(names, found, strict=True)) | {"accounts": accounts}


def stored():
    """How much is in the bucket, as its store says or as it is counted; None where that takes too long."""
    client, name = bucket()
    used, objects, limits = usage(client, name)
    if used is None:
        used, objects = counted(client, name, time.monotonic() + LONGEST)
    objects = None if objects is None else int(objects)
    return {"bucket": used, "objects": objects, "bucket_limit": min((one for one in limits if one > 0), default=None)}


def counted(client, name, until):
    used = objects = 0
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=name):
        for one in page.get("Contents", []):
            used, objects = used + one["Size"], objects + 1
        if time.monotonic() > until:
            return None, None
    return used, objects


def main():
    found = recorded()
    try:
        found |= stored()
    except Exception as error:  # whatever is wrong with the store, the rest is told; the row `store` says it
        found |= {"bucket": None, "objects": None, "bucket_limit": None, "why": " ".join(str(error).split())}
    print(json.dumps(found))
    return 0
