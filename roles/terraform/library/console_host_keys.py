#!/usr/bin/python
"""Ansible module: the SSH host keys that a server has printed on its console."""

from __future__ import annotations

import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: console_host_keys
short_description: Learn a server's SSH host keys from its console
description:
  - cloud-init prints them at the first boot, and the cloud's API, which TLS protects, shows the console.
  - So the first login already knows whom it talks to.
  - The cloud is the one that the environment names (C(OS_CLOUD) or C(OS_AUTH_URL) and its kin). Changes nothing.
options:
  server: {type: str, required: true, description: Id of the server.}
  timeout: {type: int, default: 180, description: Seconds to wait for the keys.}
"""

EXAMPLES = r"""
- name: Learn the server's SSH host keys
  console_host_keys:
    server: 0b9ee3f0-0000-4000-8000-000000000000
"""

RETURN = r"""
host_keys: {type: list, returned: success, description: "Each with type and key, as in C(known_hosts)."}
"""

BEGIN, END = "-----BEGIN SSH HOST KEY KEYS-----", "-----END SSH HOST KEY KEYS-----"
LATE = """The server's console shows no SSH host keys after {timeout} s.  It ends with:
{end}
To fix: where it still boots, run this again; an image without cloud-init does not print them.  All of the console:
openstack console log show {server}"""
UNASKED = """The console of the server {server} can't be read: {what}
To fix: {hint}"""
NOT_READY = 409  # Nova's status for the console of a server that is still being built
LINES = 12  # of the console


def host_keys(console: str) -> list[str]:
    """The keys of the last block on a console; empty as long as it is not complete."""
    _, begin, block = console.rpartition(BEGIN)
    block, end, _ = block.partition(END)
    if not (begin and end):
        return []
    lines = [line.split() for line in block.splitlines()]
    return sorted(" ".join(words[:2]) for words in lines if len(words) > 1)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "server": {"type": "str", "required": True},
            "timeout": {"type": "int", "default": 180},
        },
        supports_check_mode=True,
    )
    import openstack

    from labtrack.cloud.answers import ERRORS, explain, may_pass, status_of

    given: dict[str, Any] = module.params
    deadline = time.monotonic() + given["timeout"]
    console, keys, compute = "", [], None
    while not keys:
        try:
            compute = compute or openstack.connect().compute
            console = compute.get_server_console_output(given["server"])["output"] or ""
        except ERRORS as error:
            status = status_of(error)
            if time.monotonic() > deadline or not (status is None or may_pass(status) or status == NOT_READY):
                what, hint = explain(error)
                module.fail_json(msg=UNASKED.format(what=what, hint=hint, **given))
        keys = host_keys(console)
        if not keys and time.monotonic() > deadline:
            end = [line for line in console.splitlines() if line.strip()][-LINES:] or ["(nothing)"]
            module.fail_json(msg=LATE.format(end="\n".join(f"  {line.rstrip()}" for line in end), **given))
        if not keys:
            time.sleep(1)
    module.exit_json(changed=False, host_keys=keys)


if __name__ == "__main__":
    main()
