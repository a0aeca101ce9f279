"""Volumes: what a guest writes on one goes with the volume, and the guest sees it grow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from recap import changed
from test_cloud import until

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Rehearsal
    from openstack.connection import Connection


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


MOUNT, UNIT = "/var/lib/labtrack-test", "var-lib-labtrack\\x2dtest"
DATA_VOLUME = """
- hosts: mlflow
  become: true
  roles:
    - role: data_volume
      vars: {{data_volume_id: "{volume.id}", data_volume_mount: {mount}, data_volume_unit: labtrack-test.service}}
"""
AWAY = f"""
systemctl disable --now '{UNIT}.mount' '{UNIT}-check.service'
rm -rf /etc/systemd/system/{UNIT.replace(chr(92), chr(92) * 2)}* /etc/systemd/system/labtrack-test.service.d {MOUNT}
systemctl daemon-reload
"""


def test_data_volume_is_checked_before_it_is_mounted(
    rehearsal: Rehearsal, tenant: Connection, volume: Any, tmp_path: Path
) -> None:
    tenant.compute.create_volume_attachment(tenant.compute.find_server("rehearsal-mlflow"), volume_id=volume.id)
    until(lambda: tenant.block_storage.get_volume(volume).status == "in-use")
    (tmp_path / "play.yml").write_text(DATA_VOLUME.format(volume=volume, mount=MOUNT))
    try:
        rehearsal.playbook(str(tmp_path / "play.yml"), check=True)
        again = rehearsal.playbook(str(tmp_path / "play.yml"), check=True).stdout
        assert changed(again) == []
        options = rehearsal.ssh("server", f"findmnt --noheadings --output OPTIONS {MOUNT}", check=True).stdout
        assert "errors=remount-ro" in options
        device = f"/dev/disk/by-id/virtio-{volume.id[:20]}"
        damage = f"debugfs -w -R 'set_super_value free_blocks_count 7' {device} && tune2fs -E force_fsck {device}"
        boot = f"systemctl stop '{UNIT}.mount' '{UNIT}-check.service' && {damage} && systemctl start '{UNIT}.mount'"
        rehearsal.ssh("server", boot, check=True)
        said = rehearsal.ssh("server", f"journalctl --unit '{UNIT}-check.service' --output=cat", check=True).stdout
        assert "contains a file system with errors, check forced" in said
        rehearsal.ssh("server", f"touch {MOUNT}/written", check=True)
        state = rehearsal.ssh("server", f"dumpe2fs -h {device} 2>&1 | grep 'Filesystem state'", check=True).stdout
        assert state.split()[-1] == "clean"
    finally:
        rehearsal.ssh("server", AWAY)
