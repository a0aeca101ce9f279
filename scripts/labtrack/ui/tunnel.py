"""How somebody at their own computer reaches a page on this machine, through ssh."""

from __future__ import annotations

import getpass
import os
import shlex
import socket
from collections.abc import Mapping


def ssh_line(port: int, to: str, env: Mapping[str, str] | None = None) -> str:
    """The command for one's own computer.

    port: at both ends.  to: what it leads to here, `127.0.0.1:5000` or the path of a socket.  In a Slurm job it goes
    through the node that the job was submitted from.
    """
    env = os.environ if env is None else env
    parts = ["ssh", "-N", "-L", f"{port}:{to}"]
    login = env.get("SLURM_SUBMIT_HOST", "") if env.get("SLURM_JOB_ID") else ""
    host = host_name()
    if login and login.partition(".")[0] != host.partition(".")[0]:
        parts += ["-J", f"{_user()}@{login}"]
    server_port = (env.get("SSH_CONNECTION", "").split() or [""])[-1]
    if server_port.isdecimal() and server_port != "22" and not login:
        parts += ["-p", server_port]
    return shlex.join([*parts, f"{_user()}@{host}"])


def host_name() -> str:
    """This machine's name, with its domain where it has one."""
    name = socket.gethostname()
    whole = name if "." in name else socket.getfqdn(name)
    return name if whole.startswith("localhost") or "." not in whole else whole


def has_display(env: Mapping[str, str], platform: str) -> bool:
    """Whether a browser can be opened here for the person who asks."""
    if env.get("SSH_CONNECTION") or env.get("SSH_TTY"):
        return False
    return platform == "darwin" or bool(env.get("DISPLAY") or env.get("WAYLAND_DISPLAY"))


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container whose user has no name
        return "you"
