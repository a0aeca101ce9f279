"""Which step of a workflow a process belongs to."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from labtrack.recorder.workflow import VARIABLE, Step, note, parent_of

ASK = "import os; from labtrack.recorder.workflow import parent_of; print(parent_of(os.environ))"


def _asked(file: Path, *command: str) -> str:
    env = {**os.environ, VARIABLE: str(file), "ASK": ASK, "PYTHON": sys.executable}
    return subprocess.run(command, env=env, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


@pytest.mark.parametrize(
    ("command", "script"),
    [
        ('"$PYTHON" -c "$ASK"; true', "set -euo pipefail; {}"),
        ('\n        "$PYTHON" -c "$ASK"\n        true\n    ', "set -euo pipefail; {}"),
        ('"$PYTHON" -c "$ASK" 2>&1 | cat', "{}"),
        ('for one in 1; do "$PYTHON" -c "$ASK"; done', "module load x 2>/dev/null || true; {}"),
    ],
)
def test_a_step_is_known_by_the_command_of_its_shell(tmp_path: Path, command: str, script: str) -> None:
    file = tmp_path / "jobs" / "one.jsonl"
    for step in (Step("workflow"), Step("other", "other 1", ("other:", "echo 1")), Step("mine", "mine 2", (command,))):
        note(file, step)
    assert _asked(file, "bash", "-c", script.format(command)) == "mine"


def test_a_step_is_known_by_its_process_where_the_shell_became_it(tmp_path: Path) -> None:
    program = tmp_path / "ask.py"
    program.write_text(ASK)
    command = f"{sys.executable} {program} --seed 1"
    note(tmp_path / "file", Step("workflow"))
    note(tmp_path / "file", Step("mine", "train 1", (command,)))
    assert _asked(tmp_path / "file", "bash", "-c", f"exec {command}") == "mine"
    assert _asked(tmp_path / "file", "bash", "-c", f"exec {command}0") == "workflow"


def test_a_step_on_a_cluster_is_known_by_snakemakes_own_process(tmp_path: Path) -> None:
    for seed in ("1", "11"):
        note(tmp_path / "file", Step(f"run {seed}", f"train {seed}", (f"train:seed={seed}", "never seen")))
    assert _asked(tmp_path / "file", sys.executable, "-c", ASK, "--target-jobs", "train:seed=1") == "run 1"


def test_of_two_steps_with_one_command_the_workflow_is_the_parent_and_of_two_tries_the_last(tmp_path: Path) -> None:
    command = '"$PYTHON" -c "$ASK"; true'
    note(tmp_path / "file", Step("workflow"))
    note(tmp_path / "file", Step("first try", "train 1", (command,)))
    note(tmp_path / "file", Step("second try", "train 1", (command,)))
    assert _asked(tmp_path / "file", "bash", "-c", command) == "second try"
    note(tmp_path / "file", Step("another", "train 2", (command,)))
    assert _asked(tmp_path / "file", "bash", "-c", command) == "workflow"


@pytest.mark.parametrize(
    "text", ["", "{", '{"run": "w', "[1]\n", "3\nnull\n", '{"run": "x", "job": "j", "commands": 3}\n', "\xff\xfe"]
)
def test_what_is_no_step_is_passed_over(tmp_path: Path, text: str) -> None:
    file = tmp_path / "file"
    assert parent_of({VARIABLE: str(file)}) == ""
    file.write_text(text, encoding="latin-1")
    assert parent_of({VARIABLE: str(file)}) == ""
    file.write_text(f'{{"run": "w"}}\n{text}', encoding="latin-1")
    assert parent_of({VARIABLE: str(file)}) == "w"
    assert parent_of({VARIABLE: str(tmp_path)}) == parent_of({VARIABLE: ""}) == parent_of({}) == ""


def test_only_its_owner_reads_the_commands(tmp_path: Path) -> None:
    note(tmp_path / "file", Step("workflow"))
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600
