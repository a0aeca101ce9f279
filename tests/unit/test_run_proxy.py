"""The proxy to a gateway, with a stand-in for ssh: it connects where `-W` says, from this machine."""

from __future__ import annotations

import base64
import http.server
import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from labtrack.errors import BadInputError
from labtrack.run.proxy import Proxy, gateways_of, parse_gateway
from labtrack.run.ways import DIRECT, Ways, answers, hosts_of

SSH = """#!{python}
# a stand-in for ssh -W: no login, no other machine
import json, os, select, socket, sys
with open({log!r}, "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
if os.path.exists({broken!r}):
    sys.exit("Permission denied (publickey).")
if "-O" in sys.argv:
    sys.exit(0)
host, _, port = sys.argv[sys.argv.index("-W") + 1].rpartition(":")
try:
    there = socket.create_connection(("127.0.0.1", int(port)), 5)
except OSError:
    sys.exit("channel 0: open failed: connect failed: Connection refused")
while True:
    ready = select.select([0, there], [], [])[0]
    if there in ready:
        data = there.recv(65536)
        if not data:
            break
        os.write(1, data)
    if 0 in ready:
        data = os.read(0, 65536)
        if not data:
            break
        there.sendall(data)
"""


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"OK")

    def do_PUT(self) -> None:
        length = int(self.headers["Content-Length"])
        got = sum(len(self.rfile.read(min(65536, length - start))) for start in range(0, length, 65536))
        self.send_response(200 if got == length else 400)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(certificate: Path) -> Iterator[int]:
    """A server with TLS; gives its port."""
    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    found.socket = context.wrap_socket(found.socket, server_side=True)
    threading.Thread(target=found.serve_forever, args=(0.05,), daemon=True).start()
    yield found.server_address[1]
    found.shutdown()
    found.server_close()


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in on the PATH; gives the file with its calls.  A file `broken` beside that has it refuse."""
    place, log = tmp_path / "bin", tmp_path / "calls"
    place.mkdir()
    log.touch()
    (place / "ssh").write_text(SSH.format(python=sys.executable, log=str(log), broken=str(tmp_path / "broken")))
    (place / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    return log


def ask(proxy: Proxy, head: str) -> str:
    with socket.create_connection(("127.0.0.1", int(proxy.url.rpartition(":")[2])), 5) as there:
        there.sendall(head.encode())
        return there.recv(4096).decode("latin-1").split("\r\n")[0]


def login(proxy: Proxy) -> str:
    words = proxy.url.partition("//")[2].partition("@")[0]
    return f"Proxy-Authorization: Basic {base64.b64encode(words.encode()).decode()}\r\n"


def test_proxy_carries_tls_end_to_end(server: int, calls: Path, certificate: Path) -> None:
    with Proxy("ada@gate", [("localhost", server)]) as proxy, requests.Session() as session:
        session.proxies = {"https": proxy.url}
        for _ in range(3):
            assert session.get(f"https://localhost:{server}/health", verify=certificate, timeout=10).text == "OK"
        done = session.put(f"https://localhost:{server}/x", data=b"x" * 5_000_000, verify=certificate, timeout=30)
        assert done.status_code == 200
    words = calls.read_text().splitlines()[0]
    assert '"-W", "localhost:' in words and '"--", "ada@gate"' in words and "BatchMode=yes" in words


def test_proxy_needs_its_secret(server: int, calls: Path) -> None:
    with Proxy("gate", [("localhost", server)]) as proxy:
        head = f"CONNECT localhost:{server} HTTP/1.1\r\n"
        wrong = f"Proxy-Authorization: Basic {base64.b64encode(b'labtrack:wrong').decode()}\r\n"
        assert " 407 " in ask(proxy, f"{head}\r\n")
        assert " 407 " in ask(proxy, f"{head}{wrong}\r\n")
        assert " 200 " in ask(proxy, f"{head}{login(proxy)}\r\n")
    assert len(calls.read_text().splitlines()) <= 1, "refused ones never came to ssh"


def test_proxy_leads_to_declared_hosts_only(server: int, calls: Path) -> None:
    with Proxy("gate", [("localhost", server), ("::1", 443)]) as proxy:
        for target in (
            "localhost:22",
            f"example.org:{server}",
            f"localhost:{server}x",
            "-oProxyCommand=x:1",
            "localhost",
        ):
            assert " 403 " in ask(proxy, f"CONNECT {target} HTTP/1.1\r\n{login(proxy)}\r\n"), target
        assert " 405 " in ask(proxy, f"GET http://localhost:{server}/ HTTP/1.1\r\n{login(proxy)}\r\n")
        assert " 200 " in ask(proxy, f"CONNECT LOCALHOST:{server} HTTP/1.1\r\n{login(proxy)}\r\n")
        assert " 431 " in ask(proxy, f"CONNECT localhost:{server} HTTP/1.1\r\nX: {'x' * 20000}\r\n")
    assert len(calls.read_text().splitlines()) <= 1, "refused ones never came to ssh"


def test_proxy_is_on_loopback_only(calls: Path) -> None:
    with Proxy("gate", []) as proxy:
        assert "@127.0.0.1:" in proxy.url


def test_proxy_leaves_nothing_behind(server: int, calls: Path, certificate: Path) -> None:
    before = set(Path("/tmp").glob("labtrack-*"))
    with Proxy("gate", [("localhost", server)]) as proxy:
        requests.get(f"https://localhost:{server}/", proxies={"https": proxy.url}, verify=certificate, timeout=10)
        (made,) = set(Path("/tmp").glob("labtrack-*")) - before
        assert made.stat().st_mode & 0o777 == 0o700
    assert not made.exists()


@pytest.mark.parametrize(
    "text", ["-oProxyCommand=x", "a b", "", "user@", "@host", "a@b@c", "host:0", "host:99999", "h;x", "u@-x"]
)
def test_a_gateway_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BadInputError, match="is no gateway"):
        parse_gateway(text)


def test_gateways_are_those_given_or_those_of_the_lab() -> None:
    env = {"LABTRACK_GATEWAYS": "g1.test,ada@g2.test:2222"}
    assert gateways_of([], env) == ["g1.test", "ada@g2.test:2222"]
    assert gateways_of(["mine"], env) == ["mine"]
    assert parse_gateway("ada@g2.test:2222") == ("ada@g2.test", "2222")


def test_hosts_are_the_server_and_its_store() -> None:
    env = {"MLFLOW_S3_ENDPOINT_URL": "https://s3.test:8443"}
    assert hosts_of("https://mlflow.test/x", env) == [("mlflow.test", 443), ("s3.test", 8443)]


@pytest.fixture
def trusted(certificate: Path) -> dict[str, str]:
    return {"MLFLOW_TRACKING_SERVER_CERT_PATH": str(certificate)}


def test_server_that_answers_is_reached_directly(server: int, trusted: dict[str, str]) -> None:
    assert answers(f"https://localhost:{server}", trusted) == ""


@pytest.mark.parametrize("seconds", [0.3, 2.0])
def test_server_that_hangs_is_not_waited_for(seconds: float) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        said = answers(f"http://127.0.0.1:{silent.getsockname()[1]}", {}, seconds)
    assert said == f"no answer within {seconds:.0f} s"


def test_way_is_direct_then_the_gateway_then_none(
    server: int, calls: Path, trusted: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ways = Ways(f"https://localhost:{server}", ["gate"], trusted)
    try:
        assert ways.wait(10) == DIRECT and calls.read_text() == ""
    finally:
        ways.close()
    # a name that leads nowhere from here, and that only the gateway knows
    ways = Ways(f"https://localhost.invalid:{server}", ["gate"], {"MLFLOW_TRACKING_INSECURE_TLS": "true"})
    try:
        assert ways.wait(30) == "gate"
        with ways.taken("gate"):
            assert os.environ["HTTPS_PROXY"].startswith("http://labtrack:")
            found = requests.get(f"https://localhost.invalid:{server}/", verify=False, timeout=10)  # noqa: S501
            assert found.text == "OK"
        assert "HTTPS_PROXY" not in os.environ
    finally:
        ways.close()
    (calls.parent / "broken").touch()
    ways = Ways(f"https://localhost.invalid:{server}", ["gate"], {})
    try:
        assert ways.wait(30) == "" and "through gate: Permission denied (publickey)." in ways.why
    finally:
        ways.close()


def test_way_changes_while_the_job_runs(
    server: int, calls: Path, trusted: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is away for a while: the gateway is taken, and left again."""
    monkeypatch.setattr("labtrack.run.ways.EVERY", 0.02)
    away = calls.parent / "away"

    def asked(base: str, env: object, seconds: float = 3, proxies: dict[str, str] | None = None) -> str:
        return answers(base, trusted, seconds, proxies) if not away.exists() or proxies["https"] else "no route"

    monkeypatch.setattr("labtrack.run.ways.answers", asked)
    said: list[str] = []
    ways = Ways(f"https://localhost:{server}", ["gate"], trusted, said.append)
    try:
        assert ways.wait(10) == DIRECT
        for place, best in ((True, "gate"), (False, DIRECT)):
            away.touch() if place else away.unlink()
            deadline = time.monotonic() + 20
            while ways.best != best:
                assert time.monotonic() < deadline, said
                time.sleep(0.02)
    finally:
        ways.close()
    assert said == [f"the server is reached {how}" for how in ("directly", "through gate", "directly")]
