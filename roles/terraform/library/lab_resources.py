#!/usr/bin/python
"""Ansible module: what an OpenStack project already has under the names of a lab."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: lab_resources
short_description: Find what a project has under the names of a lab
description:
  - What a killed run of Terraform has made and could not write down, or what a lost state knew.
  - The cloud is the one that the environment names (C(OS_CLOUD) or C(OS_AUTH_URL) and its kin). Changes nothing.
options:
  lab: {type: str, required: true, description: The lab's name; what it has is called <lab>-server and so on.}
  bucket: {type: str, required: true, description: Name of the lab's bucket.}
"""

EXAMPLES = r"""
- name: Look what is there
  lab_resources:
    lab: climate
    bucket: climate-mlflow
"""

RETURN = r"""
found: {type: dict, returned: success, description: "Ids by the names that terraform/adopt.tf has for them."}
"""

TWICE = """The project has {count} of the kind {kind} that are called {name}: {ids}.
To fix: see which one is the lab's, and rename or delete the others."""
UNASKED = """The cloud can't be asked what it has: {error}
To fix: where the cloud did not answer, try again in a minute: it goes on from here.  Else `labtrack preflight` says
what is wrong with the login; a token may have expired: log in again."""


class AmbiguousError(Exception):
    """Several things have a name that only one may have."""


def one(kind: str, name: str, things: Any) -> Any:
    """The thing of this name, or None.  Raises AmbiguousError."""
    things = [thing for thing in things if thing.name == name]
    if len(things) > 1:
        ids = ", ".join(str(thing.id) for thing in things)
        raise AmbiguousError(TWICE.format(count=len(things), kind=kind, name=name, ids=ids))
    return things[0] if things else None


def found(cloud: Any, lab: str, bucket: str) -> Iterator[tuple[str, str]]:
    """Names of adopt.tf and ids."""
    net, mine = cloud.network, {"project_id": cloud.current_project_id}
    network = one("network", f"{lab}-network", net.networks(name=f"{lab}-network", **mine))
    subnet = one("subnet", f"{lab}-subnet", net.subnets(name=f"{lab}-subnet", **mine))
    router = one("router", f"{lab}-router", net.routers(name=f"{lab}-router", **mine))
    yield from named(network=network, subnet=subnet, router=router)
    for port in net.ports(network_id=network.id) if network else ():
        if "router_interface" in port.device_owner:
            yield "router_interface", port.id
    group = one("security group", f"{lab}-server", net.security_groups(name=f"{lab}-server", **mine))
    yield from named(security_group=group)
    for rule in net.security_group_rules(security_group_id=group.id) if group else ():
        if rule.direction == "ingress" and rule.remote_ip_prefix:
            yield f"rule {rule.port_range_min} from {rule.remote_ip_prefix}", rule.id
    port = one("port", f"{lab}-mlflow", net.ports(name=f"{lab}-mlflow", **mine))
    yield from named(port=port)
    for address in net.ips(**mine):
        if address.description == f"labtrack: {lab}" or (port and address.port_id == port.id):
            yield "floating_ip", address.id
    yield from machine(cloud, lab)
    if any(container.name == bucket for container in cloud.object_store.containers(prefix=bucket)):
        yield "bucket", bucket


def machine(cloud: Any, lab: str) -> Iterator[tuple[str, str]]:
    """The server, its key pair, and its volume where the cloud has volumes."""
    key = cloud.compute.find_keypair(f"{lab}-key")
    if key:
        yield "key_pair", key.name
    servers = cloud.compute.servers(details=True)
    server = one("server", f"{lab}-mlflow", (server for server in servers if server.status != "DELETED"))
    yield from named(server=server)
    if not cloud.has_service("block-storage"):
        return
    volume = one("volume", f"{lab}-data", cloud.block_storage.volumes())
    yield from named(volume=volume)
    if volume and server and any(attached["server_id"] == server.id for attached in volume.attachments):
        yield "attachment", f"{server.id}/{volume.id}"


def named(**things: Any) -> Iterator[tuple[str, str]]:
    """Those that are there, with their ids."""
    return ((name, thing.id) for name, thing in things.items() if thing)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={"lab": {"type": "str", "required": True}, "bucket": {"type": "str", "required": True}},
        supports_check_mode=True,
    )
    import openstack
    from keystoneauth1.exceptions import ClientException

    try:
        cloud = openstack.connect()
        module.exit_json(changed=False, found=dict(found(cloud, module.params["lab"], module.params["bucket"])))
    except AmbiguousError as error:
        module.fail_json(msg=str(error))
    except (openstack.exceptions.SDKException, ClientException) as error:
        module.fail_json(msg=UNASKED.format(error=error))


if __name__ == "__main__":
    main()
