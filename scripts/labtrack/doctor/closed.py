"""What must be closed: the server seen from outside, by somebody who should not get in."""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests

from labtrack.doctor import network
from labtrack.doctor.result import Result, failed, ok, warning
from labtrack.errors import innermost

TIMEOUT = 10.0  # seconds for an answer
PORT_TIMEOUT = 3.0  # seconds: a firewall that drops gives none
PORTS = {5000: "MLflow", 5432: "PostgreSQL"}
HTTPS = 443
EXPOSED = frozenset({22, 80, HTTPS})
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
    "/ajax-api/3.0/mlflow/gateway/endpoints/list",
    "/ajax-api/3.0/mlflow/assistant/config",
)
_TIMED = "its timer should have renewed it: `sudo labtrack-certificate status` on the server says why it has not; "
RENEW = {
    "selfsigned": f"{_TIMED}run playbooks/deploy.yml, which renews it too.",
    "acme": f"{_TIMED}`sudo certbot renew` tries again (docs/admin/certificates.md).",
    "provided": "get the next one from your CA, put it into the same files, and run playbooks/deploy.yml.",
}
FORGED = "forged Host"
SEARCH = "/ajax-api/2.0/mlflow/experiments/search"
FIX = "run playbooks/deploy.yml again; if it stays open, stop nginx on the server and report it (SECURITY.md)."


def check(
    fqdn: str,
    login: tuple[str, str],
    ca_file: Path | None,
    timeout: float = TIMEOUT,
    *,
    every_port: bool = False,
    renewal: str = "selfsigned",
) -> Iterator[Result]:
    """Checks the exposed ports and routes of the server `fqdn`.

    login: an ordinary account.  every_port: try all TCP ports, which takes half a minute and looks like an attack.
    renewal: lab_certificate, which says how the certificate is renewed.
    """
    with ThreadPoolExecutor() as pool:  # a port that is closed by a firewall is waited for in vain
        ports = pool.submit(lambda: list(_ports(fqdn, min(timeout, PORT_TIMEOUT), every_port)))
        routes = list(_routes(_Outside(fqdn, ca_file, timeout), fqdn, login))
        yield from ports.result()
    yield _certificate(fqdn, ca_file, timeout, renewal)
    yield from routes


def _routes(outside: _Outside, fqdn: str, login: tuple[str, str]) -> Iterator[Result]:
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


def _certificate(fqdn: str, ca_file: Path | None, timeout: float, method: str) -> Result:
    """How long the certificate is valid, and what to do in its last third."""
    try:
        _, days, soon = network.presented(fqdn, HTTPS, str(ca_file) if ca_file else None, timeout)
    except OSError as error:
        return failed("certificate", f"could not be tried: {innermost(error)}", RENEW[method])
    seen = f"{method}, valid for {days} more days"
    if soon:
        return warning("certificate", f"{seen}, less than a third of its time", RENEW[method])
    return ok("certificate", seen)


def _shown(path: str) -> str:
    return path.partition("?")[0]


def _ports(fqdn: str, timeout: float, every_port: bool) -> Iterator[Result]:
    """The rows of the ports.  That one is closed means something only where the server is reached at all."""
    try:
        address = str(socket.getaddrinfo(fqdn, HTTPS, type=socket.SOCK_STREAM)[0][4][0])
        socket.create_connection((address, HTTPS), timeout).close()
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
        try:
            opened = set(scan(address, range(1, 65536)))
        except OSError as error:
            yield failed("all ports", f"could not be tried: {error}", "try again, from another machine.")
            return
        shown = ", ".join(map(str, sorted(opened)))
        if opened - EXPOSED:
            yield failed("all ports", f"open to this machine: {shown}", FIX)
        elif HTTPS not in opened:
            hint = "this machine or the network is too busy: try again."
            yield failed("all ports", "could not be tried: not even 443 answered in time", hint)
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


def scan(address: str, ports: Sequence[int], timeout: float = SCAN_TIMEOUT) -> list[int]:
    """Which of the TCP ports take a connection.

    timeout: seconds that one has to answer.  Raises OSError where ports can't be tried, as without a network.
    """
    import resource  # not on Windows, and only here

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    at_once = AT_ONCE if soft == resource.RLIM_INFINITY else max(1, min(AT_ONCE, soft - 100))
    opened: list[int] = []
    for start in range(0, len(ports), at_once):
        with selectors.DefaultSelector() as selector, contextlib.ExitStack() as sockets:
            for port in ports[start : start + at_once]:
                one = sockets.enter_context(socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET))
                one.setblocking(False)
                _tried(one.connect_ex((address, port)), port)
                selector.register(one, selectors.EVENT_WRITE, (one, port))
            deadline = time.monotonic() + timeout
            while selector.get_map() and (left := deadline - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    one, port = key.data
                    selector.unregister(one)
                    if _tried(one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), port) == 0:
                        opened.append(port)
    return opened


def _tried(number: int, port: int) -> int:
    """The error NUMBER of a connection.  Raises OSError for one that a closed port does not have."""
    if number not in {0, errno.EINPROGRESS} and not _closed(OSError(number, "")):
        raise OSError(number, f"port {port} can't be tried: {os.strerror(number)}")
    return number


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
