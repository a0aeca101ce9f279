"""private/<lab>/known_hosts: the lab's server is known before the first login."""

from __future__ import annotations

from labtrack import files
from labtrack.cloud import server
from labtrack.lab import Lab
from labtrack.provision import session


def learn_host_keys(lab: Lab, server_id: str, address: str) -> bool:
    """Notes the SSH host keys of a server under its address; whether anything was new.

    Its console is read once for each server, as a console forgets.  Keys of another server that had the address before
    are forgotten.  Raises LabtrackError.
    """
    file = lab.private / "known_hosts"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    of_server = {line.split()[0]: line for line in lines if line.split()[3:] == [server_id]}
    if address in of_server:
        return False
    keys = [" ".join(line.split()[1:3]) for line in lines if line.split()[3:] == [server_id]]
    keys = keys or server.host_keys(lambda: session.connect(lab), server_id)
    kept = [line for line in lines if address not in line.partition(" ")[0].split(",")]
    files.write_private(
        file, "".join(f"{line}\n" for line in [*kept, *with_address(keys, address, server_id)]).encode()
    )
    return True


def with_address(keys: list[str], address: str, server_id: str) -> list[str]:
    """Lines of known_hosts; the server's id as their comment tells whose they are."""
    return [f"{address} {key} {server_id}" for key in dict.fromkeys(keys)]
