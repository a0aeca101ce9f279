"""Deployments that are killed: the next one ends where an undisturbed one does."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from recap import changed
from second_lab import StandIn

from labtrack import lab as labs
from labtrack import secrets

if TYPE_CHECKING:
    from conftest import Rehearsal

pytestmark = pytest.mark.timeout(1800)

NAME = "converge"
HERE = Path(__file__).parent
PROBE = (HERE / "disk_and_processes.py").read_text()
FIRST_PLAY = "Set up the machine"
TASKS = 118  # of a deployment that begins with nothing
KILLED = -9


class Machine(StandIn):
    """A lab whose deployments are killed."""

    def kill(self, task: int, seconds: float) -> None:
        """A deployment that ends with SIGKILL, that many tasks after its first play began."""
        plugin = {
            "ANSIBLE_CALLBACK_PLUGINS": str(HERE),
            "ANSIBLE_CALLBACKS_ENABLED": "killed_at",
            "KILLED_AT": f"{FIRST_PLAY}:{task}:{seconds}",
        }
        done = self.playbook("playbooks/deploy.yml", env=plugin, start_new_session=True)
        assert done.returncode == KILLED, f"was not killed at task {task}:\n{done.stdout[-3000:]}"

    def look(self, host: str | None = None) -> dict[str, list[str]]:
        """What runs otherwise than the disk says, and what is there."""
        if host:
            return json.loads(self.rehearsal.ssh(host, "python3 -", stdin=PROBE, check=True).stdout)
        return json.loads(self.ssh("sudo python3 -", input=PROBE))

    def change_every_secret(self) -> None:
        """New passwords, and another key for the object store."""
        lab = labs.load(self.dir)
        key = {name: value for name, value in secrets.read(lab).items() if name.startswith("secret_s3_")}
        tenant = self.rehearsal.cloud("climate")
        keys = f"/users/{tenant.current_user_id}/credentials/OS-EC2"
        where = {"service_type": "identity", "interface": "public"}
        project = {"tenant_id": tenant.current_project_id}
        made = tenant.session.post(keys, endpoint_filter=where, json=project).json()["credential"]
        new = {name: secrets.generate() for name in secrets.PASSWORDS}
        secrets.add(lab, {**new, secrets.S3_ACCESS: made["access"], secrets.S3_SECRET: made["secret"]})
        tenant.session.delete(f"{keys}/{key[secrets.S3_ACCESS]}", endpoint_filter=where)


def kills(seed: int, number: int) -> Iterator[tuple[int, float]]:
    """Tasks, and how far into them, from a seed; each later than the one before, or nothing new would be met."""
    chance = random.Random(seed)  # noqa: S311 - to be the same again
    tasks = sorted(chance.sample(range(5, TASKS), number))
    return ((task, chance.uniform(0, 1.5)) for task in tasks)


@pytest.fixture
def machine(rehearsal: Rehearsal, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Machine]:
    made = Machine(rehearsal, tmp_path, NAME, lab_image=request.param, lab_metrics=True)  # as the rehearsal's own lab
    tenant = rehearsal.cloud("climate")
    made.forget()
    made.remove(tenant)  # what a test that was killed has left
    try:
        yield made
    finally:
        made.forget()
        made.remove(tenant)


@pytest.mark.long  # each deployment takes minutes; what a killed one leaves in memory is in test_machine.py
@pytest.mark.parametrize("machine", ["Debian-12", "Debian-13"], indirect=True)
@pytest.mark.parametrize("seed", [1, 2])
def test_deployments_killed_forty_times_end_as_undisturbed_ones(machine: Machine, seed: int) -> None:
    """Kill a first deployment, and one that changes every secret, five times each."""
    machine.deploy("playbooks/provision.yml")
    for task, seconds in kills(seed, 5):
        machine.kill(task, seconds)
    machine.deploy("playbooks/deploy.yml")
    found, undisturbed = machine.look(), machine.look("server")
    assert found["otherwise"] == []
    assert set(found["there"]) ^ set(undisturbed["there"]) == set()

    machine.change_every_secret()
    for task, seconds in kills(seed + 1000, 5):
        machine.kill(task, seconds)
    machine.deploy()
    assert machine.look() == found
    assert changed(machine.deploy()) == []
