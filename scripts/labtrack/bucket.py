"""The bucket of artifacts: kept private and with earlier versions, as far as its store can."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from urllib.parse import quote

import botocore.exceptions
import requests

from labtrack import secrets
from labtrack.doctor.result import Result, failed, ok, skipped, warning
from labtrack.envfile import register
from labtrack.errors import LabtrackError
from labtrack.lab import SERVER_OWNER, Lab
from labtrack.objectstore import Refusal, Store, refusal

# Amazon's BlockPublicAccess, which Ceph has too
BLOCK = {
    "BlockPublicAcls": True,
    "IgnorePublicAcls": True,
    "BlockPublicPolicy": True,
    "RestrictPublicBuckets": True,
}
_ERRORS = (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError)
# How stores say that they have no such thing; Swift calls the body malformed (seen with 2.30)
_UNKNOWN = ("NotImplemented", "MethodNotAllowed", "MalformedXML", "501", "405", "400")


def protect(lab: Lab) -> list[str]:
    """Turns on versioning and the block of public access, where the store has them; gives what was changed.

    With the server's key.  A bucket that the lab manages itself (lab_bucket_manage: false) is left as it is.
    Raises LabtrackError when the store refuses or can't be asked.
    """
    if not lab.machine.bucket_manage:
        return []
    changed = []
    try:
        if lab.machine.bucket_versioning and not _versions(lab):
            about = {"VersioningConfiguration": {"Status": "Enabled"}}
            if _had(lab, "put_bucket_versioning", about) and _versions(lab):
                changed.append(f"earlier versions of objects in {lab.bucket} are kept")
        if not _blocked(lab) and _had(lab, "put_public_access_block", {"PublicAccessBlockConfiguration": BLOCK}):
            changed.append(f"public access to {lab.bucket} is blocked")
    except Refusal as refused:
        raise LabtrackError(
            f"The store {lab.s3_endpoint} could not be asked about the bucket {lab.bucket}: {refused}.",
            "check lab_s3_endpoint and the network, and run the same command again.",
        ) from None
    return changed


def check(lab: Lab) -> Iterator[Result]:
    """What strangers can read of the bucket, and whether deleted objects can be had back.  Changes nothing."""
    name = "bucket, without a key"
    try:
        readable = [place for place in _places(lab) if _answers(lab, place)]
    except (Refusal, requests.RequestException) as error:
        yield failed(name, f"the store can't be asked: {error}", "see lab_s3_endpoint; the server's key must be valid.")
        return
    if readable:
        hint = (
            f"close it (aws s3api put-bucket-acl --bucket {lab.bucket} --acl private, or openstack container unset "
            f"--property read_acl {lab.bucket}), and find out whose key opened it."
        )
        yield failed(name, f"{lab.bucket} is open to everybody: {readable[0]}", hint)
    else:
        yield ok(name, "neither its list nor an object can be read")
    try:
        kept = _versions(lab)
    except Refusal as refused:
        yield skipped("bucket's versions", f"the store does not tell: {refused}")
        return
    if kept:
        yield ok("bucket's versions", "kept: what is deleted or written over can be had back")
    elif not lab.machine.bucket_versioning:
        yield ok("bucket's versions", "not kept, as lab_bucket_versioning says")
    else:
        hint = "the store may not have versioning: keep copies of the bucket elsewhere."
        yield warning("bucket's versions", "not kept: what a key deletes or writes over is gone", hint)


def _places(lab: Lab) -> list[str]:
    """Addresses of the bucket and of an object in it: those of S3, and of Swift, whose S3 does not tell its ACLs."""
    listed = _ask(lab, "list_objects_v2", MaxKeys=1).get("Contents", [])
    assert isinstance(listed, list)  # noqa: S101 - so botocore describes it
    paths = [f"{lab.bucket}?list-type=2", *(f"{lab.bucket}/{quote(one['Key'])}" for one in listed)]
    projects = {entry.project_id for entry in register.load(lab.keys_file).of(SERVER_OWNER) if entry.project_id}
    accounts = ["", *(f"/{api}/AUTH_{project}" for project in projects for api in ("v1", "swift/v1"))]
    return [f"{lab.s3_endpoint}{account}/{path}" for account in accounts for path in paths]


def _answers(lab: Lab, place: str) -> bool:
    with requests.Session() as session:
        session.trust_env = False  # a login in ~/.netrc is no stranger's
        verify = str(lab.s3_ca_file) if lab.s3_ca_file else True
        return session.get(place, timeout=15, verify=verify, stream=True).ok


def _ask(lab: Lab, call: str, **more: object) -> dict[str, object]:
    access, secret = secrets.get(lab, secrets.S3_ACCESS), secrets.get(lab, secrets.S3_SECRET)
    store = Store(lab.s3_endpoint, lab.s3_region, lab.bucket, access, secret, lab.s3_ca_file)
    try:
        return dict(getattr(store.client(), call)(Bucket=lab.bucket, **more))
    except _ERRORS as error:
        raise refusal(error) from None


def _had(lab: Lab, call: str, more: Mapping[str, object]) -> bool:
    """Whether the store did it; False when it has no such thing."""
    try:
        _ask(lab, call, **more)
    except Refusal as refused:
        if str(refused).startswith(_UNKNOWN):
            return False
        raise
    return True


def _versions(lab: Lab) -> bool:
    try:
        return _ask(lab, "get_bucket_versioning").get("Status") == "Enabled"
    except Refusal as refused:
        if str(refused).startswith(_UNKNOWN):
            return False
        raise


def _blocked(lab: Lab) -> bool:
    try:
        return _ask(lab, "get_public_access_block").get("PublicAccessBlockConfiguration") == BLOCK
    except Refusal as refused:
        if refused.kind == "other":  # NoSuchPublicAccessBlockConfiguration, or none at all
            return False
        raise
