"""The rehearsal's cloud: an ordinary tenant's view of a real OpenStack."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import boto3
import pytest
import requests
from botocore.config import Config
from botocore.exceptions import ClientError
from openstack.exceptions import ForbiddenException

if TYPE_CHECKING:
    from conftest import Rehearsal
    from openstack.connection import Connection


def until(condition: Callable[[], Any], seconds: float = 120) -> Any:
    """Wait until a condition holds, and return what it said."""
    deadline = time.monotonic() + seconds
    while not (said := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(1)
    return said


def boot_id(rehearsal: Rehearsal) -> str | None:
    """When the server's first process started; None as long as SSH does not answer."""
    done = rehearsal.ssh("server", "cut -d ' ' -f 22 /proc/1/stat", timeout=30)
    return done.stdout.strip() if done.returncode == 0 else None


def serves(rehearsal: Rehearsal) -> bool:
    """Does the lab's server answer over HTTPS?"""
    try:
        return requests.get(f"{rehearsal.url}/health", verify=rehearsal.ca, timeout=5).ok
    except requests.RequestException:
        return False


@pytest.fixture
def tenant(rehearsal: Rehearsal) -> Connection:
    return rehearsal.cloud("climate")


def test_the_tenant_sees_only_its_own(rehearsal: Rehearsal, tenant: Connection) -> None:
    mine = {project.name for project in tenant.identity.user_projects(tenant.current_user_id)}
    assert mine == {"climate", "climate-backup"}
    with pytest.raises(ForbiddenException):
        list(tenant.identity.users())
    with pytest.raises(ForbiddenException):
        list(tenant.compute.hypervisors())
    assert [server.name for server in tenant.compute.servers()] == ["rehearsal-mlflow"]
    assert list(rehearsal.cloud("climate-backup").compute.servers()) == []


def test_the_cloud_offers_what_a_lab_asks_for(tenant: Connection) -> None:
    assert {image.name for image in tenant.image.images()} == {"Debian-12", "Debian-13"}
    assert {"p1-1.5gb", "p2-3gb"} <= {flavor.name for flavor in tenant.compute.flavors()}
    assert tenant.network.find_network("Public-Network").is_router_external
    assert tenant.compute.get_limits().absolute.instances == 6


@pytest.mark.parametrize("name", ["climate-appcred", "climate-appcred-unrestricted"])
def test_an_application_credential_can_log_in_but_not_make_ec2_keys(rehearsal: Rehearsal, name: str) -> None:
    cloud = rehearsal.cloud(name)
    assert [server.name for server in cloud.compute.servers()] == ["rehearsal-mlflow"]
    answer = cloud.session.post(
        f"/users/{cloud.current_user_id}/credentials/OS-EC2",
        endpoint_filter={"service_type": "identity", "interface": "public"},
        json={"tenant_id": cloud.current_project_id},
        raise_exc=False,
    )
    assert answer.status_code == 403


@pytest.fixture
def s3(rehearsal: Rehearsal, tenant: Connection) -> Iterator[Callable[..., Any]]:
    """Makes S3 clients with a key of its own, which is removed afterwards."""
    keys = f"/users/{tenant.current_user_id}/credentials/OS-EC2"
    where = {"service_type": "identity", "interface": "public"}
    project = {"tenant_id": tenant.current_project_id}
    key = tenant.session.post(keys, endpoint_filter=where, json=project).json()["credential"]

    def client(secret: str = key["secret"]) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=rehearsal.lab["lab_s3_endpoint"],
            region_name=rehearsal.lab["lab_s3_region"],
            aws_access_key_id=key["access"],
            aws_secret_access_key=secret,
            verify=str(rehearsal.private / "cloud-ca.pem"),
            config=Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required"),
        )

    yield client
    tenant.session.delete(f"{keys}/{key['access']}", endpoint_filter=where)


def test_the_object_store_speaks_s3(rehearsal: Rehearsal, s3: Callable[..., Any]) -> None:
    store, bucket = s3(), f"test-{time.time_ns()}"
    store.create_bucket(Bucket=bucket)
    store.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    for content in (b"one", b"two"):
        store.put_object(Bucket=bucket, Key="a/b", Body=content)
    versions = store.list_object_versions(Bucket=bucket)["Versions"]
    assert len(versions) == 2

    url = store.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "a/b"})
    assert requests.get(url, verify=rehearsal.private / "cloud-ca.pem", timeout=10).content == b"two"

    upload = store.create_multipart_upload(Bucket=bucket, Key="big")["UploadId"]
    parts = []
    for number, part in enumerate([b"x" * 5 * 2**20, b"end"], start=1):
        sent = store.upload_part(Bucket=bucket, Key="big", UploadId=upload, PartNumber=number, Body=part)
        parts.append({"PartNumber": number, "ETag": sent["ETag"]})
    store.complete_multipart_upload(Bucket=bucket, Key="big", UploadId=upload, MultipartUpload={"Parts": parts})
    assert store.head_object(Bucket=bucket, Key="big")["ContentLength"] == 5 * 2**20 + 3

    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        s3(secret="wrong").list_buckets()

    for version in store.list_object_versions(Bucket=bucket)["Versions"]:
        store.delete_object(Bucket=bucket, Key=version["Key"], VersionId=version["VersionId"])
    store.delete_bucket(Bucket=bucket)


def test_the_security_group_drops_a_port_without_a_rule(rehearsal: Rehearsal) -> None:
    """Seen at the cloud's own filter, because the server's would drop it too."""
    counted = "iptables -nvxL neutron-linuxbri-sg-fallback | awk '/DROP/ {print $1}'"
    before = int(rehearsal.ssh("cloud", counted, check=True).stdout)
    with pytest.raises(TimeoutError):
        socket.create_connection((rehearsal.addresses["server"][0], 8081), timeout=3)
    assert int(rehearsal.ssh("cloud", counted, check=True).stdout) > before


def test_the_flavor_s_memory_and_cpus_are_the_server_s(rehearsal: Rehearsal) -> None:
    assert rehearsal.ssh("server", "nproc; awk '/MemTotal/ {print $2}' /proc/meminfo").stdout.split() == [
        "2",
        str(3072 * 1024),
    ]
    limit = "cat /sys/fs/cgroup/memory/guest-*/memory.limit_in_bytes"
    assert rehearsal.ssh("cloud", limit, check=True).stdout.split() == [str(3072 * 2**20)]


def test_reboot_stop_and_start_of_the_server(rehearsal: Rehearsal, tenant: Connection) -> None:
    server = tenant.compute.find_server("rehearsal-mlflow")
    first = boot_id(rehearsal)
    tenant.compute.reboot_server(server, "SOFT")
    second = until(lambda: (now := boot_id(rehearsal)) != first and now)
    tenant.compute.wait_for_server(server, status="ACTIVE", wait=90)

    tenant.compute.stop_server(server)
    tenant.compute.wait_for_server(server, status="SHUTOFF", wait=90)
    assert boot_id(rehearsal) is None
    tenant.compute.start_server(server)
    tenant.compute.wait_for_server(server, status="ACTIVE", wait=90)
    assert until(lambda: boot_id(rehearsal)) != second
    until(lambda: serves(rehearsal))


@pytest.mark.long
def test_stop_and_start_of_the_whole_cloud(rehearsal: Rehearsal) -> None:
    before = boot_id(rehearsal)
    rehearsal.playbook("playbooks/rehearsal/power.yml", "-e", "machine=cloud", "-e", "state=stopped", check=True)
    assert boot_id(rehearsal) is None
    rehearsal.playbook("playbooks/rehearsal/up.yml", check=True)
    assert until(lambda: boot_id(rehearsal), seconds=180) != before
    until(lambda: serves(rehearsal))
    assert [server.status for server in rehearsal.cloud("climate").compute.servers()] == ["ACTIVE"]
