"""What is left of each quota against what will be made.  What is already there needs none."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from labtrack.cloud.answers import ERRORS, status_of
from labtrack.cloud.preflight.context import Context
from labtrack.cloud.preflight.machine import LEAST_MEMORY
from labtrack.doctor.result import Result, failed, ok, skipped

RULES = 4  # 80 and 443, each for IPv4 and IPv6; SSH adds one for each admin network
RULES_OF_NEUTRON = 2  # outward ones that each new group gets
NOT_TOLD = (403, 404, 405, 501)  # of services that keep their quotas for their admins, or do not count


NO_LIMIT = math.inf


@dataclass(frozen=True)
class Need:
    """Something that has a quota.  free: NO_LIMIT where the cloud sets none, None where it does not tell."""

    what: str
    needed: int
    free: float | None


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
        check = f"quota: {need.what}"
        if not need.needed:
            continue
        if need.free is None:
            yield skipped(check, f"{need.needed} needed; the cloud does not tell what is left")
            continue
        left = "no limit" if need.free == NO_LIMIT else f"{need.free:.0f} left"
        seen = f"{need.needed} needed, {left}"
        if need.free >= need.needed:
            yield ok(check, seen)
        else:
            yield failed(check, seen, _HINTS.get(need.what, _ANY))


def _left(limit: int | None, used: int | None) -> float | None:
    """Clouds write -1 for no limit, and may leave a field out.  What is used is 0 where it is not told."""
    if limit is None:
        return None
    return NO_LIMIT if limit < 0 else max(0, limit - (used or 0))


def _limits(asked: Callable[[], Any]) -> Any:
    """A service's limits; without any field where it does not tell them to its users."""
    try:
        return asked().absolute
    except ERRORS as error:
        if status_of(error) in NOT_TOLD:
            return None
        raise


def _compute(context: Context) -> list[Need]:
    if context.resources.has("server"):
        return []
    limits = _limits(context.cloud.compute.get_limits)
    cores, memory = (context.flavor.vcpus, context.flavor.ram) if context.flavor else (1, LEAST_MEMORY)
    return [
        Need("instances", 1, _of(limits, "instances", "instances_used")),
        Need("cores", cores, _of(limits, "total_cores", "total_cores_used")),
        Need("memory (MB)", memory, _of(limits, "total_ram", "total_ram_used")),
    ]


def _of(limits: Any, limit: str, used: str) -> float | None:
    return _left(getattr(limits, limit, None), getattr(limits, used, None))


def _network(context: Context) -> list[Need]:
    machine, has = context.lab.machine, context.resources.has
    new_network = not machine.network and not has("network")
    new_group = not has("security_group")
    rules = RULES + RULES_OF_NEUTRON + len(context.lab.admin_networks)
    needed = {
        "networks": ("networks", new_network),
        "subnets": ("subnets", new_network),
        "routers": ("routers", not machine.network and not machine.router and not has("router")),
        # the router's and the DHCP server's come with the network
        "ports": ("ports", (0 if has("port") else 1) + (2 if new_network else 0)),
        "security groups": ("security_groups", new_group),
        "security group rules": ("security_group_rules", rules if new_group else 0),
        "floating IPs": ("floating_ips", not machine.floating_ip and not has("floating_ip")),
    }
    left = Networks(context.cloud.network, context.login.project_id)
    return [Need(what, int(count), left.of(key) if count else None) for what, (key, count) in needed.items()]


class Networks:
    """What Neutron says of a project's quota."""

    def __init__(self, network: Any, project: str) -> None:
        self.network, self.project = network, project
        self.details = self._asked(details=True)
        # without the extension that counts, the limits alone
        self.limits = None if self.details else self._asked(details=False)

    def _asked(self, *, details: bool) -> Any:
        try:
            return self.network.get_quota(self.project, details=details)
        except ERRORS as error:
            if status_of(error) in NOT_TOLD:
                return None
            raise

    def of(self, key: str) -> float | None:
        """What is left of one thing; None where it is not told."""
        if self.details:
            return _detail(getattr(self.details, key, None))
        limit = getattr(self.limits, key, None)
        if not isinstance(limit, int) or limit < 0:
            return _left(limit if isinstance(limit, int) else None, 0)
        lists = {"floating_ips": "ips"}
        return _left(limit, len(list(getattr(self.network, lists.get(key, key))(project_id=self.project))))


def _detail(quota: Any) -> float | None:
    """What is left by Neutron's {limit, used, reserved}."""
    if not isinstance(quota, dict):
        return None
    return _left(quota.get("limit"), (quota.get("used") or 0) + (quota.get("reserved") or 0))


def _volumes(context: Context) -> list[Need]:
    machine = context.lab.machine
    if not machine.needs_volumes:
        return []
    new_data = machine.data_volume == "manage" and not context.resources.has("volume")
    sizes = [machine.data_volume_gb] if new_data else []
    if machine.boot_volume_gb and not context.resources.has("server"):
        sizes.append(machine.boot_volume_gb)
    if not sizes:
        return []
    limits = _limits(context.cloud.block_storage.get_limits)
    return [
        Need("volumes", len(sizes), _of(limits, "max_total_volumes", "total_volumes_used")),
        Need("volume size (GB)", sum(sizes), _of(limits, "max_total_volume_gigabytes", "total_gigabytes_used")),
    ]
