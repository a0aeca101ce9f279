"""The training loop's requests, and artifacts on their way out, without MLflow's layers for other routes.

MLflow's Flask application has all of the checks (host, origin, login, permission); the layers in front of it are for
the routes that it does not serve.  They cost a third of what a metric takes, and they collect a whole answer in memory
before a slow client has read it: measured in docs/reference/performance.md.
"""

import asyncio
import contextlib
import os
import re
from concurrent.futures import ThreadPoolExecutor

from starlette.middleware.wsgi import build_environ

from labtrack_server import points

THREADS = int(os.environ.get("LABTRACK_THREADS", "10"))
# Downloads wait for their clients, so they have threads of their own.
DOWNLOADS = 8
STRAIGHT = frozenset(
    f"/api/2.0/mlflow/runs/{action}"
    for action in ("create", "log-batch", "log-metric", "log-parameter", "set-tag", "update")
) | {points.PATH}
# What people and their scripts look at, in threads of its own: a training does not wait for it.
READ = frozenset(
    f"/{kind}/2.0/mlflow/{path}"
    for kind in ("api", "ajax-api")
    for path in ("runs/search", "runs/get", "metrics/get-history", "metrics/get-history-bulk-interval")
)
STREAMED = re.compile(
    r"/get-artifact|/model-versions/get-artifact"
    r"|/ajax-api/[23]\.0/mlflow/get-trace-artifact"
    r"|/ajax-api/2\.0/mlflow/logged-models/[^/]+/artifacts/files"
    r"|/(?:ajax-)?api/2\.0/mlflow-artifacts/artifacts/.+"
)


class Straight:
    """Sends some requests straight to Flask, in threads of their own, and all others to APP.

    native: asked first for the short ones; see native.py.
    """

    def __init__(self, app, flask, native=None):
        self.app, self.flask, self.native = app, flask, native
        self.threads = ThreadPoolExecutor(THREADS, "straight")
        self.reads = ThreadPoolExecutor(THREADS, "read")
        self.downloads = ThreadPoolExecutor(DOWNLOADS, "download")

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http" and scope["path"] in STRAIGHT:
            return await self.answer(scope, receive, send, self.threads)
        # a browser's question beforehand (OPTIONS) is for the layers: it brings no login
        if scope["type"] == "http" and scope["method"] in ("GET", "POST") and scope["path"] in READ:
            return await self.answer(scope, receive, send, self.reads)
        if scope["type"] == "http" and scope["method"] in ("GET", "HEAD") and STREAMED.fullmatch(scope["path"]):
            return await self.stream(scope, receive, send)
        return await self.app(scope, receive, send)

    async def answer(self, scope, receive, send, threads):
        """Read a short request, and send its answer in one piece."""
        if (body := await _body(receive)) is None:
            return
        if scope["path"] == points.PATH:
            scope, body = points.unpack(scope, body)
        answer = await self.native(scope, body) if self.native else None
        if answer is None:
            answer = await _in(threads, self.call, build_environ(scope, body), whole=True)
        status, headers, parts = answer
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": parts})

    async def stream(self, scope, receive, send):
        """Send an answer piece by piece, each when the client has taken those before; stop when it has gone."""
        if (body := await _body(receive)) is None:
            return
        status, headers, parts = await _in(self.downloads, self.call, build_environ(scope, body), whole=False)
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await send({"type": "http.response.start", "status": status, "headers": headers})
            pieces = iter(parts)
            while not gone.done() and (piece := await _in(self.downloads, next, pieces, None)) is not None:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            gone.cancel()
            if hasattr(parts, "close"):
                await _in(self.downloads, parts.close)

    def call(self, environ, *, whole):
        """Status, headers and body of a request, as ASGI wants them; the body as bytes if WHOLE, else as it comes."""
        answer = []

        def start_response(status, headers, _error=None):
            answer[:] = int(status.split(" ", 1)[0]), [(k.lower().encode(), v.encode("latin-1")) for k, v in headers]

        parts = self.flask(environ, start_response)
        if not whole:
            return *answer, parts
        try:
            return *answer, b"".join(parts)
        finally:
            if hasattr(parts, "close"):
                parts.close()


async def _in(threads, function, *arguments, **named):
    return await asyncio.get_running_loop().run_in_executor(threads, lambda: function(*arguments, **named))


async def _body(receive):
    """The request's body; None when the client went before it was complete."""
    chunks, more = [], True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunks.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(chunks)


async def _disconnected(receive):
    with contextlib.suppress(asyncio.CancelledError):
        while (await receive())["type"] != "http.disconnect":
            pass
