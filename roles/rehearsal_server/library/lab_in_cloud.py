#!/usr/bin/python
"""Ansible module: what the rehearsal's lab has in its cloud."""

from __future__ import annotations

import base64
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: lab_in_cloud
short_description: Make a network, a server with its address, and a bucket
description:
  - What is there under a name is kept; what is missing is made. One login and one process for all of it.
  - The cloud is the one that the environment names (C(OS_CLOUD) or C(OS_AUTH_URL) and its kin).
options:
  prefix: {type: str, required: true, description: What all names but the bucket's begin with.}
  image: {type: str, required: true, description: Name of the image.}
  flavor: {type: str, required: true, description: Name of the flavor.}
  external_network: {type: str, required: true, description: Network of the floating address.}
  cidr: {type: str, required: true, description: Addresses of the lab's own network.}
  admin_networks: {type: list, elements: str, required: true, description: From where port 22 is open.}
  public_key: {type: str, required: true, description: The key pair's key.}
  user_data: {type: str, required: true, description: For cloud-init.}
  bucket: {type: str, required: true, description: Name of the bucket.}
"""

EXAMPLES = r"""
- name: Make what the lab has in its cloud
  lab_in_cloud:
    prefix: rehearsal
    image: Debian-13
    flavor: p2-3gb
    external_network: Public-Network
    cidr: 10.20.0.0/24
    admin_networks: [10.99.0.0/24]
    public_key: ssh-ed25519 AAAA...
    user_data: "#cloud-config"
    bucket: rehearsal-mlflow
"""

RETURN = r"""
made: {type: list, returned: success, description: What was made or changed.}
server: {type: dict, returned: success, description: C(id) and C(project_id).}
address: {type: str, returned: success, description: The floating IP.}
"""

NO_SERVER = """The rehearsal's cloud could not make the server: {why}.
To fix: run the same command again, which makes it anew. What Nova did is in /var/log/nova on the machine `cloud`."""
BOOT = 300  # seconds


class NoServerError(Exception):
    """Nova made none."""


def wanted_rules(admin_networks: list[str]) -> list[tuple[str, str, int | None, str | None]]:
    """Direction, IP version, port and source of each rule: the web for all, SSH for the admins, everything outward."""
    web = [("ingress", _version(all_), port, all_) for port in (80, 443) for all_ in ("0.0.0.0/0", "::/0")]
    outward = [("egress", version, None, None) for version in ("IPv4", "IPv6")]
    return [*outward, *web, *(("ingress", _version(source), 22, source) for source in admin_networks)]


def _version(source: str) -> str:
    return "IPv6" if ":" in source else "IPv4"


class Lab:
    """What is there, and what of it was made now."""

    def __init__(self, cloud: Any, given: dict[str, Any]) -> None:
        self.cloud, self.given, self.made = cloud, given, []
        self.mine = {"project_id": cloud.current_project_id}

    def name(self, what: str) -> str:
        return f"{self.given['prefix']}-{what}"

    def have(self, kind: str, name: str, **attributes: Any) -> Any:
        """A thing of Neutron's: the project's own of this name, or a new one."""
        found = next(iter(getattr(self.cloud.network, f"{kind}s")(name=name, **self.mine)), None)
        if found is None:
            found = getattr(self.cloud.network, f"create_{kind}")(name=name, **attributes)
            self.made.append(name)
        return found

    def network(self, external: Any) -> Any:
        """A network with a way out."""
        network = self.have("network", self.name("network"))
        subnet = self.have("subnet", self.name("subnet"), network_id=network.id, cidr=self.given["cidr"], ip_version=4)
        router = self.have("router", self.name("router"), external_gateway_info={"network_id": external.id})
        inside = self.cloud.network.ports(device_id=router.id, network_id=network.id)
        if not any(fixed["subnet_id"] == subnet.id for port in inside for fixed in port.fixed_ips):
            self.cloud.network.add_interface_to_router(router, subnet_id=subnet.id)
            self.made.append("the router's interface")
        return network

    def group(self) -> Any:
        """The security group, with exactly the rules that are wanted."""
        group, net = self.have("security_group", self.name("server")), self.cloud.network
        wanted = dict.fromkeys(wanted_rules(self.given["admin_networks"]))
        for rule in net.security_group_rules(security_group_id=group.id):
            seen = (rule.direction, rule.ether_type, rule.port_range_min, rule.remote_ip_prefix)
            if seen in wanted:
                del wanted[seen]
            else:
                net.delete_security_group_rule(rule)
                self.made.append(f"no rule {seen}")
        for direction, version, port, source in wanted:
            ports = {"protocol": "tcp", "port_range_min": port, "port_range_max": port} if port else {}
            net.create_security_group_rule(
                security_group_id=group.id, direction=direction, ether_type=version, remote_ip_prefix=source, **ports
            )
            self.made.append(f"a rule for {port} from {source}")
        return group

    def key_pair(self) -> None:
        """The key pair, with this key: Nova can't change one."""
        name, compute = self.name("key"), self.cloud.compute
        found = compute.find_keypair(name)
        if found and found.public_key != self.given["public_key"]:
            compute.delete_keypair(found)
        if not found or found.public_key != self.given["public_key"]:
            compute.create_keypair(name=name, public_key=self.given["public_key"])
            self.made.append(name)

    def server(self, port: Any) -> Any:
        """The server, running.  One that never ran is taken away, as by Terraform: the next call makes it anew."""
        compute, name = self.cloud.compute, self.name("mlflow")
        found = next((one for one in compute.servers(name=f"^{name}$") if one.status != "DELETED"), None)
        if found is None:
            found = compute.create_server(
                name=name,
                image_id=self.cloud.image.find_image(self.given["image"], ignore_missing=False).id,
                flavor_id=compute.find_flavor(self.given["flavor"], ignore_missing=False).id,
                networks=[{"port": port.id}],
                key_name=self.name("key"),
                config_drive=True,
                user_data=base64.b64encode(self.given["user_data"].encode()).decode(),
            )
            self.made.append(name)
        deadline = time.monotonic() + BOOT
        # a list of servers names no reason
        while (found := compute.get_server(found.id)).status == "BUILD":
            if time.monotonic() > deadline:
                raise NoServerError(f"it is not booted after {BOOT} s")
            time.sleep(1)
        if found.status == "ERROR" and not found.launched_at:
            compute.delete_server(found)
            compute.wait_for_delete(found)
            raise NoServerError((found.fault or {}).get("message", "Nova says no reason"))
        return found

    def address(self, external: Any, port: Any) -> str:
        """The port's floating IP: its own, one that is free, or a new one."""
        addresses = list(self.cloud.network.ips(floating_network_id=external.id, **self.mine))
        found = next((one for one in addresses if one.port_id == port.id), None)
        if found is None:
            found = next((one for one in addresses if not one.port_id), None)
            found = found or self.cloud.network.create_ip(floating_network_id=external.id)
            self.cloud.network.update_ip(found, port_id=port.id)
            self.made.append(found.floating_ip_address)
        return str(found.floating_ip_address)

    def bucket(self) -> None:
        """The bucket."""
        name = self.given["bucket"]
        if not any(one.name == name for one in self.cloud.object_store.containers(prefix=name)):
            self.cloud.object_store.create_container(name)
            self.made.append(name)


def main() -> None:
    """Run the module."""
    text = ("prefix", "image", "flavor", "external_network", "cidr", "public_key", "user_data", "bucket")
    spec: dict[str, Any] = {name: {"type": "str", "required": True} for name in text}
    spec["public_key"]["no_log"] = False
    spec["admin_networks"] = {"type": "list", "elements": "str", "required": True}
    module = AnsibleModule(argument_spec=spec)
    import openstack
    from keystoneauth1.exceptions import ClientException

    from labtrack.cloud.server import attach
    from labtrack.errors import LabtrackError

    try:
        lab = Lab(openstack.connect(), module.params)
        external = lab.cloud.network.find_network(module.params["external_network"], ignore_missing=False)
        network, group = lab.network(external), lab.group()
        lab.key_pair()
        port = lab.have("port", lab.name("mlflow"), network_id=network.id, security_group_ids=[group.id])
        server = lab.server(port)
        if attach(lab.cloud, server.id, port.id):
            lab.made.append("the port's place at the server")
        address = lab.address(external, port)
        lab.bucket()
    except NoServerError as error:
        module.fail_json(msg=NO_SERVER.format(why=error))
    except LabtrackError as error:
        module.fail_json(msg=str(error))
    except (openstack.exceptions.SDKException, ClientException) as error:
        module.fail_json(msg=f"The rehearsal's cloud: {error}")
    module.exit_json(
        changed=bool(lab.made), made=lab.made, address=address,
        server={"id": server.id, "project_id": server.project_id},
    )  # fmt: skip


if __name__ == "__main__":
    main()
