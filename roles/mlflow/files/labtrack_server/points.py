"""Points of one run in columns, thousands in a request: what `labtrack sync` sends where the server offers it.

A JSON document, which may be compressed (`Content-Encoding: gzip`); all but the run are lists:
    run_id      the run
    keys        the metrics' names
    key         of each point, which of those it is: 0 for the first
    value       numbers, or "NaN", "Infinity", "-Infinity"
    timestamp   milliseconds since 1970
    step        whole numbers

It writes what `runs/log-batch` writes for the same points, with its permission, and may be sent again like it.  Here
are the native route's reading of it (native.py) and, for what that is not certain of, the view that hands the points to
MLflow's store, a batch after the other.
"""

import contextlib
import zlib

from flask import Response, request
from mlflow.entities import Metric
from mlflow.server import auth, handlers
from mlflow.utils import validation

from labtrack_server import writes
from labtrack_server.limits import ITEMS
from labtrack_server.locations import invalid

PATH = "/api/2.0/labtrack/runs/log-points"
MOST = ITEMS  # points of a request
UNPACKED = 4 * 2**20  # bytes of a compressed one
COLUMNS = ("key", "value", "timestamp", "step")
FIELDS = {"run_id", "keys", *COLUMNS}


def unpack(scope, body):
    """A request without its compression; empty where it can't be unpacked, or is too long then."""
    if dict(scope["headers"]).get(b"content-encoding") != b"gzip":
        return scope, body
    opened, found = zlib.decompressobj(zlib.MAX_WBITS | 16), b""
    with contextlib.suppress(zlib.error):
        found = opened.decompress(body, UNPACKED)
    if not opened.eof or opened.unused_data:
        found = b""
    kept = [(name, value) for name, value in scope["headers"] if name not in (b"content-encoding", b"content-length")]
    return {**scope, "headers": [*kept, (b"content-length", b"%d" % len(found))]}, found


def complaint(document):
    """What is wrong with a document's shape; None if nothing is."""
    if type(document) is not dict or not document.keys() <= FIELDS or type(document.get("run_id")) is not str:
        return f"a JSON object of run_id and {', '.join(sorted(FIELDS - {'run_id'}))} is expected"
    keys, columns = document.get("keys"), [document.get(name) for name in COLUMNS]
    if not all(type(one) is list for one in (keys, *columns)):
        return f"keys, {', '.join(COLUMNS)} are to be lists"
    if not 0 < len(columns[0]) <= MOST or len({len(one) for one in columns}) > 1:
        return f"{', '.join(COLUMNS)} are to have one item for each point, of 1 to {MOST} points"
    if not all(type(one) is str for one in keys):
        return "keys are to be the metrics' names"
    if not all(type(one) is int and 0 <= one < len(keys) for one in columns[0]):
        return "key is to say which of keys each point belongs to, from 0 on"
    return None


def log_points(document):
    """The points as columns for the database; None where that is not certain, as in writes.py."""
    if complaint(document) or not writes.RUN_ID.fullmatch(document["run_id"]):
        return None
    keys, times, steps = document["keys"], document["timestamp"], document["step"]
    values = [writes.number(one) for one in document["value"]]
    if (
        None in values
        or not all(map(writes.is_name, keys))
        or not all(type(one) is int and 0 <= one <= writes.LAST for one in times)
        or not all(type(one) is int and -writes.LAST <= one <= writes.LAST for one in steps)
    ):
        return None
    named = [keys[one] for one in document["key"]]
    points = list(
        dict.fromkeys(
            (key, time, step, *value) for key, time, step, value in zip(named, times, steps, values, strict=True)
        )
    )
    return writes.Batch(document["run_id"], points, writes.last_of_each(points), {}, {})


def is_value(one):
    """Is ONE a metric's value, as a document may have it?"""
    return type(one) is float or (type(one) is int and abs(one) <= writes.LARGEST) or one in list(writes.SPELLED)


def log_by_mlflow():
    """The same by MLflow's store, which says in its words what it does not take."""
    document = request.get_json(silent=True)
    if said := complaint(document):
        raise invalid(f"No points were logged: {said}.")
    for name in ("timestamp", "step"):
        if not all(type(one) is int and abs(one) <= writes.LAST for one in document[name]):
            raise invalid(f"No points were logged: not all of {name} are whole numbers of 64 bits.")
    if not all(map(is_value, document["value"])):
        raise invalid('No points were logged: not all of value are numbers, "NaN", "Infinity" or "-Infinity".')
    points = [
        Metric(document["keys"][key], float(value), timestamp, step)
        for key, value, timestamp, step in zip(*(document[name] for name in COLUMNS), strict=True)
    ]
    store = handlers._get_tracking_store()
    for first in range(0, len(points), validation.MAX_METRICS_PER_BATCH):
        portion = points[first : first + validation.MAX_METRICS_PER_BATCH]
        store.log_batch(document["run_id"], metrics=portion, params=[], tags=[])
    return Response("{}", mimetype="application/json")


def install(app):
    """Offer the route, to whom MLflow lets log to the run."""
    app.add_url_rule(PATH, "labtrack_log_points", handlers.catch_mlflow_exception(log_by_mlflow), methods=["POST"])
    auth.BEFORE_REQUEST_VALIDATORS[PATH, "POST"] = auth.validate_can_update_run
