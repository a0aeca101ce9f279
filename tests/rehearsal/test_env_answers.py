"""The real Keystone, whose answer to a request for a key is refused, lost or late: no key is taken from anybody."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest
import requests
import yaml
from admin import KEYSTONE, PERSON, Kit

from labtrack.envfile import read_envfile

if TYPE_CHECKING:
    from conftest import Rehearsal


class Between(ThreadingHTTPServer):
    """Between the kit and the real Keystone: passes everything on, but the next request for a key as it was told.

    mode: "refuse" (503, not passed on), "lose" (passed on, the connection then closed), "hold" (kept back, the
    connection closed; `pass_on` hands it over later).
    """

    def __init__(self, rehearsal: Rehearsal) -> None:
        super().__init__(("127.0.0.1", 0), BetweenHandler)
        self.mode = ""
        self.held: list[tuple[str, dict[str, str], bytes]] = []
        self.verify = str(rehearsal.private / "cloud-ca.pem")

    def pass_on(self) -> int:
        """Hands over what was kept back; the status of the answer."""
        path, headers, body = self.held.pop()
        return self.ask("POST", path, headers, body).status_code

    def ask(self, method: str, path: str, headers: dict[str, str], body: bytes) -> requests.Response:
        url = KEYSTONE.removesuffix("/v3") + path
        return requests.request(method, url, headers=headers, data=body, verify=self.verify, timeout=60)


class BetweenHandler(BaseHTTPRequestHandler):
    server: Between

    def log_message(self, *_: object) -> None:
        """The tests print what matters."""

    def handle_any(self) -> None:
        between = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name: value for name, value in self.headers.items() if name.lower().startswith(("x-", "content-t"))}
        mode = ""
        if self.command == "POST" and "credentials" in self.path:
            mode, between.mode = between.mode, ""
        if mode == "refuse":
            self.send_error(503)
            return
        if mode == "hold":
            between.held.append((self.path, headers, body))
            return
        answer = between.ask(self.command, self.path, headers, body)
        if mode == "lose":
            assert answer.status_code == 201
            return
        self.send_response(answer.status_code)
        for name in ("X-Subject-Token", "Content-Type"):
            if name in answer.headers:
                self.send_header(name, answer.headers[name])
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    do_GET = do_POST = do_DELETE = handle_any


class TestAnswers:
    """The real Keystone, whose answer to a request for a key is refused, lost or late."""

    @pytest.fixture
    def between(self, kit: Kit) -> Iterator[Between]:
        server = Between(kit.rehearsal)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server
        server.shutdown()
        server.server_close()

    @pytest.fixture
    def shell(self, kit: Kit, between: Between) -> dict[str, str]:
        """The login of clouds.yaml as an openrc file sets it, by way of the server in between."""
        auth = yaml.safe_load((kit.rehearsal.private / "clouds.yaml").read_text())["clouds"]["climate"]["auth"]
        return {f"OS_{name.upper()}": value for name, value in auth.items()} | {
            "OS_AUTH_URL": f"http://127.0.0.1:{between.server_port}/v3"
        }

    @pytest.fixture
    def by_hand(self, kit: Kit) -> Iterator[Callable[[], str]]:
        """Makes a key with OpenStack's own client; deleted in the end, and there until then."""
        made: list[str] = []

        def make() -> str:
            made.append(kit.openstack("ec2", "credentials", "create", "-f", "value", "-c", "access").strip())
            return made[-1]

        yield make
        assert set(made) <= kit.seen(), "somebody's key was deleted"
        for access in made:
            kit.openstack("ec2", "credentials", "delete", access)

    @pytest.mark.parametrize("mode", ["refuse", "lose", "hold"])
    def test_a_key_made_by_hand_is_never_taken(
        self, mode: str, kit: Kit, between: Between, shell: dict[str, str], by_hand: Callable[[], str]
    ) -> None:
        before = kit.seen()
        between.mode = mode
        first = kit.create(env=shell)
        assert first.returncode == (0 if mode == "lose" else 1), first.stderr
        theirs = by_hand()
        if mode == "hold":
            assert between.pass_on() == 201
        kit.create(check=True, env=shell)
        mine = kit.seen() - before - {theirs}
        assert {read_envfile(kit.file).access} == mine, "one key, also where the first request was carried out late"
        kit("env", "revoke", kit.lab, PERSON, check=True, env=shell)
        assert kit.seen() - before == {theirs}
