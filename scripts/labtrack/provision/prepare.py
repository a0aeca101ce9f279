"""Getting a lab ready for Terraform: log in, look up what lab.yml names, write both down."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from labtrack.cloud.login import Login, login
from labtrack.cloud.preflight import Check, look, machine, network
from labtrack.cloud.preflight.context import Context
from labtrack.doctor.result import Status
from labtrack.errors import LabtrackError
from labtrack.lab import Lab
from labtrack.provision import completed, session

# What lab.yml may name, as `Machine` calls it, and the check that says why it is not found.
CHECKS: dict[str, Check] = {
    "image": machine.image,
    "flavor": machine.flavor,
    "external_network": network.external_network,
    "network": network.network,
    "router": network.network,
    "data_volume": machine.data_volume,
}
NEEDED = ("image", "flavor", "external_network")  # named or not


@dataclass(frozen=True)
class Prepared:
    """lab_file: the completed lab.  clouds_file: the login.  environment: what has the login taken."""

    lab_file: Path
    clouds_file: Path
    environment: dict[str, str] = field(repr=False)


def prepare(lab: Lab, cloud: str | None = None, *, lenient: bool = False) -> Prepared:
    """Writes the completed lab and the login.

    cloud: an entry of clouds.yaml instead of `lab_cloud`.  lenient: what lab.yml names may be gone from the cloud.
    Raises LabtrackError where the cloud refuses the login, does not answer, or has nothing, or several things, under
    a name of lab.yml.
    """
    logged_in = login(lab, cloud)
    found = looked_up(lab, logged_in, lenient=lenient)
    clouds_file = session.write(lab, logged_in)
    return Prepared(completed.write(lab, found), clouds_file, session.environment(clouds_file))


def looked_up(lab: Lab, logged_in: Login, *, lenient: bool = False) -> dict[str, str]:
    """The ids of what lab.yml names, as preflight sees them; empty: not named, so Terraform makes it or does without.

    data_volume may be `none` or `manage` too, and a floating IP is made from a network that is given by its name.
    lenient: what is not there is given as lab.yml names it.  Raises LabtrackError with all that is not there or can't
    be told apart; what else preflight has against it is preflight's to say.
    """
    context = Context.of(lab, logged_in)
    ids = context.ids()
    named = {kind: str(getattr(lab.machine, kind)) for kind in CHECKS}
    found = {kind: ids.get(kind, "") for kind in CHECKS}
    if lab.machine.data_volume in ("none", "manage"):
        found["data_volume"] = lab.machine.data_volume
    missing = [kind for kind, id_ in found.items() if not id_ and (named[kind] or kind in NEEDED)]
    if missing and not lenient:
        rows = [row for row in look({CHECKS[kind]: None for kind in missing}, context) if row.status is Status.FAILED]
        raise LabtrackError("\n".join(f"{row.check}: {row.seen}" for row in rows), " ".join(row.hint for row in rows))
    found.update((kind, named[kind]) for kind in missing)
    external = context.external_network
    return {**found, "external_network_name": external.name if external else lab.machine.external_network}
