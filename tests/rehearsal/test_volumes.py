"""Volumes: what a guest writes on one goes with the volume, and the guest sees it grow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from test_cloud import until

if TYPE_CHECKING:
    from conftest import Rehearsal
    from openstack.connection import Connection

pytestmark = pytest.mark.rehearsal


@pytest.fixture
def tenant(rehearsal: Rehearsal) -> Connection:
    return rehearsal.cloud("climate")


@pytest.fixture
def volume(tenant: Connection) -> Iterator[Any]:
    """An empty volume of the tenant's, removed afterwards from wherever it is."""
    made = tenant.block_storage.create_volume(name="test-volume", size=1)
    tenant.block_storage.wait_for_status(made, "available", wait=60)
    yield made
    for server in tenant.compute.servers():
        for attachment in tenant.compute.volume_attachments(server):
            if attachment.volume_id == made.id:
                tenant.compute.delete_volume_attachment(server, made.id)
    tenant.block_storage.wait_for_status(made, "available", wait=60)
    tenant.block_storage.delete_volume(made)
    tenant.block_storage.wait_for_delete(made, wait=60)


def test_a_volume_keeps_what_was_written_on_it(rehearsal: Rehearsal, tenant: Connection, volume: Any) -> None:
    server = tenant.compute.find_server("rehearsal-mlflow")
    name = f"/dev/disk/by-id/virtio-{volume.id[:20]}"
    tenant.compute.create_volume_attachment(server, volume_id=volume.id)
    until(lambda: tenant.block_storage.get_volume(volume).status == "in-use")
    rehearsal.ssh("server", f"test -b {name} && echo kept | dd of={name} conv=fsync", check=True)

    tenant.compute.delete_volume_attachment(server, volume.id)
    until(lambda: tenant.block_storage.get_volume(volume).status == "available")
    assert rehearsal.ssh("server", f"test -e {name}").returncode == 1

    tenant.block_storage.extend_volume(volume, 2)
    until(lambda: tenant.block_storage.get_volume(volume).size == 2)
    tenant.compute.create_volume_attachment(server, volume_id=volume.id)
    until(lambda: tenant.block_storage.get_volume(volume).status == "in-use")
    read = rehearsal.ssh("server", f"head -c 4 {name} && blockdev --getsize64 {name}", check=True)
    assert read.stdout == f"kept{2 * 2**30}\n"
