"""What the checks look at: the lab, the login, the cloud, and what of the lab is already there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, overload

import requests
from openstack.connection import Connection

from labtrack.cloud import profiles
from labtrack.cloud.answers import ERRORS, explained
from labtrack.cloud.login import Login
from labtrack.cloud.profiles import Profile
from labtrack.cloud.resources import Resources, is_router_port, look
from labtrack.lab import Lab

TIMEOUT = 15.0  # seconds for one answer
T = TypeVar("T")


class once(Generic[T]):
    """A property that is computed once, by the first thread that asks; what it raises is raised to all of them."""

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self.compute, self.__doc__ = compute, compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = f"_{name}"

    @overload
    def __get__(self, at: None, owner: type) -> once[T]: ...
    @overload
    def __get__(self, at: object, owner: type) -> T: ...
    def __get__(self, at: object | None, owner: type) -> once[T] | T:
        if at is None:
            return self
        # setdefault of a dict is atomic: all threads get one lock
        lock = at.__dict__.setdefault(f"{self.name}_lock", threading.RLock())
        with lock:
            if self.name not in at.__dict__:
                try:
                    at.__dict__[self.name] = (self.compute(at), None)
                except Exception as raised:
                    at.__dict__[self.name] = (None, raised)
        value, error = at.__dict__[self.name]
        if error is not None:
            raise error
        found: T = value
        return found


@dataclass(frozen=True)
class Match:
    """What a name or an id of lab.yml leads to.

    wanted: what lab.yml says; empty where it says nothing.  things: all that it may mean, the one to take first.
    """

    wanted: str
    things: tuple[Any, ...] = ()

    @property
    def one(self) -> Any:
        """The only thing that is meant; None where there is none or it can't be told."""
        return self.things[0] if len(self.things) == 1 else None


def match(wanted: str, things: Iterable[Any], project_id: str = "") -> Match:
    """The things of a name, or the one of an id; the project's own before those that others share with it."""
    if not wanted:
        return Match("")
    things = list(things)
    found = [one for one in things if one.id == wanted] or [one for one in things if one.name == wanted]
    own = [one for one in found if project_id and getattr(one, "project_id", None) == project_id]
    return Match(wanted, tuple(own or found))


@dataclass(frozen=True)
class Context:
    """Everything is looked up once.  Names of what Terraform makes start with the lab's name: terraform/README.md.

    Terraform is given the ids that are found here: what it makes things from is what was judged.
    """

    lab: Lab
    login: Login
    profile: Profile
    cloud: Connection = field(repr=False)

    @classmethod
    def of(cls, lab: Lab, login: Login) -> Context:
        """The context of a lab whose cloud has let us in."""
        return cls(lab, login, profiles.of(login.url), login.connect())

    def ids(self) -> dict[str, str]:
        """Ids by what they are of: image, flavor, external_network, network, router, data_volume.

        Only what lab.yml names, and the external network that follows from it; what is not there, or is there several
        times, is left out.  Raises LabtrackError where the cloud does not answer.
        """
        with explained("What lab.yml names can't be looked up"):
            found = {
                "image": self.image,
                "flavor": self.flavor,
                "external_network": self.external_network,
                "network": self.network,
                "router": self.routers.one,
                "data_volume": self.volumes.one,
            }
        return {name: str(thing.id) for name, thing in found.items() if thing is not None}

    @property
    def server_name(self) -> str:
        """The machine, and its port."""
        return f"{self.lab.name}-mlflow"

    @once
    def resources(self) -> Resources:
        """What the project has under the lab's own names."""
        return look(self.cloud, self.lab.name, volumes=self.lab.machine.needs_volumes)

    @property
    def state_lost(self) -> bool:
        """Whether the next run looks for the lab's things by their names, as after a killed run or a lost state.

        A state in another place (docs/admin/cloud.md) is taken to be there.
        """
        if (self.lab.root / "terraform" / "backend_override.tf").exists():
            return False
        state = self.lab.private / "terraform.tfstate"
        unfinished = (self.lab.private / "terraform" / "unfinished").exists()
        return unfinished or not state.exists() or state.stat().st_size == 0

    @once
    def images(self) -> Match:
        """The images of the name that lab.yml gives, or the one of its id: the newest first, usable ones alone."""
        wanted = self.lab.machine.image
        if not wanted:
            return Match("")
        named = list(self.cloud.image.images(name=wanted))
        if not named:
            by_id = self.cloud.image.find_image(wanted)
            return Match(wanted, (by_id,) if by_id else ())
        active = [one for one in named if one.status == "active"]
        return Match(wanted, tuple(sorted(active or named, key=lambda one: one.created_at or "", reverse=True)))

    @once
    def image(self) -> Any:
        """The image that the machine is made from: of several with its name the newest, as Terraform takes it."""
        return next((one for one in self.images.things if one.status == "active"), None)

    @once
    def flavors(self) -> Match:
        """The flavors of the name or id that lab.yml gives."""
        return match(self.lab.machine.flavor, self.cloud.compute.flavors())

    @property
    def flavor(self) -> Any:
        """The flavor that lab.yml names, or None."""
        return self.flavors.one

    @once
    def seen_networks(self) -> list[Any]:
        """All networks that the login sees: the project's, shared ones, external ones."""
        return list(self.cloud.network.networks())

    @once
    def seen_routers(self) -> list[Any]:
        """All routers that the login sees."""
        return list(self.cloud.network.routers())

    @once
    def networks(self) -> Match:
        """The networks of the name or id in lab_network."""
        wanted = self.lab.machine.network
        return match(wanted, self.seen_networks if wanted else (), self.login.project_id)

    @once
    def routers(self) -> Match:
        """The routers of the name or id in lab_router."""
        wanted = self.lab.machine.router
        return match(wanted, self.seen_routers if wanted else (), self.login.project_id)

    @property
    def network(self) -> Any:
        """The network that lab.yml names, or None."""
        return self.networks.one

    @once
    def subnets(self) -> list[Any]:
        """The IPv4 subnets of the network that lab.yml names."""
        if self.network is None:
            return []
        return [one for one in self.cloud.network.subnets(network_id=self.network.id) if one.ip_version == 4]  # noqa: PLR2004

    @once
    def routed(self) -> dict[str, list[str]]:
        """Ids of the routers of the given network's subnets, by the subnet's id, as far as the login sees them."""
        found: dict[str, list[str]] = {}
        for port in self.cloud.network.ports(network_id=self.network.id) if self.network is not None else ():
            for fixed in port.fixed_ips if is_router_port(port) else ():
                found.setdefault(fixed["subnet_id"], []).append(str(port.device_id))
        return found

    def router_of(self, subnet: Any) -> Any:
        """The router of a subnet of the given network, one with a gateway first; None where none is seen."""
        ids = self.routed.get(subnet.id, []) if subnet is not None else []
        return max((one for one in self.seen_routers if one.id in ids), key=_has_gateway, default=None) if ids else None

    @once
    def subnet(self) -> Any:
        """The subnet of the given network for the machine's port: one with a way out, where that is seen."""
        out = [one for one in self.subnets if _has_gateway(self.router_of(one))]
        routed = [one for one in self.subnets if one.id in self.routed]
        return next(iter(out or routed or self.subnets), None)

    @once
    def router(self) -> Any:
        """The router of the machine's network, where there is one already: given, the network's, or the lab's own."""
        if self.lab.machine.router:
            return self.routers.one
        if self.lab.machine.network:
            return self.router_of(self.subnet)
        made = self.resources.there.get("router", "")
        return next((one for one in self.seen_routers if one.id == made), None) if made else None

    @property
    def external_networks(self) -> list[Any]:
        """The networks that floating IPs come from."""
        return [one for one in self.seen_networks if one.is_router_external]

    @once
    def external(self) -> Match:
        """The external networks that may be meant: named, the only one, or the router's or the given address's."""
        wanted, there = self.lab.machine.external_network, self.external_networks
        if wanted:
            return match(wanted, there, self.login.project_id)
        if len(there) > 1:
            behind = gateway_of(self.router) or getattr(self.given_address, "floating_network_id", "")
            there = [one for one in there if one.id == behind] or there
        return Match("", tuple(there))

    @property
    def external_network(self) -> Any:
        """The network that floating IPs come from, or None."""
        return self.external.one

    @once
    def given_address(self) -> Any:
        """The floating IP that lab.yml gives, where the project has it."""
        wanted = self.lab.machine.floating_ip
        found = self.cloud.network.ips(floating_ip_address=wanted) if wanted else ()
        return next((one for one in found if one.project_id == self.login.project_id), None)

    @once
    def volumes(self) -> Match:
        """The volumes of the name or id in lab_data_volume."""
        wanted = self.lab.machine.data_volume
        if wanted in ("none", "manage"):
            return Match("")
        return match(wanted, self.cloud.block_storage.volumes())

    @once
    def address(self) -> str:
        """The server's public address: given, or already made; empty before."""
        if self.lab.machine.floating_ip:
            return self.lab.machine.floating_ip
        made = self.resources.things.get("floating_ip")
        return str(made.floating_ip_address) if made is not None else ""

    @property
    def verify(self) -> str | bool:
        """How the store's certificate is checked, as in requests."""
        return str(self.lab.s3_ca_file) if self.lab.s3_ca_file else True

    def status_of(self, bucket: str) -> int:
        """What the store answers to one who has no key.  Raises requests.RequestException."""
        return requests.head(f"{self.lab.s3_endpoint}/{bucket}", timeout=TIMEOUT, verify=self.verify).status_code


def gateway_of(router: Any) -> str:
    """The id of the external network that a router leads to; empty without one."""
    info = getattr(router, "external_gateway_info", None) or {}
    return str(info.get("network_id") or "")


def endpoint_of(cloud: Connection, kind: str) -> str:
    """A service's address in the login's region; empty where the catalogue has none."""
    try:
        return str(cloud.endpoint_for(cloud.config.get_service_type(kind)) or "")
    except ERRORS:
        return ""


def _has_gateway(router: Any) -> bool:
    return bool(gateway_of(router))


def choose(key: str, names: list[str]) -> str:
    """The hint of a setting that names something the cloud doesn't have."""
    if not names:
        return f"Correct {key} in lab.yml; the cloud shows nothing that would do."
    return f"Set {key} in lab.yml to one of: {', '.join(names)}."


def choose_id(key: str, things: Iterable[Any]) -> str:
    """The hint of a setting that several things may be meant by."""
    return f"Set {key} in lab.yml to the id of the right one: {', '.join(str(one.id) for one in things)}."
