"""Taking away what Terraform has made.  Bucket, volume and address outlive it, unless they are named."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labtrack.cloud.answers import ERRORS, explain
from labtrack.errors import BadInputError, LabtrackError
from labtrack.provision import plan as plans
from labtrack.provision import session
from labtrack.provision.make import Wish, carry_out
from labtrack.provision.plan import Loss
from labtrack.provision.prepare import prepare
from labtrack.provision.terraform import Place, Terraform

STAYS = (
    "what is said here; a bucket must be empty, old versions included: the kit never empties one. Then run the same "
    "again."
)


@dataclass(frozen=True)
class Destruction:
    """What would be lost, before anybody has said yes."""

    terraform: Terraform
    lab_file: Path
    wish: Wish
    loss: Loss

    @property
    def lines(self) -> list[str]:
        """That, in words."""
        return self.loss.lines(self.terraform.place.lab)

    def refuse_without(self, typed: str) -> None:
        """Raises BadInputError unless the lab's name was given."""
        name = self.terraform.place.lab.name
        if typed != name:
            raise BadInputError(
                "Nothing was destroyed: the lab's name was not given.",
                f"type it when asked, or, where nobody can be asked, add -e confirm={name} (labtrack: --confirm "
                f"{name}).",
            )

    def try_out(self) -> None:
        """Has Terraform plan it, and nothing more.  Raises LabtrackError where it would refuse."""
        self._plan()
        self.terraform.place.plan.unlink(missing_ok=True)

    def carry_out(self, *, shown: bool = False) -> list[str]:
        """Takes it all away; gives what was done, a line each.  Raises LabtrackError with what could not be deleted."""
        place, done = self.terraform.place, []
        if self.loss.going:
            self._plan()
            carry_out(self.terraform, plans.plan_of(self.terraform.show(str(place.plan))), shown=shown)
            place.plan.unlink(missing_ok=True)
            done.append(f"destroyed: {len(self.loss.going)} things")
        done += self._delete()
        if place.hosts.exists():
            place.hosts.unlink()
            done.append(f"removed: {place.hosts}")
        return done

    def _plan(self) -> None:
        if self.loss.going:
            targets = [f"-target={address}" for address in self.loss.going]
            self.terraform.make_plan(self.lab_file, self.wish.expected_project, "-destroy", *targets)

    def _delete(self) -> list[str]:
        """Terraform has prevent_destroy for each, so the cloud is told itself; what is gone already is no trouble."""
        done, troubles = [], []
        if not self.loss.deleted:
            return []
        cloud = session.connect(self.terraform.place.lab)
        for name, values in self.loss.deleted.items():
            try:
                _DELETE[name](cloud, values)
            except ERRORS as error:
                troubles.append(f"the {name}: {explain(error)[0]}.")
                continue
            self.terraform.forget(plans.LASTING[name])
            done.append(f"deleted: the {name}")
        if troubles:
            raise LabtrackError(f"Not everything could be deleted: {' '.join(troubles)}", STAYS)
        return done


_DELETE: dict[str, Any] = {
    "bucket": lambda cloud, values: cloud.object_store.delete_container(values["name"]),
    "volume": lambda cloud, values: cloud.block_storage.delete_volume(values["id"]),
    "address": lambda cloud, values: cloud.network.delete_ip(values["id"]),
}


def begin(place: Place, wish: Wish, named: tuple[str, ...]) -> Destruction:
    """Looks what there is.  named: which of bucket, volume and address are deleted too.  Raises LabtrackError."""
    if place.lab.own_machine:
        raise BadInputError(
            f"{place.lab.shown_folder}/hosts.yml was written by hand: the machine is the lab's own, and nothing of it "
            "is taken away here."
        )
    if unknown := set(named) - set(plans.LASTING):
        raise BadInputError(
            f"-e destroy={','.join(named)} can't be followed: {', '.join(sorted(unknown))} is not known.",
            f"Allowed: one or more of {', '.join(plans.LASTING)}, with commas in between.",
        )
    place.refuse_state_left_behind()
    ready = prepare(place.lab, wish.cloud, lenient=True)
    terraform = Terraform.found(place, wish.program)
    terraform.init()
    return Destruction(terraform, ready.lab_file, wish, plans.loss(plans.state_of(terraform.show()), named))
