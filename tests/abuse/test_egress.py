"""Where somebody gets who runs code as one of the server's services."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest

STORE = "cloud.rehearsal.test:8080"
ELSEWHERE = (
    "10.99.0.20:22",  # the cluster's login node
    "cloud.rehearsal.test:5000",  # Keystone
    "cloud.rehearsal.test:8774",  # Nova
    "cloud.rehearsal.test:22",
    "169.254.169.254:80",
    "10.99.0.1:53",
    "127.0.0.1:22",
    "[::1]:22",
    "127.0.0.1:443",
)
# Like MLflow's unit, where that could make a difference.
SANDBOX = "systemd-run --quiet --pipe --wait -p PrivateUsers=yes -p PrivateTmp=yes -p NoNewPrivileges=yes"
CONNECT = """
import socket, sys
for place in sys.argv[1:]:
    host, _, port = place.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), 3).close()
        print(place)
    except OSError as error:
        print(place, error, file=sys.stderr)
"""


def reached(rehearsal: Any, user: str, *places: str) -> set[str]:
    """Which of the places a program of this account can connect to."""
    command = f"{SANDBOX} -p User={user} python3 - {' '.join(places)}"
    return set(rehearsal.ssh("server", command, stdin=CONNECT, check=True).stdout.split())


def test_mlflow_reaches_the_store_and_nothing_else(rehearsal: Any) -> None:
    assert reached(rehearsal, "mlflow", STORE, *ELSEWHERE) == {STORE}


@pytest.mark.parametrize("user", ["postgres", "www-data", "labtrack-alarm"])
def test_postgresql_nginx_and_alarms_without_receivers_reach_nothing(rehearsal: Any, user: str) -> None:
    assert reached(rehearsal, user, STORE, *ELSEWHERE) == set()


def test_these_places_are_there_for_who_may(rehearsal: Any) -> None:
    """Or the tests above would prove nothing."""
    places = [place for place in ELSEWHERE if not place.startswith(("169.254.", "10.99.0.1:", "[::1]"))]
    there = reached(rehearsal, "root", STORE, *places)
    assert {STORE, "127.0.0.1:22", "127.0.0.1:443", "cloud.rehearsal.test:5000", "10.99.0.20:22"} <= there


def test_egress_stays_when_the_store_s_name_can_not_be_resolved(rehearsal: Any) -> None:
    rules = rehearsal.ssh("server", "cat /var/lib/labtrack-egress/rules.nft", check=True).stdout
    no_names = "echo hosts: files > /run/nsswitch && mount --bind /run/nsswitch /etc/nsswitch.conf && labtrack-egress"
    broken = f"unshare --mount sh -c {shlex.quote(no_names)}"
    done = rehearsal.ssh("server", broken, check=True)
    try:
        assert "can't be resolved, its 1 known addresses stay" in done.stderr
        assert reached(rehearsal, "mlflow", "10.99.0.10:8080", *ELSEWHERE) == {"10.99.0.10:8080"}
    finally:
        rehearsal.ssh("server", "labtrack-egress", check=True)
    assert rehearsal.ssh("server", "cat /var/lib/labtrack-egress/rules.nft", check=True).stdout == rules


@pytest.mark.parametrize("damage", ["nft delete table inet labtrack_egress", "systemctl restart nftables"])
def test_egress_is_there_again_after_the_firewall_was_loaded(rehearsal: Any, damage: str) -> None:
    rehearsal.ssh("server", f"{damage} && systemctl start labtrack-egress", check=True)
    assert reached(rehearsal, "mlflow", STORE, "10.99.0.20:22") == {STORE}


def test_an_address_of_the_store_is_kept_for_a_day(rehearsal: Any) -> None:
    file = "/var/lib/labtrack-egress/addresses.json"
    known = json.loads(rehearsal.ssh("server", f"cat {file}", check=True).stdout)
    host = STORE.partition(":")[0]
    now = max(known[host].values())
    known[host] |= {"192.0.2.1": now - 3600, "192.0.2.2": now - 25 * 3600}
    rehearsal.ssh("server", f"cat > {file} && labtrack-egress", stdin=json.dumps(known), check=True)
    try:
        rules = rehearsal.ssh("server", "nft list table inet labtrack_egress", check=True).stdout
        assert "192.0.2.1" in rules
        assert "192.0.2.2" not in rules
    finally:
        del known[host]["192.0.2.1"], known[host]["192.0.2.2"]
        rehearsal.ssh("server", f"echo {shlex.quote(json.dumps(known))} > {file} && labtrack-egress", check=True)


def test_one_address_can_not_hold_all_connections(rehearsal: Any) -> None:
    rules = rehearsal.ssh("server", "nft list chain inet labtrack open", check=True).stdout
    assert rules.count("ct count over 2000") == 2
