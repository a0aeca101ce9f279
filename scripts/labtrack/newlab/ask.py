"""What a cloud has that a new lab can use: asked, never changed."""

from __future__ import annotations

import getpass
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from openstack.connection import Connection

from labtrack.cloud import profiles
from labtrack.cloud.ec2 import KeystoneKeys
from labtrack.cloud.login import Login
from labtrack.cloud.preflight import machine, network
from labtrack.cloud.preflight.context import endpoint_of, gateway_of
from labtrack.cloud.preflight.quota import Networks
from labtrack.errors import LabtrackError
from labtrack.objectstore import speaks_s3
from labtrack.sshkeys import why_no_keys

GOOD_CORES, GOOD_MEMORY = 2, 2800  # MB: what serves a lab; a smaller flavor is taken where there is no other
TIMEOUT = 15.0  # seconds for one answer


@dataclass(frozen=True)
class Found:
    """What the cloud and this machine have.  Empty is what the reader of the new lab.yml has to fill in."""

    title: str  # of the cloud
    admin: str
    ssh_key_files: list[str]
    image: str
    flavor: str
    external_network: str
    external_networks: list[str]
    router: str  # of the project, where its quota lets no other be made
    addresses: list[str]  # floating IPs of the project
    free_addresses: list[str]
    data_volume: str
    artifact_access: str
    s3_endpoint: str
    s3_region: str
    s3_ca_file: Path | None

    @property
    def missing(self) -> list[str]:
        """The settings that are left to fill in: first those that no machine can know."""
        asked = {
            "lab_admins": self.ssh_key_files, "lab_image": self.image, "lab_flavor": self.flavor,
            "lab_external_network": self.external_network, "lab_s3_endpoint": self.s3_endpoint,
        }  # fmt: skip
        return ["lab_fqdn", "lab_admin_networks", *(key for key, value in asked.items() if not value)]


def ask(logged_in: Login) -> Found:
    """Looks at the project.  Raises what openstacksdk raises for services that don't answer."""
    profile, cloud = profiles.of(logged_in.url), logged_in.connect()
    networks = network.external_networks(cloud)
    addresses = list(cloud.network.ips(project_id=logged_in.project_id))
    endpoint, region, ca_file = _store(profile, cloud, logged_in)
    keys = filter(_is_taken, sorted(Path("~/.ssh").expanduser().glob("*.pub")))
    return Found(
        title=profile.title,
        admin=_user(),
        ssh_key_files=[f"~/.ssh/{key.name}" for key in keys],
        image=_image(cloud),
        flavor=_flavor(cloud),
        external_network=_external(profile.external_network, networks),
        external_networks=networks,
        router=_router_to_join(cloud, logged_in),
        addresses=[str(ip.floating_ip_address) for ip in addresses],
        free_addresses=[str(ip.floating_ip_address) for ip in addresses if not ip.port_id],
        data_volume="manage" if endpoint_of(cloud, "block-storage") else "none",
        artifact_access="direct" if _makes_keys(logged_in) else "proxied",
        s3_endpoint=endpoint,
        s3_region=region,
        s3_ca_file=ca_file,
    )


def _is_taken(key: Path) -> bool:
    try:
        return not any(why_no_keys(key.read_bytes()))
    except OSError:
        return False


def _makes_keys(logged_in: Login) -> bool:
    """Whether this login may manage EC2 credentials, asked by listing its own.

    An application credential may list them at some Keystones, and make none.
    """
    if logged_in.delegated:
        return False
    try:
        KeystoneKeys(logged_in).list()
    except LabtrackError:
        return False
    return True


def _user() -> str:
    """Who will log in to the server: root can't."""
    name = re.sub(r"[^a-z0-9_-]", "-", getpass.getuser().lower())
    return name if re.match("[a-z_]", name) and name != "root" else "labadmin"


def _image(cloud: Connection) -> str:
    """A plain Debian 13, else 12, else one that does not say its release; never an older one."""
    wanted = (*machine.RELEASES, 0)
    return next((name for name, one in machine.debian_images(cloud) if machine.debian_release(one) in wanted), "")


def _flavor(cloud: Connection) -> str:
    def good(one: Any) -> bool:
        return bool(one.ram >= GOOD_MEMORY and one.vcpus >= GOOD_CORES and one.disk >= machine.LEAST_DISK)

    found = sorted(filter(good, cloud.compute.flavors()), key=lambda one: (one.ram, one.vcpus))
    names = [one.name for one in found] or machine.sufficient(cloud)
    return names[0] if names else ""


def _external(known: str, networks: list[str]) -> str:
    if known in networks:
        return known
    return networks[0] if len(networks) == 1 else ""


def _router_to_join(cloud: Connection, logged_in: Login) -> str:
    routers = [one for one in cloud.network.routers(project_id=logged_in.project_id) if gateway_of(one)]
    full = bool(routers) and Networks(cloud.network, logged_in.project_id).of("routers") == 0
    # by its id, where the name is not enough
    first = next(iter(routers), None)
    alone = first is not None and [one.name for one in routers].count(first.name) == 1
    return str(first.name if alone else first.id) if first is not None and full else ""


def _store(profile: profiles.Profile, cloud: Connection, logged_in: Login) -> tuple[str, str, Path | None]:
    """Address, region and CA of the first address that speaks S3."""
    verify = logged_in.session.verify
    for url in (profile.s3_endpoint, endpoint_of(cloud, "s3"), endpoint_of(cloud, "object-store")):
        base = f"https://{urlsplit(url).netloc}" if url else ""
        if base and _answers(base, verify):
            # OpenStack's Swift checks the region that a request is signed for; Ceph takes any
            region = str(cloud.config.region_name or "") if "s3api" in _info(base, verify) else ""
            return base, region, Path(verify) if isinstance(verify, str) else None
    return "", "", None


def _answers(base: str, verify: Any) -> bool:
    try:
        return speaks_s3(base, verify)[0]
    except requests.exceptions.RequestException:
        return False


def _info(base: str, verify: Any) -> dict[str, Any]:
    """What Swift says of itself; empty for other stores."""
    try:
        said = requests.get(f"{base}/info", timeout=TIMEOUT, verify=verify).json()
    except (requests.exceptions.RequestException, ValueError):
        return {}
    return said if isinstance(said, dict) else {}
