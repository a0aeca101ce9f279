"""A proxy between a sync and the server that does what bad networks and busy servers do."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace, TracebackType
from urllib.parse import urlsplit

import requests

HANG = 3.0  # seconds: longer than the clients of the tests wait
_HOPS = ("connection", "transfer-encoding", "content-length", "content-encoding", "keep-alive", "server", "date")

# answered without being carried out: status, type, text
_AT_ONCE = {
    "503": (503, "text/plain", b"{}"),
    "429": (429, "text/plain", b"{}"),
    "504 at once": (504, "text/plain", b"{}"),
    "400": (400, "application/json", b'{"error_code": "INVALID_PARAMETER_VALUE", "message": "not today"}'),
    "403": (403, "application/json", b'{"error_code": "PERMISSION_DENIED", "message": "you may not"}'),
    "met": (400, "application/json", b'{"error_code": "BAD_REQUEST", "message": "UniqueViolation: duplicate key"}'),
    "413": (413, "text/html", b"<html>413 Request Entity Too Large</html>"),
    "dropped": (200, "application/json", b"{}"),
    "page": (200, "text/html", b"<html>Please log in</html>"),
}

Choose = Callable[[str, int], str]


def kind_of(method: str, path: str) -> str:
    """What is called, without ids and file names."""
    plain = urlsplit(path).path
    if "/mlflow-artifacts/" in plain:
        return f"{method} artifacts"
    name = plain.partition("/mlflow/")[2]
    return f"{method} {'logged-models/ID' if name.startswith('logged-models/m-') else name}"


class HostileProxy:
    """choose_path: as `choose`, for the path of a call, and asked first.

    choose: for a kind of call and how often it came, the fault: "" for none, or one of

    lost (carried out, then no answer), 504 (carried out, then 504), reset (not carried out, connection reset), hang
    (carried out, answered too late), late (an error at once, carried out a moment later), held (carried out when
    `let_go` is called, whether or not somebody still waits for the answer), or one of _AT_ONCE.
    """

    def __init__(self, to: str, choose: Choose) -> None:
        self.to, self.choose = to, choose
        self.choose_path: Callable[[str], str] = lambda _: ""
        self.counts: Counter[str] = Counter()
        self.faults: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()
        self._free, self._landed = threading.Event(), threading.Event()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                proxy.handle(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> HostileProxy:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def let_go(self) -> None:
        """Lets the server carry out a call that is held, and waits until it has."""
        self._free.set()
        assert self._landed.wait(60)

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        kind = kind_of(request.command, request.path)
        with self._lock:
            self.counts[kind] += 1
            fault = self.choose_path(request.path) or self.choose(kind, self.counts[kind])
            self.faults[kind, fault] += 1
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        if fault == "reset":
            return self._reset(request)
        if fault in _AT_ONCE:
            status, about, text = _AT_ONCE[fault]
            return self._answer(request, status, text, {"Content-Type": about, "Retry-After": "0"})
        if fault == "late":
            # as it is now: the connection is kept, and its next request may have begun by then
            now = SimpleNamespace(command=request.command, path=request.path, headers=request.headers)
            threading.Timer(0.3, self._forward, (now, body)).start()
            return self._answer(request, 502, b"bad gateway", {})
        if fault == "held":
            self._free.wait(60)
        answer = self._forward(request, body)
        if fault == "held":
            self._landed.set()
        if fault == "lost":
            return self._reset(request)
        if fault == "504":
            return self._answer(request, 504, b"gateway timeout", {})
        if fault == "hang":
            time.sleep(HANG)
        headers = {key: value for key, value in answer.headers.items() if key.lower() not in _HOPS}
        return self._answer(request, answer.status_code, answer.content, headers)

    def _forward(self, request: BaseHTTPRequestHandler | SimpleNamespace, body: bytes) -> requests.Response:
        kept = {key: value for key, value in request.headers.items() if key.lower() not in (*_HOPS, "host")}
        return requests.request(request.command, self.to + request.path, headers=kept, data=body, timeout=60)

    @staticmethod
    def _answer(request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str]) -> None:
        with contextlib.suppress(OSError):
            request.send_response(status)
            for key, value in headers.items():
                request.send_header(key, value)
            request.send_header("Content-Length", str(len(body)))
            request.end_headers()
            request.wfile.write(body)

    @staticmethod
    def _reset(request: BaseHTTPRequestHandler) -> None:
        """Ends the connection with RST."""
        request.close_connection = True
        with contextlib.suppress(OSError):
            request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            request.connection.close()
