"""A lab whose machine gets a newer Debian, with another PostgreSQL, and keeps its data on a volume."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import away
import pytest
from recap import changed
from second_lab import PROVISION
from test_cloud import until
from test_over_years import RECORDED, Kept, Lab

from labtrack import lab as labs

if TYPE_CHECKING:
    from openstack.connection import Connection

pytestmark = [pytest.mark.timeout(2400), pytest.mark.long]

NAME = "newer"


@dataclass
class Volume:
    """The lab's data volume, which this test attaches as Terraform would."""

    lab: Lab
    tenant: Connection
    volume: Any

    @property
    def given(self) -> tuple[str, str]:
        return "-e", f"cloud_data_volume_id={self.volume.id}"

    def attach(self) -> None:
        server = self.tenant.compute.find_server(f"{NAME}-mlflow")
        self.tenant.compute.create_volume_attachment(server, volume_id=self.volume.id)
        until(lambda: self.tenant.block_storage.get_volume(self.volume).status == "in-use")

    def detach(self) -> None:
        for server in self.tenant.compute.servers():
            for attachment in self.tenant.compute.volume_attachments(server):
                if attachment.volume_id == self.volume.id:
                    self.tenant.compute.delete_volume_attachment(server, self.volume.id)
        self.tenant.block_storage.wait_for_status(self.volume, "available", wait=60)

    def machine(self, image: str) -> None:
        """Another machine, with the volume."""
        self.lab.lose(self.tenant)
        self.lab.settings["lab_image"] = image
        self.lab.write()
        self.lab.deploy(PROVISION)
        self.attach()


@pytest.fixture(scope="module")
def volume(rehearsal: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Volume]:
    lab = Lab(rehearsal, tmp_path_factory.mktemp(NAME), NAME, lab_users=[{"name": "ada"}])
    tenant = rehearsal.cloud("climate")
    lab.forget()
    lab.remove(tenant)  # what a test that was killed has left
    made = tenant.block_storage.create_volume(name=f"{NAME}-data", size=4)
    tenant.block_storage.wait_for_status(made, "available", wait=60)
    found = Volume(lab, tenant, made)
    try:
        yield found
    finally:
        found.detach()
        lab.forget()
        lab.remove(tenant)
        tenant.block_storage.delete_volume(made)
        tenant.block_storage.wait_for_delete(made, wait=60)


@pytest.fixture(scope="module")
def kept(rehearsal: Any, volume: Volume, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    """The lab on Debian 12, with a recording."""
    folder = tmp_path_factory.mktemp("recorded")
    with tarfile.open(RECORDED) as packed:
        packed.extractall(folder, filter="data")
    with away.bucket(rehearsal, labs.load(rehearsal.lab_dir), f"{NAME}-backup") as store:
        backup = away.settings(store, folder / "variables.yml")
        volume.machine("Debian-12")
        volume.lab.deploy("site.yml", backup, *volume.given)
        found = Kept(volume.lab, folder / "sqlite", backup)
        volume.lab.sync(found.recorded)
        found.note()
        yield found


def test_debian_13_has_all_that_was_on_debian_12(kept: Kept, volume: Volume) -> None:
    lab = volume.lab
    assert lab.sql("SHOW server_version").startswith("15.")
    lab.deploy("playbooks/dump.yml", kept.backup, *volume.given)
    volume.detach()
    volume.machine("Debian-13")
    lab.deploy("site.yml", kept.backup, *volume.given)
    assert lab.sql("SHOW server_version").startswith("17.")
    kept.compare()
    assert changed(lab.deploy("site.yml", kept.backup, *volume.given)) == []
    lab.ssh("sudo systemctl start labtrack-backup@run labtrack-backup@drill")
    assert "main.before-17" in lab.ssh("sudo ls /var/lib/postgresql/15")
