"""Which step of a workflow a process belongs to: a training started by a rule finds the run of its rule.

A workflow's tool (plugins/snakemake-logger-plugin-labtrack) sets LABTRACK_WORKFLOW to a file that it writes line by
line, JSON: `{"run": id}` is the workflow's own run; `{"run": id, "job": name, "commands": [...]}` is a step, with what
can be seen in the command line of a process that runs it.  Environments are shared by all steps, so the process looks
through those that it was started by.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VARIABLE = "LABTRACK_WORKFLOW"
_DEEPEST = 64  # processes above this one that are looked at


@dataclass(frozen=True)
class Step:
    """A run of a workflow.  job: the step's name, empty for the workflow's own.  commands: as described above."""

    run: str
    job: str = ""
    commands: tuple[str, ...] = ()


def note(path: Path, step: Step) -> None:
    """Adds a step to the file, which only its owner may read: commands may hold passwords.  Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "a", encoding="utf-8", errors="surrogateescape") as file:
        file.write(json.dumps({"run": step.run, "job": step.job, "commands": step.commands}) + "\n")


def parent_of(env: Mapping[str, str]) -> str:
    """The run that a new run of this process is nested in: its step's, else its workflow's; empty outside of one."""
    steps = _read(env.get(VARIABLE, ""))
    named = [one for one in steps if one.job]
    for words in _ancestors(os.getpid()):
        found = [one for one in named if any(_shows(words, command) for command in one.commands)]
        if len({one.job for one in found}) == 1:
            return found[-1].run  # the last attempt's
        if found:
            break  # two steps with one command: only the workflow is certain
    return next((one.run for one in steps if not one.job), "")


def _read(name: str) -> list[Step]:
    try:
        lines = Path(name).read_text(encoding="utf-8", errors="surrogateescape").splitlines() if name else []
    except OSError:
        return []
    return [step for step in map(_step, lines) if step]


def _step(line: str) -> Step | None:
    """A line; one that is being written has no end yet, and is none."""
    try:
        data: Any = json.loads(line)
        return Step(str(data["run"]), str(data.get("job", "")), tuple(map(str, data.get("commands", ()))))
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


def _ancestors(pid: int) -> Iterator[Sequence[str]]:
    """The command lines of a process and of those that it was started by, the nearest first.  Only Linux shows them."""
    for _ in range(_DEEPEST):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "surrogateescape").split("\0")[:-1]
            pid = int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            return
        yield words
        if pid <= 1:
            return


def _shows(words: Sequence[str], command: str) -> bool:
    """Whether a process runs the command: it is a word of its (`bash -c`), or the process itself (bash became it)."""
    command = command.strip()
    if any(word == command or (" " in word and command in word) for word in words if command):
        return True
    try:
        return bool(command) and list(words) == shlex.split(command)
    except ValueError:
        return False
