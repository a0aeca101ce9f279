"""The writes of a training loop, answered without MLflow's handlers, where that gives the answer that MLflow would.

A request goes on to MLflow, unchanged and before anything was written, unless all of this is certain: its headers are a
plain client's, its password has been checked and its permission is remembered (caches.py), its JSON holds what MLflow
takes as it is (writes.py), the run is active and no parameter has another value (database.py).  So MLflow words each
refusal, checks each login and decides each permission.  See docs/decisions/0025-native-writes.md.
"""

import functools
import json
import logging
import os

import mlflow
from flask import Response, g
from google.protobuf.json_format import ParseError
from mlflow.protos.service_pb2 import LogBatch, LogMetric
from mlflow.server import ARTIFACTS_ONLY_ENV_VAR, BACKEND_STORE_URI_ENV_VAR, auth, handlers
from mlflow.server.security import get_allowed_hosts
from mlflow.server.security_utils import is_allowed_host_header
from werkzeug.datastructures import Authorization

from labtrack_server import caches, figures, writes
from labtrack_server.answers import words
from labtrack_server.database import Database, Unavailable
from labtrack_server.locations import invalid
from labtrack_server.patching import replace

_logger = logging.getLogger("labtrack")

# The MLflow with which tests/differential has compared these routes.
COMPARED_VERSION = "3.17.2"
PREFIX = "/api/2.0/mlflow/runs/"
ROUTES = {
    PREFIX + "log-metric": writes.log_metric,
    PREFIX + "log-batch": writes.log_batch,
    PREFIX + "log-parameter": writes.log_parameter,
    PREFIX + "set-tag": writes.set_tag,
}
LONGEST = 2**20  # bytes of a request: more than a full batch has
# Headers that change nothing about an answer.  With any other the request is MLflow's.
PLAIN = {
    b"accept", b"accept-encoding", b"accept-language", b"authorization", b"connection", b"content-length",
    b"content-type", b"host", b"user-agent", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto",
    b"x-real-ip", b"x-request-id", b"traceparent", b"tracestate", b"x-mlflow-client-version",
}  # fmt: skip


def unfit():
    """Why these routes are MLflow's own; empty where they are not."""
    if os.environ.get("LABTRACK_NATIVE", "1") == "0":
        return "LABTRACK_NATIVE is 0"
    if mlflow.__version__ != COMPARED_VERSION:
        return f"they were compared with MLflow {COMPARED_VERSION}, and this is {mlflow.__version__}"
    if auth.auth_config.authorization_function != "mlflow.server.auth:authenticate_request_basic_auth":
        return "logins are checked by another function than MLflow's own"
    if caches.PERMISSION_SECONDS <= 0 or auth._USER_AUTH_CACHE is None:
        return "permissions or passwords are not remembered"
    return "the server has artifacts only" if os.environ.get(ARTIFACTS_ONLY_ENV_VAR) else ""


class Native:
    """Answers what it can: `await native(scope, body)` is (status, headers, body), or None for what is MLflow's."""

    def __init__(self, flask, uri):
        self.database = Database(uri)
        self.headers = {path: success_headers(flask, path) for path in ROUTES}
        hosts = get_allowed_hosts()
        self.is_host = functools.lru_cache(100)(lambda host: "*" in hosts or is_allowed_host_header(hosts, host))

    async def __call__(self, scope, body):
        read = ROUTES.get(scope["path"])
        if read is None or scope["method"] != "POST" or scope["query_string"] or scope.get("root_path"):
            return None
        if (username := self.account(scope["headers"], len(body))) is None:
            return None
        try:
            batch = read(json.loads(body))
        except (ValueError, RecursionError):
            return None
        if batch is None or not caches.knows_update(username, batch.run_id):
            return None
        headers = self.headers[scope["path"]]
        try:
            written = await self.database.write(batch)
        except Unavailable as error:
            _logger.warning("labtrack: %s", error)
            said = words("TEMPORARILY_UNAVAILABLE", f"The server is busy or restarts: {error}. To fix: send it again.")
            return 503, [*headers, (b"content-length", b"%d" % len(said)), (b"retry-after", b"1")], said.encode()
        figures.points += len(batch.points) if written else 0
        return (200, [*headers, (b"content-length", b"2")], b"{}") if written else None

    def account(self, headers, length):
        """Whose request this is, where its headers are plain and its password has been checked; else None."""
        given = dict(headers)
        if len(given) != len(headers) or not given.keys() <= PLAIN or length > LONGEST:
            return None
        if given.get(b"content-type") != b"application/json" or given.get(b"content-length") != b"%d" % length:
            return None
        login = Authorization.from_header(given.get(b"authorization", b"").decode("latin-1"))
        if login is None or login.type != "basic" or not login.username or not login.password:
            return None
        if not self.is_host(given.get(b"host", b"").decode("latin-1")):
            return None
        return login.username if caches.knows_login(login.username, login.password) else None


def success_headers(flask, path):
    """The headers with which MLflow's application answers a plain request to PATH."""
    with flask.test_request_context(path, method="POST"):
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
