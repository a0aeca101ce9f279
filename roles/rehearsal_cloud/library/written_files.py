#!/usr/bin/python
"""Ansible module: many files, folders and links of a machine in one call."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: written_files
short_description: Files, folders and links, all in one call
description:
  - What ansible.builtin.copy and ansible.builtin.file do one path a call, which takes longer than the writing.
  - Folders above a path are made. A file is there as a whole or not at all. Use with C(no_log) for secret contents.
options:
  files:
    type: list
    elements: dict
    required: true
    description: >-
      Each with C(path), and either C(content), C(link) (the path that it leads to) or C(state) C(directory) or
      C(absent); optionally C(owner), C(group) (both root) and C(mode) (0644; of folders 0755).
"""

EXAMPLES = r"""
- name: Write the configuration
  written_files:
    files:
      - {path: /etc/nova/nova.conf, content: "[DEFAULT]", group: nova, mode: "0640"}
      - {path: /var/lib/nova/instances, state: directory, owner: nova, group: nova}
      - {path: /etc/systemd/system/iscsid.service, link: /dev/null}
"""

RETURN = r"""
written: {type: list, returned: always, description: The paths that were not as they should be.}
"""


def remove(path: Path) -> None:
    """Remove whatever is at the path."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def write(path: Path, wanted: dict[str, Any]) -> None:
    """Write the file so that it is never half there, and never readable by more people than it should be."""
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(wanted["content"])
    part.replace(path)


def as_wanted(module: AnsibleModule, path: Path, wanted: dict[str, Any]) -> bool:
    """Make one path as it should be; was it not?"""
    there = path.exists() or path.is_symlink()
    state = wanted.get("state", "link" if "link" in wanted else "file")
    if state == "absent":
        right = not there
    elif state == "link":
        right = path.is_symlink() and str(path.readlink()) == wanted["link"]
    elif state == "directory":
        right = path.is_dir()
    else:
        right = there and not path.is_symlink() and path.read_text() == wanted["content"]
    if not right and not module.check_mode:
        if there and state != "file":
            remove(path)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        if state == "link":
            path.symlink_to(wanted["link"])
        elif state == "directory":
            path.mkdir()
        elif state == "file":
            write(path, wanted)
    if state in ("absent", "link") or (module.check_mode and not right):
        return not right
    owner, group = wanted.get("owner", "root"), wanted.get("group", "root")
    mode = wanted.get("mode", "0755" if state == "directory" else "0644")
    differs = module.set_owner_if_different(str(path), owner, not right)
    differs = module.set_group_if_different(str(path), group, differs)
    return module.set_mode_if_different(str(path), mode, differs)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={"files": {"type": "list", "elements": "dict", "required": True}}, supports_check_mode=True
    )
    files = module.params["files"]
    written = [one["path"] for one in files if as_wanted(module, Path(one["path"]), one)]
    module.exit_json(changed=bool(written), written=written)


if __name__ == "__main__":
    main()
