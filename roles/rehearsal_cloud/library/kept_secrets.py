#!/usr/bin/python
"""Ansible module: passwords that are made once and kept on the machine that they belong to."""

from __future__ import annotations

import json
import os
import secrets
import string
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: kept_secrets
short_description: Passwords that are made once and kept in a file
description: Makes those that are missing, keeps those that are there. Use with C(no_log).
options:
  path: {type: path, required: true, description: The file. It is born with mode 0600.}
  names: {type: list, elements: str, required: true, description: What needs a password.}
  length: {type: int, default: 32, description: Letters and digits in each.}
"""

EXAMPLES = r"""
- name: Make the passwords
  kept_secrets:
    path: /root/secrets.json
    names: [database, queue]
  register: passwords
  no_log: true
"""

RETURN = r"""
secrets: {type: dict, returned: always, description: Name and password.}
"""

ALPHABET = string.ascii_letters + string.digits


def write(path: Path, kept: dict[str, str]) -> None:
    """Write the file so that it is never readable by others, and never half there."""
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(kept, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "names": {"type": "list", "elements": "str", "required": True},
            "length": {"type": "int", "default": 32},
        },
        supports_check_mode=True,
    )
    path = Path(module.params["path"])
    kept = json.loads(path.read_text()) if path.exists() else {}
    missing = [name for name in module.params["names"] if name not in kept]
    for name in missing:
        kept[name] = "".join(secrets.choice(ALPHABET) for _ in range(module.params["length"]))
    if missing and not module.check_mode:
        write(path, kept)
    module.exit_json(changed=bool(missing), secrets=kept)


if __name__ == "__main__":
    main()
