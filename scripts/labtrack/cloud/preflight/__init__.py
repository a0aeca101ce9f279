"""What would stop Terraform, found before it starts: the cloud is asked, and never changed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from labtrack.cloud import answers, profiles
from labtrack.cloud.login import AUTH_URL, USED_WITH_AN_ENTRY, Login, login
from labtrack.cloud.preflight import identity, machine, network, quota, store
from labtrack.cloud.preflight.context import Context
from labtrack.doctor.result import Result, Status, failed, ok, skipped, warning
from labtrack.errors import LabtrackError
from labtrack.lab import Lab

Check = Callable[[Context], "Result | Iterator[Result]"]

ALWAYS: tuple[Check, ...] = (
    identity.credentials, identity.ec2_keys, identity.services, identity.clock,
    store.endpoint, store.bucket, store.abilities,
)  # fmt: skip
WHERE_A_MACHINE_IS_MADE: tuple[Check, ...] = (
    machine.image, machine.flavor, network.network, network.external_network, machine.data_volume, machine.key_pair,
    network.floating_ip, machine.lab_names, machine.admin_access, machine.dns, quota.quotas,
)  # fmt: skip
# The rows of the checks that are not called as their functions are.
NAMES = {"dns": "DNS", "lab names": machine.NAMES, "floating ip": "floating IP", "ec2 keys": "S3 keys"}
AT_ONCE = 6  # the checks wait for answers most of their time


@dataclass(frozen=True)
class Trouble(Result):
    """A row about a service that did not answer, or refused to."""


def check(lab: Lab, cloud: str | None = None) -> Iterator[Result]:
    """All checks of the cloud for a lab, in a fixed order.

    cloud: an entry of clouds.yaml instead of `lab_cloud`.  Nothing is raised for what the cloud answers.
    """
    try:
        logged_in = login(lab, cloud)
        with answers.explained():
            context = Context.of(lab, logged_in)
    except LabtrackError as error:
        yield failed("login", error.what, error.hint)
        return
    left = profiles.moved(logged_in.url)
    if left:
        hint = f"Set auth_url in clouds.yaml: {left.auth_url}"
        yield failed("login", f"{logged_in.url} is an address that {left.title} has retired", hint)
    else:
        yield ok("login", f"Keystone at {logged_in.url}")
    yield from _unused(logged_in, cloud or lab.cloud)
    if not lab.own_machine:
        yield from _ignored(logged_in)
    checks = ALWAYS if lab.own_machine else (*ALWAYS, *WHERE_A_MACHINE_IS_MADE)
    yield from look(checks, context)


def _unused(logged_in: Login, entry: str) -> Iterator[Result]:
    """What other OpenStack tools would take from the shell: beside an entry of clouds.yaml, it means nothing here.

    Terraform is given the login that was resolved here, and none of the shell's variables.
    """
    if logged_in.by_shell:
        return
    config = logged_in.region.config
    said = {**config, **config["auth"], "cloud": entry, "project_id": logged_in.project_id}
    others = sorted(
        name for name, value in os.environ.items()
        if name.startswith("OS_") and value and name not in USED_WITH_AN_ENTRY
        and value != said.get(name.removeprefix("OS_").lower())
    )  # fmt: skip
    if others:
        hint = f"Unset them; to log in by the shell's variables, source the whole openrc file, which has {AUTH_URL}."
        yield warning("shell", f"{', '.join(others)} of the shell is not used: the entry {entry} is", hint)


def _ignored(logged_in: Login) -> Iterator[Result]:
    """What the login says of the services' addresses, and Terraform's provider does not read."""
    config = logged_in.region.config
    said = [f"interface: {config['interface']}"] if "public" not in config.get("interface", "public") else []
    said += sorted(name for name, value in config.items() if value and name.endswith("_endpoint_override"))
    if config["auth"].get("trust_id"):
        said.append("trust_id")
    if said:
        hint = (
            "It goes by the public addresses of the cloud's catalogue, in the project of the login: see that they are "
            "reached from here, or bring a machine of your own (docs/admin/own-machine.md)."
        )
        yield warning("clouds.yaml", f"Terraform does not read {', '.join(said)} of the login", hint)


def look(checks: Iterable[Check], context: Context) -> Iterator[Result]:
    """The rows of several checks, in their order."""
    told: dict[str, str] = {}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for found in pool.map(lambda one: rows(one, context), checks):
            yield from once_told(found, told)


def once_told(found: Iterable[Result], told: dict[str, str]) -> Iterator[Result]:
    """The rows; what one service's trouble keeps several checks from, is told in the first.

    told: the checks by the trouble that they told of; it is added to.
    """
    for row in found:
        if isinstance(row, Trouble) and told.setdefault(row.seen, row.check) != row.check:
            yield skipped(row.check, f"can't be looked at, see: {told[row.seen]}")
        else:
            yield row


def rows(asked: Check, context: Context) -> list[Result]:
    """One check's rows; what the cloud refuses or breaks is a row too."""
    said: list[Result] = []
    name = asked.__name__.replace("_", " ")
    name = NAMES.get(name, name)
    try:
        found = asked(context)
        said.extend([found] if isinstance(found, Result) else found)
    except LabtrackError as error:
        said.append(failed(name, error.what, error.hint))
    except answers.ERRORS as error:
        what, hint = answers.explain(error)
        said.append(Trouble(name, Status.FAILED, what, hint))
    return said
