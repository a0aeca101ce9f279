"""What the server is made from: image, flavor, key pair; and what has the lab's names already."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterator
from typing import Any

from labtrack.cloud.preflight.context import Context, choose, choose_id
from labtrack.doctor.result import Result, failed, ok, warning

LEAST_MEMORY = 1900  # MB: PostgreSQL, two MLflow instances and nginx, with room for uploads
LEAST_DISK = 10  # GB
NAMES = "lab's names"
RELEASES = (13, 12)  # of Debian, the one that is tried first
SHOWN = 6  # names that a hint lists
USUAL = {"x86_64", "amd64"}  # what an image runs on that says nothing else
_OTHER_ARCHITECTURE = re.compile(r"arm64|aarch64|ppc64|s390|riscv|i386|i686", re.IGNORECASE)


def image(context: Context) -> Result:
    """The image is there, can be used, and is a Debian that the roles know."""
    name, found, named = context.lab.machine.image, context.image, context.images.things
    if found is None and named:
        return failed("image", f"{name} is {named[0].status}", "Wait until it is active, or name another lab_image.")
    if found is None:
        seen = f"there is no image {name!r}" if name else "lab_image is not set"
        return failed("image", seen, choose("lab_image", debians(context.cloud)))
    newest = f"; the newest of {len(named)} of this name, of {found.created_at}" if len(named) > 1 else ""
    doubt = _doubt(found)
    if doubt:
        plain = [one for one in named if not _doubt(one)]
        hint = choose_id("lab_image", plain) if plain else choose("lab_image", debians(context.cloud))
        return warning("image", f"{found.name} {doubt}{newest}", hint)
    return ok("image", f"{found.name}{newest}")


def _doubt(image: Any) -> str:
    """Why a server that is made from the image may not be what is wanted; empty for a plain Debian."""
    if is_snapshot(image):
        return "is a snapshot of a server, with that one's accounts and keys"
    if runs_on(image) not in USUAL:
        return f"is for {runs_on(image)}, which most clouds' machines can't start"
    return "" if is_debian(image) else "doesn't look like Debian, which the roles are tried on"


def is_snapshot(image: Any) -> bool:
    """Whether an image was made of a server, and not for making servers."""
    more = getattr(image, "properties", None) or {}
    return more.get("image_type") == "snapshot" or bool(more.get("base_image_ref") or more.get("block_device_mapping"))


def runs_on(image: Any) -> str:
    """The processors that an image is for, by its properties or its name."""
    named = _OTHER_ARCHITECTURE.search(image.name or "")
    return str(getattr(image, "architecture", None) or (named[0].lower() if named else "x86_64"))


def is_debian(image: Any) -> bool:
    """Whether an image is a Debian, by its name or its properties."""
    return "debian" in f"{image.name} {getattr(image, 'os_distro', None) or ''}".lower()


def debians(cloud: Any) -> list[str]:
    """What to write for the cloud's Debian images, the best for a server first."""
    return [name for name, _ in debian_images(cloud)][:SHOWN]


def debian_images(cloud: Any) -> list[tuple[str, Any]]:
    """The cloud's Debian images, the best for a server first: released, newest, plain; each with what to write for it.

    Snapshots of servers and images for other processors are left out, and of those of one name all but the newest.  It
    is written by its id where the newest of that name is none of these.
    """
    named = [one for one in cloud.image.images(status="active") if one.name and is_debian(one)]
    named.sort(key=lambda one: str(getattr(one, "created_at", None) or ""))
    newest = {one.name: one for one in named}
    fit = {one.name: one for one in named if not is_snapshot(one) and runs_on(one) in USUAL}
    found = sorted(fit.values(), key=_rank)
    return [(str(one.name if newest[one.name] is one else one.id), one) for one in found]


def _rank(image: Any) -> tuple[Any, ...]:
    """Debian 13, which the kit is tried with first, then 12, then their dailies and special ones; others behind."""
    name = image.name.lower()
    release = debian_release(image)
    special = bool(re.search(r"daily|test|backport|\bsid\b|unstable|minimal|nocloud|gpu|cuda|docker|desktop", name))
    known = RELEASES.index(release) if release in RELEASES else len(RELEASES)
    return (known == len(RELEASES), special, known, -release, len(name), name)


_CODE_NAMES = {"trixie": 13, "bookworm": 12, "bullseye": 11, "buster": 10, "stretch": 9}


def debian_release(image: Any) -> int:
    """The release of a Debian image, 0 where it isn't said."""
    named = re.search(r"debian\D{0,3}(\d{1,2})(?!\d)", image.name.lower())
    said = re.match(r"\d+", str(getattr(image, "os_version", None) or ""))
    by_name = next((number for name, number in _CODE_NAMES.items() if name in image.name.lower()), 0)
    return int(named[1]) if named else by_name or (int(said[0]) if said else 0)


def flavor(context: Context) -> Result:
    """The flavor has the memory and the disk that PostgreSQL and MLflow need."""
    name, found = context.lab.machine.flavor, context.flavor
    if context.flavors.things and found is None:
        seen = f"there are {len(context.flavors.things)} flavors {name}, and Terraform can't choose"
        return failed("flavor", seen, choose_id("lab_flavor", context.flavors.things))
    if found is None:
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
    small = _too_small(context, found)
    if small:
        return failed("flavor", small, choose("lab_flavor", sufficient(context.cloud, context.image)))
    return ok("flavor", seen)


def _too_small(context: Context, flavor: Any) -> str:
    """What of the flavor the image does not fit into; Nova refuses such a server."""
    image, boot = context.image, context.lab.machine.boot_volume_gb
    if image is None:
        return ""
    if (image.min_ram or 0) > flavor.ram:
        return f"{image.name} wants {image.min_ram} MB of memory, and {flavor.name} has {flavor.ram}"
    disk = boot or flavor.disk
    if disk and (image.min_disk or 0) > disk:
        return f"{image.name} wants a disk of {image.min_disk} GB, and the machine has {disk}"
    return ""


def sufficient(cloud: Any, image: Any = None) -> list[str]:
    """Flavors that a server fits on, the smallest first.  image: one that has to fit, too."""
    memory = max(LEAST_MEMORY, getattr(image, "min_ram", 0) or 0)
    disk = max(LEAST_DISK, getattr(image, "min_disk", 0) or 0)
    found = [one for one in cloud.compute.flavors() if one.ram >= memory and one.disk >= disk]
    return [one.name for one in sorted(found, key=lambda one: (one.ram, one.vcpus))][:SHOWN]


def data_volume(context: Context) -> Result:
    """A volume that lab.yml names is there, and no other machine has it."""
    check, wanted, found = "data volume", context.lab.machine.data_volume, context.volumes
    if not found.wanted:
        return ok(check, "none: the data are on the machine's disk" if wanted == "none" else "made, or there already")
    if not found.things:
        names = [one.name or one.id for one in context.cloud.block_storage.volumes() if one.status == "available"]
        return failed(check, f"there is no volume {wanted!r}", choose("lab_data_volume", names[:SHOWN]))
    if found.one is None:
        seen = f"there are {len(found.things)} volumes {wanted}, and Terraform can't choose"
        return failed(check, seen, choose_id("lab_data_volume", found.things))
    volume, name = found.one, found.one.name or found.one.id
    attached = [one["server_id"] for one in volume.attachments or []]
    elsewhere = [one for one in attached if one != context.resources.there.get("server", "")]
    if elsewhere:
        hint = f"Take it off there (openstack server remove volume {elsewhere[0]} {volume.id}), or name another."
        return failed(check, f"{name} is attached to another machine, {elsewhere[0]}", hint)
    if volume.status not in ("available", "in-use"):
        return failed(check, f"{name} is {volume.status}", f"See why: openstack volume show {volume.id}")
    return ok(check, f"{name}, {volume.size} GB")


def key_pair(context: Context) -> Result:
    """A key pair that lab.yml names is there; the one that is made takes nobody else's name."""
    name, made = context.lab.machine.key_pair, f"{context.lab.name}-key"
    if name:
        if not context.cloud.compute.find_keypair(name):
            names = [pair.name for pair in context.cloud.compute.keypairs()]
            return failed("key pair", f"there is no key pair {name!r}", choose("lab_key_pair", names))
        return ok("key pair", name)
    key, there = _first_key(context), context.resources.things.get("key_pair")
    if there is None or key is None or _bare(there.public_key) == _bare(key):
        return ok("key pair", f"{made} is there" if there else "made from the first admin's key")
    seen = f"the user has a key pair {made} already, with another key than the first admin's"
    if context.resources.has("server"):
        return warning("key pair", seen, "The next run replaces it; the server's own keys are those of lab_admins.")
    hint = f"Use it (lab_key_pair: {made}), or delete it if nobody needs it: openstack keypair delete {made}"
    return failed("key pair", seen, hint)


def _first_key(context: Context) -> str | None:
    """The key that Terraform makes the key pair of; None where it makes none."""
    plain = re.compile(r"(ssh-(rsa|ed25519)|ecdsa-sha2-nistp(256|384|521)) ")
    return next((key for key in context.lab.public_keys if plain.match(key)), None)


def _bare(key: str | None) -> list[str]:
    return (key or "").split()[:2]


def lab_names(context: Context) -> Iterator[Result]:
    """Nothing has the lab's names that Terraform would take for the lab's, or stumble over."""
    resources, lost = context.resources, context.state_lost
    for several in resources.several:
        row = failed if lost else warning
        yield row(NAMES, several.what, several.hint[0].upper() + several.hint[1:])
    stray = _stray_port(context)
    if stray:
        port = resources.things["port"]
        hint = f"See whose it is, and rename it: openstack port set --name ANOTHER {port.id}"
        yield failed(NAMES, f"the port {port.name} {stray}", hint)
    elif not resources.several:
        there = ", ".join(sorted(resources.things)).replace("_", " ").replace(" ip", " IP")
        taken = " (what the run finds, it takes over)" if lost else ""
        yield ok(NAMES, f"there already: {there}{taken}" if there else "nothing has them yet")


def _stray_port(context: Context) -> str:
    """What tells that the port of the lab's name is not the lab's; empty where nothing does."""
    port, there = context.resources.things.get("port"), context.resources.there
    if port is None:
        return ""
    if port.device_id and port.device_id != there.get("server", ""):
        return f"belongs to another machine ({port.device_id})"
    network = context.network.id if context.network is not None else there.get("network")
    if context.state_lost and not context.resources.has("server") and port.network_id != network:
        return f"is in another network ({port.network_id})"
    return ""


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
