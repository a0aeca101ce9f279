#!/usr/bin/python3
"""Keeps each service's account to the addresses that it needs, by a table of nftables of its own.

Usage: labtrack-egress

Reads /etc/labtrack-egress.json, [{"user": ..., "to": [{"host": ..., "port": ...}]}], and writes and loads RULES, which
/etc/nftables.conf includes: numbers only, so that loading it at boot depends on no name. Prints "changed" when the
rules are others than before. A timer starts it each minute.

A host keeps each address that it has had within a day: names of object stores answer with some of many addresses, and
a connection may outlive an answer. Of a host that can't be resolved the old addresses stay, however old they are.
An account that does not exist yet is left out; labtrack-egress.path starts this again when one is made.
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import pwd
import socket
import subprocess
import sys
import time
from pathlib import Path

WANTED = Path("/etc/labtrack-egress.json")
KNOWN = Path("/var/lib/labtrack-egress/addresses.json")
RULES = Path("/var/lib/labtrack-egress/rules.nft")
KEEP = 24 * 3600  # seconds
LOCK = RULES.with_name("lock")
TABLE = "inet labtrack_egress"


def addresses(host: str, known: dict[str, float], now: float) -> dict[str, float]:
    """The addresses of HOST, each with the time when it was last an answer."""
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError as error:
        print(f"{host} can't be resolved, its {len(known)} known addresses stay: {error}", file=sys.stderr)
        return known
    return {old: seen for old, seen in known.items() if now - seen < KEEP} | dict.fromkeys(found, now)


def nameservers() -> list[str]:
    """Who answers questions about names."""
    lines = Path("/etc/resolv.conf").read_text().splitlines()
    return [line.split()[1].partition("%")[0] for line in lines if line.startswith("nameserver ")]


def is_address(host: str) -> bool:
    """Is HOST a number, which nobody has to look up?"""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def family(address: str) -> str:
    """How nft calls the family of an address."""
    return "ip6" if isinstance(ipaddress.ip_address(address), ipaddress.IPv6Address) else "ip"


def chain(user: str, uid: int, to: list[dict], known: dict[str, dict[str, float]]) -> list[str]:
    """The rules for one account."""
    accept = []
    if any(not is_address(place["host"]) for place in to):
        for server in sorted(set(nameservers())):
            accept.append(f"{family(server)} daddr {server} meta l4proto {{ tcp, udp }} th dport 53 accept")
    for place in to:
        for address in sorted(known.get(place["host"], {})):
            accept.append(f"{family(address)} daddr {address} tcp dport {int(place['port'])} accept")
    return [
        f"    chain user_{uid} {{",
        f"        # {user}",
        "        ct state { established, related } accept",
        *(f"        {rule}" for rule in accept),
        "        counter reject with icmpx type admin-prohibited",
        "    }",
    ]


def rules(wanted: list[dict], known: dict[str, dict[str, float]]) -> str:
    """The table, as nft reads it."""
    chains, jumps = [], []
    for entry in wanted:
        try:
            uid = pwd.getpwnam(entry["user"]).pw_uid
        except KeyError:
            continue
        chains += chain(entry["user"], uid, entry["to"], known)
        jumps.append(f"        meta skuid {uid} jump user_{uid}")
    head = ["    chain output {", "        type filter hook output priority filter + 5; policy accept;"]
    return "\n".join(
        [f"table {TABLE}", f"delete table {TABLE}", f"table {TABLE} {{", *chains, *head, *jumps, "    }", "}", ""]
    )


def write(path: Path, text: str) -> None:
    """Replace a file as a whole."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def main() -> int:
    RULES.parent.mkdir(mode=0o755, exist_ok=True)
    with LOCK.open("w") as lock:  # the timer, the path unit and an admin may start it at the same moment
        fcntl.flock(lock, fcntl.LOCK_EX)
        return keep(json.loads(WANTED.read_text()))


def keep(wanted: list[dict]) -> int:
    """Look the addresses up, and load the rules where they are others, or not loaded."""
    old = json.loads(KNOWN.read_text()) if KNOWN.exists() else {}
    hosts = sorted({place["host"] for entry in wanted for place in entry["to"]})
    known = {host: addresses(host, old.get(host, {}), time.time()) for host in hosts}
    text = rules(wanted, known)
    changed = not RULES.exists() or RULES.read_text() != text
    loaded = subprocess.run(["nft", "list", "table", *TABLE.split()], capture_output=True, check=False).returncode == 0
    if changed or not loaded:
        subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True)
    write(KNOWN, json.dumps(known))
    if changed:
        write(RULES, text)
        print("changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
