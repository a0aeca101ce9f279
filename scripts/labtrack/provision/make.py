"""Making the lab's machine and bucket: a plan first, which somebody says yes to, then what it says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from labtrack import files
from labtrack.cloud import resources, server
from labtrack.cloud.answers import explained
from labtrack.errors import BadInputError, Exit, LabtrackError
from labtrack.provision import plan as plans
from labtrack.provision import session
from labtrack.provision.plan import Plan
from labtrack.provision.prepare import Prepared, prepare
from labtrack.provision.terraform import Place, Terraform, UnavailableError

KEPT = "Kept, and no longer looked after, as lab.yml does not want it made: "
SERVER_GOES = """The plan takes the server away, or its port or volume from it (the lines with "must be replaced" and \
"destroyed" above say why): everything on the server's own disk would be lost, the database too if lab_data_volume is \
none."""
SERVER_GOES_HINT = (
    "take back the change in lab.yml; or, to have a new server, save the database and run again with "
    "-e replace_server=true."
)


@dataclass(frozen=True)
class Wish:
    """How a plan is asked for.

    cloud: an entry of clouds.yaml instead of `lab_cloud`.  program: terraform or tofu; empty: the first that PATH has.
    expected_project: id of the project that the lab's server is in; another is refused.  replace_server: the plan may
    take the server away.  only_look: nothing is forgotten, so nothing can be planned where something would be.
    """

    cloud: str | None = None
    program: str = ""
    expected_project: str = ""
    replace_server: bool = False
    only_look: bool = False


@dataclass(frozen=True)
class Planned:
    """A plan that was made; it waits in `Place.plan`.

    error: why there is none, or none that may be carried out.  forgotten: what is no longer looked after.
    """

    ready: Prepared
    lines: list[str] = field(default_factory=list)
    changes: bool = False
    forgotten: list[str] = field(default_factory=list)
    error: LabtrackError | None = None


def plan(place: Place, wish: Wish) -> Planned:
    """Plans what lab.yml asks for.  Raises LabtrackError where there can be no plan.

    Where Terraform can't be had, and where the plan takes the server away without leave, that is in `error`.
    """
    if place.lab.own_machine:
        raise BadInputError(
            f"{place.lab.shown_folder}/hosts.yml was written by hand: the machine is the lab's own, and none is made.",
            "remove that file, if the lab's cloud is to make the machine.",
        )
    place.refuse_state_left_behind()
    ready = prepare(place.lab, wish.cloud)
    try:
        terraform = Terraform.found(place, wish.program)
        terraform.init()
    except UnavailableError as error:
        return Planned(ready, error=error)
    known, unwanted = terraform.known(), plans.no_longer_wanted(place.lab)
    adopt = _adopted(place, known, unwanted)
    forgotten = [address for address in unwanted if address in known]
    told = [f"{KEPT}{address}" for address in forgotten]
    if forgotten and wish.only_look:
        return Planned(ready, told, changes=True)
    for address in forgotten:
        terraform.forget(address)
    more = [f"-var=adopt={json.dumps(adopt)}"]
    if wish.replace_server and plans.SERVER in known:
        more.append(f"-replace={plans.SERVER}")
    said = terraform.make_plan(ready.lab_file, wish.expected_project, *more)
    made = plans.plan_of(terraform.show(str(place.plan)))
    lines = told + (plans.worth_reading(said) if made.changes else [])
    refused = made.server_goes and not wish.replace_server
    if refused or wish.only_look:
        place.plan.unlink(missing_ok=True)
    refusal = LabtrackError(SERVER_GOES, SERVER_GOES_HINT) if refused else None
    return Planned(ready, lines, made.changes, forgotten, refusal)


def _adopted(place: Place, known: list[str], unwanted: list[str]) -> dict[str, str]:
    """What a killed run, a lost state or a change of mind has left in the project, to be taken over.

    A refused plan has forgotten what lab.yml did not want made: when it wants it again, that is there, with the data.
    """
    lasting = set(plans.LASTING.values())
    if not place.unfinished.exists() and lasting <= {*known, *unwanted}:
        return {}
    with explained("The cloud can't be asked what it has"):
        return resources.look(session.connect(place.lab), place.lab.name, place.lab.bucket).only()


@dataclass(frozen=True)
class Made:
    """What an apply has changed, a line each."""

    lines: list[str]


def apply(place: Place, program: str = "", plan_id: str = "", *, shown: bool = False) -> Made:
    """Carries out the plan that was made last, and writes the inventory.  Raises LabtrackError.

    plan_id: the plan that was said yes to; another is refused.
    shown: what Terraform says goes to standard output while it works.
    """
    if not place.plan.exists():
        raise BadInputError(
            f"There is no plan for the lab {place.lab.name}.",
            f"`labtrack provision plan {place.lab.shown_folder}` makes one.",
        )
    if plan_id and plan_id != place.plan_id:
        raise LabtrackError(
            "Nothing was changed: another run has made another plan since this one was shown.",
            "wait until that run has ended, and run the same command again.",
            Exit.LOCKED,
        )
    terraform = Terraform.found(place, program)
    made = plans.plan_of(terraform.show(str(place.plan)))
    lines = []
    if made.changes:
        carry_out(terraform, made, shown=shown)
        lines.append("applied: the plan")
    place.plan.unlink(missing_ok=True)
    outputs = terraform.outputs()
    if _write_hosts(place.hosts, outputs["hosts_yml"]):
        lines.append(f"written: {place.hosts}")
    if made.port_is_loose:
        server_id = outputs["hosts"]["server"]["server_id"]
        if server.attach(session.connect(place.lab), server_id, outputs["port_id"]):
            lines.append("attached: the server's port")
    return Made(lines)


def carry_out(terraform: Terraform, made: Plan, *, shown: bool = False) -> None:
    """Applies a plan.  A run that ends before its end is told to the next one by the file `unfinished`."""
    place = terraform.place
    files.write_private(place.unfinished, b"")
    with _private(place):
        if made.server_goes and made.old_server:
            server.shut_down(session.connect(place.lab), made.old_server)
        terraform.apply(shown=shown)
    place.unfinished.unlink(missing_ok=True)


@contextmanager
def _private(place: Place) -> Iterator[None]:
    try:
        yield
    finally:
        place.keep_private()


def _write_hosts(file: Path, text: str) -> bool:
    """Writes the inventory; whether it was another."""
    if file.exists() and file.read_text(encoding="utf-8") == text:
        return False
    files.write_whole(file, text.encode())
    file.chmod(0o644)
    return True
