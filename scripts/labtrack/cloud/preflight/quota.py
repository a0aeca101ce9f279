"""What is left of each quota against what will be made.  What is already there needs none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from labtrack.cloud.preflight.context import Context
from labtrack.cloud.preflight.machine import LEAST_MEMORY
from labtrack.doctor.result import Result, failed, ok

RULES = 4  # 80 and 443, each for IPv4 and IPv6; SSH adds one for each admin network
RULES_OF_NEUTRON = 2  # outward ones that each new group gets


@dataclass(frozen=True)
class Need:
    """Something that has a quota.  free: None where the cloud sets no limit or says none."""

    what: str
    needed: int
    free: int | None


_HINTS = {
    "routers": "Join the router that the project has: lab_router: NAME (`openstack router list`).",
    "networks": "Use a network that the project has: lab_network: NAME (`openstack network list`).",
    "floating IPs": "Use one that the project has: lab_floating_ip: ADDRESS (`openstack floating ip list`).",
    "volumes": "Name one that is there (lab_data_volume: NAME), or keep the data on the machine's disk (none).",
}
_ANY = "Delete what is not used any more, or ask the cloud's support for more."


def quotas(context: Context) -> Iterator[Result]:
    """One row for each thing that will be made."""
    for need in (*_compute(context), *_network(context), *_volumes(context)):
        if not need.needed:
            continue
        left = "no limit" if need.free is None else f"{need.free} left"
        seen = f"{need.needed} needed, {left}"
        if need.free is None or need.free >= need.needed:
            yield ok(f"quota: {need.what}", seen)
        else:
            yield failed(f"quota: {need.what}", seen, _HINTS.get(need.what, _ANY))


def _left(limit: int | None, used: int | None) -> int | None:
    """Clouds write -1 for no limit."""
    return None if limit is None or limit < 0 else limit - (used or 0)


def _compute(context: Context) -> list[Need]:
    if context.server:
        return []
    limits = context.cloud.compute.get_limits().absolute
    cores, memory = (context.flavor.vcpus, context.flavor.ram) if context.flavor else (1, LEAST_MEMORY)
    return [
        Need("instances", 1, _left(limits.instances, limits.instances_used)),
        Need("cores", cores, _left(limits.total_cores, limits.total_cores_used)),
        Need("memory (MB)", memory, _left(limits.total_ram, limits.total_ram_used)),
    ]


def _network(context: Context) -> list[Need]:
    machine, name, asked = context.lab.machine, context.lab.name, context.cloud.network
    new_network = not machine.network and not asked.find_network(f"{name}-network")
    new_router = not machine.network and not machine.router and not asked.find_router(f"{name}-router")
    new_group = not asked.find_security_group(f"{name}-server", project_id=context.login.project_id)
    rules = RULES + RULES_OF_NEUTRON + len(context.lab.admin_networks)
    needed = {
        "networks": ("networks", new_network),
        "subnets": ("subnets", new_network),
        "routers": ("routers", new_router),
        # the router's and the DHCP server's come with the network
        "ports": ("ports", (0 if context.server else 1) + (2 if new_network else 0)),
        "security groups": ("security_groups", new_group),
        "security group rules": ("security_group_rules", rules if new_group else 0),
        "floating IPs": ("floating_ips", not context.address),
    }
    quota = asked.get_quota(context.login.project_id, details=True)
    return [Need(what, int(count), _detail(getattr(quota, key))) for what, (key, count) in needed.items()]


def _detail(quota: Any) -> int | None:
    """Neutron's {limit, used, reserved}; clouds without that extension tell nothing of what is used."""
    return _left(quota["limit"], quota["used"] + quota["reserved"]) if isinstance(quota, dict) else None


def _volumes(context: Context) -> list[Need]:
    machine = context.lab.machine
    if not machine.needs_volumes:
        return []
    storage = context.cloud.block_storage
    new_data = machine.data_volume == "manage" and not storage.find_volume(f"{context.lab.name}-data")
    sizes = [machine.data_volume_gb] if new_data else []
    if machine.boot_volume_gb and not context.server:
        sizes.append(machine.boot_volume_gb)
    limits = storage.get_limits().absolute
    return [
        Need("volumes", len(sizes), _left(limits.max_total_volumes, limits.total_volumes_used)),
        Need("volume size (GB)", sum(sizes), _left(limits.max_total_volume_gigabytes, limits.total_gigabytes_used)),
    ]
