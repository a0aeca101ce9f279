"""The admin at work on the rehearsal's lab, with `labtrack` and OpenStack's own client as the witness."""

from __future__ import annotations

import json
import shutil
import subprocess
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import requests

if TYPE_CHECKING:
    from conftest import Rehearsal

PERSON = "kathleen"
KEYSTONE = "https://cloud.rehearsal.test:5000/v3"


def copied_lab(rehearsal: Rehearsal, root: Path) -> Path:
    """A copy of the lab with its keys and files, to try other settings and secrets on the same server; its folder."""
    shutil.copytree(rehearsal.private, root / "private" / "rehearsal")
    folder = Path(shutil.copytree(rehearsal.lab_dir, root / "inventory" / "rehearsal"))
    leave_the_servers_copy_alone(folder)
    return folder


def leave_the_servers_copy_alone(folder: Path) -> None:
    """What is tried in a copy of the lab is not handed to the lab's next run."""
    (folder / "group_vars/all/copy.yml").write_text("lab_copy: none\n")


class Kit:
    """The admin at work on the rehearsal's lab."""

    def __init__(self, rehearsal: Rehearsal) -> None:
        self.rehearsal = rehearsal
        self.lab = str(rehearsal.lab_dir)
        self.file = rehearsal.private / PERSON / "mlflow_env.sh"
        self.clouds = {"OS_CLIENT_CONFIG_FILE": str(rehearsal.private / "clouds.yaml")}

    def __call__(self, *arguments: str, **more: object) -> subprocess.CompletedProcess[str]:
        """labtrack, as typed."""
        return self.rehearsal.run("labtrack", *arguments, **more)

    def openstack(self, *arguments: str, cloud: str = "climate") -> str:
        """What OpenStack's own client says."""
        return self.rehearsal.run("openstack", "--os-cloud", cloud, *arguments, env=self.clouds, check=True).stdout

    def witnessed(self) -> set[str]:
        """The access keys that Keystone has, as OpenStack's own client lists them."""
        return set(self.openstack("ec2", "credentials", "list", "-f", "value", "-c", "Access").split())

    @cached_property
    def token(self) -> dict[str, str]:
        """A login token, issued by OpenStack's own client."""
        return json.loads(self.openstack("token", "issue", "-f", "json"))

    def seen(self) -> set[str]:
        """The same list, asked for plainly: the client takes three seconds of CPU to start."""
        answer = requests.get(
            f"{KEYSTONE}/users/{self.token['user_id']}/credentials/OS-EC2",
            headers={"X-Auth-Token": self.token["id"]},
            verify=str(self.rehearsal.private / "cloud-ca.pem"),
            timeout=60,
        )
        mine = [key for key in answer.json()["credentials"] if key["tenant_id"] == self.token["project_id"]]
        return {key["access"] for key in mine}

    def create(self, *more: str, **options: object) -> subprocess.CompletedProcess[str]:
        """labtrack env create, for the person of these tests."""
        return self("env", "create", self.lab, PERSON, *more, **options)

    def registered(self) -> dict[str, str]:
        """The access keys in the register, with their owners."""
        keys = json.loads((self.rehearsal.private / "keys.json").read_text())["keys"]
        return {key["access"]: key["owner"] for key in keys}
