"""MLflow's tracking server with its accounts, made ready for many small requests.

`labtrack_server:create_app` is what uvicorn runs instead of `mlflow.server.auth:create_app`: the same application,
with two things done differently.  Both were measured: docs/reference/performance.md.

- Whether an account may write to a run is looked up with some ten queries, for each logged metric again.  Here the
  answer "yes" is kept for a moment (LABTRACK_PERMISSION_CACHE_SECONDS), and which experiment a run belongs to, which
  never changes, for good.  "No" is never kept, so a permission that is given counts at once.
- The requests that a training loop makes go straight to MLflow's Flask application, which has all of the checks (host,
  origin, login, permission), and not also through the layers that exist for other routes.

It reaches into MLflow, so it does so only for the version that it was written and tested for.  With any other, or with
workspaces, MLflow's own application runs unchanged, and the journal says so.
"""

import asyncio
import functools
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import mlflow
from cachetools import LRUCache, TTLCache
from mlflow.environment_variables import MLFLOW_ENABLE_WORKSPACES
from mlflow.server import auth
from starlette.middleware.wsgi import build_environ

_logger = logging.getLogger("labtrack")

KNOWN_VERSION = "3.17.2"
PERMISSION_SECONDS = int(os.environ.get("LABTRACK_PERMISSION_CACHE_SECONDS", "15"))
THREADS = int(os.environ.get("LABTRACK_THREADS", "10"))
STRAIGHT = frozenset(
    f"/api/2.0/mlflow/runs/{action}"
    for action in ("create", "get", "log-batch", "log-metric", "log-parameter", "set-tag", "update")
)


def remember(cache, key_of=lambda *arguments: arguments):
    """Keep a function's answers that are worth keeping: whatever is not None or False."""
    lock = threading.Lock()

    def decorate(function):
        @functools.wraps(function)
        def remembering(*arguments):
            key = key_of(*arguments)
            with lock:
                known = cache.get(key)
            if known is None:
                known = function(*arguments)
                if known:
                    with lock:
                        cache[key] = known
            return known

        return remembering

    return decorate


def keep_permissions(seconds):
    """Ask the databases once in SECONDS whether an account may do something, instead of for each request."""

    def decision(username, anchor, requirements):
        return username, anchor, tuple(requirements)

    auth.authorize = remember(TTLCache(10_000, seconds), decision)(auth.authorize)

    known_runs = remember(LRUCache(10_000))(auth._run_requirement)

    def run_requirement(run_id, action):
        known = known_runs(run_id, action)
        # The caller adds to the list.
        return known and (known[0], list(known[1]))

    auth._run_requirement = run_requirement

    # Being no admin is the answer that is kept: it gives nobody a right.
    is_ordinary = remember(TTLCache(10_000, seconds))(lambda username: not auth.store.get_user(username).is_admin)
    auth.sender_is_admin = lambda: not is_ordinary(auth.authenticate_request().username)


class Straight:
    """Sends a training loop's requests straight to Flask, in threads of their own, and all others to APP."""

    def __init__(self, app, flask, threads):
        self.app, self.flask = app, flask
        self.threads = ThreadPoolExecutor(threads, "straight")

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or scope["path"] not in STRAIGHT:
            return await self.app(scope, receive, send)
        chunks, more = [], True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            chunks.append(message.get("body", b""))
            more = message.get("more_body", False)
        environ = build_environ(scope, b"".join(chunks))
        status, headers, body = await asyncio.get_running_loop().run_in_executor(self.threads, self.call, environ)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        return await send({"type": "http.response.body", "body": body})

    def call(self, environ):
        """Status, headers and body of a request, as ASGI wants them."""
        answer = []

        def start_response(status, headers, _error=None):
            answer[:] = int(status.split(" ", 1)[0]), [(k.lower().encode(), v.encode("latin-1")) for k, v in headers]

        parts = self.flask(environ, start_response)
        try:
            body = b"".join(parts)
        finally:
            if hasattr(parts, "close"):
                parts.close()
        return answer[0], answer[1], body


def unknown():
    """Why MLflow's own application has to run as it is; empty when it need not."""
    if mlflow.__version__ != KNOWN_VERSION:
        return f"written for MLflow {KNOWN_VERSION}, found {mlflow.__version__}"
    if MLFLOW_ENABLE_WORKSPACES.get():
        return "workspaces are on"
    missing = [name for name in ("authorize", "_run_requirement", "sender_is_admin") if not hasattr(auth, name)]
    return f"MLflow has no {', '.join(missing)}" if missing else ""


def create_app():
    """The application that uvicorn runs."""
    app = auth.create_app()
    if reason := unknown():
        _logger.warning("labtrack: MLflow runs unchanged, and slower: %s", reason)
        return app
    if PERMISSION_SECONDS > 0:
        keep_permissions(PERMISSION_SECONDS)
    return Straight(app, auth.app, THREADS)
