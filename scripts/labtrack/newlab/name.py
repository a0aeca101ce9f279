"""The server's name: where the DNS leads it, and which certificate fits that."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass

from labtrack import labfile
from labtrack.errors import BadInputError

Resolver = Callable[[str], list[str]]  # the addresses of a name; none where the DNS has none


@dataclass(frozen=True)
class Name:
    """fqdn: empty where none was given.  address: the project's floating IP that it resolves to, and nobody uses."""

    fqdn: str = ""
    certificate: str = ""
    why: str = ""
    address: str = ""


def check(fqdn: str) -> str:
    """The name as lab.yml has it.  Raises BadInputError where it can't be one."""
    pattern = labfile.schema()["properties"]["lab_fqdn"]
    fqdn = fqdn.strip().rstrip(".").lower()
    if not re.match(pattern["pattern"], fqdn):
        raise BadInputError(f"A server can't be named {fqdn!r}.", f"give {pattern['x-allowed']}: --fqdn NAME")
    return fqdn


def judge(fqdn: str, addresses: list[str], free: list[str], resolve: Resolver | None = None) -> Name:
    """Which certificate a name can have now.

    addresses: the project's floating IPs, free: those that nothing uses.  An ACME directory asks the address that
    the world's DNS gives, so each that the name has must be the server's, and reached from everywhere.
    """
    found = (resolve or _resolve)(fqdn)
    others = [one for one in found if one not in addresses]
    used = [one for one in found if one not in free]
    inside = [one for one in found if not ipaddress.ip_address(one).is_global]
    shown = f"{fqdn} resolves to {', '.join(found)}"
    later = "change it to acme once the name resolves to the server's address for everybody"
    if not found:
        return Name(fqdn, "selfsigned", f"{fqdn} does not resolve to an address yet: {later}.")
    if others:
        return Name(fqdn, "selfsigned", f"{shown}; no floating IP of the project is {', '.join(others)}: {later}.")
    if used:
        return Name(fqdn, "selfsigned", f"{shown}, which something else of the project has already: {later}.")
    if len(found) > 1:
        return Name(fqdn, "selfsigned", f"{shown}, and a server has one of them: {later}.")
    if inside:
        why = f"{shown}, which Let's Encrypt can't reach: it is no address of the public internet."
        return Name(fqdn, "selfsigned", why, found[0])
    why = f"{shown}, a public floating IP of the project: Let's Encrypt, once port 80 is reached from everywhere."
    return Name(fqdn, "acme", why, found[0])


def _resolve(fqdn: str) -> list[str]:
    try:
        return sorted({str(info[4][0]) for info in socket.getaddrinfo(fqdn, 443, type=socket.SOCK_STREAM)})
    except (OSError, UnicodeError):
        return []
