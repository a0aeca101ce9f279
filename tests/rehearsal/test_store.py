"""The bucket of artifacts in a real store: earlier versions are kept, and `verify` tells when a key has opened it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from labtrack import bucket, secrets
from labtrack import lab as labs
from labtrack.doctor.result import Status
from labtrack.lab import Lab
from labtrack.objectstore import Store

if TYPE_CHECKING:
    from conftest import Rehearsal


@pytest.fixture(scope="module")
def lab(rehearsal: Rehearsal) -> Lab:
    return labs.load(rehearsal.lab_dir)


@pytest.fixture
def s3(lab: Lab) -> Any:
    """The store by the server's key, which can do what each person's key can in direct mode."""
    access, secret = secrets.get(lab, secrets.S3_ACCESS), secrets.get(lab, secrets.S3_SECRET)
    return Store(lab.s3_endpoint, lab.s3_region, lab.bucket, access, secret, lab.s3_ca_file).client()


@pytest.fixture(params=[".r:*,.rlistings", ".r:*"], ids=["listed", "objects"])
def opened(rehearsal: Rehearsal, lab: Lab, s3: Any, request: pytest.FixtureRequest) -> Iterator[None]:
    """The bucket as somebody with a key can make it: readable by everybody."""
    tenant, key = rehearsal.cloud(lab.cloud), f"labtrack-test/{uuid.uuid4().hex}"
    s3.put_object(Bucket=lab.bucket, Key=key, Body=b"x")
    tenant.object_store.set_container_metadata(lab.bucket, read_ACL=request.param)
    try:
        yield
    finally:
        tenant.object_store.delete_container_metadata(lab.bucket, ["read_ACL"])
        s3.delete_object(Bucket=lab.bucket, Key=key)


def statuses(lab: Lab) -> dict[str, Status]:
    return {row.check: row.status for row in bucket.check(lab)}


def test_protect_changes_nothing_on_a_deployed_lab(rehearsal: Rehearsal) -> None:
    done = rehearsal.run("labtrack", "bucket", "protect", str(rehearsal.lab_dir), check=True)
    assert done.stdout == ""


def test_what_a_key_deletes_can_be_had_back(lab: Lab, s3: Any) -> None:
    key = f"labtrack-test/{uuid.uuid4().hex}"
    s3.put_object(Bucket=lab.bucket, Key=key, Body=b"a year of work")
    s3.delete_object(Bucket=lab.bucket, Key=key)
    versions = s3.list_object_versions(Bucket=lab.bucket, Prefix=key)
    try:
        (kept,) = versions["Versions"]
        body = s3.get_object(Bucket=lab.bucket, Key=key, VersionId=kept["VersionId"])["Body"].read()
        assert body == b"a year of work"
    finally:
        for one in (*versions.get("Versions", []), *versions.get("DeleteMarkers", [])):
            s3.delete_object(Bucket=lab.bucket, Key=key, VersionId=one["VersionId"])


def test_verify_tells_an_opened_bucket(rehearsal: Rehearsal, lab: Lab, opened: None) -> None:
    done = rehearsal.run("labtrack", "verify", str(rehearsal.lab_dir))
    assert done.returncode == 2
    assert f"{lab.bucket} is open to everybody" in done.stdout


def test_verify_finds_the_bucket_private_and_versioned(lab: Lab) -> None:
    assert statuses(lab) == {"bucket, without a key": Status.OK, "bucket's versions": Status.OK}
