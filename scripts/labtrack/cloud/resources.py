"""What a project already has under the names of a lab.  terraform/README.md has the names, adopt.tf takes it over."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from labtrack.errors import LabtrackError

# Whose the ports of a router are: a plain one, a distributed one (DVR), a highly available one (HA).
ROUTER_PORTS = frozenset(
    {
        "network:router_interface",
        "network:router_interface_distributed",
        "network:ha_router_replicated_interface",
    }
)


FLOATING_IP = "floating IP"


class AmbiguousError(LabtrackError):
    """Several things have a name that only one may have."""

    def __init__(self, several: Several) -> None:
        super().__init__(several.what, several.hint)


@dataclass(frozen=True)
class Several:
    """Things of one kind and of one name, of which the lab's can't be told."""

    kind: str
    name: str
    ids: tuple[str, ...]

    @property
    def key(self) -> str:
        """Its name in terraform/adopt.tf."""
        return self.kind.lower().replace(" ", "_")

    @property
    def what(self) -> str:
        """What is there."""
        called = "are described as" if self.kind == FLOATING_IP else "are called"
        return (
            f"The project has {len(self.ids)} of the kind {self.kind} that {called} {self.name!r}: {shown(self.ids)}."
        )

    @property
    def hint(self) -> str:
        """How to tell which one is the lab's."""
        if self.kind == FLOATING_IP:
            return (
                "see which one the DNS names (openstack floating ip show ID), and delete the others, or take their "
                "description away (openstack floating ip set --description '' ID)."
            )
        return f"see which one is the lab's (openstack {self.kind} show ID), and rename or delete the others."


def shown(ids: Iterable[str], most: int = 6) -> str:
    """The first ids of a list that may be long."""
    ids = list(ids)
    return ", ".join(ids[:most]) + (f" and {len(ids) - most} more" if len(ids) > most else "")


def is_router_port(port: Any) -> bool:
    """Whether a port joins a network to a router."""
    return port.device_owner in ROUTER_PORTS


@dataclass(frozen=True)
class Resources:
    """The lab's own things in a project.

    there: ids by the names that terraform/adopt.tf has for them.
    several: where the lab's can't be told from others of the same name; none of them is in `there`.
    things: those that were found by their names, as openstacksdk shows them.
    """

    there: dict[str, str]
    several: tuple[Several, ...] = ()
    things: dict[str, Any] = field(default_factory=dict, repr=False)

    def has(self, name: str) -> bool:
        """Whether there is one, or more than one."""
        return name in self.there or any(several.key == name for several in self.several)

    def only(self) -> dict[str, str]:
        """What is there, each thing once.  Raises AmbiguousError."""
        for several in self.several:
            raise AmbiguousError(several)
        return self.there


class _Look:
    """Collects what is found; each question is asked of the project alone, whatever else the login can see."""

    def __init__(self, cloud: Any, lab: str) -> None:
        self.cloud, self.lab = cloud, lab
        self.there: dict[str, str] = {}
        self.several: list[Several] = []
        self.things: dict[str, Any] = {}
        self.mine = {"project_id": cloud.current_project_id}

    def one(self, kind: str, suffix: str, things: Iterable[Any]) -> Any:
        """The thing of the lab's name, or None; several are noted."""
        name = f"{self.lab}-{suffix}"
        return self._chosen(kind, name, [thing for thing in things if thing.name == name])

    def _chosen(self, kind: str, name: str, found: list[Any]) -> Any:
        several = Several(kind, name, tuple(str(thing.id) for thing in found))
        if len(found) > 1:
            self.several.append(several)
        if len(found) != 1:
            return None
        self.there[several.key], self.things[several.key] = several.ids[0], found[0]
        return found[0]

    def network(self) -> None:
        net = self.cloud.network
        network = self.one("network", "network", net.networks(name=f"{self.lab}-network", **self.mine))
        self.one("subnet", "subnet", net.subnets(name=f"{self.lab}-subnet", **self.mine))
        self.one("router", "router", net.routers(name=f"{self.lab}-router", **self.mine))
        for port in net.ports(network_id=network.id) if network else ():
            if is_router_port(port):
                self.there["router_interface"] = str(port.id)
        group = self.one("security group", "server", net.security_groups(name=f"{self.lab}-server", **self.mine))
        for rule in net.security_group_rules(security_group_id=group.id) if group else ():
            if rule.direction == "ingress" and rule.remote_ip_prefix:
                self.there[f"rule {rule.port_range_min} from {rule.remote_ip_prefix}"] = str(rule.id)
        port = self.one("port", "mlflow", net.ports(name=f"{self.lab}-mlflow", **self.mine))
        self.floating_ip(port)

    def floating_ip(self, port: Any) -> None:
        """The address on the lab's port; without one, that which has the lab's description."""
        described = f"labtrack: {self.lab}"
        addresses = list(self.cloud.network.ips(**self.mine))
        on_port = [one for one in addresses if port and one.port_id == port.id]
        self._chosen(FLOATING_IP, described, on_port or [one for one in addresses if one.description == described])

    def machine(self, volumes: bool) -> None:
        compute = self.cloud.compute
        key = compute.find_keypair(f"{self.lab}-key")
        if key:
            self.there["key_pair"], self.things["key_pair"] = str(key.name), key
        servers = compute.servers(details=True)
        server = self.one("server", "mlflow", (one for one in servers if one.status not in ("DELETED", "SOFT_DELETED")))
        if not (volumes and self.cloud.has_service("block-storage")):
            return
        volume = self.one("volume", "data", self.cloud.block_storage.volumes())
        if volume and server and any(attached["server_id"] == server.id for attached in volume.attachments):
            self.there["attachment"] = f"{server.id}/{volume.id}"

    def bucket(self, name: str) -> None:
        if not self.cloud.has_service("object-store"):
            return
        if any(container.name == name for container in self.cloud.object_store.containers(prefix=name)):
            self.there["bucket"] = name


def look(cloud: Any, lab: str, bucket: str = "", *, volumes: bool = True) -> Resources:
    """What the project has under the names of the lab `lab`; a bucket where one is named.  Changes nothing.

    volumes: whether to ask for those, too, where the cloud has them.
    Raises what openstacksdk raises where the cloud does not answer.
    """
    found = _Look(cloud, lab)
    found.network()
    found.machine(volumes)
    if bucket:
        found.bucket(bucket)
    return Resources(found.there, tuple(found.several), found.things)
