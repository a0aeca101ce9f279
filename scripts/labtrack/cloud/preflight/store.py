"""The object store: does it answer as S3 does, what can it do, and whose is the bucket's name.

Nothing is written: what a store can do is asked of a bucket that nobody has.  A store that knows the
request says that there is no such bucket; one that doesn't says NotImplemented, or that the request is bad.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import botocore.exceptions
import requests

from labtrack.cloud.answers import ERRORS, explain
from labtrack.cloud.ec2 import KeystoneKeys
from labtrack.cloud.preflight.context import Context
from labtrack.cloud.profiles import moved
from labtrack.doctor.result import Result, failed, ok, skipped, warning
from labtrack.errors import LabtrackError
from labtrack.objectstore import Store, refusal, speaks_s3

NO_SUCH_BUCKET = {"NoSuchBucket", "404"}


def endpoint(context: Context) -> Result:
    """The S3 address answers, and as S3 does."""
    url = context.lab.s3_endpoint
    left = moved(url)
    if left:
        hint = f"Set lab_s3_endpoint: {left.s3_endpoint or 'the new address'}"
        return failed("S3 endpoint", f"{url} is an address that {left.title} has retired", hint)
    try:
        is_s3, status = speaks_s3(url, context.verify)
    except requests.exceptions.SSLError:
        hint = "Name the CA's file as lab_s3_ca_file, or correct lab_s3_endpoint."
        return failed("S3 endpoint", f"the certificate of {url} is not trusted here", hint)
    except requests.exceptions.RequestException as error:
        hint = "Correct lab_s3_endpoint, or check the network; `openstack catalog show s3` may know the address."
        return failed("S3 endpoint", f"{url} does not answer ({type(error).__name__})", hint)
    if status >= requests.codes.internal_server_error:
        hint = "Try again in a minute; if it stays, look at the cloud's status page."
        return failed("S3 endpoint", f"{url} answers {status}", hint)
    if not is_s3:
        hint = "Correct lab_s3_endpoint: the address of S3, not that of Swift or of the dashboard."
        return failed("S3 endpoint", f"{url} answers {status}, but not as S3 does", hint)
    return ok("S3 endpoint", f"{url} answers as S3 does")


def bucket(context: Context) -> Result:
    """The bucket's name is free, or the bucket is the project's own.

    On Ceph names are unique over all projects: asked without a key, it says 404 for a free one and 403 for somebody's.
    """
    name = context.lab.bucket
    own, unasked = _ours(context, name)
    if own:
        return ok("bucket", f"{name} is the project's")
    try:
        status = context.status_of(name)
        tells = context.status_of(_nobodys(context)) == requests.codes.not_found
    except requests.exceptions.RequestException:
        return skipped("bucket", "the store does not answer")
    taken = tells and status != requests.codes.not_found
    if unasked:
        return _without_swift(context, unasked, taken=taken, free=tells and not taken)
    if taken:
        hint = "Put the lab's name into lab_bucket: names are unique over the whole store."
        return failed("bucket", f"{name} is somebody else's", hint)
    return _missing(context) if not _is_made(context) else ok("bucket", f"{name} is free and will be made")


def _is_made(context: Context) -> bool:
    """Whether Terraform makes the bucket."""
    return bool(context.lab.machine.bucket_manage and not context.lab.own_machine)


def _missing(context: Context) -> Result:
    name = context.lab.bucket
    why = "the kit makes none where it makes no machine" if context.lab.own_machine else "lab_bucket_manage is false"
    hint = f"Make it (openstack container create {name})"
    hint += "." if context.lab.own_machine else ", or set lab_bucket_manage: true."
    return failed("bucket", f"{name} is not there, and {why}", hint)


def _without_swift(context: Context, why: tuple[str, str], *, taken: bool, free: bool) -> Result:
    """What the store's S3 alone can tell of the bucket.  why: what Swift said, and what helps."""
    if _is_made(context):
        return failed("bucket", *why)
    if free:
        return _missing(context)
    if taken:
        return ok("bucket", f"{context.lab.bucket} is there; whose it is can't be asked here: {why[0]}")
    return skipped("bucket", f"whether {context.lab.bucket} is there can't be asked here: {why[0]}")


def _ours(context: Context, name: str) -> tuple[bool, tuple[str, str] | None]:
    """Whether the project has the bucket, and, where its Swift can't say, why and what helps."""
    try:
        return any(one.name == name for one in context.cloud.object_store.containers(prefix=name)), None
    except ERRORS as error:
        return False, explain(error)


def _nobodys(context: Context) -> str:
    return f"labtrack-{context.login.project_id[:32]}-nobody"


def abilities(context: Context) -> Iterator[Result]:
    """What the store understands: path-style addresses, checksums as new clients send them, parts, versions."""
    try:
        key = next(iter(KeystoneKeys(context.login).list().values()), None)
    except LabtrackError:
        key = None
    if key is None:
        yield skipped(
            "S3 abilities", "this user has no S3 key yet to ask with; `labtrack doctor` asks after the deploy"
        )
        return
    lab = context.lab
    store = Store(lab.s3_endpoint, lab.s3_region, _nobodys(context), key.access, key.secret, lab.s3_ca_file)
    client, name = store.client(), store.bucket
    asked: tuple[tuple[str, str, Callable[[], Any]], ...] = (
        ("S3 login", "signs with path-style addresses", lambda: client.head_bucket(Bucket=name)),
        ("S3 multipart", "big files go up in parts", lambda: client.create_multipart_upload(Bucket=name, Key="x")),
        ("S3 versions", "buckets can keep versions", lambda: client.get_bucket_versioning(Bucket=name)),
        ("S3 checksums", "takes the checksums that newer clients send", lambda: _with_checksum(store)),
    )
    for check, able, ask in asked:
        said = _said(ask)
        yield ok(check, able) if said in NO_SUCH_BUCKET else _unable(check, said)
        if check == "S3 login" and said not in NO_SUCH_BUCKET:
            return


def _with_checksum(store: Store) -> None:
    """Uploads as boto3 does since 1.36 when nothing tells it otherwise."""
    store.client("when_supported").put_object(Bucket=store.bucket, Key="x", Body=b"x", ChecksumAlgorithm="CRC32")


def _said(ask: Callable[[], Any]) -> str:
    try:
        ask()
    except botocore.exceptions.ClientError as error:
        return str(error.response.get("Error", {}).get("Code", ""))
    except botocore.exceptions.BotoCoreError as error:
        return str(refusal(error))
    return ""


def _unable(check: str, said: str) -> Result:
    said = said or "it answered something else"
    if check == "S3 login":
        hint = "Correct lab_s3_endpoint and lab_s3_region (Swift wants its own, often RegionOne), and the clock."
        return failed(check, f"the store refuses a key of this project: {said}", hint)
    if check == "S3 checksums":
        return ok(check, f"not understood here ({said}), and not sent: the kit's files tell clients so")
    hint = {
        "S3 multipart": "Files above 5 GB can't be stored; ask the cloud's support.",
        "S3 versions": "Set lab_bucket_versioning: false; what is deleted is then gone.",
    }[check]
    return warning(check, f"not understood by this store ({said})", hint)
