"""The lab's object store over S3, asked with a person's key."""

from __future__ import annotations

import functools
import os
import uuid
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any

import boto3
import botocore.exceptions
import requests
from botocore.config import Config
from botocore.handlers import add_expect_header
from botocore.utils import determine_content_length

from labtrack import __version__
from labtrack.errors import WITHOUT_BOTO3, BadInputError

PROBES = ".labtrack-probe"  # objects under this prefix live for a second
PATIENCE = 60.0  # seconds: a store under load may take long to put an object together
PART = 5 * 2**20  # bytes: the smallest part S3 allows before the last


@dataclass(frozen=True)
class Store:
    """How to reach a bucket, and with which key."""

    endpoint: str
    region: str
    bucket: str
    access: str
    secret: str = field(repr=False)
    ca_file: Path | None = None
    timeout: float = 20.0

    def client(self, checksums: str = "when_required") -> Any:
        """A boto3 client with the settings that stores beside Amazon's need: path style, no checksums unless asked."""
        client = _session().client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=self.region,
            aws_access_key_id=self.access,
            aws_secret_access_key=self.secret,
            verify=str(self.ca_file) if self.ca_file else None,
            config=_config(
                user_agent=f"labtrack/{__version__}",  # boto3's own is put together anew for each call
                s3={"addressing_style": "path"},
                signature_version="s3v4",
                request_checksum_calculation=checksums,
                response_checksum_validation=checksums,
                connect_timeout=self.timeout,
                read_timeout=max(self.timeout, PATIENCE),
                retries={"max_attempts": 2, "mode": "standard"},
            ),
        )
        client.meta.events.unregister("before-call.s3", add_expect_header)
        client.meta.events.register("before-call.s3", _expect_for_much)
        return client


def _expect_for_much(model: Any, params: dict[str, Any], **more: Any) -> None:
    """Asks before it sends a large body; with a small one that is another way there and back for nothing."""
    size = determine_content_length(params.get("body"))
    if size is None or size >= PART:
        add_expect_header(model, params, **more)


def _config(**given: Any) -> Config:
    try:
        return Config(**given)
    except TypeError:  # of the checksums, which it does not know
        raise BadInputError(f"boto3 {boto3.__version__} is too old for the store.", WITHOUT_BOTO3) from None


@functools.lru_cache(maxsize=1)
def _session() -> Any:
    """One session: each reads 200 ms of descriptions of Amazon's services."""
    return boto3.session.Session()


def speaks_s3(endpoint: str, verify: Any) -> tuple[bool, int]:
    """Asks with a key that nobody has: whether the answer is S3's, and its HTTP status.

    verify: as in requests.  Raises requests.RequestException when there is no answer.
    """
    # OpenStack's store takes a request without a signature for one in its own language
    unsigned = {"Authorization": "AWS nobody:bm90aGluZw==", "Date": formatdate(usegmt=True)}
    answer = requests.get(f"{endpoint}/", headers=unsigned, timeout=PATIENCE / 4, verify=verify)
    return "<Error>" in answer.text or "<ListAllMyBucketsResult" in answer.text, answer.status_code


class Refusal(Exception):
    """Why the store did not do what was asked.

    kind: `key` (it does not know or trust the key), `forbidden`, `bucket` (there is none), `clock`,
    `region`, `tls`, `unreachable` or `other`.
    """

    def __init__(self, kind: str, said: str) -> None:
        super().__init__(said)
        self.kind = kind


_KINDS = {
    "InvalidAccessKeyId": "key",
    "SignatureDoesNotMatch": "key",
    "ExpiredToken": "key",
    "401": "key",
    "AccessDenied": "forbidden",
    "AllAccessDisabled": "forbidden",
    "403": "forbidden",
    "NoSuchBucket": "bucket",
    "404": "bucket",
    "RequestTimeTooSkewed": "clock",
    "RequestExpired": "clock",
    "AuthorizationHeaderMalformed": "region",
}


def refusal(error: Exception) -> Refusal:
    """What a botocore error means."""
    if isinstance(error, botocore.exceptions.ClientError):
        answer = error.response.get("Error", {})
        code = str(answer.get("Code", ""))
        return Refusal(_KINDS.get(code, "other"), f"{code}: {answer.get('Message', '')}".rstrip(": "))
    if isinstance(error, botocore.exceptions.SSLError):
        return Refusal("tls", "its certificate is not trusted here")
    if isinstance(error, (botocore.exceptions.ConnectTimeoutError, botocore.exceptions.ReadTimeoutError)):
        return Refusal("unreachable", "it does not answer in time")
    if isinstance(error, (botocore.exceptions.ConnectionError, botocore.exceptions.HTTPClientError)):
        return Refusal("unreachable", "it can't be reached")
    return Refusal("other", str(error))


def probe(store: Store) -> None:
    """Writes, reads and deletes one small object in the bucket.  Raises Refusal."""
    key = probe_key()
    try:
        client = store.client()
        client.put_object(Bucket=store.bucket, Key=key, Body=b"labtrack")
        try:
            body = client.get_object(Bucket=store.bucket, Key=key)["Body"].read()
        finally:
            client.delete_object(Bucket=store.bucket, Key=key)
    except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
        raise refusal(error) from None
    if body != b"labtrack":
        raise Refusal("other", "it gave back something else than what was written")


def probe_key() -> str:
    """The name of an object that no other call uses."""
    return f"{PROBES}/{os.getpid()}-{uuid.uuid4().hex}"
