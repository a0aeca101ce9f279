"""A Nova virt driver whose guests are machines by systemd-nspawn.  For rehearsals, not for people who share a cloud.

Installed as nova/virt/nspawn.py, chosen with `compute_driver = nspawn.NspawnDriver`; nova-compute runs as root.

* An image in Glance is a tar of a root file system with cloud-init.  It is unpacked once; a guest is an overlay on it.
* A guest is the unit nova-guest@<uuid>.service.  Nothing is kept in memory, so nova-compute may come and go.
* Its ports are veths in a network namespace of its own.  The outer end is named tap<port id>, which is how
  neutron's linuxbridge agent finds the port that it is to filter.  That agent leaves putting it into the
  network's bridge to the driver.
* A volume is a file of this machine (cinder_file_driver.py); nova-guest shows it to the guest.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path

import eventlet.timeout
import nova.conf
import os_resource_classes as resources
from nova import exception
from nova.api.metadata import base as instance_metadata
from nova.compute import power_state
from nova.image import glance
from nova.objects import fields
from nova.virt import configdrive, driver, hardware
from oslo_concurrency import lockutils, processutils
from oslo_log import log as logging
from oslo_serialization import jsonutils

CONF = nova.conf.CONF
LOG = logging.getLogger(__name__)

# Guests are overcommitted, so what is offered to the scheduler is far more than the host has.
INVENTORY = {resources.VCPU: 64, resources.MEMORY_MB: 262144, resources.DISK_GB: 4000}
UP = {"active", "activating", "deactivating", "reloading"}
CONSOLE_BYTES = 100 * 1024
SEED = "var/lib/cloud/seed/config_drive"
NOVA_GUEST = "/usr/local/sbin/nova-guest"


def run(*command: str, check: bool = True) -> str:
    """Run a command, and return what it printed."""
    return processutils.execute(*command, check_exit_code=[0] if check else False)[0]


def interface_exists(name: str) -> bool:
    return Path("/sys/class/net", name).exists()


class Guest:
    """The files and the unit of one instance."""

    def __init__(self, instance) -> None:
        self.uuid = instance.uuid
        self.folder = Path(CONF.instances_path, instance.uuid)
        self.settings = self.folder / "guest.json"
        self.console = self.folder / "console.log"
        self.unit = f"nova-guest@{instance.uuid}.service"
        self.namespace = f"guest-{instance.uuid}"

    def write(self, instance, base: Path, volumes: dict) -> None:
        """Write what the unit needs to know."""
        for name in ("upper", "work", "root"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        settings = {
            "base": str(base),
            "name": instance.name,
            "namespace": self.namespace,
            "memory_mb": instance.flavor.memory_mb,
            "vcpus": instance.flavor.vcpus,
            "volumes": volumes,
        }
        self.settings.write_text(json.dumps(settings))

    def set_volumes(self, volumes: dict) -> None:
        """Write which volumes are the guest's: {device: {id, file}}."""
        part = self.settings.with_suffix(".part")
        part.write_text(json.dumps(json.loads(self.settings.read_text()) | {"volumes": volumes}))
        part.rename(self.settings)

    def volumes(self) -> dict:
        return json.loads(self.settings.read_text())["volumes"]

    def state(self) -> int:
        active = run("systemctl", "is-active", self.unit, check=False).strip()
        return power_state.RUNNING if active in UP else power_state.SHUTDOWN


def volume_of(connection_info: dict) -> dict:
    """What nova-guest needs to know of a volume."""
    return {"id": connection_info["serial"], "file": connection_info["data"]["device_path"]}


class NspawnDriver(driver.ComputeDriver):
    """What nova-compute calls."""

    capabilities = driver.ComputeDriver.capabilities | {
        "supports_image_type_raw": True,
        "supports_attach_interface": True,
        "supports_extend_volume": True,
    }

    def init_host(self, host):
        self._host = host
        Path(CONF.instances_path, "_base").mkdir(parents=True, exist_ok=True)

    # --- what the host offers, and which guests there are

    def get_available_nodes(self, refresh=False):
        return [self._host]

    def get_available_resource(self, nodename):
        vcpus, memory, disk = INVENTORY.values()
        topology = {"cores": 1, "threads": 1, "sockets": vcpus}
        return {
            "vcpus": vcpus,
            "memory_mb": memory,
            "local_gb": disk,
            "vcpus_used": 0,
            "memory_mb_used": 0,
            "local_gb_used": 0,
            "disk_available_least": disk,
            "hypervisor_type": "nspawn",
            "hypervisor_version": 252,
            "hypervisor_hostname": nodename,
            "cpu_info": jsonutils.dumps({"arch": os.uname().machine, "features": [], "topology": topology}),
            "supported_instances": [(os.uname().machine, fields.HVType.LXC, fields.VMMode.EXE)],
            "numa_topology": None,
        }

    def update_provider_tree(self, provider_tree, nodename, allocations=None):
        shape = {"min_unit": 1, "step_size": 1, "allocation_ratio": 1.0, "reserved": 0}
        inventory = {name: {"total": total, "max_unit": total, **shape} for name, total in INVENTORY.items()}
        provider_tree.update_inventory(nodename, inventory)

    def list_instance_uuids(self):
        return [path.parent.name for path in Path(CONF.instances_path).glob("*/guest.json")]

    def list_instances(self):
        return self.list_instance_uuids()

    def get_num_instances(self):
        return len(self.list_instance_uuids())

    def instance_exists(self, instance):
        return Guest(instance).settings.exists()

    def get_info(self, instance, use_cache=True):
        if not self.instance_exists(instance):
            raise exception.InstanceNotFound(instance_id=instance.uuid)
        return hardware.InstanceInfo(state=Guest(instance).state())

    def get_host_uptime(self):
        return run("uptime")

    def get_console_output(self, context, instance):
        console = Guest(instance).console
        return console.read_bytes()[-CONSOLE_BYTES:] if console.exists() else b""

    def manage_image_cache(self, context, all_instances):
        """Images are few and stay."""

    # --- the root file system

    def _base(self, context, image_id: str) -> Path:
        """The unpacked image."""
        base = Path(CONF.instances_path, "_base", image_id)
        with lockutils.lock(f"nspawn-base-{image_id}"):
            if not base.is_dir():
                tar, part = base.with_suffix(".tar"), base.with_suffix(".part")
                shutil.rmtree(part, ignore_errors=True)
                part.mkdir()
                try:
                    glance.API().download(context, image_id, dest_path=str(tar))
                    options = ("--numeric-owner", "--xattrs", "--xattrs-include=*", "--zstd")
                    run("tar", "--extract", *options, f"--file={tar}", f"--directory={part}")
                finally:
                    tar.unlink(missing_ok=True)
                part.chmod(0o755)
                part.rename(base)
        return base

    def _write_config_drive(self, instance, injected_files, admin_password, network_info) -> None:
        """Put the content of the config drive where cloud-init looks for it first."""
        extra = {"admin_pass": admin_password} if admin_password else {}
        metadata = instance_metadata.InstanceMetadata(
            instance, content=injected_files, extra_md=extra, network_info=network_info
        )
        seed = Guest(instance).folder / "upper" / SEED
        seed.mkdir(parents=True, exist_ok=True)
        seed.chmod(0o700)
        for name, data in metadata.metadata_for_config_drive():
            path = seed / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data if isinstance(data, bytes) else data.encode())

    # --- ports

    def _plug(self, guest: Guest, vif) -> None:
        tap, bridge = vif["devname"], vif["network"]["bridge"]
        mtu = str(vif["network"].get_meta("mtu") or 1500)
        if not Path("/run/netns", guest.namespace).exists():
            run("ip", "netns", "add", guest.namespace)
        if not interface_exists(bridge):
            # the agent may be making it at the same moment
            run("ip", "link", "add", bridge, "mtu", mtu, "type", "bridge", "forward_delay", "0", check=False)
        run("ip", "link", "set", bridge, "up")
        if not interface_exists(tap):
            used = {link["ifname"] for link in json.loads(run("ip", "-n", guest.namespace, "-json", "link"))}
            name = next(name for name in (f"ens{number}" for number in range(3, 99)) if name not in used)
            peer = ("peer", "name", name, "address", vif["address"], "mtu", mtu, "netns", guest.namespace)
            run("ip", "link", "add", tap, "mtu", mtu, "type", "veth", *peer)
        run("ip", "link", "set", tap, "master", bridge, "up")

    def plug_vifs(self, instance, network_info):
        for vif in network_info or []:
            self._plug(Guest(instance), vif)

    def unplug_vifs(self, instance, network_info):
        for vif in network_info or []:
            run("ip", "link", "delete", vif["devname"], check=False)

    def attach_interface(self, context, instance, image_meta, vif):
        self._plug(Guest(instance), vif)

    def detach_interface(self, context, instance, vif):
        self.unplug_vifs(instance, [vif])

    def _plug_and_wait(self, instance, network_info) -> None:
        """Plug the ports, and wait until neutron says that each is filtered."""
        events = [("network-vif-plugged", vif["id"]) for vif in network_info or [] if not vif.get("active", True)]
        waiting = contextlib.nullcontext()
        if events and CONF.vif_plugging_timeout:
            waiting = self.virtapi.wait_for_instance_event(instance, events, deadline=CONF.vif_plugging_timeout)
        try:
            with waiting:
                self.plug_vifs(instance, network_info)
        except eventlet.timeout.Timeout:
            LOG.warning("Neutron did not say in time that %s are plugged", events, instance=instance)
            if CONF.vif_plugging_is_fatal:
                raise exception.VirtualInterfaceCreateException from None

    # --- volumes

    def get_volume_connector(self, instance):
        return {"host": self._host, "ip": CONF.my_ip, "multipath": False, "os_type": "linux", "platform": os.uname().machine}

    def attach_volume(
        self, context, connection_info, instance, mountpoint, disk_bus=None, device_type=None, encryption=None
    ):
        guest = Guest(instance)
        guest.set_volumes(guest.volumes() | {mountpoint: volume_of(connection_info)})
        run(NOVA_GUEST, "attach", guest.uuid, mountpoint)

    def detach_volume(self, context, connection_info, instance, mountpoint, encryption=None):
        guest = Guest(instance)
        volumes = guest.volumes()
        if mountpoint in volumes:
            run(NOVA_GUEST, "detach", guest.uuid, mountpoint)
            guest.set_volumes({device: volume for device, volume in volumes.items() if device != mountpoint})

    def extend_volume(self, context, connection_info, instance, requested_size):
        loop = run("losetup", "--associated", volume_of(connection_info)["file"], "--noheadings", "--output", "NAME")
        if loop.strip():
            run("losetup", "--set-capacity", loop.strip())

    # --- life

    def spawn(
        self, context, instance, image_meta, injected_files, admin_password, allocations,
        network_info=None, block_device_info=None, power_on=True, accel_info=None,
    ):  # fmt: skip
        guest = Guest(instance)
        mapping = driver.block_device_info_get_mapping(block_device_info)
        volumes = {one["mount_device"]: volume_of(one["connection_info"]) for one in mapping}
        guest.write(instance, self._base(context, instance.image_ref), volumes)
        if configdrive.required_by(instance):
            self._write_config_drive(instance, injected_files, admin_password, network_info)
        self._plug_and_wait(instance, network_info)
        if power_on:
            run("systemctl", "start", guest.unit)

    def power_on(self, context, instance, network_info, block_device_info=None, accel_info=None):
        self.plug_vifs(instance, network_info)
        run("systemctl", "start", Guest(instance).unit)

    def power_off(self, instance, timeout=0, retry_interval=0):
        unit = Guest(instance).unit
        if not timeout:
            run("systemctl", "kill", "--signal=KILL", unit, check=False)
        run("systemctl", "stop", unit)

    def reboot(
        self, context, instance, network_info, reboot_type,
        block_device_info=None, bad_volumes_callback=None, accel_info=None,
    ):  # fmt: skip
        self.power_off(instance, timeout=0 if reboot_type == "HARD" else 60)
        self.power_on(context, instance, network_info)

    def resume_state_on_host_boot(self, context, instance, network_info, block_device_info=None):
        self.power_on(context, instance, network_info)

    def destroy(
        self, context, instance, network_info, block_device_info=None, destroy_disks=True, destroy_secrets=True
    ):
        self.power_off(instance)
        run("systemctl", "reset-failed", Guest(instance).unit, check=False)
        self.cleanup(context, instance, network_info, block_device_info, destroy_disks)

    def cleanup(
        self, context, instance, network_info, block_device_info=None, destroy_disks=True,
        migrate_data=None, destroy_vifs=True, destroy_secrets=True,
    ):  # fmt: skip
        guest = Guest(instance)
        if destroy_vifs:
            self.unplug_vifs(instance, network_info)
            run("ip", "netns", "delete", guest.namespace, check=False)
        if destroy_disks and guest.folder.is_dir():
            shutil.rmtree(guest.folder)
