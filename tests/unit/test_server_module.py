"""The server's module, as far as it can be asked without MLflow; tests/abuse asks the deployed one."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import yaml
from conftest import ROOT

ROLE = ROOT / "roles/mlflow"
FILES = ROLE / "files"
SETTING = json.loads((ROOT / "schema/lab.json").read_text())["properties"]["lab_mlflow_version"]


def locks() -> dict[str, str]:
    """Of each lock of the role the version in its name, and the one that it installs."""
    found = {}
    for lock in FILES.glob("requirements-*.txt"):
        installed = re.search(r"^mlflow==(\S+)", lock.read_text(), re.MULTILINE)
        assert installed, lock
        found[lock.stem.removeprefix("requirements-")] = installed[1]
    return found


def table(module: str, name: str) -> tuple[str, ...]:
    """A module's constant, read and not imported: it imports MLflow."""
    (value,) = (
        one.value
        for one in ast.parse((FILES / "labtrack_server" / module).read_text()).body
        if isinstance(one, ast.Assign) and ast.unparse(one.targets[0]) == name
    )
    found: tuple[str, ...] = ast.literal_eval(value)
    return found


def test_each_version_that_is_offered_has_its_lock() -> None:
    assert locks() == {version: version for version in SETTING["enum"]}
    assert {one.stem.removeprefix("requirements-") for one in FILES.glob("requirements-*.in")} == set(SETTING["enum"])


def test_the_module_knows_the_versions_that_are_offered() -> None:
    assert set(table("application.py", "KNOWN_VERSIONS")) == set(SETTING["enum"])


def test_native_routes_were_compared_with_known_versions() -> None:
    """With another MLflow: read what decision 0025 names, run tests/differential, then add the number."""
    assert set(table("native.py", "COMPARED_VERSIONS")) <= set(SETTING["enum"])
    assert SETTING["default"] in table("native.py", "COMPARED_VERSIONS")


def test_the_role_takes_what_the_setting_offers() -> None:
    def read(path: Path) -> Any:
        return yaml.safe_load(path.read_text())

    option = read(ROLE / "meta/argument_specs.yml")["argument_specs"]["main"]["options"]["mlflow_version"]
    assert option["choices"] == SETTING["enum"]
    assert option["default"] == SETTING["default"] == read(ROLE / "defaults/main.yml")["mlflow_version"]


def test_clients_have_the_server_s_default_version() -> None:
    for name in ("client", "workflows"):
        assert f"\nmlflow=={SETTING['default']} " in (ROOT / f"requirements/{name}.txt").read_text()
