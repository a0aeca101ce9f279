"""What a process is told by its address and its environment."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote

from labtrack.errors import BadInputError
from labtrack.recorder.scheduler import NO_STEP, RANKS, SLURM, find_job

SCHEME = "labtrack"
JOB, ATTEMPT, JOB_TAGS, RESUME = "LABTRACK_JOB", "LABTRACK_ATTEMPT", "LABTRACK_JOB_TAGS", "LABTRACK_RESUME"
FLUSH = "LABTRACK_FLUSH_SECONDS"
SAME, CHILD = "same", "child"
JOB_RUN_TAG = "labtrack.job_run"
EXIT_CODE, END, REQUEUED = "labtrack.exit_code", "labtrack.end", "labtrack.requeued"  # tags: how a command ended
_SLURM_IDS = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_JOB_ID_HET_GROUP_0")
_MADE = re.compile(r"(?!pbs/|lsf/)[^/]+/([0-9]+)(?:_[0-9]+)?(?:\+[0-9]+)?/(?:[0-9]+|batch|interactive)(?:\.[0-9]+)?")
_FLUSH_SECONDS = 2.0


def root_of(address: str) -> Path:
    """The folder in `labtrack:///abs/path`.  Raises BadInputError."""
    rest = address.split(":", 1)[1]
    if not rest.startswith("///"):
        raise BadInputError(
            f"{address} is not absolute: where the training runs, a relative path may mean another folder.",
            f"{SCHEME}:///{rest.lstrip('/')}, with the whole path from / on.",
        )
    path = unquote(rest[2:])
    if "$" in path or "/~" in path:
        raise BadInputError(
            f"{address} holds what a shell would have replaced: nothing else does.",
            'in double quotes it does: export MLFLOW_TRACKING_URI="labtrack:///scratch/$USER/runs"',
        )
    if re.search(r"[?#\0\n\r]", path):
        raise BadInputError(f"{address} holds characters that no address of MLflow can have.", "name another folder.")
    root = Path(os.path.normpath(path))
    if root == Path("/"):
        raise BadInputError(f"{address} names no folder.", f"{SCHEME}:///scratch/me/runs")
    return root


def address_of(path: Path) -> str:
    """The address of a folder as MLflow's own code writes it, which drops two of the slashes."""
    return f"{SCHEME}:{quote(str(path))}"


def shortened(address: str) -> str:
    """An address in that form."""
    return address.replace(f"{SCHEME}:///", f"{SCHEME}:/", 1) if address.startswith(f"{SCHEME}:///") else address


@dataclass(frozen=True)
class Settings:
    """What the environment says.

    job: the key of the batch job; empty where nobody named one.  attempt: 0, 1, ...  tags: for every top-level run of
    the job, also of one of Slurm's that nobody named: so it can be asked how the job ended.
    resume: `same` or `child`.  silent: whether this process is another rank's, which records nothing.
    flush: seconds within which what was logged is on disk.
    """

    job: str = ""
    attempt: int = 0
    tags: Mapping[str, str] = field(default_factory=dict)
    resume: str = SAME
    silent: bool = False
    flush: float = _FLUSH_SECONDS
    notes: tuple[str, ...] = ()
    step: str = ""


def settings(env: Mapping[str, str]) -> Settings:
    """Reads the environment; what is wrong in it is a note, never an error."""
    notes: list[str] = []
    job = env.get(JOB, "").strip()
    if not _is_of_this_job(job, env):
        job = ""  # handed down to a job that a tracked one has submitted
    resume = env.get(RESUME, "").strip().lower() or SAME
    if resume not in (SAME, CHILD):
        notes.append(f"{RESUME}={resume} is neither {SAME} nor {CHILD}: {SAME} is meant")
        resume = SAME
    flush = _number(env, FLUSH, _FLUSH_SECONDS, notes)
    attempt = int(_number(env, ATTEMPT, 0, notes))
    ranks = [env[name].strip() for name in RANKS if env.get(name, "").strip()]
    silent = bool(job) and any(one not in ("", "0") for one in ranks)
    tags = _tags(env, notes) if job else _of_slurm(env)
    return Settings(job, attempt, tags, resume, silent, flush, tuple(notes), _step(env, job))


def _of_slurm(env: Mapping[str, str]) -> dict[str, str]:
    found = find_job(env)
    return found.unwatched_tags if found.scheduler == SLURM else {}


def _is_of_this_job(job: str, env: Mapping[str, str]) -> bool:
    """Whether a key as `labtrack run` makes it for Slurm (`narval/47_1/batch`) is of the job that this process is in.

    What was started outside of any (`labtrack run -- srun ...`) has a key of its own, `local/...`.
    """
    number = _MADE.fullmatch(job)
    here = {env.get(name, "").strip() for name in _SLURM_IDS} - {""}
    return number is None or not here or number[1] in here


def _step(env: Mapping[str, str], job: str) -> str:
    """The step of Slurm's that this process is in, where the job's key does not name one: each has runs of its own."""
    said = env.get("SLURM_STEP_ID", "").strip()
    named = job.rpartition("/")[2].partition(".")[0].isdecimal()
    return said if job and not named and said.isdecimal() and int(said) < NO_STEP else ""


def _number(env: Mapping[str, str], name: str, usual: float, notes: list[str]) -> float:
    said = env.get(name, "").strip()
    try:
        found = float(said) if said else usual
    except ValueError:
        found = -1.0
    if not 0 <= found < 1e9:  # noqa: PLR2004
        notes.append(f"{name}={said} is no number that can be used: {usual:g} is")
        return usual
    return found


def _tags(env: Mapping[str, str], notes: list[str]) -> dict[str, str]:
    name = env.get(JOB_TAGS, "").strip()
    if not name:
        return {}
    try:
        found = json.loads(Path(name).read_text(encoding="utf-8"))
        return {str(key): str(value) for key, value in found.items()}
    except (OSError, ValueError, AttributeError) as error:
        notes.append(f"{JOB_TAGS}: {name} can't be read ({error}); the runs get no tags of the job")
        return {}
