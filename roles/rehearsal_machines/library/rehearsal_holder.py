#!/usr/bin/python
"""Ansible module: which checkout holds the one rehearsal that a machine can have."""

from __future__ import annotations

import getpass
import json
import os
from datetime import datetime, timezone
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

try:
    from ansible.module_utils import labtrack_processes as processes
except ImportError:  # imported by a test, not through Ansible
    import labtrack_processes as processes

DOCUMENTATION = r"""
module: rehearsal_holder
short_description: Claim the rehearsal of this machine for a checkout, or give it up
description:
  - A machine has one rehearsal, because it has one bridge and one set of kernel settings.
  - The bridge says where the state of its holder is, whatever cache folder the other user has.
  - A claim whose checkout has been removed, or of which nothing runs any more, is broken and is passed on.
options:
  checkout: {type: path, required: true, description: The checkout that asks.}
  state_dir: {type: path, required: true, description: Where this user keeps the state of a rehearsal.}
  bridge: {type: str, required: true, description: Name of the rehearsal's bridge.}
  state:
    type: str
    choices: [claimed, seen, released]
    default: claimed
    description: C(seen) only looks. C(released) removes the claim.
"""

EXAMPLES = r"""
- name: Claim the rehearsal
  rehearsal_holder:
    checkout: /home/ada/labtrack
    state_dir: /root/.cache/labtrack/rehearsal
    bridge: labtrack0
"""

RETURN = r"""
holder: {type: dict, returned: always, description: The claim that was found, empty without one.}
alive: {type: bool, returned: always, description: Is a machine or a playbook of that claim running?}
ours: {type: bool, returned: always, description: Is it the claim of this checkout?}
broken: {type: bool, returned: always, description: Is it the claim of another checkout, of which nothing is left?}
state_dir: {type: str, returned: always, description: Where the state of that claim is.}
"""

HELD = """This machine's rehearsal is held by another checkout:
  {checkout} (user {user}, since {since})
To use this machine: stop that one with `make down` in {checkout}, then call this again."""

BUSY = """Another call is working on this rehearsal (process {pid}, since {playbook_since}).
To go on: wait until it has finished, or stop it, then call this again."""


def playbook() -> tuple[int, str | None]:
    """The ansible-playbook that this module runs for, and when it started."""
    above = processes.parents(os.getpid())
    named = [pid for pid in above if any("ansible-playbook" in word for word in processes.arguments(pid)[:3])]
    # the outermost one: its workers are forks with the same command line
    pid = named[-1] if named else os.getppid()
    return pid, processes.started(pid)


def where(state_dir: Path, bridge: str) -> Path:
    """The state folder of the running rehearsal: the bridge names it, otherwise it is this user's."""
    try:
        alias = Path("/sys/class/net", bridge, "ifalias").read_text().strip()
    except OSError:
        alias = ""
    return Path(alias) if alias else state_dir


def read(state_dir: Path) -> dict:
    """The claim in a state folder; empty if there is none or it was cut off by a crash."""
    try:
        claim = json.loads((state_dir / "holder.json").read_text())
    except (OSError, ValueError):
        return {}
    return claim if isinstance(claim, dict) else {}


def machine_runs(state_dir: Path) -> bool:
    """Does any machine of this state folder run?"""
    return any(tree.is_relative_to(state_dir) for tree in processes.nspawn().values())


def playbook_runs(claim: dict) -> bool:
    """Is the playbook that made or renewed the claim still at work?"""
    if claim.get("boot") != processes.boot_id() or "pid" not in claim:
        return False
    return claim.get("pid_started") is not None and processes.started(claim["pid"]) == claim["pid_started"]


def write(state_dir: Path, claim: dict) -> None:
    """Write the claim so that a crash leaves the old one or the new one."""
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = state_dir / "holder.json.part"
    part.write_text(json.dumps(claim, indent=2) + "\n")
    part.replace(state_dir / "holder.json")


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "checkout": {"type": "path", "required": True},
            "state_dir": {"type": "path", "required": True},
            "bridge": {"type": "str", "required": True},
            "state": {"type": "str", "default": "claimed", "choices": ["claimed", "seen", "released"]},
        },
        supports_check_mode=True,
    )
    checkout = os.path.realpath(module.params["checkout"])
    own_dir = Path(module.params["state_dir"])
    state_dir = where(own_dir, module.params["bridge"])
    claim = read(state_dir)
    ours = bool(claim) and claim.get("checkout") == checkout and state_dir == own_dir
    at_work = playbook_runs(claim)
    alive = at_work or machine_runs(state_dir)
    there = Path(claim.get("checkout", "/nonexistent"), "playbooks").is_dir()
    broken = bool(claim) and not ours and not (alive and (there or at_work))
    pid, pid_started = playbook()
    found = {"holder": claim, "alive": alive, "ours": ours, "broken": broken, "state_dir": str(state_dir)}

    if module.params["state"] == "seen":
        module.exit_json(changed=False, **found)
    if claim and not ours and not broken:
        module.fail_json(msg=HELD.format(**claim), **found)
    if ours and at_work and claim["pid"] != pid:
        module.fail_json(msg=BUSY.format(**claim), **found)

    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    if module.params["state"] == "released":
        if claim and not module.check_mode:
            (state_dir / "holder.json").unlink()
        module.exit_json(changed=bool(claim), **found)
    if not module.check_mode:
        since = claim["since"] if ours else now
        renewed = {"pid": pid, "pid_started": pid_started, "playbook_since": now, "boot": processes.boot_id()}
        write(own_dir, {"checkout": checkout, "user": getpass.getuser(), "since": since, **renewed})
    module.exit_json(changed=not ours, **found)


if __name__ == "__main__":
    main()
