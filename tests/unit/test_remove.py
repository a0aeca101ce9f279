"""playbooks/remove.yml: what it is asked to take away, and that each role takes away what it writes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from labtrack.lab import Lab

ROLES = ["backup", "base", "certificates", "data_volume", "metrics", "mlflow", "monitoring", "nginx", "postgresql"]
# Written or read, and not to be taken away: why.
STAYS = {
    "/etc/postgresql/": "goes with the data: who is kept out of them is kept out",
    "/var/lib/postgresql": "is the data",
    "/etc/sudoers.d/labtrack": "is the admins' way to root",
    "/etc/systemd/system/multi-user.target.wants": "is systemd's",
    "/etc/ssh/sshd_config": "is Debian's",
    "/var/lib/apt/lists": "is apt's",
    "/var/log": "is Debian's",
}


def run(lab: Lab, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("ansible-playbook")
    named = ("-i", "localhost,", "-c", "local", "-e", f"ansible_python_interpreter={sys.executable}")
    command = [program, "playbooks/remove.yml", "-i", lab.folder, *named, "--limit", "localhost", *arguments]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, cwd=ROOT, capture_output=True, text=True, check=False
    )  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ([], "Nothing was named. To fix: -e remove=metrics, backup, alarms or all"),
        (
            ["-e", "remove=metrics,grafana"],
            "There is no grafana that could be taken away. To fix: -e remove=metrics, backup",
        ),
        (
            ["-e", "remove=all", "-e", "remove_data=another"],
            "The data of another are not here. To fix: -e remove_data=climate",
        ),
    ],
)
def test_what_is_not_known_is_refused_with_what_is(lab: Lab, asked: list[str], said: str) -> None:
    done = run(lab, *asked)
    assert done.returncode != 0
    assert said in " ".join(done.stdout.split()), done.stdout + done.stderr
    assert re.search(r"localhost +: ok=\d+ +changed=0 ", done.stdout)


def test_every_role_of_a_lab_s_machine_can_be_taken_away() -> None:
    plays = yaml.safe_load((ROOT / "playbooks/deploy.yml").read_text())
    deployed = {
        role["role"] if isinstance(role, dict) else role for play in plays for role in play.get("roles", [])
    } | {"backup", "metrics"}
    assert deployed == set(ROLES)
    assert [role for role in ROLES if not (ROOT / "roles" / role / "tasks/remove.yml").exists()] == []


@pytest.mark.parametrize("role", ROLES)
def test_role_takes_away_what_it_writes(role: str) -> None:
    """Each place in its tasks, as they are written there, or a folder above it, is in what takes it away again."""
    tasks = ROOT / "roles" / role / "tasks"
    taking = "".join(path.read_text() for path in tasks.glob("*remove*.yml"))
    if role == "base":
        taking += (ROOT / "roles/base/vars/main.yml").read_text()
    if role == "backup":
        taking += (tasks / "without_artifacts.yml").read_text()
    written = {
        place
        for path in tasks.glob("*.yml")
        if "remove" not in path.name
        for place in re.findall(r"(?:dest|path): \"?(/(?:etc|usr/local|opt|var)/[^\s\",}]+)", path.read_text())
    }
    left = [
        place
        for place in sorted(written)
        if not any(place.startswith(stays) for stays in STAYS)
        and not place.endswith("{{")  # named by the role itself
        and not place.endswith(".d")  # a folder of Debian's
        and not any(str(above) in taking for above in (Path(place), *list(Path(place).parents)[:-2]))
    ]
    assert left == []
