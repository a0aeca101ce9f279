"""Asking Slurm's own programs, with bounded patience and words for what goes wrong."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence

from labtrack.errors import LabtrackError

PATIENCE = 30.0  # seconds
AT_THE_END = 15.0  # seconds, of the 30 that Slurm by default leaves a job between its signals (KillWait)
REQUEUED = frozenset(("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "CONFIGURING"))
_GONE = re.compile(r"(?i)invalid job id|not found|unknown job")
# in these the others can't be asked: a job's own variables choose what is shown
_CHOOSING = ("SACCT_FORMAT", "SQUEUE_FORMAT", "SQUEUE_FORMAT2", "SQUEUE_STATES", "SLURM_CLUSTERS", "SACCT_FEDERATION")


def has(program: str) -> bool:
    """Whether a program of Slurm's is on the PATH."""
    return shutil.which(program) is not None


def ask(command: Sequence[str], patience: float = PATIENCE) -> str:
    """What a program says.  Raises LabtrackError where it is missing, fails or takes too long."""
    env = {name: value for name, value in os.environ.items() if name not in _CHOOSING}
    env.update(SLURM_TIME_FORMAT="%s", LC_ALL="C")
    try:
        done = subprocess.run(
            list(command), capture_output=True, timeout=patience, check=False, stdin=subprocess.DEVNULL, env=env
        )
    except FileNotFoundError:
        raise LabtrackError(
            f"{command[0]} is not on the PATH.", "run this on a login node, or load the module that brings Slurm."
        ) from None
    except subprocess.TimeoutExpired:
        raise LabtrackError(
            f"{command[0]} gave no answer within {patience:.0f} s.", "Slurm is busy or down: run it again later."
        ) from None
    except OSError as error:
        raise LabtrackError(f"{command[0]} can't be run: {error.strerror}.", f"look at `type {command[0]}`.") from None
    if done.returncode:
        said = " ".join(done.stderr.decode("utf-8", "replace").split())[:300] or f"exit code {done.returncode}"
        raise LabtrackError(f"{command[0]} failed: {said}.", f"try it by hand: {' '.join(command[:3])} ...")
    return done.stdout.decode("utf-8", "replace")


def show_job(job: str, patience: float = PATIENCE) -> dict[str, str] | None:
    """What `scontrol` knows of a job; None where it knows none of that id any more.  Raises LabtrackError."""
    try:
        said = ask(["scontrol", "show", "job", "-o", job], patience)
    except LabtrackError as error:
        if _GONE.search(error.what):
            return None
        raise
    return fields_of(next((line for line in said.splitlines() if "JobId=" in line), "")) or None


def fields_of(line: str) -> dict[str, str]:
    """`Name=value` of a line of scontrol; a value may have blanks in it."""
    found = re.findall(r"(?:^|\s)([A-Za-z][A-Za-z0-9/:_]*)=(.*?)(?=\s[A-Za-z][A-Za-z0-9/:_]*=|\s*$)", line)
    fields: dict[str, str] = {}
    for name, value in found:
        fields.setdefault(name, value)
    return fields


def was_requeued(job: str, attempt: int, env: Mapping[str, str]) -> bool:
    """Whether a job that is ending here is to run again: False where nobody can say in time."""
    if not env.get("SLURM_JOB_ID") or not has("scontrol"):
        return False
    try:
        found = show_job(job, AT_THE_END)
    except LabtrackError:
        return False
    if found is None:
        return False
    restarts = found.get("Restarts", "")
    return found.get("JobState", "") in REQUEUED or (restarts.isdecimal() and int(restarts) > attempt)


def settings() -> dict[str, str]:
    """Slurm's configuration, as `scontrol show config` has it.  Raises LabtrackError."""
    lines = (line.partition("=") for line in ask(["scontrol", "show", "config"]).splitlines())
    return {name.strip(): value.strip() for name, equals, value in lines if equals}
