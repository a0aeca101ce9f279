"""What would stop Terraform, found before it starts: the cloud is asked, and never changed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from labtrack.cloud import answers, cloudsfile, profiles
from labtrack.cloud.login import login
from labtrack.cloud.preflight import identity, machine, network, quota, store
from labtrack.cloud.preflight.context import Context
from labtrack.doctor.result import Result, Status, failed, ok, skipped
from labtrack.errors import LabtrackError
from labtrack.lab import Lab

Check = Callable[[Context], "Result | Iterator[Result]"]

ALWAYS: tuple[Check, ...] = (
    identity.credentials, identity.ec2_keys, identity.services, identity.clock,
    store.endpoint, store.bucket, store.abilities,
)  # fmt: skip
WHERE_A_MACHINE_IS_MADE: tuple[Check, ...] = (
    machine.image, machine.flavor, network.network, network.external_network, machine.key_pair, network.floating_ip,
    machine.data_volume, machine.lab_names, machine.admin_access, machine.dns, quota.quotas,
)  # fmt: skip
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
    yield from _terraforms(lab, cloud)
    checks = ALWAYS if lab.own_machine else (*ALWAYS, *WHERE_A_MACHINE_IS_MADE)
    told: dict[str, str] = {}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for rows in pool.map(lambda one: _rows(one, context), checks):
            yield from _once(rows, told)


def _once(rows: list[Result], told: dict[str, str]) -> Iterator[Result]:
    """The rows; what one service's trouble keeps several checks from, is told in the first."""
    for row in rows:
        if isinstance(row, Trouble) and told.setdefault(row.seen, row.check) != row.check:
            yield skipped(row.check, f"can't be looked at, see: {told[row.seen]}")
        else:
            yield row


def _terraforms(lab: Lab, cloud: str | None) -> Iterator[Result]:
    """Whether Terraform will log in as it was done here."""
    if os.environ.get("OS_AUTH_URL") and cloud is None:
        return  # both take the shell's variables, and nothing else
    named = lab.clouds_file or os.environ.get("OS_CLIENT_CONFIG_FILE")
    for what, hint in cloudsfile.otherwise_for_terraform(named, cloud or lab.cloud, os.environ):
        yield failed("Terraform's login", what, hint[0].upper() + hint[1:])


def _rows(asked: Check, context: Context) -> list[Result]:
    """One check's rows; what the cloud refuses or breaks is a row too."""
    rows: list[Result] = []
    name = asked.__name__.replace("_", " ").replace("dns", "DNS").replace("lab names", machine.NAMES)
    try:
        found = asked(context)
        rows.extend([found] if isinstance(found, Result) else found)
    except LabtrackError as error:
        rows.append(failed(name, error.what, error.hint))
    except answers.ERRORS as error:
        what, hint = answers.explain(error)
        rows.append(Trouble(name, Status.FAILED, what, hint))
    return rows
