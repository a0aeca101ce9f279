"""A Cinder driver whose volumes are files on this machine.  For rehearsals, where Nova's guests are on it too.

Installed as cinder/volume/drivers/file.py.  A volume is a sparse file; Nova's nspawn driver puts a loop
device on it and shows that to the guest.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from cinder import interface
from cinder.volume import configuration, driver
from oslo_config import cfg

GIB = 2**30
OPTIONS = [cfg.StrOpt("file_volumes_dir", default="/var/lib/cinder/volumes", help="The folder of the volumes.")]
cfg.CONF.register_opts(OPTIONS, group=configuration.SHARED_CONF_GROUP)


@interface.volumedriver
class FileDriver(driver.VolumeDriver):
    """What cinder-volume calls."""

    VERSION = "1.0"

    def __init__(self, *args, **more) -> None:
        super().__init__(*args, **more)
        self.configuration.append_config_values(OPTIONS)
        self.folder = Path(self.configuration.file_volumes_dir)

    def check_for_setup_error(self):
        self.folder.mkdir(mode=0o700, exist_ok=True)

    def _path(self, volume) -> Path:
        return self.folder / volume.name

    def create_volume(self, volume):
        self._path(volume).touch(mode=0o600)
        os.truncate(self._path(volume), volume.size * GIB)

    def extend_volume(self, volume, new_size):
        os.truncate(self._path(volume), new_size * GIB)

    def delete_volume(self, volume):
        self._path(volume).unlink(missing_ok=True)

    def create_snapshot(self, snapshot):
        shutil.copy2(self._path(snapshot.volume), self._path(snapshot))

    def delete_snapshot(self, snapshot):
        self._path(snapshot).unlink(missing_ok=True)

    def create_volume_from_snapshot(self, volume, snapshot):
        shutil.copy2(self._path(snapshot), self._path(volume))
        self.extend_volume(volume, volume.size)

    def create_cloned_volume(self, volume, src_vref):
        shutil.copy2(self._path(src_vref), self._path(volume))
        self.extend_volume(volume, volume.size)

    def initialize_connection(self, volume, connector, **more):
        return {"driver_volume_type": "local", "data": {"device_path": str(self._path(volume))}}

    def terminate_connection(self, volume, connector, **more):
        """Nova takes its loop device away itself."""

    def create_export(self, context, volume, connector=None):
        """A file needs none."""

    ensure_export = remove_export = create_export

    def _update_volume_stats(self):
        disk = shutil.disk_usage(self.folder)
        self._stats = {
            "volume_backend_name": self.configuration.volume_backend_name,
            "vendor_name": "labtrack",
            "driver_version": self.VERSION,
            "storage_protocol": "local",
            "total_capacity_gb": disk.total // GIB,
            "free_capacity_gb": disk.free // GIB,
            "thin_provisioning_support": True,
            "max_over_subscription_ratio": 20.0,
            "reserved_percentage": 0,
        }
