"""Guessing passwords, and keeping others from logging in.

The guesses come from IPv6 addresses that the server's loopback device is given for it, so that they use up nothing of
what other tests need.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
import shlex
import statistics
from collections.abc import Iterator
from typing import Any

import pytest
from api import Api, account
from wire import send

NETWORKS = [f"fd0e:1:0:{n:x}" for n in range(1, 121)]
# Arguments by standard input: address, user, password; one line of "status seconds" for each, in their order.
GUESS = r"""
import base64, http.client, socket, ssl, sys, time
from concurrent.futures import ThreadPoolExecutor
fqdn, parallel = sys.argv[1], int(sys.argv[2])
context = ssl.create_default_context(cafile="/etc/ssl/labtrack/ca.pem")
def ask(line):
    address, user, password = line.rstrip("\n").split("\t")
    plain = socket.create_connection(("fd0e:1::1", 443), 60, (address, 0))
    start = time.monotonic()
    with context.wrap_socket(plain, server_hostname=fqdn) as tls:
        login = base64.b64encode(f"{user}:{password}".encode()).decode()
        lines = ["GET /version HTTP/1.1", f"Host: {fqdn}", "Connection: close", f"Authorization: Basic {login}", "", ""]
        tls.sendall("\r\n".join(lines).encode())
        status = tls.recv(65536).split(b" ")[1].decode()
    return f"{status} {time.monotonic() - start:.3f}"
with ThreadPoolExecutor(parallel) as pool:
    print(*pool.map(ask, sys.stdin), sep="\n")
"""


class Guesser:
    """Somebody with many addresses."""

    def __init__(self, rehearsal: Any) -> None:
        self.rehearsal = rehearsal

    def __call__(self, *logins: tuple[str, str, str], parallel: int = 8) -> list[tuple[int, float]]:
        """Status and seconds of each login (address, user, password)."""
        lines = "".join("\t".join(login) + "\n" for login in logins)
        command = f"python3 -c {shlex.quote(GUESS)} {self.rehearsal.fqdn} {parallel}"
        said = self.rehearsal.ssh("server", command, stdin=lines, check=True).stdout
        return [(int(line.split()[0]), float(line.split()[1])) for line in said.splitlines()]

    def statuses(self, *logins: tuple[str, str, str], parallel: int = 8) -> list[int]:
        """The statuses alone."""
        return [status for status, _ in self(*logins, parallel=parallel)]


@pytest.fixture
def guess(rehearsal: Any) -> Iterator[Guesser]:
    """A guesser, whose guesses are forgotten afterwards."""
    clean = "ip -6 address flush dev lo to fd0e:1::/48; systemctl restart nginx"
    addresses = ["fd0e:1::1", *(f"{network}::{last}" for network in NETWORKS for last in (1, 2))]
    add = "\n".join(f"address add {address}/128 dev lo" for address in addresses)
    rehearsal.ssh("server", f"{clean}; ip -batch -", stdin=add, check=True)
    try:
        yield Guesser(rehearsal)
    finally:
        rehearsal.ssh("server", clean, check=True)


def random_name() -> str:
    return secrets.token_hex(6)


def test_guesses_for_one_account_end_and_who_is_logged_in_does_not_notice(ann: Api, guess: Guesser) -> None:
    assert ann.login
    me = ("fd0e:1:0:1::1", *ann.login)
    assert guess.statuses(me) == [200]
    statuses = guess.statuses(*(("fd0e:1:0:1::1", ann.login[0], random_name()) for _ in range(30)))
    assert 8 <= statuses.count(401) <= 14
    assert statuses.count(429) == 30 - statuses.count(401)
    assert guess.statuses(me) == [200]


def test_long_user_names_displace_no_limit(ann: Api, guess: Guesser) -> None:
    assert ann.login
    address = "fd0e:1:0:2::1"
    mine = [(address, ann.login[0], random_name()) for _ in range(28)]
    assert guess.statuses(*mine[:14]).count(401) > 9
    guess.statuses(*((address, random_name() + "x" * 5000, "p") for _ in range(40)), parallel=40)
    # one more each 6 seconds, and not ten at once
    assert guess.statuses(*mine[14:], parallel=14).count(401) < 8


def test_addresses_of_one_ipv6_network_count_together(guess: Guesser) -> None:
    addresses = ["fd0e:1:0:3::1", "fd0e:1:0:3::2"]
    name = random_name()
    statuses = guess.statuses(*((addresses[n % 2], name, random_name()) for n in range(24)))
    assert statuses.count(401) <= 14
    assert guess.statuses(("fd0e:1:0:4::1", name, random_name())) == [401]


def test_guesses_from_everywhere_have_a_ceiling_and_lock_out_nobody_who_was_there(ann: Api, guess: Guesser) -> None:
    assert ann.login
    assert guess.statuses(("fd0e:1:0:5::1", *ann.login)) == [200]
    results = guess(
        *((f"{network}::1", random_name(), random_name()) for network in NETWORKS for _ in range(2)), parallel=120
    )
    statuses = [status for status, _ in results]
    assert set(statuses) == {401, 429}
    assert 80 <= statuses.count(401) <= 150, statuses.count(401)
    assert guess.statuses(("fd0e:1:0:6::1", *ann.login)) == [200]
    assert ann.get("users/current").status_code == 200


def test_colleague_behind_the_same_address_logs_in_though_somebody_guesses(admin: Api, guess: Guesser) -> None:
    address = "fd0e:1:0:7::1"
    with account(admin) as colleague:
        assert colleague.login
        # once, from anywhere, as when the file was made
        assert colleague.get("users/current").status_code == 200
        statuses = guess.statuses(*((address, random_name(), "p") for _ in range(90)), parallel=90)
        assert 429 in statuses
        assert guess.statuses((address, *colleague.login)) == [200]


def test_unknown_users_take_as_long_as_known_ones(admin: Api, guess: Guesser) -> None:
    names = ["admin", *(random_name() for _ in range(9))]
    with account(admin) as one, account(admin) as two:
        assert one.login
        assert two.login
        known = [one.login[0], two.login[0]] * 5
        mixed = [login for pair in zip(known, names, strict=True) for login in pair]
        took = guess(*((f"{NETWORKS[n]}::1", user, random_name()) for n, user in enumerate(mixed)), parallel=4)
    assert {status for status, _ in took} == {401}
    medians = [statistics.median(seconds for _, seconds in took[which::2]) for which in (0, 1)]
    assert abs(medians[0] - medians[1]) < 0.05, medians


@pytest.mark.parametrize(
    "login",
    [
        "Bearer abc", "Digest username=x", "Negotiate abc", "Basic", "Basic !!!", "Basic YQ==", "basic  ",
        "Basic " + base64.b64encode(b"a\0b:c").decode(), "Basic " + base64.b64encode(b"a:b\0c").decode(),
        "Basic " + base64.b64encode(b"\xff\xfe:c").decode(), "Basic " + base64.b64encode(b":c").decode(),
        "Basic " + base64.b64encode(b"a\nb:c").decode(), "Basic YTpi YTpi", "x" * 7000,
    ],
)  # fmt: skip
def test_login_that_is_none_is_refused_with_words(nobody: Api, login: str) -> None:
    host = nobody.url.removeprefix("https://")
    for method, path in (("GET", "/"), ("POST", "/api/2.0/mlflow/runs/log-metric"), ("GET", "/version")):
        asked = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nAuthorization: {login}\r\n\r\n"
        answer = send(nobody, asked.encode())
        assert answer.status == 401, answer
        said = json.loads(answer.body)
        assert said["error_code"] == "UNAUTHENTICATED"
        assert "To fix" in said["message"]
        assert re.search(r"^Content-Type: application/json", answer.head, re.MULTILINE)
        assert re.search(r"^WWW-Authenticate: Basic realm", answer.head, re.MULTILINE)


def test_two_logins_in_one_request(nobody: Api) -> None:
    host = nobody.url.removeprefix("https://")
    twice = "Authorization: Basic YTpi\r\n" * 2
    assert send(nobody, f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{twice}\r\n".encode()).status == 400


MEMORY = r"""
import re, subprocess, sys
needles = [line.encode() for line in sys.stdin.read().split("\n") if line]
pids = subprocess.run(["systemctl", "show", "-P", "MainPID", "nginx"], capture_output=True, text=True).stdout.split()
for line in open(f"/proc/{pids[0]}/maps"):
    place, mode = line.split()[:2]
    if mode != "rw-s":
        continue
    start, end = (int(part, 16) for part in place.split("-"))
    with open(f"/proc/{pids[0]}/mem", "rb") as memory:
        memory.seek(start)
        zone = memory.read(end - start)
    for n, needle in enumerate(needles):
        if needle in zone:
            print("needle", n)
"""


def test_no_password_in_what_nginx_keeps(rehearsal: Any, ann: Api) -> None:
    """Neither in files nor in shared memory; what is there to be found, is found."""
    assert ann.login
    password = ann.login[1]
    wrong = f"wrong-{secrets.token_hex(8)}"
    Api(ann.url, ann.ca, (ann.login[0], wrong)).get("users/current")
    assert ann.get("users/current").status_code == 200
    forms = [form for p in (password, wrong) for form in (p, base64.b64encode(f"{ann.login[0]}:{p}".encode()).decode())]
    files = "grep -rlaFf - /run/nginx /var/log/nginx /var/cache/nginx /var/lib/nginx 2>/dev/null; true"
    assert rehearsal.ssh("server", files, stdin="\n".join(forms), check=True).stdout == ""
    look = f"python3 -c {shlex.quote(MEMORY)}"
    assert rehearsal.ssh("server", look, stdin="\n".join(forms), check=True).stdout == ""
    assert "/run/nginx/check.sock" in rehearsal.ssh("server", "ss -lx", check=True).stdout
    planted = rehearsal.ssh("server", look, stdin="10.99.0.1\n", check=True).stdout
    assert planted == "needle 0\n" * planted.count("\n") != ""
    mode = rehearsal.ssh("server", "stat -c '%U %a' /run/nginx/login_secret.conf", check=True).stdout
    assert mode == "root 600\n"
