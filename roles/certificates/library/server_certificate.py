#!/usr/bin/python
"""Ansible module: the program that keeps the server's certificate, its units, and the certificate itself."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: server_certificate
short_description: Install what keeps the server's certificate, and have it do so now
description:
  - Writes the files where they differ, has systemd run the timers, and calls C(PROGRAM apply).
  - One module, because each task of Ansible costs a second.
options:
  program: {type: path, required: true, description: Where the program is; its text is among the files.}
  files: {type: dict, required: true, description: "The text of each file by its path; kept out of the log."}
  modes: {type: dict, default: {}, description: "The modes of files that are not 0644, by their paths."}
  folders: {type: dict, default: {}, description: "The modes of the folders that have to be there, by their paths."}
  units: {type: list, elements: str, default: [], description: Timers that have to run.}
  absent: {type: list, elements: path, default: [], description: Files that must not be there.}
  given: {type: dict, default: {}, description: "What the program reads on its standard input; kept out of the log."}
"""

EXAMPLES = r"""
- name: Keep the certificate
  server_certificate:
    program: /usr/local/sbin/labtrack-certificate
    files: {/etc/labtrack-certificate.json: "{}"}
    units: [labtrack-certificate.timer]
"""

RETURN = r"""
ca: {type: bool, returned: always, description: Whether the CA on the server is another than the given one.}
"""


def write(path: Path, text: str, mode: int, check: bool) -> bool:
    """Put a text at a path, whole or not at all; whether that is a change."""
    if path.is_file() and path.read_text() == text and path.stat().st_mode & 0o777 == mode:
        return False
    if not check:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            os.fchmod(file.fileno(), mode)
        Path(name).replace(path)
    return True


def make(path: Path, mode: int, check: bool) -> bool:
    """Make a folder of root's; whether that is a change."""
    if path.is_dir() and path.stat().st_mode & 0o777 == mode:
        return False
    if not check:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        path.chmod(mode)
    return True


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "program": {"type": "path", "required": True},
            "files": {"type": "dict", "required": True, "no_log": True},
            "modes": {"type": "dict", "default": {}},
            "folders": {"type": "dict", "default": {}},
            "units": {"type": "list", "elements": "str", "default": []},
            "absent": {"type": "list", "elements": "path", "default": []},
            "given": {"type": "dict", "default": {}, "no_log": True},
        },
        supports_check_mode=True,
    )
    given, check = module.params, module.check_mode
    changed = [name for name, mode in given["folders"].items() if make(Path(name), int(mode, 8), check)]
    for name, text in given["files"].items():
        if write(Path(name), text, int(given["modes"].get(name, "0644"), 8), check):
            changed.append(name)
    for path in filter(Path.exists, map(Path, given["absent"])):
        changed.append(str(path))
        if not check:
            path.unlink()
    if not check and any("/systemd/" in name for name in changed):
        module.run_command(["systemctl", "daemon-reload"], check_rc=True)
    for unit in given["units"]:
        asked = [["systemctl", "--quiet", verb, unit] for verb in ("is-enabled", "is-active")]
        if any(module.run_command(command)[0] for command in asked):
            changed.append(unit)
            if not check:
                module.run_command(["systemctl", "enable", "--now", unit], check_rc=True)
    said = ""
    if Path(given["program"]).exists():
        command = [given["program"], "apply", *(["--check"] if check else [])]
        code, said, wrong = module.run_command(command, data=json.dumps(given["given"]))
        if code:
            module.fail_json(msg=wrong.strip() or said.strip())
    changed += ["certificate"] if "changed\n" in said else []
    module.exit_json(changed=bool(changed), done=changed, ca="changed ca\n" in said)


if __name__ == "__main__":
    main()
