"""What trainings write and people look at, answered without MLflow's handlers, where that gives MLflow's own answer.

A request goes on to MLflow, unchanged and before anything was written, unless all of this is certain: its headers are a
plain client's, its password has been checked and its permission is remembered (caches.py), it holds what MLflow takes
as it is (writes.py, runs.py, reads.py), what is written to is active and no parameter has another value (database.py),
and what is found is printed as MLflow does (printing.py).  So MLflow words each refusal, checks each
login and decides each permission.  See docs/decisions/0025-native-routes.md.
"""

import asyncio
import contextlib
import functools
import json
import logging
import os
import re
import urllib.parse

import mlflow
from cachetools import LRUCache
from flask import Response, g
from google.protobuf.json_format import ParseError
from mlflow.protos.service_pb2 import LogBatch, LogMetric
from mlflow.server import ARTIFACTS_ONLY_ENV_VAR, BACKEND_STORE_URI_ENV_VAR, auth, handlers
from mlflow.server.security import get_allowed_hosts
from mlflow.server.security_utils import (
    get_allowed_origins_from_env,
    is_allowed_host_header,
    should_block_cors_request,
)
from starlette.middleware.wsgi import build_environ
from werkzeug.datastructures import Authorization

from labtrack_server import caches, figures, points, printing, reads, runs, writes
from labtrack_server.answers import words
from labtrack_server.database import QUICK, Database, Unavailable, logged
from labtrack_server.locations import invalid
from labtrack_server.patching import replace
from labtrack_server.printing import Unknown

_logger = logging.getLogger("labtrack")

# The MLflows with which tests/differential has compared these routes.
COMPARED_VERSIONS = ("3.17.2",)
API = "/api/2.0/mlflow/"
LOGS = {
    API + "runs/log-metric": writes.log_metric,
    API + "runs/log-batch": writes.log_batch,
    API + "runs/log-parameter": writes.log_parameter,
    API + "runs/set-tag": writes.set_tag,
    points.PATH: points.log_points,
}
# By method and path, as MLflow's clients ask and as its pages do.
READS = {
    (method, prefix + path): read
    for prefix in (API, "/ajax-api/2.0/mlflow/")
    for method, path, read in (
        ("POST", "runs/search", reads.search),
        ("GET", "runs/get", reads.get),
        ("GET", "metrics/get-history", reads.history),
        ("GET", "metrics/get-history-bulk-interval", reads.curves),
    )
}
LONGEST = 2**20  # bytes of a request: more than a full batch has
JSON = {b"application/json", b"application/json; charset=utf-8"}  # as MLflow's clients and its pages say it
LOCATIONS = 10_000  # of experiments, that are remembered
# Headers that change nothing about an answer.  With any other the request is MLflow's.
PLAIN = {
    b"accept", b"accept-encoding", b"accept-language", b"authorization", b"connection", b"content-length",
    b"content-type", b"host", b"user-agent", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto",
    b"x-real-ip", b"x-request-id", b"traceparent", b"tracestate", b"x-mlflow-client-version",
    # a browser's
    b"cache-control", b"dnt", b"origin", b"pragma", b"priority", b"referer", b"sec-ch-ua", b"sec-ch-ua-mobile",
    b"sec-ch-ua-platform", b"sec-fetch-dest", b"sec-fetch-mode", b"sec-fetch-site", b"sec-gpc", b"te",
}  # fmt: skip
MANY = "run_ids"  # the one field of a query that may be there more than once
# An address's query of plain characters, which all parsers read alike.
QUERY = re.compile(rb"[A-Za-z0-9_.~%+=&*-]*")


def unfit():
    """Why these routes are MLflow's own; empty where they are not."""
    if os.environ.get("LABTRACK_NATIVE", "1") == "0":
        return "LABTRACK_NATIVE is 0"
    if mlflow.__version__ not in COMPARED_VERSIONS:
        return f"they were compared with MLflow {' and '.join(COMPARED_VERSIONS)}, and this is {mlflow.__version__}"
    if auth.auth_config.authorization_function != "mlflow.server.auth:authenticate_request_basic_auth":
        return "logins are checked by another function than MLflow's own"
    if caches.PERMISSION_SECONDS <= 0 or auth._USER_AUTH_CACHE is None:
        return "permissions or passwords are not remembered"
    return "the server has artifacts only" if os.environ.get(ARTIFACTS_ONLY_ENV_VAR) else ""


class Native:
    """Answers what it can: `await native(scope, body)` is (status, headers, body), or None for what is MLflow's."""

    def __init__(self, flask, uri):
        self.database = Database(uri)
        self.locations = LRUCache(LOCATIONS)
        self.flask = flask
        self.writes = {
            **{path: (read, may_change, self.logged) for path, read in LOGS.items()},
            API + "runs/create": (runs.create, may_create, self.created),
            API + "runs/update": (runs.update, may_change, self.changed),
        }
        hosts, origins = get_allowed_hosts(), get_allowed_origins_from_env()
        self.headers = functools.lru_cache(100)(functools.partial(success_headers, flask))
        self.is_host = functools.lru_cache(100)(lambda host: "*" in hosts or is_allowed_host_header(hosts, host))
        self.is_origin = functools.lru_cache(100)(lambda origin: not should_block_cors_request(origin, "POST", origins))

    async def __call__(self, scope, body):
        method, path = scope["method"], scope["path"]
        read = READS.get((method, path))
        write = self.writes.get(path) if method == "POST" else None
        if not (read or write) or scope.get("root_path") or len(scope["headers"]) > len(PLAIN):
            return None
        given = dict(scope["headers"])
        username = self.account(given, body) if len(given) == len(scope["headers"]) else None
        if username is None or (document := asked(method, scope["query_string"], body)) is None:
            return None
        try:
            if write:
                understand, may, answer = write
                wanted = understand(document)
                known = wanted is not None and await self.known(functools.partial(may, username, wanted), scope, body)
                said = await answer(wanted) if known else None
            else:
                said = await self.found(username, await understood(read, document))
            status, more = 200, []
        except Unavailable as error:
            _logger.warning("labtrack: %s", error)
            said = words("TEMPORARILY_UNAVAILABLE", f"The server is busy or restarts: {error}. To fix: send it again.")
            status, said, more = 503, said.encode(), [(b"retry-after", b"1")]
        if said is None:
            return None
        headers = self.headers(given.get(b"origin", b"").decode("latin-1"))
        return status, [*headers, (b"content-length", b"%d" % len(said)), *more], said

    async def known(self, may, scope, body):
        """Is the permission remembered, where need be after MLflow was asked?  Its handler would take far longer."""
        if not may():
            await asyncio.to_thread(self.ask, build_environ(scope, body))
        return may()

    def ask(self, environ):
        """Have MLflow check a request, without its handler.  What it refuses it is given again, for its words."""
        with contextlib.suppress(Exception), self.flask.request_context(environ):
            self.flask.preprocess_request()

    async def logged(self, batch):
        """The answer to points, parameters and tags of a run; None where it is MLflow's."""
        if not await self.database.write(*logged(batch)):
            return None
        figures.points += len(batch.points)
        return b"{}"

    async def changed(self, change):
        """The answer to another status, end or name of a run; None where it is MLflow's."""
        rows = await self.database.write(runs.CHANGE, change.values())
        return printing.changed(rows[0]) if rows else None

    async def created(self, run):
        """The answer to a new run; None where it is MLflow's."""
        at, place = caches.PLACES.now(), run.experiment_id
        if (location := self.locations.get(place)) is None:
            rows = await self.database.read(runs.LOCATION, [int(place)]) or [{"artifact_location": None}]
            if not runs.PLAIN.fullmatch(location := rows[0]["artifact_location"] or ""):
                return None
        if not await self.database.write(runs.CREATE, run.values(location)):
            self.locations.pop(place, None)
            return None
        self.locations[place] = location
        caches.PLACES.keep(run.run_id, place, at)
        return printing.created(run.row(location), run.tags)

    async def found(self, username, question):
        """The answer to a question; None where it is MLflow's."""
        if (
            question is None
            or not caches.knows_search(username, question.experiments)
            or not all(caches.knows(username, run_id, "read") for run_id in question.runs)
            or (question.curves and not caches.knows_histories(username, question.curves))
        ):
            return None
        at = caches.PLACES.now()
        async with self.database.reading():
            rows = None
            for quick in question.quick:
                tried = await self.database.read(*quick, QUICK, question.planned)
                rows = tried if tried and len(tried) == question.most else None
            if rows is None:
                rows = await self.database.read(question.sql, question.values, planned=question.planned)
            if rows is None:
                return None
            if question.experiments:  # the page's next question is for the curves of these runs
                for row in rows:
                    caches.PLACES.keep(row["run_uuid"], str(row["experiment_id"]), at)
            try:
                return await question.answer(rows, caches.knows_models(username))
            except Unknown:
                return None

    def account(self, given, body):
        """Whose request this is, where its headers are plain and its password has been checked; else None."""
        origin = given.get(b"origin")
        if (
            not given.keys() <= PLAIN
            or len(body) > LONGEST
            or (body and given.get(b"content-type") not in JSON)
            or given.get(b"content-length", b"0") != b"%d" % len(body)
            or not self.is_host(given.get(b"host", b"").decode("latin-1"))
            or (origin is not None and not self.is_origin(origin.decode("latin-1")))
        ):
            return None
        login = Authorization.from_header(given.get(b"authorization", b"").decode("latin-1"))
        if login is None or login.type != "basic" or not login.username or not login.password:
            return None
        return login.username if caches.knows_login(login.username, login.password) else None


def may_change(username, wanted):
    """Is it remembered that USERNAME may write to the run that is WANTED?"""
    return caches.knows(username, wanted.run_id, "update")


def may_create(username, wanted):
    """Is it remembered that USERNAME may make the run that is WANTED?"""
    return caches.knows_create(username, wanted.experiment_id)


def asked(method, query, body):
    """What a request says, by its body or by its query; None where that is not certain."""
    try:
        if method == "POST":
            return None if query else json.loads(body)
        if body or not query or not QUERY.fullmatch(query):
            return None
        fields = urllib.parse.parse_qsl(query.decode(), keep_blank_values=True, errors="strict")
    except (ValueError, RecursionError):
        return None
    found, many = dict(fields), [value for name, value in fields if name == MANY]
    if many:
        found[MANY] = many
    return found if len(found) + max(len(many) - 1, 0) == len(fields) else None


async def understood(read, document):
    """The question in DOCUMENT.  A filter may keep MLflow's parser busy: not in the thread of all requests."""
    if isinstance(document, dict) and (document.get("filter") or document.get("order_by")):
        return await asyncio.to_thread(read, document)
    return read(document)


def success_headers(flask, origin):
    """The headers with which MLflow's application answers a plain request from a page of ORIGIN."""
    with flask.test_request_context("/health", headers={"Origin": origin} if origin else None):
        answered = flask.process_response(Response("{}", mimetype="application/json"))
    return [
        (name.lower().encode(), value.encode("latin-1")) for name, value in answered.headers if name != "Content-Length"
    ]


def refuse_half_read():
    """Refuse metrics that MLflow can read in part only.  It answers 200, and drops what follows a step of 1.5."""

    def parse_dict(original):
        def noting(document, message):
            try:
                return original(document, message)
            except ParseError as error:
                if isinstance(message, (LogBatch, LogMetric)):
                    g.labtrack_unread = str(error)
                raise

        return noting

    def validate(original):
        def whole(document, schema, proto_parsing_succeeded):
            original(document, schema, proto_parsing_succeeded)
            # without a schema it is the permission that is looked for: that comes first
            if schema and proto_parsing_succeeded is False and (said := g.pop("labtrack_unread", None)):
                raise invalid(
                    f"{said.rstrip('.')}: nothing was logged. To fix: send numbers, whole ones for steps and times."
                )

        return whole

    replace(handlers, "parse_dict", parse_dict)
    replace(handlers, "_validate_request_json_with_schema", validate)


def install(flask):
    """The native routes; None, and a line in the journal, where they are off."""
    why = unfit()
    if not why:
        try:
            routes = Native(flask, os.environ[BACKEND_STORE_URI_ENV_VAR])
        except (KeyError, ValueError) as error:
            why = f"{error}"
    if why:
        _logger.warning("labtrack: the routes of training loops are MLflow's own: %s", why)
        return None
    refuse_half_read()
    return routes
