"""Keystone, Neutron, Nova and Glance over HTTP, as far as preflight asks: for answers that real ones seldom give."""

from __future__ import annotations

import json
import re
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

MINE = "p" * 32


def ident(number: int) -> str:
    """An id as OpenStack's are."""
    return f"{number:08d}-0000-4000-8000-000000000000"


class FakeServices:
    """A project with an external network, and a network behind a highly available router.

    services: the catalogue.  answers: status and body by a pattern of the path, in place of what would be said.
    """

    def __init__(self) -> None:
        self.services = {
            "identity": "/v3", "network": "/network", "compute": "/compute/v2.1", "image": "/image",
            "object-store": f"/swift/v1/AUTH_{MINE}",
        }  # fmt: skip
        self.answers: dict[str, tuple[int, Any]] = {}
        self.asked: list[str] = []  # method and path of each question
        mine = {"project_id": MINE, "tenant_id": MINE, "admin_state_up": True}
        self.things: dict[str, list[dict[str, Any]]] = {
            "networks": [
                {"id": ident(1), "name": "Public", "router:external": True},
                {"id": ident(2), "name": "def-net", "router:external": False, "port_security_enabled": True, **mine},
            ],
            "subnets": [
                {"id": ident(3), "name": "def-subnet", "network_id": ident(2), "cidr": "10.5.0.0/24", "ip_version": 4,
                 "gateway_ip": "10.5.0.1", **mine},
            ],
            "routers": [
                {"id": ident(4), "name": "def-router", "ha": True, "external_gateway_info": {"network_id": ident(1)},
                 **mine},
            ],
            "ports": [
                {"id": ident(5), "name": "", "network_id": ident(2), "device_id": ident(4), **mine,
                 "device_owner": "network:ha_router_replicated_interface",
                 "fixed_ips": [{"subnet_id": ident(3), "ip_address": "10.5.0.1"}]},
            ],
            "floatingips": [], "security_groups": [], "security_group_rules": [],
            "images": [{"id": ident(6), "name": "Debian-13", "status": "active", "created_at": "2026-01-01T00:00:00Z"}],
            "flavors": [{"id": "f1", "name": "p2-3gb", "vcpus": 2, "ram": 3072, "disk": 20}],
            "servers": [], "keypairs": [],
        }  # fmt: skip
        self.quota = {"network": 10, "subnet": 10, "router": 1, "port": 50, "security_group": 10, "floatingip": 1}
        self.absolute = {"maxTotalInstances": 5, "totalInstancesUsed": 1, "maxTotalCores": 8, "maxTotalRAMSize": -1}
        self.url = ""

    def start(self) -> ThreadingHTTPServer:
        """Serves on a free port of the loopback interface."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"fake": self}))
        self.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return server

    def answer(self, path: str, asked: dict[str, str]) -> tuple[int, Any]:
        """Status and body of an answer."""
        told = next((answer for pattern, answer in self.answers.items() if re.search(pattern, path)), None)
        if told:
            return told
        kind = path.removesuffix("/detail").rpartition("/")[2].replace("-", "_").removeprefix("os_")
        if kind in self.things:
            known = ("name", "status", "network_id", "device_id", "project_id", "floating_ip_address")
            wanted = {key: value for key, value in asked.items() if key in known}
            found = [one for one in self.things[kind] if all(str(one.get(k)) == v for k, v in wanted.items())]
            return 200, {kind: found}
        fixed: dict[str, Any] = {
            "/v3": {"version": self._version("v3.14", "/v3")},
            "/network": {"versions": [self._version("v2.0", "/network/v2.0/")]},
            "/image": {"versions": [self._version("v2.9", "/image/v2/")]},
            "/compute/v2.1": {
                "version": {**self._version("v2.1", "/compute/v2.1/"), "version": "2.90", "min_version": "2.1"}
            },
            "/v3/auth/tokens": self._token(),
            "/v3/users/u/credentials/OS-EC2": {"credentials": []},
            "/compute/v2.1/limits": {"limits": {"rate": [], "absolute": self.absolute}},
            f"/network/v2.0/quotas/{MINE}": {"quota": self.quota},
            self.services.get("object-store", ""): [],
        }  # fmt: skip
        return (200, fixed[path]) if path in fixed else (404, {"NeutronError": {"message": "not found", "type": "x"}})

    def _version(self, name: str, path: str) -> dict[str, Any]:
        return {"id": name, "status": "CURRENT", "links": [{"rel": "self", "href": self.url + path}]}

    def _token(self) -> dict[str, Any]:
        domain = {"id": "default", "name": "Default"}
        where = {"interface": "public", "region": "R", "region_id": "R"}
        catalog = [
            {"type": kind, "id": kind, "name": kind, "endpoints": [{"id": kind, "url": self.url + path, **where}]}
            for kind, path in self.services.items()
        ]
        return {"token": {
            "methods": ["password"], "user": {"id": "u", "name": "ada", "domain": domain}, "catalog": catalog,
            "roles": [{"id": "r", "name": "member"}], "project": {"id": MINE, "name": "climate", "domain": domain},
            "issued_at": "2026-01-01T00:00:00.000000Z", "expires_at": "2099-01-01T00:00:00.000000Z",
        }}  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    fake: FakeServices
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: Any) -> None:
        """The tests print what matters."""

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        self.fake.asked.append(f"{self.command} {url.path}")
        status, body = self.fake.answer(url.path.rstrip("/"), dict(parse_qsl(url.query)))
        data = b"" if body is None else json.dumps(body).encode()
        made = self.command == "POST" and url.path == "/v3/auth/tokens" and status == HTTPStatus.OK
        self.send_response(HTTPStatus.CREATED if made else status)
        self.send_header("X-Subject-Token", "t")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_POST = do_HEAD = do_DELETE = do_GET
