"""The resources that lab.yml asks for: `terraform test` with the provider mocked, and what a mock can't show."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, Run, runner

HOSTS = {
    "server": {
        "address": "203.0.113.10",
        "user": "debian",
        "groups": ["postgresql", "mlflow", "nginx"],
        "server_id": "0b9ee3f0-0000-4000-8000-000000000000",
        "data_volume": "1c9ee3f0-0000-4000-8000-000000000000",
    }
}


def test_terraform_test(terraform: Run) -> None:
    done = terraform("test", "-no-color")
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed, 0 failed", done.stdout)[1]) >= 30


def test_it_is_valid_and_formatted(terraform: Run) -> None:
    assert terraform("validate", "-no-color").stderr == ""
    assert terraform("fmt", "-check", "-recursive").stdout == ""


KEPT = {
    "bucket": ("module.bucket", "openstack_objectstorage_container_v1", "artifacts", "kept-mlflow"),
    "address": ("module.server", "openstack_networking_floatingip_v2", "server", "1" * 32),
    "volume": ("module.server", "openstack_blockstorage_volume_v3", "data", "2" * 32),
}


@pytest.mark.parametrize("name", KEPT)
def test_a_plan_that_destroys_data_is_refused(terraform: Run, name: str, tmp_path: Path) -> None:
    """Not to be seen with a mock: a test that has made it could not take it away again."""
    module, kind, own_name, id_ = KEPT[name]
    state = {
        "version": 4,
        "terraform_version": "1.9.0",
        "serial": 1,
        "lineage": "a",
        "outputs": {},
        "resources": [
            {
                "module": module,
                "mode": "managed",
                "type": kind,
                "name": own_name,
                "provider": provider(terraform),
                "instances": [{"index_key": 0, "schema_version": 0, "attributes": {"id": id_, "name": id_}}],
            }
        ],
    }
    file = tmp_path / "terraform.tfstate"
    file.write_text(json.dumps(state))
    done = terraform(
        "plan", "-destroy", "-refresh=false", "-input=false", "-no-color", f"-state={file}",
        "-var=lab_file=tests/labs/minimal/lab.json", OS_AUTH_URL="https://127.0.0.1:1/v3", OS_TOKEN="x",
    )  # fmt: skip
    assert done.returncode == 1
    assert f"{module}.{kind}.{own_name}[0]" in done.stderr and "lifecycle.prevent_destroy" in done.stderr, done.stderr


def provider(terraform: Run) -> str:
    registry = re.search(r"provider\[(\S+)\]", terraform("providers").stdout)[1]
    return f'provider["{registry}"]'


def rendered(program: str, folder: Path, **changed: object) -> str:
    """hosts.yml as Terraform writes it; needs the program, no provider."""
    values = {"hosts": HOSTS, "private": "private/climate", "own_key": True, "project": "f" * 32, "made_by": "x"}
    template = ROOT / "terraform/templates/hosts.yml.tftpl"
    call = f"templatefile({json.dumps(str(template))}, jsondecode({json.dumps(json.dumps({**values, **changed}))}))"
    done = runner(program, folder)("console", stdin=f"jsonencode({call})\n")
    assert done.returncode == 0, done.stderr
    return json.loads(json.loads(done.stdout))


def test_the_inventory_is_one_that_ansible_loads_and_the_playbooks_want(program: str, tmp_path: Path) -> None:
    lab = tmp_path / "inventory" / "climate"
    lab.mkdir(parents=True)
    (lab / "hosts.yml").write_text(rendered(program, tmp_path))
    done = subprocess.run(
        [ROOT / ".venv/bin/ansible-inventory", "-i", lab, "--list"],
        cwd=ROOT, capture_output=True, text=True, check=True, env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
    )  # fmt: skip
    inventory = json.loads(done.stdout)
    for group in ("postgresql", "mlflow", "nginx"):
        assert inventory[group]["hosts"] == ["server"]
    server = inventory["_meta"]["hostvars"]["server"]
    assert server["ansible_host"] == "203.0.113.10"
    assert server["ansible_user"] == "debian" and server["ansible_become"] is True
    assert "StrictHostKeyChecking=yes" in server["ansible_ssh_common_args"]
    assert server["cloud_data_volume_id"] == HOSTS["server"]["data_volume"]
    assert server["cloud_project_id"] == "f" * 32


def test_the_inventory_names_no_key_and_no_volume_that_is_not_there(program: str, tmp_path: Path) -> None:
    hosts = {"server": {**HOSTS["server"], "data_volume": ""}}
    server = yaml.safe_load(rendered(program, tmp_path, own_key=False, hosts=hosts))["mlflow"]["hosts"]["server"]
    assert {"ansible_ssh_private_key_file", "cloud_data_volume_id"} & set(server) == set()


def test_the_stand_in_writes_the_same_inventory(program: str, tmp_path: Path) -> None:
    import jinja2

    template = (ROOT / "roles/rehearsal_server/templates/hosts.yml.j2").read_text()
    made = {"server": {"id": HOSTS["server"]["server_id"], "project_id": "f" * 32}, "address": "203.0.113.10"}
    stand_in = jinja2.Environment(trim_blocks=True, autoescape=False).from_string(template)  # noqa: S701 - YAML, not HTML
    written = stand_in.render(rehearsal_server_prefix="climate", __rehearsal_server_made=made)
    hosts = {"server": {**HOSTS["server"], "data_volume": ""}}
    ours = rendered(program, tmp_path, hosts=hosts)
    assert yaml.safe_load(written) == yaml.safe_load(ours)
    assert written.splitlines()[0] == ours.splitlines()[0]
