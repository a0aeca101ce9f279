"""Where the server is reached: its network, the router, the external network, the floating IP."""

from __future__ import annotations

import ipaddress
from typing import Any

from labtrack.cloud.preflight.context import Context, choose, choose_id, gateway_of
from labtrack.cloud.resources import is_router_port
from labtrack.doctor.result import Result, failed, ok, skipped, warning

CHECK = "network"
NO_NETWORK = "or leave lab_network out, and the kit makes network, subnet and router."


def network(context: Context) -> Result:
    """The server's network has a way out to the external network, or the one that is made will have it."""
    return _given(context) if context.lab.machine.network else _made(context)


def _given(context: Context) -> Result:
    found, wanted = context.networks, context.lab.machine.network
    own = [one.name for one in context.seen_networks if one.project_id == context.login.project_id]
    if not found.things:
        return failed(CHECK, f"there is no network {wanted!r}", choose("lab_network", own))
    if found.one is None:
        seen = f"there are {len(found.things)} networks {wanted}, and Terraform can't choose"
        return failed(CHECK, seen, choose_id("lab_network", found.things))
    network, name = found.one, f"the network {found.one.name}"
    if network.is_router_external:
        seen = f"{name} is an external one: no floating IP leads to a machine in it"
        return failed(CHECK, seen, f"Name a network of the project in lab_network ({', '.join(own)}), {NO_NETWORK}")
    if network.is_admin_state_up is False:
        return failed(CHECK, f"{name} is switched off", f"openstack network set --enable {network.id}")
    if network.is_port_security_enabled is False:
        hint = f"openstack network set --enable-port-security {network.id}, {NO_NETWORK}"
        return failed(CHECK, f"{name} has no port security, so its ports take no security groups", hint)
    return _way_out(context, network, name)


def _way_out(context: Context, network: Any, name: str) -> Result:
    subnet = context.subnet
    if subnet is None:
        hint = f"openstack subnet create --network {network.id} --subnet-range 10.77.0.0/24 {network.name}-subnet, "
        return failed(CHECK, f"{name} has no subnet with IPv4 addresses", hint + NO_NETWORK)
    where = f"the subnet {subnet.name or subnet.id} of {name}"
    if not subnet.gateway_ip:
        first = next(iter(ipaddress.ip_network(subnet.cidr).hosts()))
        hint = f"openstack subnet set --gateway {first} {subnet.id}, {NO_NETWORK}"
        return failed(CHECK, f"{where} has no gateway, so nothing leads out of it", hint)
    if subnet.id not in context.routed and network.project_id == context.login.project_id:
        hint = f"openstack router add subnet ROUTER {subnet.id} (`openstack router list`), {NO_NETWORK}"
        return failed(CHECK, f"{where} has no router, so no floating IP leads there", hint)
    router = context.router
    if router is None:
        hint = "Ask whoever shares it whether floating IPs lead there; if not, leave lab_network out."
        return warning(CHECK, f"{where} is shared with the project, which can't see whether it has a router", hint)
    return _outward(context, router) or ok(CHECK, f"{network.name}, behind the router {router.name}")


def _made(context: Context) -> Result:
    found, wanted = context.routers, context.lab.machine.router
    if wanted and not found.things:
        own = [one.name for one in context.seen_routers if one.project_id == context.login.project_id]
        return failed(CHECK, f"there is no router {wanted!r}", choose("lab_router", own))
    if wanted and found.one is None:
        seen = f"there are {len(found.things)} routers {wanted}, and Terraform can't choose"
        return failed(CHECK, seen, choose_id("lab_router", found.things))
    wrong = _outward(context, context.router) if wanted else None
    made = "is there" if "network" in context.resources.there else "is made"
    behind = f"the router {context.router.name}" if wanted else "a router of its own"
    return wrong or _overlap(context) or ok(CHECK, f"{context.lab.name}-network {made}, behind {behind}")


def _outward(context: Context, router: Any) -> Result | None:
    """What keeps a router that is there from leading to where floating IPs come from."""
    name, gateway, external = f"the router {router.name}", gateway_of(router), context.external_network
    if router.is_admin_state_up is False:
        return failed(CHECK, f"{name} is switched off", f"openstack router set --enable {router.id}")
    if not gateway:
        outside = external.name if external is not None else "EXTERNAL_NETWORK"
        hint = f"openstack router set --external-gateway {outside} {router.id}"
        return failed(CHECK, f"{name} has no gateway to an external network", hint)
    if external is not None and gateway != external.id:
        behind = next((one.name for one in context.external_networks if one.id == gateway), gateway)
        seen = f"{name} leads to {behind}, and floating IPs come from {external.name}"
        return failed(CHECK, seen, f"Set lab_external_network: {behind}, or name another lab_router or lab_network.")
    return None


def _overlap(context: Context) -> Result | None:
    """Subnets behind the router have other addresses than the one that is made: Neutron refuses it otherwise."""
    if context.router is None:
        return None
    asked, own = context.cloud.network, context.resources.there.get("subnet")
    ports = [one for one in asked.ports(device_id=context.router.id) if is_router_port(one)]
    behind = {fixed["subnet_id"] for port in ports for fixed in port.fixed_ips} - {own}
    taken = [one for one in asked.subnets() if one.id in behind and one.ip_version == 4] if behind else []  # noqa: PLR2004
    wanted = ipaddress.ip_network(context.lab.machine.network_cidr)
    clash = next((one for one in taken if ipaddress.ip_network(one.cidr).overlaps(wanted)), None)
    if clash is None:
        return None
    ranges = [ipaddress.ip_network(one.cidr) for one in taken]
    tried = (ipaddress.ip_network(f"10.{number}.0.0/24") for number in range(20, 250))
    free = next((one for one in tried if not any(one.overlaps(other) for other in ranges)), "another range")
    seen = f"lab_network_cidr {wanted} overlaps {clash.cidr} of {clash.name or clash.id} behind {context.router.name}"
    return failed(CHECK, seen, f"Set lab_network_cidr: {free}")


def external_network(context: Context) -> Result:
    """Floating IPs come from an external network; it must be clear which one."""
    check, key = "external network", "lab_external_network"
    found, wanted = context.external, context.lab.machine.external_network
    names = [one.name for one in context.external_networks]
    if found.one is not None:
        chosen = "" if wanted or len(names) == 1 else f", of {len(names)}: the router or the given address is there"
        return ok(check, f"{found.one.name}{chosen}")
    if wanted and found.things:
        seen = f"there are {len(found.things)} external networks {wanted}, and Terraform can't choose"
        return failed(check, seen, choose_id(key, found.things))
    if any(wanted in (one.name, one.id) for one in context.seen_networks):
        return failed(check, f"{wanted} is an internal network: no floating IPs come from it", choose(key, names))
    if wanted:
        return failed(check, f"there is no external network {wanted!r}", choose(key, names))
    if not names:
        hint = "Floating IPs come from one: ask the cloud's support, or bring a machine: docs/admin/own-machine.md"
        return failed(check, "the cloud shows no external network", hint)
    seen = f"there are {len(names)}, and lab.yml names none"
    return failed(check, seen, choose(key, names) if len(set(names)) == len(names) else choose_id(key, found.things))


def external_networks(cloud: Any) -> list[str]:
    """The names of the networks that floating IPs come from."""
    return [one.name for one in cloud.network.networks(is_router_external=True)]


def floating_ip(context: Context) -> Result:
    """A given address is the project's, of the external network, and no other machine has it."""
    check, address, external = "floating IP", context.lab.machine.floating_ip, context.external_network
    if not address:
        if context.resources.has("floating_ip") and not context.address:
            return skipped(check, "several have the lab's description: see the lab's names")
        return ok(check, context.address or "one is made")
    found = context.given_address
    if found is None:
        own = context.cloud.network.ips(project_id=context.login.project_id)
        free = [one.floating_ip_address for one in own if not one.port_id]
        return failed(check, f"{address} is not the project's", choose("lab_floating_ip", free))
    if found.port_id and found.port_id != context.resources.there.get("port"):
        hint = f"Take it off that machine, or use another: openstack floating ip show {address}"
        return failed(check, f"{address} is in use by another machine", hint)
    if external is not None and found.floating_network_id != external.id:
        behind = [one.name for one in context.external_networks if one.id == found.floating_network_id]
        seen = f"{address} comes from {', '.join(behind) or 'another external network'}, and not from {external.name}"
        return failed(check, seen, "Correct lab_external_network (or the network's router), or use another address.")
    return ok(check, f"{address} is the project's, and free or the lab's")
