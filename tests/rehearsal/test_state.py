"""Terraform's state on the lab's own store, as docs/admin/cloud.md tells."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import pytest
from botocore.config import Config

if TYPE_CHECKING:
    from conftest import Rehearsal

# Nothing of a cloud: the state is what is looked at.
CONFIG = """
terraform {
  backend "local" {
    workspace_dir = "states"
  }
}
resource "terraform_data" "something" { input = "kept" }
"""


@pytest.fixture
def program() -> str:
    program = shutil.which("terraform")
    if not program:
        pytest.skip("terraform is not installed")
    return program


@pytest.fixture
def key(rehearsal: Rehearsal) -> Iterator[dict[str, str]]:
    """An EC2 key of the project, as the environment wants it."""
    tenant = rehearsal.cloud("climate")
    keys = f"/users/{tenant.current_user_id}/credentials/OS-EC2"
    where = {"service_type": "identity", "interface": "public"}
    project = {"tenant_id": tenant.current_project_id}
    made = tenant.session.post(keys, endpoint_filter=where, json=project).json()["credential"]
    yield {"AWS_ACCESS_KEY_ID": made["access"], "AWS_SECRET_ACCESS_KEY": made["secret"]}
    tenant.session.delete(f"{keys}/{made['access']}", endpoint_filter=where)


@pytest.fixture
def bucket(rehearsal: Rehearsal, key: dict[str, str]) -> Iterator[str]:
    store = boto3.client(
        "s3",
        endpoint_url=rehearsal.lab["lab_s3_endpoint"],
        region_name=rehearsal.lab["lab_s3_region"],
        aws_access_key_id=key["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=key["AWS_SECRET_ACCESS_KEY"],
        verify=str(rehearsal.private / "cloud-ca.pem"),
        config=Config(s3={"addressing_style": "path"}),
    )
    name = f"state-{time.time_ns()}"
    store.create_bucket(Bucket=name)
    yield name
    for thing in store.list_objects_v2(Bucket=name).get("Contents", []):
        store.delete_object(Bucket=name, Key=thing["Key"])
    store.delete_bucket(Bucket=name)


def documented(rehearsal: Rehearsal, bucket: str) -> str:
    """backend_override.tf as the page has it, for this store."""
    page = (rehearsal.root / "docs/admin/cloud.md").read_text()
    block = re.search(r"^    terraform \{\n.*?^    \}\n", page, re.MULTILINE | re.DOTALL)[0]
    block = block.replace("mylab-terraform", bucket).replace("us-east-1", rehearsal.lab["lab_s3_region"])
    return re.sub(r'https://[^"]+', rehearsal.lab["lab_s3_endpoint"], block)


def test_two_admins_share_a_state_on_the_lab_s_store(
    rehearsal: Rehearsal, program: str, key: dict[str, str], bucket: str, tmp_path: Path
) -> None:
    environment = {
        **os.environ, **key, "AWS_CA_BUNDLE": str(rehearsal.private / "cloud-ca.pem"), "TF_WORKSPACE": "mylab",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    }  # fmt: skip

    def terraform(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [program, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    (tmp_path / "main.tf").write_text(CONFIG)
    (tmp_path / "states/mylab").mkdir(parents=True)
    assert terraform("init").returncode == 0
    assert terraform("apply", "-auto-approve").returncode == 0

    # the page's words on Swift: no lock, and no newer checksums
    (tmp_path / "backend_override.tf").write_text(documented(rehearsal, bucket))
    refused = terraform("init", "-migrate-state", "-force-copy", "-no-color")
    assert "Conditional object PUTs are not supported" in refused.stderr
    unlocked = documented(rehearsal, bucket).replace("use_lockfile                = true", "use_lockfile = false")
    assert "use_lockfile = false" in unlocked
    (tmp_path / "backend_override.tf").write_text(unlocked)
    moved = terraform("init", "-migrate-state", "-force-copy", "-no-color")
    assert moved.returncode == 0, moved.stderr
    assert terraform("state", "list").stdout == "terraform_data.something\n"
    assert "No changes" in terraform("plan", "-no-color").stdout
    shutil.rmtree(tmp_path / ".terraform")  # another admin's computer
    assert terraform("init", "-no-color").returncode == 0
    assert "No changes" in terraform("plan", "-no-color").stdout
