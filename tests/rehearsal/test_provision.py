"""Terraform on the rehearsal's OpenStack: a second lab in the tenant's project, made, broken, rebuilt, destroyed."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from recap import changed
from second_lab import DESTROY, NAME, PROVISION, YES, SecondLab

if TYPE_CHECKING:
    from conftest import Rehearsal
    from openstack.connection import Connection

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def tenant(rehearsal: Rehearsal) -> Connection:
    return rehearsal.cloud("climate")


@pytest.fixture(scope="module")
def provider(rehearsal: Rehearsal, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips by name where Terraform or its provider can't be had."""
    program = shutil.which("terraform") or shutil.which("tofu")
    if not program:
        pytest.skip("neither terraform nor tofu is installed")
    folder = tmp_path_factory.mktemp("init")
    shutil.copy(rehearsal.root / "terraform/versions.tf", folder)
    done = subprocess.run(
        [program, "init", "-input=false", "-no-color"], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"the OpenStack provider can't be had: {' '.join(done.stderr.split())[:300]}")


@pytest.fixture(scope="module")
def lab(
    rehearsal: Rehearsal, provider: None, tenant: Connection, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SecondLab]:
    lab = SecondLab(rehearsal, tmp_path_factory.mktemp("second"))
    try:
        yield lab
    finally:
        for name in lab.mine(tenant)["buckets"]:
            lab.empty(tenant, name)
        lab.write()
        lab.playbook(DESTROY, "-e", "destroy=bucket,volume,address", "-e", f"confirm={NAME}", check=True)


@contextlib.contextmanager
def addresses_used_up(tenant: Connection) -> Iterator[None]:
    """No floating IP left in the project's quota."""
    public = tenant.network.find_network("Public-Network")
    taken = []
    try:
        with contextlib.suppress(Exception):  # the quota's end
            while len(taken) < 20:
                taken.append(tenant.network.create_ip(floating_network_id=public.id))
        yield
    finally:
        for address in taken:
            tenant.network.delete_ip(address)


def test_what_can_t_be_had_is_said_before_anything_is_made(lab: SecondLab, tenant: Connection) -> None:
    lab.write(lab_image="Debian-99")
    assert "there is no image 'Debian-99'" in lab.refusal(*YES)
    lab.write(lab_flavor="p99-1tb")
    assert "there is no flavor 'p99-1tb'" in lab.refusal(*YES)
    lab.write()
    expired = {"OS_AUTH_URL": tenant.config.config["auth"]["auth_url"], "OS_AUTH_TYPE": "v3token", "OS_TOKEN": "gone",
               "OS_PROJECT_NAME": "climate", "OS_PROJECT_DOMAIN_NAME": "Default",
               "OS_CACERT": tenant.config.config["cacert"]}  # fmt: skip
    assert re.search("log in again|requires authentication", lab.refusal(*YES, env=expired))
    assert set(map(tuple, lab.mine(tenant).values())) == {()}
    assert not (lab.dir / "hosts.yml").exists()


def test_nobody_s_yes_is_taken_for_granted(lab: SecondLab, tenant: Connection) -> None:
    said = lab.refusal()
    assert "the plan was not confirmed with yes" in said and "-e auto_approve=true" in said
    assert set(map(tuple, lab.mine(tenant).values())) == {()}


def test_overlapping_addresses_have_a_hint_of_their_own(
    rehearsal: Rehearsal, provider: None, tenant: Connection, tmp_path: Path
) -> None:
    """In a lab of its own: what was made until then stays, and would be in the way of the tests of the other."""
    other = SecondLab(rehearsal, tmp_path, "refused", lab_router="rehearsal-router", lab_network_cidr="10.20.0.0/24")
    try:
        said = other.refusal(*YES)
    finally:
        other.remove(tenant)
    assert "overlaps with" in said and "the addresses of lab_network_cidr are in use" in said


def test_a_quota_that_is_used_up_stops_the_run_and_the_next_goes_on(lab: SecondLab, tenant: Connection) -> None:
    with addresses_used_up(tenant):
        said = lab.refusal(*YES)
    assert "the project's quota is used up" in said and "floatingip" in said
    assert not (lab.dir / "hosts.yml").exists()
    before = lab.mine(tenant)
    done = lab.playbook(PROVISION, *YES, check=True)
    assert "The machine is made by Terraform." in done.stdout
    assert done.stdout.index("The machine was made by Terraform.") > done.stdout.index("PLAY [Say how")
    after = lab.mine(tenant)
    assert before["networks"] == after["networks"] == [f"{NAME}-network"]
    assert after == {
        "servers": [f"{NAME}-mlflow"],
        "networks": [f"{NAME}-network"],
        "routers": [f"{NAME}-router"],
        "groups": [f"{NAME}-server"],
        "keys": [f"{NAME}-key"],
        "buckets": [f"{NAME}-mlflow"],
    }
    assert lab.ssh("hostname") == "mlflow"


def test_a_second_run_asks_nothing_and_changes_nothing(lab: SecondLab) -> None:
    files = {path: path.read_bytes() for path in (lab.dir / "hosts.yml", lab.private / "known_hosts")}
    done = lab.playbook(PROVISION, check=True)  # without a yes: there is nothing to confirm
    assert changed(done.stdout) == []
    assert files == {path: path.read_bytes() for path in files}


def test_the_state_is_private_and_has_no_secret(lab: SecondLab) -> None:
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (lab.private, lab.private / "terraform")}
    assert set(modes.values()) == {0o700}
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in lab.private.glob("terraform.tfstate*")}
    assert modes and set(modes.values()) == {0o600}, modes
    shown = lab.terraform("show", "-json").stdout
    assert f"{NAME}-mlflow" in shown
    cloud = yaml.safe_load((lab.private / "clouds.yaml").read_text())["clouds"]
    kinds = ("password", "application_credential_secret")
    secrets = [entry["auth"][kind] for entry in cloud.values() for kind in kinds if kind in entry["auth"]]
    assert secrets and [secret for secret in secrets if secret in shown] == []
    assert "PRIVATE KEY" not in shown


def reaches(address: str, port: int) -> str:
    """open; refused, which only a machine behind an open port does; or nothing at all."""
    try:
        socket.create_connection((address, port), timeout=3).close()
    except ConnectionRefusedError:
        return "refused"
    except TimeoutError:
        return "silence"
    return "open"


def test_the_security_group_from_an_admin_s_network_and_from_another(lab: SecondLab) -> None:
    address = lab.server["ansible_host"]
    assert {port: reaches(address, port) for port in (22, 80, 443, 5000, 5432)} == {
        22: "open", 80: "refused", 443: "refused", 5000: "silence", 5432: "silence",
    }  # fmt: skip
    seen = lab.rehearsal.ssh("server", f"timeout 4 bash -c '</dev/tcp/{address}/22'; echo $?", check=True)
    assert seen.stdout.split()[-1] == "124"  # from the other lab's server: silence
    seen = lab.rehearsal.ssh("server", f"timeout 4 bash -c '</dev/tcp/{address}/80' 2>&1; echo $?", check=True)
    assert "refused" in seen.stdout


def test_another_project_s_login_is_refused(lab: SecondLab) -> None:
    lab.write(lab_cloud="climate-backup")
    said = lab.refusal(*YES)
    lab.write()
    assert "The login is in the project climate-backup" in said and "Correct lab_cloud" in said


def test_a_change_that_would_take_the_server_away_is_refused(lab: SecondLab) -> None:
    before = lab.server["cloud_server_id"]
    lab.write(lab_network="rehearsal-network")
    said = lab.refusal(*YES)
    lab.write()
    assert "The plan takes the server away" in said and "-e replace_server=true" in said
    assert lab.server["cloud_server_id"] == before


def test_a_flavor_that_the_cloud_cannot_resize_to_has_a_hint(lab: SecondLab) -> None:
    lab.write(lab_flavor="p4-6gb")
    said = lab.refusal(*YES)
    lab.write()
    assert "the cloud could not give the server another flavor" in said, said
    # what was refused is written into Terraform's state, and that is one of the lab's files
    left = {"server: Leave the newest files to other admins, and let them in"}
    assert set(changed(lab.playbook(PROVISION, *YES, check=True).stdout)) <= left
    assert lab.ssh("hostname") == "mlflow"


def until(condition: Callable[[], Any], seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while not (said := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.2)
    return said


def tell(pid: int, number: signal.Signals) -> None:
    """Sends a signal to a process and all that it started, in whatever session: Ansible gives each task its own."""
    parents = {int(one.name): one.joinpath("stat") for one in Path("/proc").iterdir() if one.name.isdigit()}
    found, new = [pid], [pid]
    while new:
        new = [one for one, stat in parents.items() if one not in found and parent(stat) in found]
        found += new
    for one in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, number)


def parent(stat: Path) -> int:
    with contextlib.suppress(OSError):
        return int(stat.read_text().rpartition(")")[2].split()[1])
    return 0


def test_killed_while_the_server_is_made_the_next_run_takes_it_over(lab: SecondLab, tenant: Connection) -> None:
    old, address = lab.server["cloud_server_id"], lab.server["ansible_host"]
    running = subprocess.Popen(
        [shutil.which("ansible-playbook", path=str(lab.rehearsal.root / ".venv/bin")), PROVISION, "-i", str(lab.dir),
         *YES, "-e", "replace_server=true"],
        cwd=lab.rehearsal.root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        new = until(lambda: [s.id for s in tenant.compute.servers(name=f"{NAME}-mlflow") if s.id != old], 180)
        tell(running.pid, signal.SIGSTOP)  # however slow the second run is, the first is still at work
        said = lab.refusal(*YES)
        assert "another run for this lab is at work" in said and "Who:" in said
    finally:
        tell(running.pid, signal.SIGKILL)
        running.wait()
    assert old not in new
    done = lab.playbook(PROVISION, *YES, check=True)
    assert "imported" in done.stdout
    (server,) = tenant.compute.servers(name=f"{NAME}-mlflow")
    assert [server.id] == new == [lab.server["cloud_server_id"]]
    assert lab.server["ansible_host"] == address
    assert lab.ssh("hostname") == "mlflow"
    assert changed(lab.playbook(PROVISION, check=True).stdout) == []


def test_a_service_that_goes_away_in_between(lab: SecondLab, tenant: Connection) -> None:
    lab.rehearsal.ssh("cloud", "systemctl stop neutron-api", check=True)
    try:
        said = lab.refusal(*YES)
        assert "network (Neutron)" in said and "ry again in a minute" in said, said
    finally:
        lab.rehearsal.ssh("cloud", "systemctl start neutron-api", check=True)
    until(lambda: list(tenant.network.networks(name=f"{NAME}-network")), 120)
    assert changed(lab.playbook(PROVISION, check=True).stdout) == []


def test_what_lab_yml_no_longer_wants_made_is_kept(lab: SecondLab, tenant: Connection) -> None:
    lab.write(lab_floating_ip=lab.server["ansible_host"], lab_bucket_manage=False)
    lab.playbook(PROVISION, *YES, check=True)
    known = lab.terraform("state", "list").stdout
    assert "floatingip_v2.server" not in known and "container" not in known
    assert lab.mine(tenant)["buckets"] == [f"{NAME}-mlflow"]
    lab.write()


def test_a_lost_state_is_made_again_from_what_is_there(lab: SecondLab) -> None:
    before = lab.server
    for file in lab.private.glob("terraform.tfstate*"):
        file.unlink()
    done = lab.playbook(PROVISION, *YES, check=True)
    assert re.search(r"Plan: (\d+) to import, \d+ to add, \d+ to change, 0 to destroy", done.stdout), done.stdout
    assert lab.server == before
    assert changed(lab.playbook(PROVISION, check=True).stdout) == []
    assert lab.terraform("state", "list").stdout.count("openstack_") >= 16


def rules(tenant: Connection, group: str) -> set[tuple[Any, ...]]:
    found = tenant.network.find_security_group(group, project_id=tenant.current_project_id)
    return {
        (
            rule.direction,
            rule.ether_type,
            rule.protocol,
            rule.port_range_min,
            rule.port_range_max,
            rule.remote_ip_prefix,
        )
        for rule in tenant.network.security_group_rules(security_group_id=found.id)
    }


def test_the_stand_in_makes_the_same_and_terraform_takes_it_over(lab: SecondLab, tenant: Connection) -> None:
    """The second lab again, made by the stand-in: same names, same rules, same inventory."""
    ours, exposed, things = lab.server, rules(tenant, f"{NAME}-server"), lab.mine(tenant)
    arguments = ("-e", "destroy=bucket,address", "-e", f"confirm={NAME}")
    lab.playbook(DESTROY, *arguments, check=True)
    lab.write(lab_cloud="climate")
    lab.stand_in()
    lab.write()
    assert lab.mine(tenant) == things
    assert rules(tenant, f"{NAME}-server") == exposed
    assert set(lab.server) == set(ours)
    new = {"ansible_host", "cloud_server_id"}
    assert {k: v for k, v in lab.server.items() if k not in new} == {k: v for k, v in ours.items() if k not in new}

    before = lab.server
    for file in lab.private.glob("terraform.tfstate*"):
        file.unlink()
    lab.playbook(PROVISION, *YES, check=True)
    assert lab.server == before
    assert lab.mine(tenant) == things
    assert changed(lab.playbook(PROVISION, check=True).stdout) == []


def test_the_database_survives_its_machine(lab: SecondLab, tenant: Connection) -> None:
    if not tenant.has_service("block-storage"):
        pytest.skip("the rehearsal's cloud has no volumes")
    volume = {"lab_data_volume": "manage", "lab_data_volume_gb": 5, "lab_cloud": "climate"}  # with a password: EC2 keys
    lab.write(**volume)
    lab.playbook(PROVISION, *YES, check=True)
    deploy = ("playbooks/deploy.yml", "--tags", "secrets,base,postgresql")
    lab.playbook(*deploy, check=True)
    assert lab.ssh("findmnt -no FSTYPE /var/lib/postgresql") == "ext4"
    lab.ssh("sudo -u postgres psql -qc 'CREATE TABLE kept AS SELECT 42 AS answer' mlflowdb")
    before = lab.server
    lab.playbook(PROVISION, *YES, "-e", "replace_server=true", check=True)
    after = lab.server
    assert after["cloud_server_id"] != before["cloud_server_id"]
    assert [after[k] for k in ("ansible_host", "cloud_data_volume_id")] == [
        before[k] for k in ("ansible_host", "cloud_data_volume_id")
    ]
    lab.playbook(*deploy, check=True)
    assert lab.ssh("sudo -u postgres psql -Atc 'TABLE kept' mlflowdb") == "42"

    lab.write()  # none again
    assert "or its port or volume from it" in lab.refusal(*YES)
    lab.write(**volume)  # on second thoughts
    lab.playbook(PROVISION, *YES, check=True)
    assert lab.server == after
    assert changed(lab.playbook(PROVISION, check=True).stdout) == []


def test_a_port_that_was_deleted_by_hand_is_attached_again(lab: SecondLab, tenant: Connection) -> None:
    """In the cloud.  Not asked: whether the guest takes the new port's address; the rehearsal's has no hotplug."""
    (port,) = tenant.network.ports(name=f"{NAME}-mlflow")
    tenant.network.delete_port(port)
    # named, for a limit to leave it; then it has no longer the connection and the Python of an implicit one
    named = ("-i", "localhost,", "-c", "local", "-e", f"ansible_python_interpreter={sys.executable}")
    only_the_cloud = (*named, "--limit", "localhost")
    lab.playbook(PROVISION, *YES, *only_the_cloud, check=True)
    (new,) = tenant.network.ports(name=f"{NAME}-mlflow")
    assert (new.id != port.id, new.device_id) == (True, lab.server["cloud_server_id"])
    (address,) = tenant.network.ips(port_id=new.id)
    assert address.floating_ip_address == lab.server["ansible_host"]
    assert changed(lab.playbook(PROVISION, *only_the_cloud, check=True).stdout) == []


def test_destroy_keeps_data_and_address_and_wants_the_lab_s_name(lab: SecondLab, tenant: Connection) -> None:
    said = lab.refusal(playbook=DESTROY)
    assert "Nothing was destroyed" in said and f"-e confirm={NAME}" in said
    assert lab.mine(tenant)["servers"] == [f"{NAME}-mlflow"]
    address = lab.server["ansible_host"]
    done = lab.playbook(DESTROY, "-e", f"confirm={NAME}", check=True)
    on_volume = tenant.has_service("block-storage")  # since the test above
    database = (
        f"Kept: the volume {NAME}-data with the database" if on_volume else "the database with all runs and accounts"
    )
    told = " ".join(done.stdout.split())  # Ansible breaks long lines
    assert database in told
    assert f"Kept: the bucket {NAME}-mlflow with all artifacts" in told
    left = lab.mine(tenant)
    assert left.pop("buckets") == [f"{NAME}-mlflow"]
    assert set(map(tuple, left.values())) == {()}
    assert [ip.floating_ip_address for ip in tenant.network.ips(description=f"labtrack: {NAME}")] == [address]
    assert not (lab.dir / "hosts.yml").exists()


def test_destroy_deletes_what_is_named_but_no_bucket_with_content(lab: SecondLab, tenant: Connection) -> None:
    tenant.object_store.upload_object(container=f"{NAME}-mlflow", name="model.pkl", data=b"years of work")
    arguments = ("-e", "destroy=bucket,volume,address", "-e", f"confirm={NAME}")
    assert "a bucket must be empty" in lab.refusal(*arguments, playbook=DESTROY)
    lab.empty(tenant, f"{NAME}-mlflow")
    lab.playbook(DESTROY, *arguments, check=True)
    assert lab.mine(tenant)["buckets"] == []
    assert list(tenant.network.ips(description=f"labtrack: {NAME}")) == []
