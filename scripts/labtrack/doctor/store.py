"""The object store, with the key of this environment."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import requests
from botocore.exceptions import BotoCoreError, ClientError

from labtrack.doctor.context import Context
from labtrack.doctor.result import Result, failed, ok, skipped
from labtrack.objectstore import PART, PROBES, Refusal, Store, refusal

_ERRORS = (BotoCoreError, ClientError)
_SHOWN = 8  # bucket names in a row


def _client(context: Context, bucket: str) -> Any:
    env = context.env
    ca_file = env.get("AWS_CA_BUNDLE")
    store = Store(
        endpoint=env["MLFLOW_S3_ENDPOINT_URL"],
        region=env.get("AWS_DEFAULT_REGION", "us-east-1"),
        bucket=bucket,
        access=env["AWS_ACCESS_KEY_ID"],
        secret=env["AWS_SECRET_ACCESS_KEY"],
        ca_file=Path(ca_file) if ca_file else None,
        timeout=context.timeout,
    )
    return store.client()


def check(context: Context) -> Iterator[Result]:
    """Put, get, multipart, presigned address, delete; then what else the key reaches."""
    bucket = context.env.get("LABTRACK_BUCKET") or _bucket_of_server(context)
    if not bucket:
        yield skipped("store", "the bucket is not known (LABTRACK_BUCKET); --write finds it out")
        return
    if astray := _astray(context, bucket):
        yield astray
        return
    client, folder = _client(context, bucket), f"{PROBES}/doctor-{uuid.uuid4().hex}"
    small, big = f"{folder}/small", f"{folder}/big"
    steps: tuple[tuple[str, str, Callable[[], None]], ...] = (
        ("store put", f"an object in s3://{bucket}", lambda: _put(context, client, bucket, small)),
        ("store get", "the same bytes came back", lambda: _get(client, bucket, small)),
        ("store multipart", "5 MiB in two parts", lambda: _multipart(client, bucket, big)),
        ("store presigned", "read by a signed address", lambda: _presigned(context, client, bucket, small)),
    )
    try:
        for name, seen, step in steps:
            try:
                step()
            except _ERRORS as error:
                yield refused(name, bucket, refusal(error))
                return
            except Refusal as error:
                yield refused(name, bucket, error)
                return
            yield ok(name, seen)
    finally:
        with contextlib.suppress(*_ERRORS):
            for key in (small, big):
                client.delete_object(Bucket=bucket, Key=key)
    yield _deleted(client, bucket, folder)
    yield _reach(client, bucket)


def round_trip(context: Context, bucket: str, key: str) -> Result | None:
    """Writes, reads and deletes one object; gives what went wrong."""
    client = _client(context, bucket)
    try:
        _put(context, client, bucket, key)
        try:
            _get(client, bucket, key)
        finally:
            client.delete_object(Bucket=bucket, Key=key)
    except _ERRORS as error:
        return refused("artifact", bucket, refusal(error))
    except Refusal as error:
        return refused("artifact", bucket, error)
    return None


def _astray(context: Context, bucket: str) -> Result | None:
    """Whether the file is of before the lab moved: the server keeps artifacts where its key does not reach."""
    now = _bucket_of_server(context)
    if now in ("", bucket):
        return None
    try:
        _client(context, now).list_objects_v2(Bucket=now, MaxKeys=1)
    except _ERRORS as error:
        hint = (
            "the lab has moved: get the newest mlflow_env.sh from its admin and source it.  Until then runs, metrics "
            "and parameters are recorded, and files and models can't be."
        )
        seen = f"this file is for s3://{bucket}, and the server keeps artifacts in s3://{now} ({refusal(error)})"
        return failed("store", seen, hint)
    return None


def _put(context: Context, client: Any, bucket: str, key: str) -> None:
    before = time.time()
    answer = client.put_object(Bucket=bucket, Key=key, Body=b"labtrack doctor")
    with contextlib.suppress(KeyError, ValueError, TypeError):
        theirs = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"]).timestamp()
        context.dates.setdefault("store", (theirs, (before + time.time()) / 2))


def _get(client: Any, bucket: str, key: str) -> None:
    if client.get_object(Bucket=bucket, Key=key)["Body"].read() != b"labtrack doctor":
        raise Refusal("checksum", "other bytes came back")


def _multipart(client: Any, bucket: str, key: str) -> None:
    place = {"Bucket": bucket, "Key": key}
    upload = client.create_multipart_upload(**place)["UploadId"]
    try:
        parts = [
            {
                "PartNumber": number,
                "ETag": client.upload_part(**place, UploadId=upload, PartNumber=number, Body=body)["ETag"],
            }
            for number, body in ((1, b"x" * PART), (2, b"end"))
        ]
        client.complete_multipart_upload(**place, UploadId=upload, MultipartUpload={"Parts": parts})
    except _ERRORS:
        with contextlib.suppress(*_ERRORS):
            client.abort_multipart_upload(**place, UploadId=upload)
        raise
    size = client.head_object(**place)["ContentLength"]
    if size != PART + 3:
        raise Refusal("other", f"the object has {size} bytes instead of {PART + 3}")


def _presigned(context: Context, client: Any, bucket: str, key: str) -> None:
    url = client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=60)
    try:
        answer = requests.get(url, timeout=context.timeout, verify=context.trust("AWS_CA_BUNDLE"))
    except requests.exceptions.RequestException as error:
        raise Refusal("unreachable", type(error).__name__) from None
    if not answer.ok:
        raise Refusal("other", f"answered {answer.status_code}")


def _deleted(client: Any, bucket: str, folder: str) -> Result:
    try:
        left = client.list_objects_v2(Bucket=bucket, Prefix=folder).get("KeyCount", 0)
    except _ERRORS as error:
        return refused("store delete", bucket, refusal(error))
    if left:
        hint = "the key may write but not delete: ask the lab's admin for the bucket's rules."
        return failed("store delete", f"{left} probe objects are still there under {folder}", hint)
    return ok("store delete", "nothing left behind")


def _reach(client: Any, bucket: str) -> Result:
    """What the holder of this key can read and delete."""
    try:
        names = sorted(one["Name"] for one in client.list_buckets().get("Buckets", []))
    except _ERRORS as error:
        return skipped("key's reach", f"the store does not tell ({refusal(error)})")
    others = [name for name in names if name != bucket]
    if not others:
        return ok("key's reach", f"this key reaches the bucket {bucket} and no other that it can list")
    shown = ", ".join(others[:_SHOWN]) + (", ..." if others[_SHOWN:] else "")
    return ok("key's reach", f"this key also reads and deletes in {len(others)} more buckets of its project: {shown}")


def _bucket_of_server(context: Context) -> str:
    """The bucket of experiment 0; empty where the server does not tell, or the login has failed."""
    if "login" in context.because:
        return ""
    try:
        answer = context.transport.send("GET", "/api/2.0/mlflow/experiments/get", params={"experiment_id": "0"})
        place = str(answer.json()["experiment"]["artifact_location"])
    except (requests.exceptions.RequestException, ValueError, KeyError):
        return ""
    return place[len("s3://") :].partition("/")[0] if place.startswith("s3://") else ""


_HINTS = {
    "key": "the key was rotated or revoked: get the newest mlflow_env.sh from the lab's admin and source it.",
    "forbidden": "the key is known but may not do this: ask the lab's admin for the role `member` in the project.",
    "bucket": "ask the lab's admin whether lab_bucket is right.",
    "clock": "set this machine's clock: signatures hold for 15 minutes.",
    "region": "AWS_DEFAULT_REGION is not the store's: ask the lab's admin about lab_s3_region.",
    "tls": "source mlflow_env.sh again (it brings the store's CA); AWS_CA_BUNDLE must name that file.",
    "unreachable": "compute nodes often have no internet access: try on a login node; else see the store's status.",
    "checksum": "set AWS_REQUEST_CHECKSUM_CALCULATION=when_required: checksums end up inside objects on some stores.",
}


def refused(check: str, bucket: str, why: Refusal) -> Result:
    """The row for something that the store did not do."""
    hint = _HINTS.get(why.kind, "try again in a minute; if it stays, tell the lab's admin what is said here.")
    return failed(check, f"the store refuses on s3://{bucket}: {why}", hint)
