"""The machines of the rehearsal: repaired, not made again, and held by one checkout."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from recap import changed

if TYPE_CHECKING:
    from conftest import Rehearsal


def test_a_second_run_changes_nothing(rehearsal: Rehearsal) -> None:
    done = rehearsal.playbook("playbooks/rehearsal/up.yml", check=True)
    assert changed(done.stdout) == []


def test_provisioning_again_changes_nothing(rehearsal: Rehearsal) -> None:
    done = rehearsal.playbook("playbooks/provision.yml", check=True)
    assert changed(done.stdout) == []
    assert re.search("The machine was made by (Terraform|the stand-in for Terraform)", done.stdout)


def test_another_checkout_is_refused_and_told_who_holds_it(rehearsal: Rehearsal, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for part in ("inventory", "playbooks", "roles", "scripts"):
        shutil.copytree(rehearsal.root / part, other / part)
    shutil.copy(rehearsal.root / "ansible.cfg", other)
    done = rehearsal.playbook(
        str(other / "playbooks/rehearsal/up.yml"), env={"ANSIBLE_CONFIG": str(other / "ansible.cfg")}
    )
    assert done.returncode != 0
    told = " ".join((done.stdout + done.stderr).split())
    assert f"held by another checkout: {rehearsal.root} (user" in told
    assert "make down" in told
    assert not (other / "private").exists()
    assert rehearsal.ssh("login", "true").returncode == 0


def test_machines_know_each_other_and_reach_packages(rehearsal: Rehearsal) -> None:
    found = rehearsal.ssh("login", f"getent hosts cloud.rehearsal.test {rehearsal.fqdn} && apt-get update -qq")
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("10.99.0.10")
    assert "W:" not in found.stderr


def test_homes_are_closed_to_other_researchers(rehearsal: Rehearsal) -> None:
    listed = rehearsal.ssh("login", "su ada -c 'ls /home/grace'")
    assert "Permission denied" in listed.stderr


def test_a_killed_machine_is_booted_again(rehearsal: Rehearsal) -> None:
    rehearsal.ssh("login", "touch /root/leftover && sync", check=True)
    rehearsal.machine("login").kill()
    rehearsal.playbook("playbooks/rehearsal/up.yml", check=True)
    rehearsal.ssh("login", "rm /root/leftover", check=True)


def test_a_machine_that_stands_still_goes_on(rehearsal: Rehearsal) -> None:
    def power(state: str) -> int:
        done = rehearsal.playbook(
            "playbooks/rehearsal/power.yml", "-e", "machine=login", "-e", f"state={state}", check=True
        )
        return len(changed(done.stdout))

    since = rehearsal.ssh("login", "cut -d ' ' -f 22 /proc/1/stat", check=True).stdout
    assert [power("paused"), power("paused")] == [1, 0]
    assert rehearsal.ssh("login", "true").returncode != 0
    assert [power("started"), power("started")] == [1, 0]
    assert rehearsal.ssh("login", "cut -d ' ' -f 22 /proc/1/stat", check=True).stdout == since
