"""A second lab in the rehearsal's project, for the tests that make machines and destroy them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from labtrack.cloud.resources import is_router_port

if TYPE_CHECKING:
    from conftest import Rehearsal
    from openstack.connection import Connection

NAME = "second"
PROVISION, DESTROY = "playbooks/provision.yml", "playbooks/destroy.yml"
YES = ("-e", "auto_approve=true")

STAND_IN = """
- hosts: localhost
  gather_facts: false
  vars_files: ["{root}/playbooks/vars/provision.yml"]
  tasks:
    - name: Look up what lab.yml names
      ansible.builtin.command:
        argv: "{{{{ provision_labtrack + ['prepare', '--json', provision_lab_dir] }}}}"
      register: provision_planned
    - name: Make it
      ansible.builtin.include_tasks: "{root}/playbooks/rehearsal/tasks/stand_in.yml"
    - ansible.builtin.meta: refresh_inventory
    - name: Learn its SSH host keys from its console
      ansible.builtin.command:
        argv: "{{{{ provision_labtrack + ['host-keys', '--server', provision_server.cloud_server_id,
          '--address', provision_server.ansible_host, provision_lab_dir] }}}}"
- hosts: mlflow
  gather_facts: false
  become: false
  tasks:
    - ansible.builtin.wait_for_connection:
        timeout: 180
    - ansible.builtin.command: cloud-init status --wait
      register: waited
      failed_when: waited.rc not in [0, 2]
"""


class SecondLab:
    """A lab beside the rehearsal's, in the same project, with the restricted application credential."""

    def __init__(self, rehearsal: Rehearsal, root: Path, name: str = NAME, **settings: object) -> None:
        self.rehearsal, self.name = rehearsal, name
        self.dir, self.private = root / "inventory" / name, root / "private" / name
        (self.dir / "group_vars/all").mkdir(parents=True)
        self.private.mkdir(parents=True, mode=0o700)
        for file in ("clouds.yaml", "cloud-ca.pem", "id_ed25519", "id_ed25519.pub"):
            shutil.copy2(rehearsal.private / file, self.private)
        self.settings = {
            "lab_name": name,
            "lab_fqdn": f"mlflow.{name}.test",
            "lab_admins": [{"name": "labadmin", "ssh_key_files": [f"private/{name}/id_ed25519.pub"]}],
            "lab_admin_networks": ["10.99.0.0/24"],
            "lab_users": [],
            "lab_cloud": "climate-appcred",
            "lab_clouds_file": f"private/{name}/clouds.yaml",
            "lab_image": "Debian-13",
            "lab_flavor": "p1-1.5gb",
            "lab_external_network": "Public-Network",
            "lab_bucket": f"{name}-mlflow",
            "lab_s3_endpoint": rehearsal.lab["lab_s3_endpoint"],
            "lab_s3_ca_file": f"private/{name}/cloud-ca.pem",
            **settings,
        }
        self.write()

    def write(self, **changed: object) -> None:
        """Write lab.yml, with other values than usual."""
        (self.dir / "group_vars/all/lab.yml").write_text(yaml.safe_dump(self.settings | changed))

    def playbook(self, playbook: str, *arguments: str, **more: Any) -> subprocess.CompletedProcess:
        return self.rehearsal.playbook(playbook, "-i", str(self.dir), *arguments, **more)

    def refusal(self, *arguments: str, playbook: str = PROVISION, **more: Any) -> str:
        """What a run says that has to stop: the message of the one task that failed."""
        done = self.playbook(playbook, *arguments, **more)
        assert done.returncode != 0, done.stdout
        assert len(re.findall(r"^fatal: ", done.stdout, re.MULTILINE)) == 1, done.stdout
        said = done.stdout[done.stdout.index("fatal: ") : done.stdout.index("PLAY RECAP")]
        return " ".join(said.split())

    def stand_in(self) -> None:
        """Make the machine as playbooks/provision.yml does where Terraform can't be had."""
        playbook = self.dir.parent / "stand_in.yml"
        playbook.write_text(STAND_IN.format(root=self.rehearsal.root))
        self.playbook(str(playbook), check=True, env={"ANSIBLE_ROLES_PATH": str(self.rehearsal.root / "roles")})

    @property
    def server(self) -> dict[str, str]:
        """The server's line of hosts.yml."""
        return yaml.safe_load((self.dir / "hosts.yml").read_text())["mlflow"]["hosts"]["server"]

    def ssh(self, command: str, **more: Any) -> str:
        """A command on the lab's server, whose host key has to be the known one."""
        done = self.rehearsal.run(
            "ssh", "-q", "-i", str(self.private / "id_ed25519"), "-o", "BatchMode=yes", "-o", "ConnectTimeout=10",
            "-o", f"UserKnownHostsFile={self.private / 'known_hosts'}", "-o", "StrictHostKeyChecking=yes",
            f"debian@{self.server['ansible_host']}", command,
            check=True, **more,
        )  # fmt: skip
        return done.stdout.strip()

    def terraform(self, *arguments: str) -> subprocess.CompletedProcess:
        """Terraform by hand, on the lab's state."""
        program = shutil.which("terraform") or "tofu"
        environment = {"TF_WORKSPACE": self.name, "TF_DATA_DIR": str(self.private / "terraform")}
        return subprocess.run(
            [program, f"-chdir={self.rehearsal.root / 'terraform'}", *arguments],
            env={**os.environ, **environment}, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    def mine(self, tenant: Connection) -> dict[str, list[str]]:
        """What the project has under this lab's name."""
        kinds = {
            "servers": tenant.compute.servers(),
            "networks": tenant.network.networks(project_id=tenant.current_project_id),
            "routers": tenant.network.routers(project_id=tenant.current_project_id),
            "groups": tenant.network.security_groups(project_id=tenant.current_project_id),
            "keys": tenant.compute.keypairs(),
            "buckets": tenant.object_store.containers(),
        }
        return {kind: [t.name for t in things if t.name.startswith(f"{self.name}-")] for kind, things in kinds.items()}

    def forget(self) -> None:
        """Take its name off this host."""
        hosts, block = Path("/etc/hosts"), f"# {{}} labtrack {self.name} server\n"
        begin, _, rest = hosts.read_text().partition(block.format("BEGIN"))
        if rest:
            hosts.write_text(begin + rest.partition(block.format("END"))[2])

    def lose(self, tenant: Connection) -> None:
        """Delete the server, whoever has made it."""
        for server in tenant.compute.servers():
            if server.name == f"{self.name}-mlflow":
                tenant.compute.delete_server(server)
                tenant.compute.wait_for_delete(server, wait=120)

    def remove(self, tenant: Connection) -> None:
        """Delete all that the project has of it, whoever has made that."""
        self.lose(tenant)
        for name in self.mine(tenant)["buckets"]:
            self.empty(tenant, name)
            tenant.object_store.delete_container(name)
        net, mine = tenant.network, {"project_id": tenant.current_project_id}
        network = net.find_network(f"{self.name}-network", **mine)
        router = net.find_router(f"{self.name}-router", **mine)
        ports = list(net.ports(network_id=network.id)) if network else []
        for address in net.ips(**mine):
            if address.description == f"labtrack: {self.name}" or address.port_id in [port.id for port in ports]:
                net.delete_ip(address)
        for port in ports:
            if is_router_port(port):
                net.remove_interface_from_router(router, port_id=port.id)
            elif port.device_owner != "network:dhcp":
                net.delete_port(port)
        if router:
            net.delete_router(router)
        if network:
            net.delete_network(network)
        if group := net.find_security_group(f"{self.name}-server", **mine):
            net.delete_security_group(group)
        tenant.compute.delete_keypair(f"{self.name}-key")

    def empty(self, tenant: Connection, bucket: str) -> None:
        """Delete all that a bucket has, old versions included: the kit itself never does."""
        found = tenant.object_store.get(f"/{bucket}", params={"versions": "", "format": "json"}).json()
        for one in found:
            version = {"version-id": one["version_id"]} if "version_id" in one else {}
            tenant.object_store.delete(f"/{bucket}/{one['name']}", params=version)


class StandIn(SecondLab):
    """A lab with a whole server, whose machine the rehearsal's stand-in for Terraform makes."""

    def __init__(self, rehearsal: Rehearsal, root: Path, name: str, **settings: object) -> None:
        region = rehearsal.lab["lab_s3_region"]
        usual = {"lab_cloud": "climate", "lab_flavor": "p2-3gb", "lab_s3_region": region}
        super().__init__(rehearsal, root, name, **(usual | settings))
        # the same switch as the rehearsal's own lab has
        switch = rehearsal.lab_dir / "group_vars/all/provision.yml"
        (self.dir / "group_vars/all/provision.yml").write_text(switch.read_text())

    def deploy(self, playbook: str = "site.yml", *arguments: str, **more: Any) -> str:
        """A run that nobody disturbs."""
        return self.playbook(playbook, *YES, *arguments, check=True, **more).stdout
