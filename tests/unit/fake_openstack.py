"""What openstacksdk shows of a project, without a cloud: an ordinary one, of which the tests change a thing."""

from __future__ import annotations

import dataclasses
import itertools
import uuid
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from openstack.exceptions import NotFoundException

from labtrack.cloud.preflight.context import Context
from labtrack.cloud.profiles import GENERIC
from labtrack.doctor.result import Result, Status
from labtrack.lab import Lab

MINE = "p" * 32  # the project's id
_NUMBER = itertools.count()


def thing(name: str, **about: Any) -> Any:
    """Something with a name and an id of its own; fields that OpenStack leaves open are None."""
    known = {"id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{name}-{next(_NUMBER)}")), "name": name, "project_id": MINE}
    return _Thing(**{**known, **about})


class _Thing(SimpleNamespace):
    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def _listed(things: list[Any], wanted: dict[str, Any]) -> Iterator[Any]:
    return (one for one in list(things) if all(getattr(one, key) == value for key, value in wanted.items()))


class FakeOpenStack:
    """A project with an image, a flavor, an external network, a network behind a router.

    fails: by the name of a list (`networks`), what asking for it raises.
    """

    current_project_id = MINE

    def __init__(self) -> None:
        outside = thing("Public", is_router_external=True, project_id="admin")
        inside = thing("def-net", is_router_external=False)
        subnet = thing("def-subnet", network_id=inside.id, cidr="10.5.0.0/24", ip_version=4, gateway_ip="10.5.0.1")
        router = thing("def-router", external_gateway_info={"network_id": outside.id})
        port = thing(
            "", network_id=inside.id, device_owner="network:router_interface", device_id=router.id,
            fixed_ips=[{"subnet_id": subnet.id}],
        )  # fmt: skip
        self.images = [thing("Debian-13", status="active", created_at="2026-01-01T00:00:00Z", min_ram=0, min_disk=2)]
        self.flavors = [thing("p2-3gb", vcpus=2, ram=3072, disk=20)]
        self.networks, self.subnets, self.routers, self.ports = [outside, inside], [subnet], [router], [port]
        self.ips: list[Any] = []
        self.groups: list[Any] = []
        self.rules: list[Any] = []
        self.servers: list[Any] = []
        self.keypairs: list[Any] = []
        self.volumes: list[Any] = []
        self.containers: list[Any] = []
        self.services = {"compute", "network", "image", "block-storage", "object-store"}
        self.fails: dict[str, Exception] = {}
        self.quota: dict[str, Any] = {}  # Neutron's plain limits
        self.details: dict[str, Any] | None = {}  # {limit, used, reserved} by name; None: without that extension
        self.asked: list[str] = []
        self.network = SimpleNamespace(
            networks=self._of("networks"), subnets=self._of("subnets"), routers=self._of("routers"),
            ports=self._of("ports"), ips=self._of("ips"), security_groups=self._of("groups"),
            security_group_rules=self._of("rules"), get_quota=self._quota,
            get_ip=lambda wanted: next(one for one in self.ips if one.id == wanted),
        )  # fmt: skip
        self.image = SimpleNamespace(
            images=self._of("images"), find_image=lambda id: next((one for one in self.images if one.id == id), None)
        )
        self.compute = SimpleNamespace(
            flavors=self._of("flavors"), servers=lambda details: self._of("servers")(), keypairs=self._of("keypairs"),
            find_keypair=lambda name: next((one for one in self.keypairs if one.name == name), None),
        )  # fmt: skip
        self.block_storage = SimpleNamespace(volumes=self._of("volumes"))
        self.object_store = SimpleNamespace(containers=lambda prefix: self._of("containers")())

    def has_service(self, kind: str) -> bool:
        """Whether the catalogue has it."""
        return kind in self.services

    def _of(self, name: str) -> Any:
        def listed(**wanted: Any) -> Iterator[Any]:
            self.asked.append(name)
            if name in self.fails:
                raise self.fails[name]
            return _listed(getattr(self, name), wanted)

        return listed

    def _quota(self, project: str, details: bool) -> Any:
        assert project == MINE
        self.asked.append("quota")
        if details and self.details is None:
            error = NotFoundException("no such extension")
            error.status_code = 404
            raise error
        if "quota" in self.fails:
            raise self.fails["quota"]
        return SimpleNamespace(**(self.details if details else self.quota))  # type: ignore[arg-type]


def context(lab: Lab, project: FakeOpenStack, **wishes: Any) -> Context:
    """The context of a lab with other wishes for its machine."""
    changed = dataclasses.replace(lab, machine=dataclasses.replace(lab.machine, **wishes))
    return Context(changed, SimpleNamespace(project_id=MINE), GENERIC, project)  # type: ignore[arg-type]


def refused(row: Result, seen: str, hint: str) -> None:
    """The row failed, with these words."""
    assert row.status is Status.FAILED, row
    assert seen in row.seen, row
    assert hint in row.hint, row
