"""What the server is made from: image, flavor, network, key pair, address."""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import Any

from labtrack.cloud.preflight.context import Context, choose
from labtrack.doctor.result import Result, failed, ok, warning

LEAST_MEMORY = 1900  # MB: PostgreSQL, two MLflow instances and nginx, with room for uploads
LEAST_DISK = 10  # GB
SHOWN = 6  # names that a hint lists


def image(context: Context) -> Result:
    """The image is there, and is a Debian that the roles know."""
    name = context.lab.machine.image
    found = context.cloud.image.find_image(name) if name else None
    if not found:
        seen = f"there is no image {name!r}" if name else "lab_image is not set"
        return failed("image", seen, choose("lab_image", debians(context.cloud)))
    if found.status != "active":
        return failed("image", f"{name} is {found.status}", "Wait until it is active, or name another lab_image.")
    if "debian" not in f"{found.name} {found.os_distro or ''}".lower():
        seen = f"{found.name} doesn't look like Debian, which the roles are tried on"
        return warning("image", seen, choose("lab_image", debians(context.cloud)))
    return ok("image", found.name)


def debians(cloud: Any) -> list[str]:
    """The cloud's Debian images, the newest release first."""
    names = {image.name for image in cloud.image.images(status="active") if "debian" in (image.name or "").lower()}
    return sorted(names, key=lambda name: [-int(number) for number in re.findall(r"\d+", name)] or [0])[:SHOWN]


def flavor(context: Context) -> Result:
    """The flavor has the memory and the disk that PostgreSQL and MLflow need."""
    name, found = context.lab.machine.flavor, context.flavor
    if not found:
        seen = f"there is no flavor {name!r}" if name else "lab_flavor is not set"
        return failed("flavor", seen, choose("lab_flavor", sufficient(context.cloud)))
    seen = f"{found.name}: {found.vcpus} cores, {found.ram} MB, {found.disk} GB"
    if found.ram < LEAST_MEMORY:
        return failed(
            "flavor", f"{seen}; {LEAST_MEMORY} MB are needed", choose("lab_flavor", sufficient(context.cloud))
        )
    if (context.lab.machine.boot_volume_gb or found.disk) < LEAST_DISK:
        hint = "Set lab_boot_volume_gb: 20, or name a flavor with a disk of its own."
        return failed("flavor", f"{seen}; {LEAST_DISK} GB of disk are needed", hint)
    return ok("flavor", seen)


def sufficient(cloud: Any) -> list[str]:
    """Flavors that a server fits on, the smallest first."""
    found = [one for one in cloud.compute.flavors() if one.ram >= LEAST_MEMORY and one.disk >= LEAST_DISK]
    return [one.name for one in sorted(found, key=lambda one: (one.ram, one.vcpus))][:SHOWN]


def network(context: Context) -> Result:
    """A network and a router that lab.yml names are there."""
    machine, asked = context.lab.machine, context.cloud.network
    if machine.network and not asked.find_network(machine.network):
        mine = [one.name for one in asked.networks(project_id=context.login.project_id)]
        return failed("network", f"there is no network {machine.network!r}", choose("lab_network", mine))
    if machine.router and not asked.find_router(machine.router):
        mine = [one.name for one in asked.routers(project_id=context.login.project_id)]
        return failed("network", f"there is no router {machine.router!r}", choose("lab_router", mine))
    made = machine.network or f"{context.lab.name}-network is made"
    router = "" if machine.network else f", behind {machine.router or 'a router of its own'}"
    return ok("network", f"{made}{router}")


def external_network(context: Context) -> Result:
    """Floating IPs come from an external network; it must be clear which one."""
    names = external_networks(context.cloud)
    wanted = context.lab.machine.external_network
    if wanted and wanted not in names and not context.cloud.network.find_network(wanted):
        seen = f"there is no external network {wanted!r}"
        return failed("external network", seen, choose("lab_external_network", names))
    if not wanted and len(names) != 1:
        seen = f"there are {len(names)}, and lab.yml names none"
        return failed("external network", seen, choose("lab_external_network", names))
    return ok("external network", wanted or names[0])


def external_networks(cloud: Any) -> list[str]:
    """The names of the networks that floating IPs come from."""
    return [one.name for one in cloud.network.networks(is_router_external=True)]


def key_pair(context: Context) -> Result:
    """A key pair that lab.yml names is there."""
    name = context.lab.machine.key_pair
    if name and not context.cloud.compute.find_keypair(name):
        names = [pair.name for pair in context.cloud.compute.keypairs()]
        return failed("key pair", f"there is no key pair {name!r}", choose("lab_key_pair", names))
    return ok("key pair", name or "made from the first admin's key")


def floating_ip(context: Context) -> Result:
    """A given address is the project's, and no other machine has it."""
    address = context.lab.machine.floating_ip
    if not address:
        return ok("floating IP", context.address or "one is made")
    found = next(iter(context.cloud.network.ips(floating_ip_address=address)), None)
    if not found:
        free = [one.floating_ip_address for one in context.cloud.network.ips() if not one.port_id]
        return failed("floating IP", f"{address} is not the project's", choose("lab_floating_ip", free))
    port = context.cloud.network.find_port(context.server_name)
    if found.port_id and (not port or found.port_id != port.id):
        hint = f"Take it off that machine, or use another: openstack floating ip show {address}"
        return failed("floating IP", f"{address} is in use by another machine", hint)
    return ok("floating IP", f"{address} is the project's, and free or the lab's")


def admin_access(context: Context) -> Result:
    """SSH from everywhere is allowed by lab.yml, but nobody should want it."""
    wide = [text for text in context.lab.admin_networks if ipaddress.ip_network(text).prefixlen == 0]
    if wide:
        hint = "Name your institute's networks or your own address instead: lab_admin_networks: [203.0.113.7/32]"
        return warning("admin networks", f"{', '.join(wide)}: everybody may connect to SSH", hint)
    return ok("admin networks", ", ".join(context.lab.admin_networks))


def dns(context: Context) -> Result:
    """The server's name leads to its address; before there is an address, to nothing or to an old server."""
    name, address = context.lab.fqdn, context.address
    try:
        found = sorted({str(info[4][0]) for info in socket.getaddrinfo(name, 443, socket.AF_INET)})
    except OSError:
        found = []
    if address and address in found:
        return ok("DNS", f"{name} is {address}")
    if not found:
        where = address or "the address that the first run prints"
        return warning("DNS", f"{name} is not in the DNS", f"Add an A record that points to {where}.")
    if address:
        hint = f"Let the A record of {name} point to {address}."
        return failed("DNS", f"{name} is {', '.join(found)}, and the server is {address}", hint)
    hint = "An old server's? Change the record when the new address is known, or give it as lab_floating_ip."
    return warning("DNS", f"{name} is {', '.join(found)}; the lab has no address yet", hint)
