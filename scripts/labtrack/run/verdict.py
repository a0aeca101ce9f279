"""How a job ended, from what Slurm says of it: the status of its runs, and tags with the reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from labtrack.run import sacct
from labtrack.run.ending import FAILED, FINISHED, KILLED
from labtrack.run.sacct import Record, bytes_of, resource

END = "slurm.end"
STATUS = {
    "COMPLETED": FINISHED,
    "FAILED": FAILED,
    "BOOT_FAIL": FAILED,
    "NODE_FAIL": FAILED,
    "OUT_OF_MEMORY": FAILED,
    "TIMEOUT": KILLED,
    "DEADLINE": KILLED,
    "CANCELLED": KILLED,
    "REVOKED": KILLED,
    "PREEMPTED": KILLED,
    "REQUEUED": KILLED,  # of an attempt that was not gone on with
}
_VAGUE = frozenset(("COMPLETED", "FAILED"))  # a batch script's own end, which may hide why its step ended
_NOTHING = ("None assigned", "(null)")
_MINUTE, _HOUR = 60, 3600.0


@dataclass(frozen=True)
class Verdict:
    """status: of the runs; empty where it stays as it is.  end: of the job, in ms, if known.  tags: why it ended."""

    status: str
    end: int | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


def judge(records: Sequence[Record], attempt: int = 0, step: str = "") -> Verdict | None:
    """The end of a run of this attempt and step; None while the job may go on, or where it is not known.

    records: of one job, all attempts and steps, in sacct's order.
    """
    attempts = attempts_of(records)
    if not attempts:
        return None
    last = len(attempts) - 1
    mine = attempts[min(attempt, last)]
    found = _ended_step(mine, step)
    if attempts[-1][0].is_active:  # a run of an earlier attempt is gone on with, or its next one may do so
        return _verdict(found, mine) if found and attempt >= last else None
    decides = mine[0]
    memory = next((one for one in mine[1:] if one.state == "OUT_OF_MEMORY"), None)
    if decides.state in _VAGUE and found is not None:
        decides = found
    elif decides.state == "FAILED" and memory is not None:
        decides = memory
    return _verdict(decides, mine)


def attempts_of(records: Sequence[Record]) -> list[list[Record]]:
    """The attempts of a job in their order, each with its steps behind it, as sacct has them."""
    found: list[list[Record]] = []
    for one in records:
        if not one.step:
            found.append([one])
        elif found:
            found[-1].append(one)
    return sorted(found, key=lambda many: (many[0].submit or many[0].start or 0, many[0].start or 0))


def _ended_step(attempt: Sequence[Record], step: str) -> Record | None:
    """The step of a run that was made inside one, if it is over."""
    if not step.isdecimal():
        return None
    return next((one for one in attempt[1:] if one.step == step and one.state in STATUS), None)


def _verdict(decides: Record, attempt: Sequence[Record]) -> Verdict | None:
    status = STATUS.get(decides.state)
    if status is None:
        return None
    job = attempt[0]
    tags = {END: decides.state, **_exit(decides, job), **_memory(attempt), **_time(job)}
    if decides.by:
        tags["slurm.cancelled_by"] = user_of(decides.by)
    for name, tag in (("NodeList", "slurm.nodes"), ("FailedNode", "slurm.failed_node"), ("Reason", "slurm.reason")):
        said = job.value(name)
        if said and said not in _NOTHING:
            tags[tag] = said
    if decides.state == "NODE_FAIL" and job.value("NNodes") == "1" and "slurm.nodes" in tags:
        # Debian 12's Slurm (22.05) was seen to name no FailedNode; of several nodes nobody knows which it was
        tags.setdefault("slurm.failed_node", tags["slurm.nodes"])
    return Verdict(status, decides.end or job.end, tags)


def _exit(decides: Record, job: Record) -> dict[str, str]:
    """`slurm.exit_code` and `slurm.exit_signal`, of sacct's `code:signal`."""
    code, _, number = (decides.value("ExitCode") or job.value("ExitCode")).partition(":")
    tags = {"slurm.exit_code": code} if code.isdecimal() else {}
    if number.isdecimal() and number != "0":
        tags["slurm.exit_signal"] = number
    derived = job.value("DerivedExitCode").partition(":")[0]
    if derived.isdecimal() and derived not in ("0", code):
        tags["slurm.highest_step_exit_code"] = derived
    return tags


def _memory(attempt: Sequence[Record]) -> dict[str, str]:
    """The largest resident set of any task, which only steps have, and what was asked for; in bytes."""
    sizes = [size for size in (bytes_of(one.value("MaxRSS")) for one in attempt) if size]
    tags = {"slurm.max_rss_bytes": str(max(sizes))} if sizes else {}
    asked = bytes_of(resource(attempt[0].value("AllocTRES"), "mem"))
    if asked:
        tags["slurm.memory_bytes"] = str(asked)
    return tags


def _time(job: Record) -> dict[str, str]:
    tags = {}
    elapsed, limit = job.value("ElapsedRaw"), job.value("TimelimitRaw")
    if elapsed.isdecimal():
        tags["slurm.elapsed_s"] = elapsed
        gpus = resource(job.value("AllocTRES"), "gres/gpu")
        if gpus.isdecimal() and int(gpus):
            tags["slurm.gpu_hours"] = f"{int(elapsed) * int(gpus) / _HOUR:.4g}"
    if limit.isdecimal():
        tags["slurm.time_limit_s"] = str(int(limit) * _MINUTE)
    return tags


def user_of(number: str) -> str:
    """The name of a user id, or the number."""
    try:
        import pwd  # not on Windows

        return pwd.getpwuid(int(number)).pw_name
    except (ImportError, KeyError, ValueError, OverflowError):
        return number


def of_scontrol(job: Mapping[str, str]) -> Verdict | None:
    """The same from `scontrol show job`, where there is no accounting."""
    state, by = sacct.read_state(job.get("JobState", ""))
    values = {name: job.get(name, "") for name in ("ExitCode", "DerivedExitCode", "Reason", "NodeList")}
    values["AllocTRES"] = job.get("AllocTRES") or job.get("TRES", "")
    start, end = sacct.time_of(job.get("StartTime", "")), sacct.time_of(job.get("EndTime", ""))
    if start and end and end >= start:
        values["ElapsedRaw"] = str((end - start) // 1000)
    record = Record(job.get("JobId", ""), "", state, by, None, start, end, values)
    return None if not state or record.is_active else _verdict(record, [record])
