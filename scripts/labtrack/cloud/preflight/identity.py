"""Who is logged in, what that login may do, and which services its project has."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

from labtrack.cloud.ec2 import KeystoneKeys
from labtrack.cloud.login import WAYS_OUT
from labtrack.cloud.preflight.context import Context, endpoint_of
from labtrack.doctor.result import Result, failed, ok, skipped, warning
from labtrack.errors import LabtrackError

# Roles by what they let one do, as OpenStack's own policies and those of older clouds name them.
MAKE = frozenset({"member", "_member_", "admin", "manager"})
LOOK = frozenset({"reader", "viewer", "observer", "auditor"})
CLOCK_SECONDS = 300  # Keystone and S3 refuse what is signed further off than some minutes


def credentials(context: Context) -> Iterator[Result]:
    """Where the login came from, and the project that it leads to."""
    login = context.login
    kind = "an application credential" if login.delegated else "a user"
    yield ok("credentials", f"{login.found}: {kind}")
    seen = f"{login}, {context.profile.title}; roles: {', '.join(login.roles) or 'none'}"
    roles = {role.lower() for role in login.roles}
    if roles & MAKE:
        yield ok("project", seen)
    elif roles <= LOOK:
        hint = "Ask the project's owner for the role member: with these roles one can look, and make nothing."
        yield failed("project", seen, hint)
    else:
        hint = (
            "None of these roles is one that OpenStack itself knows: ask the project's owner whether one lets you make "
        )
        yield warning("project", seen, f"{hint}servers, networks and buckets, as the role member does elsewhere.")


def ec2_keys(context: Context) -> Result:
    """Whether the login may make S3 keys.  Asked by listing them: making one would change something."""
    try:
        keys = KeystoneKeys(context.login).list()
    except LabtrackError as error:
        return failed("S3 keys", error.what, error.hint)
    if context.login.delegated:
        return warning(
            "S3 keys",
            "the login is an application credential; Keystone's fixes of 2026 refuse it new EC2 keys",
            f"Terraform can use it. For keys use {WAYS_OUT}",
        )
    return ok("S3 keys", f"this login may make them; the project has {len(keys)} of this user")


def services(context: Context) -> Iterator[Result]:
    """Every service that the lab needs has an address in the region."""
    kinds = ["object-store"]
    if not context.lab.own_machine:
        kinds = ["compute", "network", "image", *kinds]
        if context.lab.machine.needs_volumes:
            kinds.append("block-storage")
    region = context.cloud.config.region_name
    for kind in kinds:
        address = endpoint_of(context.cloud, kind)
        if address:
            yield ok(f"service {kind}", address)
        elif kind == "object-store" and (context.lab.own_machine or not context.lab.machine.bucket_manage):
            yield skipped(
                f"service {kind}", "the catalogue has no Swift; it is not needed, as the bucket is not made here"
            )
        elif kind == "object-store":
            hint = "Make the bucket by hand, and set lab_bucket_manage: false."
            yield failed(f"service {kind}", "the catalogue has no Swift, so Terraform can't make the bucket", hint)
        elif kind == "block-storage":
            hint = "Set lab_data_volume: none and leave lab_boot_volume_gb out: the data is then on the machine's disk."
            yield failed(f"service {kind}", "the catalogue has no volumes (Cinder)", hint)
        else:
            hint = "Correct region_name in clouds.yaml; `openstack catalog list` shows what there is."
            yield failed(f"service {kind}", f"the catalogue has none in the region {region or 'of the login'}", hint)


def clock(context: Context) -> Result:
    """This machine's clock against the cloud's: signatures carry the time."""
    answer = context.login.session.get(context.login.url, authenticated=False, raise_exc=False)
    said = answer.headers.get("Date")
    if not said:
        return skipped("clock", "the cloud does not say the time")
    seconds = (datetime.now(timezone.utc) - parsedate_to_datetime(said)).total_seconds()
    if abs(seconds) > CLOCK_SECONDS:
        return failed("clock", f"this machine is {seconds:+.0f} s off", "Set it: timedatectl set-ntp true")
    return ok("clock", f"{seconds:+.0f} s off")
