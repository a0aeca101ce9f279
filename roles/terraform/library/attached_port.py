#!/usr/bin/python
"""Ansible module: a server's port, attached."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: attached_port
short_description: Attach a port to its server
description:
  - A server keeps running when somebody deletes its port. The one that is made instead has to be attached.
  - The cloud is the one that the environment names (C(OS_CLOUD) or C(OS_AUTH_URL) and its kin).
options:
  server: {type: str, required: true, description: Id of the server.}
  port: {type: str, required: true, description: Id of the port.}
"""

EXAMPLES = r"""
- name: Attach the server's port
  attached_port:
    server: 0b9ee3f0-0000-4000-8000-000000000000
    port: 5f3a3c1e-0000-4000-8000-000000000000
"""

RETURN = r"""
addresses: {type: list, returned: success, description: The port's fixed addresses.}
"""

TAKEN = """The port {port} belongs to {device}, and not to the lab's server {server}.
To fix: see whose it is (`openstack port show {port}`), detach it there, and run the same command again."""
REFUSED = """The port {port} could not be attached to the server {server}: {what}
To fix: {hint}"""


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={"server": {"type": "str", "required": True}, "port": {"type": "str", "required": True}},
        supports_check_mode=True,
    )
    import openstack

    from labtrack.cloud.answers import ERRORS, explain

    given = module.params
    try:
        cloud = openstack.connect()
        port = cloud.network.get_port(given["port"])
        if port.device_id and port.device_id != given["server"]:
            module.fail_json(msg=TAKEN.format(device=port.device_id, **given))
        if not port.device_id and not module.check_mode:
            cloud.compute.create_server_interface(given["server"], port_id=port.id)
    except ERRORS as error:
        what, hint = explain(error)
        module.fail_json(msg=REFUSED.format(what=what, hint=hint, **given))
    module.exit_json(changed=not port.device_id, addresses=[one["ip_address"] for one in port.fixed_ips])


if __name__ == "__main__":
    main()
