"""The roles' argument_specs, defaults and READMEs say the same."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes import SSH_KEY

ROOT = Path(__file__).resolve().parents[2]
ROLES = ROOT / "roles"
NAMES = sorted(path.parent.parent.name for path in ROLES.glob("*/meta/argument_specs.yml"))
INTERNAL = re.compile(r"^__[a-z]+_|^[a-z_]+_$")


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text()) if path.exists() else None


def options(role: str) -> dict[str, dict[str, Any]]:
    return load(ROLES / role / "meta/argument_specs.yml")["argument_specs"]["main"]["options"]


def defaults(role: str) -> dict[str, Any]:
    return load(ROLES / role / "defaults/main.yml") or {}


def test_every_role_says_what_it_takes() -> None:
    assert sorted(path.name for path in ROLES.iterdir() if path.is_dir()) == NAMES


@pytest.mark.parametrize("role", NAMES)
def test_defaults_are_those_of_the_specs(role: str) -> None:
    said = {name: option["default"] for name, option in options(role).items() if "default" in option}
    assert defaults(role) == said


@pytest.mark.parametrize("role", NAMES)
def test_options_without_a_default_are_required(role: str) -> None:
    open_ended = [n for n, option in options(role).items() if "default" not in option and not option.get("required")]
    assert open_ended == []


@pytest.mark.parametrize("role", NAMES)
def test_variables_carry_the_role_s_name(role: str) -> None:
    assert [name for name in options(role) if not name.startswith(f"{role}_")] == []
    internals = load(ROLES / role / "vars/main.yml") or {}
    assert [name for name in internals if not name.startswith(f"__{role}_")] == []


@pytest.mark.parametrize("role", NAMES)
def test_every_option_is_described(role: str) -> None:
    assert [name for name, option in options(role).items() if not option.get("description")] == []


@pytest.mark.parametrize("role", NAMES)
def test_the_readme_lists_the_variables_and_says_what_a_second_run_does(role: str) -> None:
    readme = (ROLES / role / "README.md").read_text()
    assert [name for name in options(role) if f"`{name}`" not in readme] == []
    assert "## Idempotence" in readme


@pytest.mark.parametrize("role", NAMES)
def test_every_variable_is_used(role: str) -> None:
    places = (
        path for folder in ("tasks", "templates", "vars", "handlers") for path in (ROLES / role / folder).rglob("*")
    )
    used = "\n".join(path.read_text() for path in places if path.is_file())
    assert [name for name in options(role) if not re.search(rf"\b{name}\b", used)] == []


def test_a_lab_that_brings_its_machine_has_none_made(tmp_path: Path) -> None:
    """playbooks/provision.yml as site.yml has it; nothing answers at the machine's address."""
    lab = tmp_path / "inventory" / "own"
    (lab / "group_vars" / "all").mkdir(parents=True)
    (tmp_path / "private").mkdir()
    example = yaml.safe_load((ROOT / "inventory/rehearsal/group_vars/all/lab.yml").read_text())
    named = {key: value for key, value in example.items() if not key.endswith("_file") and key != "lab_flavor"}
    named |= {"lab_name": "own", "lab_admins": [{"name": "ada", "ssh_keys": [SSH_KEY]}]}
    (lab / "group_vars/all/lab.yml").write_text(yaml.safe_dump(named))
    server = {"hosts": {"server": {"ansible_host": "127.0.0.1", "ansible_port": 9}}}
    (lab / "hosts.yml").write_text(yaml.safe_dump(dict.fromkeys(("mlflow", "nginx", "postgresql"), server)))
    program = Path(sys.executable).with_name("ansible-playbook")
    done = subprocess.run(
        [program, "-i", lab, "playbooks/provision.yml"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "The machine was made by the lab itself." in done.stdout, done.stdout + done.stderr
    assert "127.0.0.1 port 9" in done.stdout  # it went on to the machine
