"""The same server for a lab whose people hold no key of the store (`lab_artifact_access: proxied`)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from admin import copied_lab

if TYPE_CHECKING:
    from conftest import Rehearsal

# An experiment of its own: an account that is made again is nobody the old one's experiment knows.
LOG_A_FILE = f"""
import os
import pathlib
import tempfile
import mlflow
mlflow.set_experiment("proxied {time.time_ns()}")
with mlflow.start_run() as run:
    mlflow.log_text("through the server", "notes/hello.txt")
    # more than two of the parts in which the server sends it on
    large = pathlib.Path(tempfile.mkdtemp(), "large.bin")
    large.write_bytes(os.urandom(20 * 2**20 + 1))
    mlflow.log_artifact(str(large))
    again = pathlib.Path(mlflow.artifacts.download_artifacts(run.info.artifact_uri + "/large.bin"))
    assert again.read_bytes() == large.read_bytes()
print(run.info.artifact_uri, mlflow.artifacts.load_text(run.info.artifact_uri + "/notes/hello.txt"), sep="|")
"""


@pytest.fixture(scope="module")
def proxied(rehearsal: Rehearsal, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the lab, proxied and with a user of its own, deployed; the lab as it was is deployed again after."""
    root = tmp_path_factory.mktemp("proxied")
    lab = copied_lab(rehearsal, root)
    file = lab / "group_vars/all/lab.yml"
    settings = yaml.safe_load(file.read_text()) | {"lab_artifact_access": "proxied", "lab_users": [{"name": "hedy"}]}

    def with_users(*users: dict[str, str]) -> None:
        file.write_text(yaml.safe_dump(settings | {"lab_users": list(users)}))
        rehearsal.playbook("playbooks/users.yml", "-i", str(lab), check=True)

    # what lab_artifact_access is for
    services = ("playbooks/deploy.yml", "--tags", "mlflow,nginx")
    try:
        file.write_text(yaml.safe_dump(settings))
        rehearsal.playbook(*services, "-i", str(lab), check=True)
        with_users({"name": "hedy"})
        yield root / "private" / "rehearsal" / "hedy" / "mlflow_env.sh"
        with_users({"name": "hedy", "state": "absent"})
    finally:
        # the copy has no keys at all, so the verification's account gets its own back
        rehearsal.playbook(*services, check=True)
        rehearsal.playbook("playbooks/users.yml", check=True)


def test_a_file_without_any_key_of_the_store_is_enough(rehearsal: Rehearsal, proxied: Path) -> None:
    text = proxied.read_text()
    assert "AWS_" not in text
    assert "MLFLOW_S3_ENDPOINT_URL" not in text
    rehearsal.ssh("login", "umask 077 && cat > /home/ada/hedy_env.sh && chown ada: /home/ada/hedy_env.sh",
                  stdin=text, check=True)  # fmt: skip
    rehearsal.ssh("login", "cat > /home/ada/log_a_file.py", stdin=LOG_A_FILE, check=True)
    said = rehearsal.ssh("login", f"su - ada -c '. ./hedy_env.sh && {rehearsal.PYTHON} log_a_file.py'", check=True)
    uri, content = said.stdout.strip().splitlines()[-1].split("|")
    assert uri.startswith("mlflow-artifacts:/")
    assert content == "through the server"


def test_the_object_is_in_the_bucket_all_the_same(rehearsal: Rehearsal, proxied: Path) -> None:
    assert proxied.exists()
    cloud = rehearsal.cloud(rehearsal.lab["lab_cloud"])
    names = [found.name for found in cloud.object_store.objects(rehearsal.lab["lab_bucket"])]
    assert any(name.endswith("notes/hello.txt") for name in names)
