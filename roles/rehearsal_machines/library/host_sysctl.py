#!/usr/bin/python
"""Ansible module: kernel settings that are put back."""

from __future__ import annotations

import json
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

try:
    from ansible.module_utils import labtrack_processes as processes
except ImportError:  # imported by a test, not through Ansible
    import labtrack_processes as processes

DOCUMENTATION = r"""
module: host_sysctl
short_description: Set kernel settings for a while, and put them back
description:
  - Writes down what was there before it changes anything, so that C(state=absent) can put it back, also after a crash.
  - A reboot has put everything back already; what was written down before it is forgotten.
options:
  settings: {type: dict, default: {}, description: Setting and value. One that this kernel lacks is left out.}
  at_least: {type: dict, default: {}, description: Setting and number that it is raised to, never lowered.}
  record: {type: path, required: true, description: File in which the settings of before are kept.}
  state: {type: str, choices: [present, absent], default: present, description: Set them, or put them back.}
"""

EXAMPLES = r"""
- name: Route between the machines and the world
  host_sysctl:
    settings: {net.ipv4.ip_forward: 1}
    record: /root/.cache/labtrack/rehearsal/sysctl.json
"""

RETURN = r"""
before: {type: dict, returned: always, description: What was there.}
"""

SYS = Path("/proc/sys")


def path(name: str) -> Path:
    return SYS / name.replace(".", "/")


def recorded(record: Path) -> dict[str, str]:
    """What was written down in this boot."""
    try:
        kept = json.loads(record.read_text())
    except (OSError, ValueError):
        return {}
    return kept["settings"] if kept.get("boot") == processes.boot_id() else {}


def write(record: Path, settings: dict[str, str]) -> None:
    record.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = record.with_suffix(".part")
    part.write_text(json.dumps({"boot": processes.boot_id(), "settings": settings}, indent=2) + "\n")
    part.replace(record)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "settings": {"type": "dict", "default": {}},
            "at_least": {"type": "dict", "default": {}},
            "record": {"type": "path", "required": True},
            "state": {"type": "str", "default": "present", "choices": ["present", "absent"]},
        },
        supports_check_mode=True,
    )
    record = Path(module.params["record"])
    before = recorded(record)
    if module.params["state"] == "absent":
        wanted = before
    else:
        wanted = {name: str(value) for name, value in module.params["settings"].items() if path(name).exists()}
        for name, least in module.params["at_least"].items():
            if path(name).exists() and int(path(name).read_text()) < int(least):
                wanted[name] = str(least)

    different = {name: value for name, value in wanted.items() if path(name).read_text().strip() != value}
    if not module.check_mode:
        if module.params["state"] == "present" and not different.keys() <= before.keys():
            before = {name: path(name).read_text().strip() for name in different} | before
            write(record, before)
        for name, value in different.items():
            path(name).write_text(value)
        if module.params["state"] == "absent":
            record.unlink(missing_ok=True)
    module.exit_json(changed=bool(different), before=before)


if __name__ == "__main__":
    main()
