"""Whether `labtrack.provision` reads plans and states as the program itself does; needs no provider."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import runner

from labtrack.provision.plan import plan_of, state_of

BEFORE = """
resource "terraform_data" "a" { input = "1" }
resource "terraform_data" "b" { triggers_replace = "1" }
module "inside" { source = "./inside" }
output "told" { value = "1" }
"""
A, B, C, INSIDE = "terraform_data.a", "terraform_data.b", "terraform_data.c", "module.inside.terraform_data.x"
# What is changed in it; what the plan creates and deletes.
CHANGES = {
    "nothing": (("", ""), set(), set()),
    "update": (('input = "1"', 'input = "2"'), set(), set()),
    "replace": (('triggers_replace = "1"', 'triggers_replace = "2"'), {B}, {B}),
    "gone": (('resource "terraform_data" "b" { triggers_replace = "1" }', ""), set(), {B}),
    "moved": (('"terraform_data" "a"', '"terraform_data" "c"'), set(), set()),
    "output": (('value = "1"', 'value = "2"'), set(), set()),
    "forgotten": (('resource "terraform_data" "b" { triggers_replace = "1" }',
                   "removed {\n from = terraform_data.b\n lifecycle {\n destroy = false\n }\n}"), set(), set()),
}  # fmt: skip


@pytest.mark.parametrize("kind", CHANGES)
def test_changes_are_those_of_its_own_exit_code(program: str, tmp_path: Path, kind: str) -> None:
    (old, new), created, deleted = CHANGES[kind]
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside/main.tf").write_text('resource "terraform_data" "x" {}\n')
    (tmp_path / "main.tf").write_text(BEFORE)
    run = runner(program, tmp_path)
    assert run("init", "-input=false").returncode == 0
    assert run("apply", "-auto-approve", "-input=false").returncode == 0
    assert set(state_of(json.loads(run("show", "-json").stdout))) == {A, B, INSIDE}
    moved = f"moved {{\n from = {A}\n to = {C}\n}}\n" if kind == "moved" else ""
    (tmp_path / "main.tf").write_text(BEFORE.replace(old, new) + moved)
    code = run("plan", "-input=false", "-out=plan", "-detailed-exitcode").returncode
    found = plan_of(json.loads(run("show", "-json", "plan").stdout))
    assert code in (0, 2) and found.changes is (code == 2)
    assert (found.created, found.deleted) == (created, deleted)
    assert set(found.prior) - {C} >= {B, INSIDE}


def test_taking_over_is_a_change(program: str, tmp_path: Path) -> None:
    taken = 'resource "terraform_data" "a" {}\nimport {\n to = terraform_data.a\n id = "1"\n}\n'
    (tmp_path / "main.tf").write_text(taken)
    run = runner(program, tmp_path)
    assert run("init", "-input=false").returncode == 0
    assert run("plan", "-input=false", "-out=plan", "-detailed-exitcode").returncode == 2
    assert plan_of(json.loads(run("show", "-json", "plan").stdout)).changes


def test_without_a_state_nothing_is_looked_after(program: str, tmp_path: Path) -> None:
    assert state_of(json.loads(runner(program, tmp_path)("show", "-json").stdout)) == {}
