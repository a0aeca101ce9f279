"""`import labtrack`, as a program of somebody else's uses it."""

from __future__ import annotations

import ast
import inspect
import logging
import subprocess
import sys

import pytest
from conftest import ROOT

import labtrack
from labtrack import library
from labtrack.sync.report import Report

PACKAGE = ROOT / "scripts" / "labtrack"


def python(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_labtrack_imports_nothing_else() -> None:
    loaded = python("import sys, labtrack; print(*sys.modules)").split()
    assert {one for one in loaded if one.startswith(("labtrack", "requests", "click", "yaml"))} == {"labtrack"}


@pytest.mark.parametrize("before", ["", "import labtrack.sync.main; ", "from labtrack.sync import Options; "])
def test_sync_is_a_call_whatever_was_imported_before(before: str) -> None:
    script = (
        before
        + "import labtrack, inspect; print(callable(labtrack.sync), *inspect.signature(labtrack.sync).parameters)"
    )
    assert python(script) == "True source destination options shows"
    assert inspect.signature(labtrack.sync) == inspect.signature(library.sync)


def test_everything_that_is_offered_is_there_and_documented() -> None:
    assert set(labtrack.__all__) < set(dir(labtrack))
    for name in labtrack.__all__:
        assert getattr(labtrack, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'none'"):
        labtrack.none  # noqa: B018


def test_errors_are_raised_as_such() -> None:
    with pytest.raises(labtrack.BadInputError) as raised:
        labtrack.sync("none.db", "https://ada:secret@h.org")
    assert raised.value.code == labtrack.Exit.BAD_INPUT and raised.value.hint
    with pytest.raises(labtrack.LabtrackError, match=r"none\.db"):
        labtrack.verify("none.db", "https://h.org")


def test_keyboard_interrupt_goes_through_and_the_rest_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    report = Report("s", "d", notes=["a note"], failed={"run": ["why", "else"]})
    monkeypatch.setattr(library, "_sync", lambda *_: report)
    with caplog.at_level(logging.INFO, "labtrack"):
        assert labtrack.sync("s", "d") is report
    assert [(one.levelname, one.message) for one in caplog.records] == [
        ("WARNING", "a note"),
        ("ERROR", "run run: why; else"),
    ]
    report.interrupted = True
    with pytest.raises(KeyboardInterrupt):
        labtrack.sync("s", "d")


# what is a process of its own: the one beside a job, that of a check that may hang, and the parents of commands
OWN_PROCESSES = [
    PACKAGE / one for one in ("run/companion.py", "run/signals.py", "doctor/bounded.py", "provision/child.py")
]


def test_nothing_but_the_command_line_ends_the_process_or_takes_signals() -> None:
    of_a_child = {(PACKAGE / "doctor" / "bounded.py", "_exit")}  # a fork that runs nothing of the caller
    for file in PACKAGE.rglob("*.py"):
        if file.is_relative_to(PACKAGE / "cli") or file in OWN_PROCESSES:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if (file, node.attr) in of_a_child:
                    continue
                assert (node.value.id, node.attr) not in {
                    ("os", "_exit"), ("os", "abort"), ("sys", "exit"), ("signal", "signal"), ("logging", "basicConfig"),
                }, f"{file}:{node.lineno}"  # fmt: skip
