"""labtrack-alarm on a server that is a folder, and its receivers, which keep what they get: over HTTP and by mail."""

from __future__ import annotations

import http.server
import importlib.util
import json
import os
import socketserver
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import ROOT


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

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _HookHandler)
        self.status, self.got, self.taken = 200, list[Request](), (lambda: None)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"

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

    def __init__(self, certificate: Path | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _RelayHandler)
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
                self.server.mails.append(message_from_bytes(data[:-3]))
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


def certificate(folder: Path, name: str = "localhost") -> Path:
    """A certificate and its key in one file, for a name."""
    file = folder / "relay.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}", "-keyout", file, "-out", folder / "ca.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    file.write_text(file.read_text() + (folder / "ca.pem").read_text())
    return file


PROGRAM = ROOT / "roles/monitoring/files/labtrack_alarm.py"
HOUR, DAY = 3600, 24 * 3600
TOKEN = "tk-not-to-be-seen"


class Alarms:
    """A server's look, its settings, its state and its receiver."""

    def __init__(self, here: Path, hook: Hook) -> None:
        self.here, self.hook = here, hook
        self.states = [here / "disk", here / "memory"]
        for folder in self.states:
            folder.mkdir()
        self.settings(webhook={"url": hook.url("/hook"), "template": "json"}, heartbeat=hook.url("/beat"))
        self.look()

    def settings(self, **receivers: Any) -> None:
        named = {"lab": "climate", "fqdn": "mlflow.example.org", "mail": {}, "webhook": {}, "heartbeat": ""}
        (self.here / "labtrack-alarm.json").write_text(json.dumps(named | receivers))

    def look(self, age: float = 0, parts: Sequence[str] = (), **status: str) -> None:
        """What labtrack-status has written: disk (with its parts), store and clock, ok unless said otherwise."""
        rows = [
            {
                "check": name,
                "status": status.get(name, "ok"),
                "seen": f"{name} seen",
                "hint": f"mend {name}",
                "parts": [*parts] if name == "disk" else [],
                "seconds": 0,
            }
            for name in ("disk", "store", "clock", "alarms")
        ]
        said = {"version": 1, "status": "ok", "time": time.time() - age, "host": "server", "results": rows}
        (self.here / "look.json").write_text(json.dumps(said))

    def environment(self) -> dict[str, str]:
        states = ":".join(map(str, self.states))
        named = {"CREDENTIALS_DIRECTORY": self.here, "LABTRACK_ALARM_LOOK": self.here / "look.json"}
        return {**os.environ, **{name: str(path) for name, path in named.items()}, "LABTRACK_ALARM_STATES": states}

    def __call__(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(PROGRAM), *arguments]
        done = subprocess.run(
            command, env=self.environment() | more, capture_output=True, text=True, timeout=60, check=False
        )
        assert "Traceback" not in done.stderr and TOKEN not in done.stdout + done.stderr
        return done

    def run(self, **status: str) -> list[str]:
        """A look and what is told then: kind, check and status of each event."""
        self.look(**status)
        before = len(self.hook.on("/hook"))
        assert self().returncode == 0
        sent = self.hook.on("/hook")[before:]
        return [f"{one['kind']} {one['check']} {one['status']}" for request in sent for one in request.json["events"]]

    def age(self, seconds: float) -> None:
        """Let time pass in the state."""
        file = self.states[0] / "state.json"
        state = json.loads(file.read_text())
        for problem in state["open"].values():
            problem["since"] -= seconds
            problem["told"] -= seconds
        file.write_text(json.dumps(state))

    def beats(self) -> int:
        return len(self.hook.on("/beat"))


def module(alarms: Alarms, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program as a module, in this process."""
    for name, value in alarms.environment().items():
        monkeypatch.setenv(name, value)
    spec = importlib.util.spec_from_file_location("labtrack_alarm", PROGRAM)
    assert spec and spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found
