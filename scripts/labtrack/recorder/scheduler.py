"""The job that a process runs in: its key, its attempt, its rank and what is worth knowing of it, from the environment.

Slurm is known in full.  PBS and LSF give a key and a few tags, without promises.  Without a scheduler a job is
`local/<random>`.
"""

from __future__ import annotations

import contextlib
import datetime
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

JOB_TAG, ATTEMPT_TAG = "labtrack.job", "labtrack.attempt"
LONGEST = 5000  # characters of a tag, as MLflow takes them
STEP = "slurm.step_id"
RANKS = ("SLURM_PROCID", "RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
NO_STEP = 2**32 - 100  # Slurm's numbers for what is no step of srun's are above
SLURM, PBS, LSF, LOCAL = "slurm", "pbs", "lsf", "local"
BATCH, INTERACTIVE = "batch", "interactive"
_INTERACTIVE = str(2**32 - 6)
_UNWATCHED = "0"  # as a number in keys; calls of `labtrack run` have none, 1, 2, ...
_TEXT = {
    "SLURM_CLUSTER_NAME": "slurm.cluster",
    "SLURM_JOB_ID": "slurm.job_id",
    "SLURM_ARRAY_JOB_ID": "slurm.array_job_id",
    "SLURM_ARRAY_TASK_ID": "slurm.array_task_id",
    "SLURM_ARRAY_TASK_COUNT": "slurm.array_task_count",
    "SLURM_RESTART_COUNT": "slurm.restart_count",
    "SLURM_HET_SIZE": "slurm.het_size",
    "SLURM_STEP_ID": "slurm.step_id",
    "SLURM_JOB_NAME": "slurm.job_name",
    "SLURM_JOB_PARTITION": "slurm.partition",
    "SLURM_JOB_QOS": "slurm.qos",
    "SLURM_JOB_ACCOUNT": "slurm.account",
    "SLURM_JOB_RESERVATION": "slurm.reservation",
    "SLURM_JOB_NODELIST": "slurm.nodes",
    "SLURM_JOB_NUM_NODES": "slurm.node_count",
    "SLURM_NTASKS": "slurm.tasks",
    "SLURM_CPUS_PER_TASK": "slurm.cpus_per_task",
    "SLURM_GPUS_ON_NODE": "slurm.gpus_on_node",
    "SLURM_JOB_GPUS": "slurm.gpus",
    "SLURM_MEM_PER_NODE": "slurm.memory_per_node_mb",
    "SLURM_MEM_PER_CPU": "slurm.memory_per_cpu_mb",
    "SLURM_MEM_PER_GPU": "slurm.memory_per_gpu_mb",
    "SLURM_SUBMIT_DIR": "slurm.submit_dir",
    "SLURM_SUBMIT_HOST": "slurm.submit_host",
    "SLURM_JOB_DEPENDENCY": "slurm.dependency",
    "SLURM_JOB_COMMENT": "slurm.comment",
}
_TIMES = {"SLURM_JOB_START_TIME": "slurm.start", "SLURM_JOB_END_TIME": "slurm.planned_end"}
_OTHERS = {
    PBS: {
        "PBS_JOBID": "pbs.job_id", "PBS_JOBNAME": "pbs.job_name", "PBS_QUEUE": "pbs.queue",
        "PBS_O_WORKDIR": "pbs.submit_dir", "PBS_O_HOST": "pbs.submit_host", "PBS_ARRAY_INDEX": "pbs.array_index",
    },
    LSF: {
        "LSB_JOBID": "lsf.job_id", "LSB_JOBNAME": "lsf.job_name", "LSB_QUEUE": "lsf.queue",
        "LS_SUBCWD": "lsf.submit_dir", "LSB_SUB_HOST": "lsf.submit_host", "LSB_HOSTS": "lsf.hosts",
        "LSB_JOBINDEX": "lsf.array_index",
    },
}  # fmt: skip
_KEY = re.compile(r"(?P<cluster>[^/\s]+)/(?P<job>[^/\s]+)/(?P<step>[0-9]+|batch|interactive)(?:\.(?P<number>[0-9]+))?")
_SLURM_ID = re.compile(r"[0-9]+(?:_[0-9]+)?(?:\+[0-9]+)?")


@dataclass(frozen=True)
class Job:
    """A job, or a step of one.

    scheduler: slurm, pbs, lsf or local.  base: `<cluster>/<array job or job id>[_task][+het]`.  step: `batch` or a
    number.  attempt: how often it was requeued.  rank: of this process.  number: which call of `labtrack run` in this
    step it is.
    """

    scheduler: str
    base: str
    step: str
    attempt: int = 0
    rank: int = 0
    number: int = 0
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What tells the job's runs from all others: `<cluster>/<job>/<step>`."""
        if self.scheduler == LOCAL:
            return self.base
        return f"{self.base}/{self.step}" + (f".{self.number}" if self.number else "")

    @property
    def id(self) -> str:
        """The job's id as the scheduler prints it."""
        return self.base.partition("/")[2]

    @property
    def all_tags(self) -> dict[str, str]:
        """What a run of it is found and judged by, and what is worth knowing."""
        return {**self.tags, JOB_TAG: self.key, ATTEMPT_TAG: str(self.attempt)}

    @property
    def unwatched_tags(self) -> dict[str, str]:
        """The same where no `labtrack run` sees the command end."""
        found = {**self.all_tags, JOB_TAG: f"{self.base}/{self.step}.{_UNWATCHED}"}
        return {name: value[:LONGEST] for name, value in found.items()}

    def numbered(self, number: int) -> Job:
        """The same job, another call of `labtrack run`."""
        return replace(self, number=number)


@dataclass(frozen=True)
class Key:
    """A key taken apart.

    step: `batch`, `interactive` or a number; empty for a job without a scheduler.  unwatched: whether the run was
    recorded without `labtrack run`, so that nobody saw its command end.
    """

    cluster: str
    job: str
    step: str = ""
    unwatched: bool = False

    @property
    def is_slurms(self) -> bool:
        """Whether Slurm can be asked about it."""
        return self.cluster not in (LOCAL, PBS, LSF) and bool(_SLURM_ID.fullmatch(self.job))


def parse_key(text: str) -> Key | None:
    """The parts of a run's tag `labtrack.job`; None where somebody else wrote it."""
    found = _KEY.fullmatch(text.strip())
    if found:
        return Key(found["cluster"], found["job"], found["step"], found["number"] == _UNWATCHED)
    cluster, _, rest = text.strip().partition("/")
    return Key(LOCAL, rest) if cluster == LOCAL and re.fullmatch(r"[\w.-]+", rest) else None


def find_job(env: Mapping[str, str]) -> Job:
    """The job that this environment is of."""
    rank = rank_of(env)
    if env.get("SLURM_JOB_ID"):
        return _slurm(env, rank)
    if env.get("PBS_JOBID"):
        number, _, server = env["PBS_JOBID"].partition(".")
        index = env.get("PBS_ARRAY_INDEX") or env.get("PBS_ARRAYID", "")
        base = f"{PBS}/{_plain(number.partition('[')[0] or server)}" + (f"_{_plain(index)}" if index else "")
        return Job(PBS, base, BATCH, rank=rank, tags=_others(env, PBS))
    if env.get("LSB_JOBID"):
        index = env.get("LSB_JOBINDEX", "0")
        base = f"{LSF}/{_plain(env['LSB_JOBID'])}" + (f"_{_plain(index)}" if index not in ("", "0") else "")
        return Job(LSF, base, BATCH, rank=rank, tags=_others(env, LSF))
    return Job(LOCAL, f"{LOCAL}/{secrets.token_hex(8)}", BATCH, rank=rank)


def rank_of(env: Mapping[str, str]) -> int:
    """The process's rank: 0 is the one that records.

    Launchers nest (`srun torchrun`), so each that says something has to say 0.
    """
    return max((_number(env.get(name, "")) for name in RANKS), default=0)


def _slurm(env: Mapping[str, str], rank: int) -> Job:
    number = env["SLURM_JOB_ID"]
    if env.get("SLURM_ARRAY_JOB_ID") and env.get("SLURM_ARRAY_TASK_ID"):
        number = f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    elif _number(env.get("SLURM_HET_SIZE", "")):
        leader = env.get("SLURM_JOB_ID_HET_GROUP_0", number)
        groups = range(_number(env["SLURM_HET_SIZE"]))
        found = [one for one in groups if env.get(f"SLURM_JOB_ID_HET_GROUP_{one}") == number]
        number = f"{leader}+{found[0] if found else 0}"
    said = env.get("SLURM_STEP_ID", "")
    step = said if said.isdecimal() and int(said) < NO_STEP else INTERACTIVE if said == _INTERACTIVE else BATCH
    return Job(
        SLURM,
        f"{_plain(env.get('SLURM_CLUSTER_NAME') or SLURM)}/{_plain(number)}",
        step,
        _number(env.get("SLURM_RESTART_COUNT", "")),
        rank,
        tags=_slurm_tags(env),
    )


def _slurm_tags(env: Mapping[str, str]) -> dict[str, str]:
    tags = {tag: env[name] for name, tag in _TEXT.items() if env.get(name)}
    if not tags.get("slurm.step_id", "0").isdecimal() or int(tags.get("slurm.step_id", "0")) >= NO_STEP:
        del tags["slurm.step_id"]
    for name, tag in _TIMES.items():
        seconds = _number(env.get(name, ""))
        with contextlib.suppress(ValueError, OverflowError, OSError):
            if seconds:
                tags[tag] = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).isoformat()
    return tags


def _others(env: Mapping[str, str], scheduler: str) -> dict[str, str]:
    return {tag: env[name] for name, tag in _OTHERS[scheduler].items() if env.get(name)}


def _number(text: str) -> int:
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text.strip()) else 0


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.+-]", "-", text.strip()) or "unknown"
