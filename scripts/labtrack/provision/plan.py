"""What `terraform show -json` says of a plan and of a state.  Nothing here runs Terraform or asks a cloud."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from labtrack.lab import Lab

SERVER = "module.server.openstack_compute_instance_v2.server"
PORT = "module.server.openstack_networking_port_v2.server"
ATTACHMENT = "module.server.openstack_compute_volume_attach_v2.data[0]"
BUCKET = "module.bucket.openstack_objectstorage_container_v1.artifacts[0]"
VOLUME = "module.server.openstack_blockstorage_volume_v3.data[0]"
ADDRESS = "module.server.openstack_networking_floatingip_v2.server[0]"
# What outlives the machine, by the names that an admin deletes it with.
LASTING = {"bucket": BUCKET, "volume": VOLUME, "address": ADDRESS}
# Lines of a plan that say nothing yet.
_NOTHING_YET = re.compile(r"known after apply.$|: (Reading|Read complete|Refreshing)")

Resources = dict[str, dict[str, Any]]  # the attributes of each, by its address


@dataclass(frozen=True)
class Plan:
    """A plan.  changes: whether carrying it out does anything.  prior: what was there when it was made."""

    changes: bool
    created: frozenset[str]
    deleted: frozenset[str]
    prior: Resources

    @property
    def server_goes(self) -> bool:
        """Whether the server goes, or its port or volume from it."""
        return bool(self.deleted & {SERVER, PORT, ATTACHMENT})

    @property
    def port_is_loose(self) -> bool:
        """Whether the server's port is made by this plan, or was found to belong to no server."""
        return PORT in self.created or (PORT in self.prior and not self.prior[PORT].get("device_id"))

    @property
    def old_server(self) -> str:
        """Nova's id of the server that was there; empty: there was none."""
        return str(self.prior.get(SERVER, {}).get("id") or "")


def plan_of(shown: Mapping[str, Any]) -> Plan:
    """The plan in what `terraform show -json PLAN` prints."""
    changes = shown.get("resource_changes") or []
    outputs = (shown.get("output_changes") or {}).values()
    return Plan(
        changes=any(_does_something(one) for one in changes) or any(one["actions"] != ["no-op"] for one in outputs),
        created=_with(changes, "create"),
        deleted=_with(changes, "delete"),
        prior=state_of(shown.get("prior_state") or {}),
    )


def _does_something(change: Mapping[str, Any]) -> bool:
    """As Terraform's own -detailed-exitcode counts: taking over and moving are written into the state."""
    about = change["change"]
    return about["actions"] != ["no-op"] or "importing" in about or "previous_address" in change


def _with(changes: list[dict[str, Any]], action: str) -> frozenset[str]:
    return frozenset(one["address"] for one in changes if action in one["change"]["actions"])


def state_of(shown: Mapping[str, Any]) -> Resources:
    """What Terraform looks after, of what `terraform show -json` prints."""
    return dict(_managed((shown.get("values") or {}).get("root_module") or {}))


def _managed(module: Mapping[str, Any]) -> Resources:
    found = {one["address"]: one["values"] for one in module.get("resources") or [] if one["mode"] == "managed"}
    for inside in module.get("child_modules") or []:
        found.update(_managed(inside))
    return found


def no_longer_wanted(lab: Lab) -> list[str]:
    """What outlives the server, and lab.yml does not want made: it is kept, and no longer looked after."""
    wanted = {
        ADDRESS: not lab.machine.floating_ip,
        VOLUME: lab.machine.data_volume == "manage",
        BUCKET: lab.machine.bucket_manage,
    }
    return [address for address, made in wanted.items() if not made]


def worth_reading(said: str) -> list[str]:
    """The lines of a plan that Terraform has printed, without those that say nothing yet."""
    return [line for line in said.splitlines() if not _NOTHING_YET.search(line)]


@dataclass(frozen=True)
class Loss:
    """What destroying a lab takes away.

    going: what Terraform destroys.  lasting: by name, what outlives the machine and is looked after.  named: which of
    these are deleted too.
    """

    going: tuple[str, ...]
    lasting: Mapping[str, dict[str, Any]]
    named: tuple[str, ...]

    def lines(self, lab: Lab) -> list[str]:
        """That, for whoever has to say yes."""
        called = {
            "bucket": f"the bucket {lab.bucket} with all artifacts",
            "volume": f"the volume {lab.name}-data with the database",
            "address": "the floating IP, which the DNS names",
        }
        said = [f"The lab {lab.name} in the cloud {lab.cloud}."]
        if SERVER in self.going:
            database = "" if ATTACHMENT in self.going else ", the database with all runs and accounts included"
            said.append(f"Lost: the server with everything on its own disk{database}.")
        said += [f"Lost: {called[name]}." for name in self.lasting if name in self.named]
        kinds = (re.sub("^.*openstack_", "", address) for address in self.going)
        said.append(f"Deleted: {', '.join(kinds) or 'nothing else'}.")
        for name in self.lasting:
            if name not in self.named:
                said.append(f"Kept: {called[name]} (-e destroy={name} deletes it).")
        said += [
            f"Left alone: {called[name]}. Terraform knows of none." for name in self.named if name not in self.lasting
        ]
        return said

    @property
    def deleted(self) -> dict[str, dict[str, Any]]:
        """Of what outlives the machine, that which is deleted too."""
        return {name: values for name, values in self.lasting.items() if name in self.named}


def loss(state: Resources, named: tuple[str, ...]) -> Loss:
    """What destroying takes away of a state, with what is named of `LASTING`."""
    return Loss(
        going=tuple(sorted(set(state) - set(LASTING.values()))),
        lasting={name: state[address] for name, address in LASTING.items() if address in state},
        named=named,
    )
