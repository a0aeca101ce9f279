"""What must be closed: the server seen from outside, by somebody who should not get in."""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests

from labtrack.doctor.result import Result, failed, ok
from labtrack.errors import innermost

TIMEOUT = 10.0  # seconds for an answer
PORT_TIMEOUT = 3.0  # seconds: a firewall that drops gives none
PORTS = {5000: "MLflow", 5432: "PostgreSQL"}
EXPOSED = frozenset({22, 80, 443})
AT_ONCE = 4000  # ports of the whole range that are tried at once
SCAN_TIMEOUT = 2.0  # seconds for one of them: one lost packet is sent again after one
# Calls that must not work without a login: method, path, JSON.
API: tuple[tuple[str, str, Any], ...] = (
    ("POST", "/api/2.0/mlflow/experiments/search", {"max_results": 1}),
    ("POST", "/ajax-api/2.0/mlflow/runs/search", {"max_results": 1}),
    ("POST", "/api/2.0/mlflow/experiments/create", {"name": "labtrack-must-not-be-made"}),
    ("GET", "/api/2.0/mlflow/registered-models/search", None),
    ("GET", "/api/2.0/mlflow-artifacts/artifacts", None),
    ("GET", "/api/2.0/mlflow/users/get?username=admin", None),
    ("POST", "/api/2.0/mlflow/users/create", {"username": "mallory", "password": "0123456789abcdef"}),
)
# Parts of MLflow that a lab does not need and that have been its worst holes (field): not even with a login.
ABSENT = (
    "/ajax-api/3.0/jobs",
    "/ajax-api/3.0/jobs/search",
    "/gateway/",
    "/api/2.0/endpoints/",
    "/ajax-api/2.0/mlflow/gateway-proxy",
    "/ajax-api/3.0/mlflow/assistant/config",
)
FORGED = "forged Host"
SEARCH = "/ajax-api/2.0/mlflow/experiments/search"
FIX = "run playbooks/deploy.yml again; if it stays open, stop nginx on the server and report it (SECURITY.md)."


def check(
    fqdn: str, login: tuple[str, str], ca_file: Path | None, timeout: float = TIMEOUT, *, every_port: bool = False
) -> Iterator[Result]:
    """Checks the exposed ports and routes of the server `fqdn`.

    login: an ordinary account.  every_port: try all TCP ports, which takes half a minute and looks like an attack.
    """
    outside = _Outside(fqdn, ca_file, timeout)
    yield from _ports(fqdn, min(timeout, PORT_TIMEOUT), every_port)
    yield outside.expect("http", {301, 302, 307, 308}, "GET", f"http://{fqdn}/", "redirects to https")
    for method, path, body in API:
        # 404: with direct access nginx does not let artifacts through at all
        allowed = {401, 404} if "artifacts" in path else {401}
        yield outside.expect(f"no login: {_shown(path)}", allowed, method, path, "refused", json=body)
    yield outside.expect(
        "MLflow's former default password", {401}, "POST", SEARCH, "refused",
        json={"max_results": 1}, auth=("admin", "password1234"),
    )  # fmt: skip
    for path in ABSENT:
        yield outside.expect(f"with login: {path}", {404}, "GET", path, "not there", auth=login)
    search = {"json": {"max_results": 1}, "auth": login}
    yield outside.expect(
        FORGED, {400, 403, 404, 421}, "POST", SEARCH, "refused", headers={"Host": "evil.example"}, **search
    )
    yield outside.expect(
        "foreign Origin", {403}, "POST", SEARCH, "refused", headers={"Origin": "https://evil.example"}, **search
    )
    yield outside.expect(
        "own Origin, as the web page sends it", {200}, "POST", SEARCH, "let in",
        headers={"Origin": f"https://{fqdn}"}, **search,
    )  # fmt: skip


def _shown(path: str) -> str:
    return path.partition("?")[0]


def _ports(fqdn: str, timeout: float, every_port: bool) -> Iterator[Result]:
    """The rows of the ports.  That one is closed means something only where the server is reached at all."""
    try:
        address = str(socket.getaddrinfo(fqdn, 443, type=socket.SOCK_STREAM)[0][4][0])
        socket.create_connection((address, 443), timeout).close()
    except (OSError, UnicodeError) as error:
        why = f"could not be tried: {fqdn} " + (
            f"does not resolve ({error})"
            if isinstance(error, (socket.gaierror, UnicodeError))
            else f"port 443: {error}"
        )
        yield failed("ports", why, "`labtrack doctor` looks closer.")
        return
    with ThreadPoolExecutor() as pool:  # a closed port is one that is waited for in vain
        yield from pool.map(lambda port, name: _port(address, port, name, timeout), PORTS, PORTS.values())
    if every_port:
        opened = set(asyncio.run(scan(address, range(1, 65536))))
        shown = ", ".join(map(str, sorted(opened)))
        if opened - EXPOSED:
            yield failed("all ports", f"open to this machine: {shown}", FIX)
        else:
            yield ok("all ports", f"open to this machine: {shown}; all others are closed")


def _port(address: str, port: int, name: str, timeout: float) -> Result:
    check = f"port {port} ({name})"
    try:
        socket.create_connection((address, port), timeout).close()
    except OSError as error:
        if not _closed(error):
            return failed(check, f"could not be tried: {error}", "`labtrack doctor` looks closer.")
        return ok(check, f"closed ({error.strerror or 'no answer'})")
    return failed(check, "open to this machine", FIX)


def _closed(error: OSError) -> bool:
    """Whether a connection failed because the port is closed, or a firewall in front of it."""
    refused = {
        errno.ECONNREFUSED,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.EACCES,
        errno.ECONNRESET,
        errno.ETIMEDOUT,
    }
    return isinstance(error, TimeoutError) or error.errno in refused


async def scan(address: str, ports: Iterable[int], timeout: float = SCAN_TIMEOUT) -> list[int]:
    """Which of the TCP ports take a connection.  Raises OSError where they can't be tried, as without a network."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = AT_ONCE + 100
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    at_once = asyncio.Semaphore(AT_ONCE if soft == resource.RLIM_INFINITY else min(AT_ONCE, soft - 100))

    async def one(port: int) -> int | None:
        async with at_once:
            try:
                _, writer = await asyncio.wait_for(asyncio.open_connection(address, port), timeout)
            except asyncio.TimeoutError:
                return None
            except OSError as error:
                if not _closed(error):
                    raise
                return None
            writer.transport.abort()
            return port

    return [port for port in await asyncio.gather(*map(one, ports)) if port]


class _Outside:
    """Somebody outside: no cookie, no ~/.netrc, no redirect followed."""

    def __init__(self, fqdn: str, ca_file: Path | None, timeout: float) -> None:
        self.url = f"https://{fqdn}"
        self.timeout = timeout
        self.session = requests.Session()
        self.verify = str(ca_file) if ca_file else None

    def expect(self, check: str, allowed: set[int], method: str, path: str, good: str, **more: Any) -> Result:
        """One request; ok when its status is one of `allowed`.  A dropped connection counts as refused."""
        url = path if path.startswith("http") else self.url + path
        more.setdefault("auth", _no_login)
        try:
            # verify with each request: REQUESTS_CA_BUNDLE would win over session.verify
            answer = self.session.request(
                method, url, timeout=self.timeout, allow_redirects=False, verify=self.verify, **more
            )
        except requests.exceptions.RequestException as error:
            # nginx hangs up on a Host that is not its own, which TLS shows as an unexpected end
            if check == FORGED and isinstance(error, requests.exceptions.ConnectionError):
                return ok(check, "refused (the connection was dropped)")
            return failed(check, f"could not be tried: {innermost(error)}", "`labtrack doctor` looks closer.")
        if answer.status_code in allowed:
            return ok(check, f"{good} ({answer.status_code})")
        expected = " or ".join(str(status) for status in sorted(allowed))
        return failed(check, f"answered {answer.status_code}, not {expected}", FIX)


def _no_login(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Keeps requests from taking a login out of ~/.netrc."""
    return request
