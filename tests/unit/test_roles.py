"""The roles' argument_specs, defaults and READMEs say the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

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
