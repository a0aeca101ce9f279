"""Settings of an older kit in lab.yml: every way in says what they are called now, and stops."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from commandline import labtrack
from conftest import LAB, ROOT

from labtrack import __version__, labfile, preflight
from labtrack import lab as labs
from labtrack.errors import BadInputError

RENAMED = {
    "lab_threads": {"to": "lab_mlflow_instances", "since": "0.2.0", "do": "Half as many are enough."},
    "lab_store": {"to": "lab_bucket", "since": "0.2.0"},
    "lab_swap": {"since": "0.3.0", "do": "Take it out: the server needs none."},
}


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The schema of a later kit."""
    schema = labfile.schema()
    schema["x-renamed"] = RENAMED
    schema["properties"]["lab_backup"]["x-renamed"] = {"store": {"to": "endpoint", "since": "0.2.0"}}
    monkeypatch.setattr(labfile, "schema", lambda: schema)
    return schema


def said(lab_dir: Path, data: dict[str, Any]) -> list[tuple[str, str]]:
    labs.lab_yml(lab_dir).write_text(yaml.safe_dump(data, sort_keys=False))
    problems = labfile.check(labfile.read(labs.lab_yml(lab_dir)), lab_dir, lab_dir.parents[1])
    assert all(problem.line for problem in problems)
    return [(problem.what, problem.hint) for problem in problems]


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize(
    ("more", "what", "hint"),
    [
        (
            {"lab_threads": 4},
            "lab_threads is called lab_mlflow_instances since 0.2.0.",
            "Rename it in lab.yml. Half as many are enough.",
        ),
        (
            {"lab_threads": 4, "lab_mlflow_instances": 2},
            "lab_threads is called lab_mlflow_instances since 0.2.0, and that is there, too.",
            "Take lab_threads out. Half as many are enough.",
        ),
        ({"lab_swap": 4}, "lab_swap is no setting any more since 0.3.0.", "Take it out: the server needs none."),
        ({"lab_treads": 4}, "There is no setting lab_treads.", "Did you mean lab_"),
        ({"lab_gc_day": 4}, "There is no setting lab_gc_day.", "Did you mean lab_gc_days?"),
    ],
)  # fmt: skip
def test_an_older_name(lab_dir: Path, more: dict[str, Any], what: str, hint: str) -> None:
    ((said_what, said_hint),) = said(lab_dir, {**LAB, **more})
    assert said_what == what and said_hint.startswith(hint)


@pytest.mark.usefixtures("later")
def test_an_older_name_of_a_required_setting_is_told_once(lab_dir: Path) -> None:
    data = {("lab_store" if key == "lab_bucket" else key): value for key, value in LAB.items()}
    assert said(lab_dir, data) == [("lab_store is called lab_bucket since 0.2.0.", "Rename it in lab.yml.")]


@pytest.mark.usefixtures("later")
def test_an_older_name_in_a_setting(lab_dir: Path) -> None:
    backup = {"store": "https://s3.example.org", "bucket": "climate-backup"}
    found = [what for what, _ in said(lab_dir, {**LAB, "lab_backup": backup})]
    assert found == ["lab_backup.store is called lab_backup.endpoint since 0.2.0."]


@pytest.mark.usefixtures("later")
def test_preflight_and_all_that_loads_the_lab_stop(lab_dir: Path) -> None:
    said(lab_dir, {**LAB, "lab_threads": 4})
    rows = [row for row in preflight.check(lab_dir) if row.check.startswith("lab.yml:")]
    assert [(row.status.value, row.seen.split(" since")[0]) for row in rows] == [
        ("failed", "lab_threads is called lab_mlflow_instances")
    ]
    with pytest.raises(BadInputError, match="lab_threads is called lab_mlflow_instances since"):
        labs.load(lab_dir)


def test_a_misspelt_name_stops_what_a_deploy_asks_first(lab_dir: Path) -> None:
    """The real program, as playbooks/deploy.yml calls it."""
    said(lab_dir, {**LAB, "lab_gc_day": 4})
    for command in (["release", "check"], ["secrets", "ensure"], ["status"], ["preflight", "--local"]):
        done = labtrack(*command, lab_dir)
        assert done.returncode == 2 and "lab_gc_days" in done.stdout + done.stderr, command


def tables(schema: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Each x-renamed of the schema, with the settings beside it."""
    found = [(schema["x-renamed"], schema["properties"])] if "x-renamed" in schema else []
    for inner in schema.get("properties", {}).values():
        found += tables(inner) + tables(inner.get("items", {}))
    return found


def test_the_table_names_settings_and_versions() -> None:
    schema = json.loads((ROOT / "schema/lab.json").read_text())
    for renamed, properties in tables(schema):
        for old, about in renamed.items():
            assert old not in properties and set(about) <= {"to", "since", "do"}
            assert about["to"] in properties if "to" in about else about["do"]
            assert re.fullmatch(r"\d+\.\d+\.\d+", about["since"])
            assert tuple(map(int, about["since"].split("."))) <= tuple(map(int, __version__.split(".")[:3]))


@pytest.mark.usefixtures("later")
def test_the_reference_lists_older_names() -> None:
    import importlib.util

    spec = importlib.util.spec_from_file_location("docs_script", ROOT / "scripts/dev/docs.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = module.lab_page()
    assert "## Renamed and removed" in page
    assert "| `lab_threads` | 0.2.0 | `lab_mlflow_instances`. Half as many are enough. |" in page
    assert "| `lab_swap` | 0.3.0 | Take it out: the server needs none. |" in page
