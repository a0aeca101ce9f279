"""The only way to MLflow's socket: lets through who has the session's cookie, and nobody else.

A link with a token that works once sets the cookie; behind a portal it is a form with the session's password.
Everything else without it is answered 403: another user of the same machine reaches the port, but not the runs.
Each request gets a connection of its own to the socket, so that answers are passed on as they come, whatever they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import re
import secrets
import socket
import threading
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path

from labtrack.ui.portal import Portal

_HEAD = 1 << 16  # bytes
_CHUNK = 1 << 16
_PATIENCE = 30.0  # seconds for the head of a request
_LINK = "/open/"
_FORM = "/open"
_FORM_LENGTH = 1 << 12  # bytes of a form with a password
_HERE = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?", re.IGNORECASE)
# of one connection, or replaced here
_OF_CONNECTION = ("connection", "keep-alive", "proxy-connection", "upgrade", "te", "expect")
_NOT_PASSED = frozenset(("host", "origin", "cookie", "authorization", *_OF_CONNECTION))
# what would write into a run's own artifact folder; everything else changes only the snapshot
_WRITES = re.compile(r"/mlflow/upload-artifact\b|/mlflow-artifacts/|promptlab|/mlflow/logged-models/[^/]+/artifacts\b")
_ASSISTANT = re.compile(r"/mlflow/assistant\b")  # runs programs as the person who started the server
_NO_COOKIE = (
    "This page is somebody's own. Open the link that `labtrack ui` printed; each link works once, and after "
    "it has been used the next one is printed."
)
_NO_COOKIE_PORTAL = (
    "This page is somebody's own. If it is yours, open it with the button \"Connect to MLflow\" on the session's card "
    "of the portal."
)
# MLflow would open its assistant, which is switched off here, and show the pages for traces first
_WELCOME = """<!doctype html><html lang="en"><meta charset="utf-8"><title>labtrack ui</title>
<script>
for (const [key, value] of [["mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true"],
    ["mlflow.assistant.panelOpen_v1", "false"], ["mlflow.workflowType_v1", '"machine_learning"']])
  if (localStorage.getItem(key) === null) localStorage.setItem(key, value);
location.replace("HOME");
</script>
<noscript><meta http-equiv="refresh" content="0; url=HOME"></noscript><p><a href="HOME">MLflow</a></p></html>
"""


class Refused(Exception):
    """A request that is answered here, with a sentence."""

    def __init__(self, status: HTTPStatus, said: str) -> None:
        super().__init__(said)
        self.status, self.said = status, said


class Gate:
    """Answers on a listening socket, in a thread of its own, until `close`.

    upstream: MLflow's socket.  read_only: refuses what would write into artifact folders.
    used: called with the next link's path each time a link was used.  portal: what opens it in the place of links.
    """

    def __init__(
        self, listening: socket.socket, upstream: Path, *, read_only: bool, used: Callable[[str], None],
        portal: Portal | None = None,
    ) -> None:  # fmt: skip
        self._listening, self._upstream, self._portal = listening, upstream, portal
        self._read_only, self._used = read_only, used
        # cookies are kept by host, whatever the port: sessions side by side need names of their own
        self._name = f"labtrack_ui_{secrets.token_hex(4)}"
        self._secret, self._token = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        self._tasks: set[asyncio.Task[None] | None] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="labtrack-ui-gate", daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()

    @property
    def link(self) -> str:
        """The path that opens the session for a browser; it works once."""
        return _LINK + self._token

    def close(self) -> None:
        """Lets go of the socket and of all connections."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(5)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5)

    async def _listen(self) -> None:
        start = asyncio.start_unix_server if self._listening.family == socket.AF_UNIX else asyncio.start_server
        self._server = await start(self._answer, sock=self._listening, limit=_HEAD)

    async def _end(self) -> None:
        self._server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)  # asyncio itself holds it weakly
        try:
            with contextlib.suppress(OSError, asyncio.TimeoutError, asyncio.IncompleteReadError):
                try:
                    await self._request(reader, writer)
                except asyncio.LimitOverrunError:
                    _say(writer, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "The head of the request is too large.")
                except Refused as refused:
                    _say(writer, refused.status, refused.said)
                await writer.drain()
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _PATIENCE)
        method, target, fields = _parsed(head.decode("latin-1"))
        origin = self._check_host(fields)
        if self._portal:
            inside = self._portal.inside(target)
            if inside is None:
                _say(writer, HTTPStatus.PERMANENT_REDIRECT, "", "text/plain", f"Location: {self._portal.prefix}/")
                return
            target = inside
        if self._portal and method == "POST" and target == _FORM:
            self._check_origin(origin, method, fields)
            await self._open_by_form(self._portal, reader, writer, fields)
            return
        if not self._portal and target.startswith(_LINK):
            self._open(method, target, fields, writer)
            return
        if not self._has_cookie(fields):
            raise Refused(HTTPStatus.FORBIDDEN, _NO_COOKIE_PORTAL if self._portal else _NO_COOKIE)
        self._check_origin(origin, method, fields)
        path = target.partition("?")[0]
        if _ASSISTANT.search(path):
            raise Refused(HTTPStatus.NOT_FOUND, "The assistant is switched off here.")
        if self._read_only and method not in ("GET", "HEAD", "OPTIONS") and _WRITES.search(path):
            raise Refused(HTTPStatus.FORBIDDEN, "This is a snapshot: artifacts can be looked at, not changed.")
        length = _length(fields)
        upstream, to = await asyncio.open_unix_connection(str(self._upstream), limit=_HEAD)
        try:
            lines = [f"{method} {target} HTTP/1.1", "Host: localhost", "Connection: close"]
            lines += [f"{name}: {one}" for name, all_of in fields.items() if name not in _NOT_PASSED for one in all_of]
            others = [one for one in _cookies(fields) if one[0] != self._name]
            if others:
                lines.append("Cookie: " + "; ".join("=".join(pair) for pair in others))
            to.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
            await _pass_on(reader, to, length)
            while data := await upstream.read(_CHUNK):
                writer.write(data)
                await writer.drain()
        finally:
            to.close()

    def _check_host(self, fields: dict[str, list[str]]) -> str:
        """The origin of the pages that are shown here.  Raises Refused for another name, or another user's request."""
        host = fields.get("host", [])
        if self._portal is None:
            if len(host) != 1 or not _HERE.fullmatch(host[0]):
                raise Refused(HTTPStatus.FORBIDDEN, "This page has no other name than http://127.0.0.1 and a port.")
            return f"http://{host[0]}".lower()
        # anybody can write this field, so it lets nobody in: it only keeps out whom the portal itself has named
        if any(user != self._portal.owner for user in fields.get("x-forwarded-user", [])):
            raise Refused(HTTPStatus.FORBIDDEN, "This session belongs to another user of the portal.")
        if len(host) != 1 or host[0].lower() not in self._portal.hosts:
            raise Refused(HTTPStatus.FORBIDDEN, f"This page has no other place than {self._portal.origin}.")
        return self._portal.origin

    @staticmethod
    def _check_origin(own: str, method: str, fields: dict[str, list[str]]) -> None:
        origin = fields.get("origin", [])
        if any(one.lower() not in (own, "null") for one in origin) or (
            "null" in origin and method not in ("GET", "HEAD")
        ):
            raise Refused(HTTPStatus.FORBIDDEN, "Another page asked for this; only MLflow's own may.")

    async def _open_by_form(
        self, portal: Portal, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fields: dict[str, list[str]]
    ) -> None:
        length = _length(fields)
        if length > _FORM_LENGTH:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "That is no password.")
        body = await asyncio.wait_for(reader.readexactly(length), _PATIENCE)
        if not portal.opens(body):
            raise Refused(HTTPStatus.FORBIDDEN, "That is not this session's password. " + _NO_COOKIE_PORTAL)
        self._welcome(writer, "./", f"{portal.prefix}/", "; Secure")

    def _open(self, method: str, target: str, fields: dict[str, list[str]], writer: asyncio.StreamWriter) -> None:
        if any("prefetch" in one.lower() for name in ("sec-purpose", "purpose") for one in fields.get(name, [])):
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "The link works once, and not ahead of time.")
        if method != "GET" or not hmac.compare_digest(target[len(_LINK) :].encode(), self._token.encode()):
            raise Refused(HTTPStatus.FORBIDDEN, "This link has been used, or is another session's. " + _NO_COOKIE)
        self._token = secrets.token_urlsafe(32)
        self._welcome(writer, "/", "/")
        self._used(self.link)

    def _welcome(self, writer: asyncio.StreamWriter, home: str, path: str, more: str = "") -> None:
        # a page, not a redirect: a browser that came by a link from elsewhere would not send a Strict cookie with it
        cookie = f"Set-Cookie: {self._name}={self._secret}; HttpOnly; SameSite=Strict; Path={path}{more}"
        _say(writer, HTTPStatus.OK, _WELCOME.replace("HOME", home), "text/html", cookie)

    def _has_cookie(self, fields: dict[str, list[str]]) -> bool:
        given = [value for name, value in _cookies(fields) if name == self._name]
        return any(hmac.compare_digest(one.encode(), self._secret.encode()) for one in given)


def _parsed(head: str) -> tuple[str, str, dict[str, list[str]]]:
    """Method, target and fields by their names in small letters.  Raises Refused."""
    first, *lines = head[:-4].split("\r\n")
    parts = first.split(" ")
    fields: dict[str, list[str]] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not re.fullmatch(r"[\w!#$%&'*+.^`|~-]+", name, re.ASCII) or re.search(r"[\0\r\n]", value):
            raise Refused(HTTPStatus.BAD_REQUEST, "The request can't be read.")
        fields.setdefault(name.lower(), []).append(value.strip(" \t"))
    if len(parts) != 3 or not parts[2].startswith("HTTP/1.") or not parts[1].startswith("/"):  # noqa: PLR2004
        raise Refused(HTTPStatus.BAD_REQUEST, "The request can't be read.")
    return parts[0], parts[1], fields


def _cookies(fields: dict[str, list[str]]) -> list[tuple[str, str]]:
    pairs = (one.strip().partition("=") for line in fields.get("cookie", []) for one in line.split(";"))
    return [(name, value) for name, equals, value in pairs if equals]


def _length(fields: dict[str, list[str]]) -> int:
    if "transfer-encoding" in fields:
        raise Refused(HTTPStatus.LENGTH_REQUIRED, "A request must say how long it is.")
    given = fields.get("content-length", ["0"])
    if len(given) != 1 or not re.fullmatch(r"\d{1,15}", given[0], re.ASCII):
        raise Refused(HTTPStatus.BAD_REQUEST, "The request can't be read.")
    return int(given[0])


async def _pass_on(reader: asyncio.StreamReader, to: asyncio.StreamWriter, left: int) -> None:
    with contextlib.suppress(ConnectionError):  # MLflow answers without having read all of it
        while left and (data := await reader.read(min(left, _CHUNK))):
            to.write(data)
            await to.drain()
            left -= len(data)


def _say(writer: asyncio.StreamWriter, status: HTTPStatus, said: str, kind: str = "text/plain", *more: str) -> None:
    body = f"{said.rstrip()}\n".encode()
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}", f"Content-Type: {kind}; charset=utf-8",
        f"Content-Length: {len(body)}", "Cache-Control: no-store", "Referrer-Policy: no-referrer",
        "X-Content-Type-Options: nosniff", "Connection: close", *more, "", "",
    ]  # fmt: skip
    writer.write("\r\n".join(lines).encode("latin-1") + body)
