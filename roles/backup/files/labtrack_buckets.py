"""Buckets as labtrack-backup sees them: listing, and copying an object from one into another.  Needs boto3."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
import threading
from collections.abc import Iterator
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, SSLError
from botocore.exceptions import ConnectionError as Lost
from urllib3.exceptions import HTTPError

MIB = 2**20
PART = 16 * MIB  # what is held in memory, for each object under way
MOST_PARTS = 900  # OpenStack's Swift takes 1000
LARGEST = 256 * 1024 * MIB  # then its parts are as large as the memory of the unit allows
CONNECTIONS = 8
# Of an answer to GET that the copy gets, too; "Metadata" is what its owner has written to it.
KEPT = ("ContentType", "ContentEncoding", "Metadata")
GONE = ("NoSuchKey", "404", "NotFound")
NO_KEY = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "RequestTimeTooSkewed")
REFUSED = (*NO_KEY, "AccessDenied", "403")
FULL = ("QuotaExceeded", "EntityTooLarge", "XMinioAdminBucketQuotaExceeded")  # Ceph's, Swift's, MinIO's
# The last two are what reading a body may raise beside botocore's own.
FAILED = (BotoCoreError, ClientError, HTTPError, OSError)
UNANSWERED = (HTTPClientError, Lost, HTTPError, OSError)


class StoreError(Exception):
    """Why a store is of no use at all: what happened, and how to fix it."""


class DamagedError(Exception):
    """What is wrong with one object."""


class FullError(StoreError):
    """The store has no room for an object, and so it is of no use for the next."""


def unanswered(error: Exception) -> bool:
    """Whether it says that the store is down, and nothing of the object: Swift's proxy answers 503 for it."""
    status = error.response.get("ResponseMetadata", {}) if isinstance(error, ClientError) else {}
    return isinstance(error, UNANSWERED) or int(status.get("HTTPStatusCode", 0)) >= 500  # noqa: PLR2004


def code(error: Exception) -> str:
    return str(error.response["Error"].get("Code", "")) if isinstance(error, ClientError) else ""


def plain(etag: str) -> bool:
    """Whether it is the MD5 of the content, and not that of parts."""
    return re.fullmatch("[0-9a-f]{32}", etag) is not None


class Bucket:
    """A bucket, and the key to it."""

    def __init__(self, what: str, fix: str, name: str, keys: dict[str, str], **where: str) -> None:
        """what: in messages.  fix: where its address and key are written.  where: endpoint, region, ca."""
        self.what, self.fix, self.name = what, fix, name
        self.full: FullError | None = None  # how it has refused an object for want of room
        self.large = threading.Lock()  # of objects whose parts are larger than PART one at a time is in memory
        self.client = boto3.client(
            "s3", endpoint_url=where["endpoint"], region_name=where["region"], verify=where["ca"] or True,
            aws_access_key_id=keys["AWS_ACCESS_KEY_ID"], aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
            config=Config(
                connect_timeout=20, read_timeout=60, retries={"mode": "standard", "total_max_attempts": 3},
                max_pool_connections=CONNECTIONS, s3={"addressing_style": "path"},
                # OpenStack's stores do not know the newer checksums
                request_checksum_calculation="when_required", response_checksum_validation="when_required",
            ),
        )  # fmt: skip

    def error(self, error: Exception) -> StoreError:
        """What an error says of the whole store."""
        if isinstance(error, SSLError):
            return StoreError(f"The CA of {self.what} is not known: {error}", f"{self.fix} (the CA file).")
        if isinstance(error, UNANSWERED):
            return StoreError(f"There is no answer from {self.what}: {error}", f"{self.fix} (the address); or wait.")
        if code(error) in REFUSED:
            return StoreError(f"The key is refused by {self.what} ({code(error)}).", f"{self.fix}; the server's clock.")
        if code(error) == "NoSuchBucket":
            return StoreError(f"The bucket of {self.what} is not there: {self.name}.", f"make it; or {self.fix}.")
        return StoreError(f"An error of {self.what}: {error}", f"{self.fix}.")

    def list(self, prefix: str) -> Iterator[tuple[str, str, int, float]]:
        """Key, etag, size (bytes) and time of the last change (seconds) of each.  Raises StoreError."""
        try:
            for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix):
                for one in page.get("Contents", ()):
                    yield one["Key"], one["ETag"].strip('"'), one["Size"], one["LastModified"].timestamp()
        except (BotoCoreError, ClientError) as error:
            raise self.error(error) from error

    def fits(self) -> None:
        """Raises FullError where the store has refused an object before: a million others need not be tried."""
        if self.full:
            raise FullError(*self.full.args)  # a new one: the same would keep each traceback

    def get(self, key: str) -> dict[str, Any] | None:
        """The answer, its body still to be read; None where there is no such object."""
        try:
            found: dict[str, Any] = self.client.get_object(Bucket=self.name, Key=key)
        except ClientError as error:
            if code(error) in GONE:
                return None
            raise
        return found

    def head(self, key: str) -> dict[str, Any]:
        """What is known of an object; empty where there is none."""
        try:
            found: dict[str, Any] = self.client.head_object(Bucket=self.name, Key=key)
        except ClientError as error:
            if code(error) in GONE:
                return {}
            raise
        return found

    def delete(self, key: str) -> None:
        # one by one: OpenStack's Swift wants an MD5 for several at once, which newer SDKs do not send
        self.client.delete_object(Bucket=self.name, Key=key)

    def put(self, key: str, body: Any, size: int, etag: str, **more: Any) -> str:
        """Store what is read from body; its etag.

        Raises DamagedError where it is not of that size, or etag is another MD5, and FullError.
        """
        if size > LARGEST:
            raise DamagedError(f"it has {size / 2**30:.0f} GiB, and {LARGEST / 2**30:.0f} are the most that is copied")
        try:
            with self.large if part_size(size) > PART else contextlib.nullcontext():
                return self._put(key, body, size, etag, **more)
        except ClientError as error:
            if code(error) not in FULL:
                raise
            self.full = FullError(f"{self.what[0].upper()}{self.what[1:]} is full ({code(error)}).", "raise its quota.")
            raise self.full from error

    def _put(self, key: str, body: Any, size: int, etag: str, **more: Any) -> str:
        if size <= PART:
            data = body.read()
            self._sound(len(data), size, hashlib.md5(data, usedforsecurity=False), etag)
            sent = self.client.put_object(Bucket=self.name, Key=key, Body=data, ContentMD5=md5(data), **more)
            return str(sent["ETag"]).strip('"')
        upload = {"Bucket": self.name, "Key": key}
        upload["UploadId"] = self.client.create_multipart_upload(**upload, **more)["UploadId"]
        try:
            parts: list[dict[str, Any]] = []
            whole, length = hashlib.md5(usedforsecurity=False), 0
            while data := body.read(part_size(size)):
                whole.update(data)
                length += len(data)
                number = len(parts) + 1
                sent = self.client.upload_part(**upload, PartNumber=number, Body=data, ContentMD5=md5(data))
                parts.append({"PartNumber": number, "ETag": sent["ETag"]})
            self._sound(length, size, whole, etag)
            done = self.client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
            return str(done["ETag"]).strip('"')
        except BaseException:
            with contextlib.suppress(BotoCoreError, ClientError):  # else the next call gives it up
                self.client.abort_multipart_upload(**upload)
            raise

    @staticmethod
    def _sound(length: int, size: int, whole: Any, etag: str) -> None:
        if length != size:
            raise DamagedError(f"{length} of {size} bytes were read")
        if plain(etag) and whole.hexdigest() != etag:
            raise DamagedError(f"its content has the MD5 {whole.hexdigest()} and not {etag}")

    def clear(self, prefix: str, only: str = "") -> None:
        """Give up uploads in parts that killed calls have begun, those of a single key where one is named."""
        for page in self.client.get_paginator("list_multipart_uploads").paginate(Bucket=self.name, Prefix=prefix):
            for one in page.get("Uploads", ()):
                if only in ("", one["Key"]):
                    self.client.abort_multipart_upload(Bucket=self.name, Key=one["Key"], UploadId=one["UploadId"])


def part_size(size: int) -> int:
    """Bytes of each part of an object of that size."""
    return max(PART, -(-size // MOST_PARTS))


def md5(data: bytes) -> str:
    """For the store, which refuses what arrives otherwise."""
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def kept(got: dict[str, Any]) -> dict[str, Any]:
    of = {name: got[name] for name in KEPT if got.get(name)}
    if "Metadata" in of:  # boto3 sends ASCII only: the content is worth more than a note that somebody wrote to it
        of["Metadata"] = {name: value for name, value in of["Metadata"].items() if f"{name}{value}".isascii()}
    return of
