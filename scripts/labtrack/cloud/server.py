"""A server that the kit has made: its port, its console, its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from labtrack.cloud.answers import ERRORS, explain, explained, may_pass, status_of
from labtrack.errors import LabtrackError

BEGIN, END = "-----BEGIN SSH HOST KEY KEYS-----", "-----END SSH HOST KEY KEYS-----"
BOOT = 180  # seconds until its console shows the keys
SHUTDOWN = 120  # seconds
NOT_READY = 409  # Nova's status for the console of a server that is still being built
LINES = 12  # of the console


def attach(cloud: Any, server: str, port: str) -> bool:
    """Attaches a port to its server, both by id, where it belongs to none; whether it did.

    A server keeps running when somebody deletes its port.  The one that is made instead has to be attached.
    """
    with explained(f"The port {port} could not be attached to the server {server}"):
        found = cloud.network.get_port(port)
        if found.device_id == server:
            return False
        if found.device_id:
            raise LabtrackError(
                f"The port {port} belongs to {found.device_id}, and not to the lab's server {server}.",
                f"see whose it is (`openstack port show {port}`), detach it there, and run the same command again.",
            )
        cloud.compute.create_server_interface(server, port_id=port)
    return True


def shut_down(cloud: Any, server: str) -> None:
    """Shuts a server down, so that its data are whole.  One that is broken can't be, which may be why it goes."""
    with suppress(*ERRORS):
        cloud.compute.stop_server(server)
        cloud.compute.wait_for_server(cloud.compute.get_server(server), status="SHUTOFF", wait=SHUTDOWN)


def host_keys(connect: Callable[[], Any], server: str, timeout: float = BOOT) -> list[str]:
    """The SSH host keys that cloud-init has printed on a server's console, each as type and key.

    The cloud's API, which TLS protects, shows the console: so the first login already knows whom it talks to.
    timeout: seconds to wait for them.  Raises LabtrackError.
    """
    deadline = time.monotonic() + timeout
    console, compute = "", None
    while True:
        try:
            compute = compute or connect().compute
            console = compute.get_server_console_output(server)["output"] or ""
        except ERRORS as error:
            status = status_of(error)
            if time.monotonic() > deadline or not (status is None or may_pass(status) or status == NOT_READY):
                what, hint = explain(error)
                raise LabtrackError(f"The console of the server {server} can't be read: {what}", hint) from None
        if keys := printed_keys(console):
            return keys
        if time.monotonic() > deadline:
            end = [line.rstrip() for line in console.splitlines() if line.strip()][-LINES:] or ["(nothing)"]
            raise LabtrackError(
                f"The server's console shows no SSH host keys after {timeout:.0f} s.  It ends with:\n  "
                + "\n  ".join(end),
                "where it still boots, run this again; an image without cloud-init does not print them.  All of the "
                f"console: openstack console log show {server}",
            )
        time.sleep(1)


def printed_keys(console: str) -> list[str]:
    """The keys of the last block on a console; empty as long as it is not complete."""
    _, begin, block = console.rpartition(BEGIN)
    block, end, _ = block.partition(END)
    if not (begin and end):
        return []
    lines = [line.split() for line in block.splitlines()]
    return sorted(" ".join(words[:2]) for words in lines if len(words) > 1)
