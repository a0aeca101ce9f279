"""Runs the playbooks that start the rehearsal and deploy the lab on it, and shows how far they are.

The demo, the tests and the benchmark all start the rehearsal through :func:`run_steps`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.status import Status

ROOT = Path(__file__).resolve().parents[2]
LAB = ROOT / "inventory" / "rehearsal"
PRIVATE = ROOT / "private" / "rehearsal"
LOGS = ROOT / "build" / "logs"

SHOWN_LINES_OF_A_FAILURE = 25


@dataclass(frozen=True)
class Step:
    """One playbook of the rehearsal.

    Attributes:
        title: what it does, as the person who waits reads it.
        playbook: its path, relative to the checkout.
        duration: how long it takes, in words.
        arguments: what the playbook is told beside.
    """

    title: str
    playbook: str
    duration: str
    arguments: tuple[str, ...] = ()

    @property
    def log(self) -> Path:
        """Where Ansible's whole output goes."""
        return LOGS / f"{Path(self.playbook).stem}.log"


REHEARSE = Step(
    "Start the rehearsal: machines with an OpenStack cloud and a Slurm cluster in them",
    "playbooks/rehearsal/up.yml",
    "3 to 6 minutes the first time, 1 to 2 from its cached image",
)
SITE = Step(
    "Deploy the lab: ansible-playbook site.yml -e auto_approve=true",
    "site.yml",
    "3 to 5 minutes the first time, 1 to 2 again",
    ("-e", "auto_approve=true"),  # a rehearsal's plan needs nobody's yes
)
TRAIN = Step(
    "Train as a researcher, in a Slurm job on a node without internet", "playbooks/rehearsal/train.yml", "a minute"
)


class StepFailed(Exception):
    """A playbook failed; the text shows its last words and names its log."""


def ansible_environment() -> dict[str, str]:
    """The environment for Ansible's commands: this checkout's configuration and programs."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {
        **os.environ,
        "PATH": path,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_FORCE_COLOR": "0",
    }


def run_steps(steps: Iterable[Step], console: Console) -> None:
    """Run playbooks one after the other, with a line for each play that ends.

    Raises:
        StepFailed: a playbook ended with an error.
    """
    steps = list(steps)
    for number, step in enumerate(steps, 1):
        console.print(f"[bold]\\[{number}/{len(steps)}] {step.title}[/]  [dim]({step.duration})[/]")
        run_step(step, console)


def run_step(step: Step, console: Console) -> None:
    """Run one playbook.  Raises StepFailed."""
    LOGS.mkdir(parents=True, exist_ok=True)
    command = [str(Path(sys.executable).parent / "ansible-playbook"), step.playbook, *step.arguments]
    with (
        open(step.log, "w", opener=_private_opener) as log,
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=ansible_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
        ) as ansible,
        _status(console) as status,
    ):
        assert ansible.stdout is not None  # noqa: S101 - Popen was told to make a pipe
        _follow(ansible.stdout, log, console, status)
    if ansible.returncode:
        raise StepFailed(_failure(step))


def _private_opener(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


@contextmanager
def _status(console: Console) -> Iterator[Status | None]:
    """A line that shows the current task, where there is a terminal to show it on."""
    if not console.is_terminal:
        yield None
        return
    with console.status("starting") as status:
        yield status


def _follow(lines: Iterable[str], log: TextIO, console: Console, status: Status | None) -> None:
    play, since = "", time.monotonic()

    def ended() -> None:
        if play:
            console.print(f"      {play}  [dim]{time.monotonic() - since:.0f} s[/]", highlight=False)

    for line in lines:
        log.write(line)
        log.flush()
        banner = re.match(r"(PLAY|TASK|PLAY RECAP)(?: \[(.*)\])? \**$", line)
        if not banner:
            continue
        kind, name = banner[1], banner[2] or ""
        if kind == "TASK":
            if status:
                status.update(f"{play}: {name}")
        else:
            ended()
            play, since = name if kind == "PLAY" else "", time.monotonic()


def _failure(step: Step) -> str:
    lines = step.log.read_text(errors="replace").splitlines()
    first = next((i for i, line in enumerate(lines) if re.match(r"\[ERROR\]|fatal: |ERROR!", line)), None)
    shown = lines[-SHOWN_LINES_OF_A_FAILURE:] if first is None else lines[first : first + SHOWN_LINES_OF_A_FAILURE]
    return "\n".join(
        [
            f"{step.playbook} failed:",
            *("  " + line for line in shown),
            f"All that it printed: {step.log.relative_to(ROOT)}",
            "To go on: fix what the message names and run the same command again; it continues where it stopped.",
            "To start anew: make down",
        ]
    )


def main() -> None:
    """Start the rehearsal and deploy the lab, with plain lines of progress."""
    try:
        run_steps([REHEARSE, SITE], Console(highlight=False, width=200))
    except StepFailed as failure:
        sys.exit(str(failure))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
