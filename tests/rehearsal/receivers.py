"""Receivers of alarms that keep what they get: over HTTP and by mail."""

from __future__ import annotations

import http.server
import json
import socketserver
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email import message_from_bytes, policy
from email.message import Message
from pathlib import Path
from typing import Any


@dataclass
class Request:
    """What was sent to the HTTP server."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.body)


class Hook(http.server.ThreadingHTTPServer):
    """Takes everything.  status: what it answers; taken: called after it has noted a request, before its answer."""

    daemon_threads = True

    def __init__(self, address: str = "127.0.0.1") -> None:
        super().__init__((address, 0), _HookHandler)
        self.status, self.got, self.taken = 200, list[Request](), (lambda: None)

    def url(self, path: str) -> str:
        return f"http://{self.server_address[0]}:{self.server_port}{path}"

    def on(self, path: str) -> list[Request]:
        return [one for one in self.got if one.path.startswith(path)]


class _HookHandler(http.server.BaseHTTPRequestHandler):
    server: Hook

    def log_message(self, *_: object) -> None:
        pass

    def do_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.got.append(Request(self.command, self.path, dict(self.headers), body))
        self.server.taken()
        self.send_response(self.server.status)
        if self.server.status == http.HTTPStatus.FOUND:
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    do_GET = do_POST = do_PUT = do_any


class Relay(socketserver.ThreadingTCPServer):
    """A mail relay; with a certificate it takes mail after STARTTLS and a login only."""

    allow_reuse_address = daemon_threads = True

    def __init__(self, certificate: Path | None = None, address: str = "127.0.0.1") -> None:
        super().__init__((address, 0), _RelayHandler)
        self.mails: list[Message] = []
        self.to: list[str] = []
        self.logins: list[str] = []
        self.tls: ssl.SSLContext | None = None
        if certificate:
            self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.tls.load_cert_chain(certificate)

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class _RelayHandler(socketserver.StreamRequestHandler):
    server: Relay

    def say(self, text: str) -> None:
        self.wfile.write(f"{text}\r\n".encode())

    def handle(self) -> None:
        self.say("220 relay")
        encrypted = False
        while line := self.rfile.readline().decode().strip():
            word = line.split()[0].upper()
            if word == "EHLO":
                offers = "AUTH PLAIN" if encrypted else "STARTTLS" if self.server.tls else "8BITMIME"
                self.say(f"250-relay\r\n250 {offers}")
            elif word == "STARTTLS" and self.server.tls:
                self.say("220 go")
                try:
                    self.request = self.server.tls.wrap_socket(self.request, server_side=True)
                except OSError:
                    return None
                self.rfile, self.wfile = self.request.makefile("rb"), self.request.makefile("wb", 0)
                encrypted = True
            elif word == "AUTH":
                self.server.logins.append(line.split()[-1])
                self.say("235 welcome")
            elif word == "MAIL" and self.server.tls and not self.server.logins:
                self.say("530 log in first")
            elif word == "DATA":
                self.say("354 go on")
                data = b""
                while not data.endswith(b"\r\n.\r\n"):
                    data += self.rfile.readline()
                self.server.mails.append(message_from_bytes(data[:-3], policy=policy.default))
                self.say("250 taken")
            elif word == "QUIT":
                return self.say("221 bye")
            else:
                if word == "RCPT":
                    self.server.to.append(line)
                self.say("250 ok")
        return None


@contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[None]:
    """While it answers."""
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
