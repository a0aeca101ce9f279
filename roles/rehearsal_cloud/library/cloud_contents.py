#!/usr/bin/python
"""Ansible module: what a cloud's admin makes for all its tenants, all in one call."""

from __future__ import annotations

from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: cloud_contents
short_description: Fill a cloud with its public network, flavors, quotas and images
description:
  - What openstack.cloud's modules do one object a call, each of which logs in anew.
  - Adds what is missing, and sets the quotas; removes nothing.
options:
  cloud: {type: str, required: true, description: Name of the admin's cloud in C(clouds_file).}
  clouds_file: {type: path, required: true, description: The clouds.yaml.}
  network: {type: dict, required: true, description: "The public one: C(cidr), C(gateway), C(first) and C(last)."}
  flavors: {type: list, elements: dict, required: true, description: "Each with C(name), C(vcpus), C(ram) and C(disk)."}
  quotas:
    type: list
    elements: dict
    required: true
    description: >-
      Each with the project's C(name), C(instances), C(cores), C(ram), C(floating_ips), C(networks), C(routers),
      C(volumes) and C(gigabytes).
  images:
    type: list
    elements: dict
    required: true
    description: Each with C(name), C(file) and C(version) of Debian.
"""

EXAMPLES = r"""
- name: Fill the cloud
  cloud_contents:
    cloud: admin
    clouds_file: clouds.yaml
    network: {cidr: 198.51.100.0/24, gateway: 198.51.100.1, first: 198.51.100.50, last: 198.51.100.250}
    flavors: [{name: p1-1.5gb, vcpus: 1, ram: 1536, disk: 20}]
    quotas: []
    images: [{name: Debian-13, file: trixie.tar.zst, version: "13"}]
"""

RETURN = r"""
done: {type: list, returned: always, description: What was added or corrected.}
"""


class Contents:
    """A cloud, and what was done to it."""

    def __init__(self, cloud: Any, check_mode: bool) -> None:
        self.cloud = cloud
        self.check_mode = check_mode
        self.done: list[str] = []

    def add(self, what: str, create: Any, *which: Any, **attributes: Any) -> Any:
        """Create or correct an object, and note it."""
        self.done.append(what)
        return None if self.check_mode else create(*which, **attributes)

    def network(self, addresses: dict[str, str]) -> None:
        network = self.cloud.network.find_network("Public-Network") or self.add(
            "network",
            self.cloud.network.create_network,
            name="Public-Network",
            is_router_external=True,
            provider_network_type="flat",
            provider_physical_network="public",
        )
        if not network or not self.cloud.network.find_subnet("Public-Subnet"):
            self.add(
                "subnet",
                self.cloud.network.create_subnet,
                name="Public-Subnet",
                network_id=network and network.id,
                ip_version=4,
                cidr=addresses["cidr"],
                gateway_ip=addresses["gateway"],
                is_dhcp_enabled=False,
                allocation_pools=[{"start": addresses["first"], "end": addresses["last"]}],
            )

    def flavors(self, flavors: list[dict]) -> None:
        there = {flavor.name for flavor in self.cloud.compute.flavors()}
        for flavor in flavors:
            if flavor["name"] not in there:
                self.add(f"flavor {flavor['name']}", self.cloud.compute.create_flavor, **flavor)

    def quota(self, project: str, most: dict[str, int]) -> None:
        found = self.cloud.identity.find_project(project, ignore_missing=False)
        compute, network, volume = self.cloud.compute, self.cloud.network, self.cloud.block_storage
        for kind, service, now, update, names in (
            ("compute", compute, compute.get_quota_set, compute.update_quota_set, ("instances", "cores", "ram")),
            ("network", network, network.get_quota, network.update_quota, ("floating_ips", "networks", "routers")),
            ("volume", volume, volume.get_quota_set, volume.update_quota_set, ("volumes", "gigabytes")),
        ):
            wanted = {name: int(most[name]) for name in names}
            there = now(found.id)
            if any(there[name] != number for name, number in wanted.items()):
                # Neutron's takes an id, the others a project
                which = found.id if service is network else found
                self.add(f"{kind} quota of {project}", update, which, **wanted)

    def images(self, images: list[dict]) -> None:
        there = {image.name for image in self.cloud.image.images()}
        for image in images:
            if image["name"] not in there:
                self.add(
                    f"image {image['name']}",
                    self.cloud.create_image,
                    image["name"],
                    filename=image["file"],
                    container_format="bare",
                    disk_format="raw",
                    visibility="public",
                    os_distro="debian",
                    os_version=image["version"],
                    wait=True,
                )


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "cloud": {"type": "str", "required": True},
            "clouds_file": {"type": "path", "required": True},
            "network": {"type": "dict", "required": True},
            "flavors": {"type": "list", "elements": "dict", "required": True},
            "quotas": {"type": "list", "elements": "dict", "required": True},
            "images": {"type": "list", "elements": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    import openstack

    given = module.params
    config = openstack.config.OpenStackConfig(config_files=[given["clouds_file"]], load_envvars=False)
    connection = openstack.connection.Connection(config=config.get_one(cloud=given["cloud"]))
    contents = Contents(connection, module.check_mode)
    contents.network(given["network"])
    contents.flavors(given["flavors"])
    for quota in given["quotas"]:
        contents.quota(quota["name"], quota)
    contents.images(given["images"])
    module.exit_json(changed=bool(contents.done), done=contents.done)


if __name__ == "__main__":
    main()
