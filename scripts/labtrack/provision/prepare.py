"""Getting a lab ready for Terraform: log in, look up what lab.yml names, write both down."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from labtrack.cloud.login import Login, login
from labtrack.cloud.preflight import look, machine, network
from labtrack.cloud.preflight.context import Context
from labtrack.doctor.result import Status
from labtrack.errors import LabtrackError
from labtrack.lab import Lab
from labtrack.provision import completed, session

NAMED = (machine.image, machine.flavor, network.network, network.external_network, machine.data_volume)


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
    Raises LabtrackError with all that can't be found.
    """
    context = Context.of(lab, logged_in)
    wrong = [row for row in look(NAMED, context) if row.status is Status.FAILED]
    if wrong and not lenient:
        what = "\n".join(f"{row.check}: {row.seen}" for row in wrong)
        raise LabtrackError(what, " ".join(row.hint for row in wrong))
    ids = context.ids()
    said = {
        "image": lab.machine.image,
        "flavor": lab.machine.flavor,
        "external_network": lab.machine.external_network,
        "network": lab.machine.network,
        "router": lab.machine.router,
        "data_volume": lab.machine.data_volume,
    }
    found = {kind: ids.get(kind) or named for kind, named in said.items()}
    external = context.external_network
    return {**found, "external_network_name": external.name if external else lab.machine.external_network}
