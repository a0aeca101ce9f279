"""What would stop Terraform, found before it starts: the cloud is asked, and never changed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from labtrack.cloud import answers, cloudsfile, profiles
from labtrack.cloud.login import login
from labtrack.cloud.preflight import identity, machine, network, quota, store
from labtrack.cloud.preflight.context import Context
from labtrack.doctor.result import Result, failed, ok
from labtrack.errors import LabtrackError
from labtrack.lab import Lab

Check = Callable[[Context], "Result | Iterator[Result]"]

ALWAYS: tuple[Check, ...] = (
    identity.credentials, identity.ec2_keys, identity.services, identity.clock,
    store.endpoint, store.bucket, store.abilities,
)  # fmt: skip
WHERE_A_MACHINE_IS_MADE: tuple[Check, ...] = (
    machine.image, machine.flavor, network.network, network.external_network, machine.key_pair, network.floating_ip,
    machine.lab_names, machine.admin_access, machine.dns, quota.quotas,
)  # fmt: skip
AT_ONCE = 6  # the checks wait for answers most of their time


def check(lab: Lab, cloud: str | None = None) -> Iterator[Result]:
    """All checks of the cloud for a lab, in a fixed order.

    cloud: an entry of clouds.yaml instead of `lab_cloud`.  Nothing is raised for what the cloud answers.
    """
    try:
        logged_in = login(lab, cloud)
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
    context = Context.of(lab, logged_in)
    checks = ALWAYS if lab.own_machine else (*ALWAYS, *WHERE_A_MACHINE_IS_MADE)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for rows in pool.map(lambda one: _rows(one, context), checks):
            yield from rows


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
    name = asked.__name__.replace("_", " ").replace("dns", "DNS").replace("lab names", "lab's names")
    try:
        found = asked(context)
        rows.extend([found] if isinstance(found, Result) else found)
    except LabtrackError as error:
        rows.append(failed(name, error.what, error.hint))
    except answers.ERRORS as error:
        what, hint = answers.explain(error)
        rows.append(failed(name, what, hint))
    return rows
