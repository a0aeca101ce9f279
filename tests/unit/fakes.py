"""A small stand-in for Keystone, an S3 store and the accounts of a tracking server, in one HTTP server.

It is for failures that real services can't be made to show (slow, 500, full, refused) and for killing a
call between two steps often and quickly.  What the services really do is asked in tests/rehearsal.
"""

from __future__ import annotations

import base64
import json
import re
import ssl
import threading
import time
import uuid
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from fake_sharing import Sharing

USER, PROJECT = "u-labadmin", "p-climate"
SSH_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ71qU5twZwKpABBhxNSDwk377xdy4eAa6s6XgKSwHUI"  # of nobody


@dataclass
class FakeCloud:
    """What the stand-in holds, and how it misbehaves."""

    keys: dict[str, str] = field(default_factory=dict)  # access: secret
    accounts: dict[str, str] = field(default_factory=lambda: {"admin": "a" * 40})  # user: password
    objects: dict[str, bytes] = field(default_factory=dict)
    sharing: Sharing = field(default_factory=Sharing)
    password: str = "right"
    has_role: bool = True
    delegated: bool = False
    delay: float = 0.0  # seconds before Keystone answers
    refuses: tuple[int, str] | None = None  # what Keystone answers to everything: status and words
    wants_login: bool = False  # 401 to every question, as of a service that is not Keystone
    refuse_keys: str = ""  # the S3 error code that every request gets
    names_keys: bool = True  # users may choose an access key (POST /v3/credentials), as Keystone's policy allows
    # What becomes of the next requests for a key: a status that refuses it; "lost" (made, but the answer does not
    # come), "502" (the same, and a proxy says so), "late" (made when `arrive` is called).
    making: list[int | str] = field(default_factory=list)
    late: list[tuple[str, str]] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    url: str = ""

    def arrive(self) -> None:
        """Carries out the requests for keys that were late."""
        for access, secret in self.late:
            self.keys.setdefault(access, secret)
        self.late.clear()

    def start(self, certificate: Path | None = None) -> ThreadingHTTPServer:
        """Serves on a free port of the loopback interface; with a certificate (and key) over TLS."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"cloud": self}))
        server.handle_error = lambda *_: None  # a client that hangs up is what some tests want
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        self.url = f"http{'s' if certificate else ''}://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return server


class _Handler(BaseHTTPRequestHandler):
    cloud: FakeCloud
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: Any) -> None:
        """The tests print what matters."""

    def answer(self, status: int, body: Any = None, **headers: str) -> None:
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Type", "application/json" if not isinstance(body, bytes) else "application/xml")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def handle_any(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        path = urlsplit(self.path).path
        self.cloud.requests.append(f"{self.command} {path}")
        if path.startswith("/v3"):
            self.keystone(path, body)
        elif path.startswith("/api/"):
            self.tracking(path, body)
        else:
            self.store(path, body)

    do_GET = do_PUT = do_POST = do_DELETE = do_PATCH = do_HEAD = handle_any

    def keystone(self, path: str, body: bytes) -> None:
        time.sleep(self.cloud.delay)
        keys = f"/v3/users/{USER}/credentials/OS-EC2"
        refused = (401, "who are you") if self.cloud.wants_login else self.cloud.refuses
        if refused:
            self.answer(refused[0], {"error": {"message": refused[1], "code": refused[0]}})
        elif path in ("/v3", "/v3/"):
            link = [{"rel": "self", "href": f"{self.cloud.url}/v3"}]
            self.answer(200, {"version": {"id": "v3.14", "status": "stable", "links": link}})
        elif path == "/v3/auth/tokens":
            self.token(json.loads(body)["auth"])
        elif self.cloud.delegated:
            said = "Delegated tokens cannot access credentials directly"
            self.answer(403, {"error": {"message": said, "code": 403}})
        elif path == keys and self.command == "GET":
            self.answer(200, {"credentials": [self.key(access) for access in self.cloud.keys]})
        elif path == keys and self.command == "POST":
            self.make(uuid.uuid4().hex, uuid.uuid4().hex)
        elif path == "/v3/credentials" and self.command == "POST":
            self.make_named(json.loads(json.loads(body)["credential"]["blob"]))
        elif path.startswith(f"{keys}/") and self.command == "GET" and path.rpartition("/")[2] in self.cloud.keys:
            self.answer(200, {"credential": self.key(path.rpartition("/")[2])})
        elif self.command == "DELETE" and self.cloud.keys.pop(path.rpartition("/")[2], None):
            self.answer(204)
        else:
            self.answer(404, {"error": {"message": "not found", "code": 404}})

    def make_named(self, blob: dict[str, str]) -> None:
        if not self.cloud.names_keys:
            said = "You are not authorized to perform the requested action: identity:create_credential"
            self.answer(403, {"error": {"message": said, "code": 403}})
        elif blob["access"] in self.cloud.keys:
            self.answer(409, {"error": {"message": "Duplicate entry found", "code": 409}})
        else:
            self.make(blob["access"], blob["secret"])

    def make(self, access: str, secret: str) -> None:
        what = self.cloud.making.pop(0) if self.cloud.making else "made"
        if isinstance(what, int):
            self.answer(what, {"error": {"message": "as the test wants it", "code": what}})
            return
        if what == "late":
            self.cloud.late.append((access, secret))
        else:
            self.cloud.keys[access] = secret
        if what == "502":
            self.answer(502, b"<html>Bad Gateway</html>")
        elif what == "made":
            self.answer(201, {"credential": self.key(access)})
        else:
            self.close_connection = True

    def key(self, access: str) -> dict[str, str]:
        return {"access": access, "secret": self.cloud.keys[access], "user_id": USER, "tenant_id": PROJECT}

    def token(self, auth: dict[str, Any]) -> None:
        identity = auth["identity"]
        given = identity.get("password", {}).get("user", {}).get("password") or identity.get("token", {}).get("id")
        scoped = isinstance(auth.get("scope"), dict)
        if identity["methods"] == ["token"] and given != self.cloud.password:  # as the real one says it
            self.answer(404, {"error": {"message": "Failed to validate token", "code": 404}})
            return
        if "application_credential" not in identity["methods"] and given != self.cloud.password:
            self.answer(401, {"error": {"message": "requires authentication", "code": 401}})
            return
        if scoped and not self.cloud.has_role:
            self.answer(401, {"error": {"message": "requires authentication", "code": 401}})
            return
        domain = {"id": "default", "name": "Default"}
        token: dict[str, Any] = {
            "methods": identity["methods"],
            "user": {"id": USER, "name": "labadmin", "domain": domain},
            "expires_at": "2099-01-01T00:00:00.000000Z",
            "issued_at": "2026-01-01T00:00:00.000000Z",
            "roles": [{"id": "r", "name": "member"}],
            "catalog": [],
        }
        if (scoped and "project" in auth["scope"]) or "application_credential" in identity["methods"]:
            token["project"] = {"id": PROJECT, "name": "climate", "domain": domain}
        if "application_credential" in identity["methods"]:
            token["application_credential"] = {"id": "ac", "name": "terraform", "restricted": False}
        self.answer(201, {"token": token}, X_Subject_Token="t-1")

    def store(self, path: str, body: bytes) -> None:
        access = re.search(r"Credential=([^/]+)/", self.headers.get("Authorization", ""))
        code = self.cloud.refuse_keys
        if not code and (not access or access.group(1) not in self.cloud.keys):
            code = "InvalidAccessKeyId"
        if code:
            self.answer(404 if code == "NoSuchBucket" else 403, f"<Error><Code>{code}</Code></Error>".encode())
        elif self.command == "PUT":
            self.cloud.objects[path] = body
            self.answer(200, b"", ETag='"x"')
        elif self.command == "DELETE":
            self.cloud.objects.pop(path, None)
            self.answer(204, b"")
        elif path in self.cloud.objects:
            self.answer(200, self.cloud.objects[path], ETag='"x"')
        else:
            self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")

    def tracking(self, path: str, body: bytes) -> None:
        login = base64.b64decode(self.headers.get("Authorization", "").removeprefix("Basic ")).decode().partition(":")
        accounts = self.cloud.accounts
        if accounts.get(login[0]) != login[2]:
            self.answer(401, b"You are not authenticated.")
            return
        if path.endswith("/mlflow/users/list"):
            names = [{"id": number, "username": name} for number, name in enumerate(accounts)]
            self.answer(200, {"users": names})
            return
        given = json.loads(body) if body else {k: v[0] for k, v in parse_qs(urlsplit(self.path).query).items()}
        if re.search("/(experiments|roles|permissions)/", path):
            self.answer(*self.cloud.sharing.answer(path.partition("/mlflow/")[2], given, login[0]))
            return
        name = given.get("username", "")
        action = path.rpartition("/")[2]
        if action in ("get", "delete", "update-password") and name not in accounts:
            self.answer(404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such user"})
            return
        if action in {"create", "update-password"}:
            accounts[name] = given["password"]
        elif action == "delete":
            del accounts[name]
        self.answer(200, {"user": {"username": name or login[0]}})
