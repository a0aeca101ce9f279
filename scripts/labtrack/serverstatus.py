"""How the lab's server is: what labtrack-status says there, asked as root by Ansible, as the playbooks reach it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from labtrack.doctor.result import Result, Status
from labtrack.lab import Lab

COMMAND = "labtrack-status --json; true"  # Ansible would mix what a failing command says with words of its own
VERSION = 1  # of what it prints
CONNECT, ALL = 15, 180  # seconds
UNREACHABLE = 4  # exit code of ansible


def ask(lab: Lab, ansible: Path | None = None) -> dict[str, Any]:
    """What the server says of itself: version, status, time, host, results (check, status, seen, hint, seconds, parts).

    A server that can't be asked is a document too, with the one row "server".  ansible: the program, another in tests.
    """
    return answer(lab, COMMAND, ansible)


def week(lab: Lab, ansible: Path | None = None) -> dict[str, Any]:
    """The server's report of the week: version, time, text, figures; where it can't be asked, as ask() has it."""
    return answer(lab, "labtrack-report --json", ansible)


def answer(lab: Lab, shell: str, ansible: Path | None = None) -> dict[str, Any]:
    """The document that a command prints on the server, run there as root; its first key is "version".

    Where there is none: one with the row "server", which says why.
    """
    program = ansible or Path(sys.executable).with_name("ansible")
    command = [
        str(program), "--inventory", str(lab.folder), "mlflow", "--become", "--timeout", str(CONNECT),
        "--module-name", "ansible.builtin.shell", "--args", shell,
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, cwd=lab.root, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=ALL, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return _not_asked(f"The server gave no answer within {ALL} s.", _reach(lab))
    for line in done.stdout.splitlines():
        if line.startswith('{"version"'):
            return _read(line)
    said = re.search(r"(?m)^\[ERROR\]: (?:Task failed: )?(.+)$", done.stderr)
    why = said[1] if said else (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
    if done.returncode == UNREACHABLE:
        return _not_asked(f"The server can't be reached: {why}", _reach(lab))
    if "No hosts matched" in done.stderr:
        return _not_asked("The lab has no server yet.", f"ansible-playbook -i {lab.shown_folder} site.yml")
    if missing := re.search(r"(labtrack-\w+): not found", done.stdout):
        hint = f"ansible-playbook -i {lab.shown_folder} playbooks/deploy.yml, which brings it up to this version."
        return _not_asked(f"The server has no {missing[1]}.", hint)
    return _not_asked(f"The server could not be asked: {why}", _reach(lab))


def rows(said: dict[str, Any]) -> list[Result]:
    """The rows as every checker of the kit has them."""
    return [Result(row["check"], Status(row["status"]), row["seen"], row["hint"]) for row in said["results"]]


def _read(line: str) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(line)
    if said["version"] != VERSION:
        hint = "use the version of the kit that the server was deployed with, or deploy with this one."
        return _not_asked(f"The server answers in format {said['version']}, and this labtrack reads {VERSION}.", hint)
    return said


def _reach(lab: Lab) -> str:
    return (
        f"`ansible -i {lab.shown_folder} mlflow -m ping -vvv` shows each step: the machine, your network "
        "(lab_admin_networks), your SSH key; the cloud's web page shows whether it runs."
    )


def _not_asked(seen: str, hint: str) -> dict[str, Any]:
    row = {"check": "server", "status": Status.FAILED.value, "seen": seen, "hint": hint, "seconds": 0.0, "parts": []}
    return {"version": VERSION, "status": Status.FAILED.value, "time": time.time(), "host": "", "results": [row]}
