"""What Slurm's accounting says of jobs: `sacct`, read into records."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from labtrack.errors import LabtrackError
from labtrack.run import slurm

STATES = (
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "COMPLETING", "CONFIGURING", "DEADLINE", "FAILED", "NODE_FAIL",
    "OUT_OF_MEMORY", "PENDING", "PREEMPTED", "REQUEUED", "RESIZING", "REVOKED", "RUNNING", "STAGE_OUT", "STOPPED",
    "SUSPENDED", "TIMEOUT",
)  # fmt: skip
ACTIVE = frozenset(
    ["COMPLETING", "CONFIGURING", "PENDING", "REQUEUED", "RESIZING", "RUNNING", "STAGE_OUT", "STOPPED", "SUSPENDED"]
)
# the first ones are needed; sites with an old Slurm have not all of the others
FIELDS = (
    "JobIDRaw", "JobID", "State", "ExitCode", "Cluster", "User", "Submit", "Start", "End", "ElapsedRaw",
    "TimelimitRaw", "Restarts", "Reason", "DerivedExitCode", "NNodes", "NodeList", "FailedNode", "AllocTRES", "ReqMem",
    "TotalCPU", "MaxRSS", "TRESUsageInTot",
)  # fmt: skip
NEEDED = frozenset(FIELDS[:4])
_SEPARATOR = "\x1f"  # a reason may have a `|` in it
_BATCH = 100  # jobs in one call
_STEP = re.compile(r"(?P<job>[0-9]+(?:_(?:[0-9]+|\[[^\]]*\]))?(?:\+[0-9]+)?)(?:\.(?P<step>.+))?")
_SIZES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "P": 2**50}
_UNKNOWN = ("", "Unknown", "None", "N/A", "INVALID")


@dataclass(frozen=True)
class Record:
    """A job, or a step of one.

    job: as Slurm prints it: `12`, `12_3`, `12+1`.  step: `batch`, `0`, `extern`; empty for the job itself.
    state: one of STATES, or what was said where that is unknown.  by: who cancelled it, a number.
    start, end, submit: ms.  values: all that was said.
    """

    job: str
    step: str
    state: str
    by: str = ""
    submit: int | None = None
    start: int | None = None
    end: int | None = None
    values: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_active(self) -> bool:
        """Whether it may go on."""
        return self.state in ACTIVE

    def value(self, name: str) -> str:
        """What was said; empty where Slurm says that it does not know."""
        said = self.values.get(name, "")
        return "" if said in _UNKNOWN else said


@dataclass(frozen=True)
class Accounts:
    """What sacct said.  records: by job, oldest first.  damaged: lines that could not be read."""

    records: Mapping[str, Sequence[Record]]
    damaged: Sequence[str] = ()


def fields_here() -> list[str]:
    """The fields that this site's sacct has.  Raises LabtrackError where it lacks one that is needed."""
    said = {one.lower() for one in slurm.ask(["sacct", "--helpformat"]).split()}
    found = [one for one in FIELDS if one.lower() in said]
    if not set(found) >= NEEDED:
        missing = ", ".join(sorted(NEEDED - set(found)))
        raise LabtrackError(
            f"This site's sacct does not know {missing}.", "ask the site; `sacct --helpformat` shows what it knows."
        )
    return found


def ask(jobs: Iterable[str], cluster: str = "") -> Accounts:
    """Asks about jobs, all their attempts and steps.

    jobs: as in keys.  cluster: another one than this, as sacct calls it.
    Raises LabtrackError where sacct is missing, fails, or takes too long.
    """
    fields = fields_here()
    wanted = sorted(set(jobs))
    records: dict[str, list[Record]] = {}
    damaged: list[str] = []
    for start in range(0, len(wanted), _BATCH):
        some = wanted[start : start + _BATCH]
        command = ["sacct", "-D", "-P", "-n", f"--delimiter={_SEPARATOR}", *(["-M", cluster] if cluster else [])]
        said = slurm.ask([*command, "-j", ",".join(some), f"--format={','.join(fields)}"])
        found = parse(said, fields)
        damaged += found.damaged
        for job, many in found.records.items():
            records.setdefault(job, []).extend(many)
    return Accounts(records, damaged)


def parse(text: str, fields: Sequence[str]) -> Accounts:
    """The records of sacct's answer; a line with too few columns, or without an id or a state, is damaged."""
    records: dict[str, list[Record]] = {}
    damaged: list[str] = []
    for line in text.splitlines():
        if not line.strip():
            continue
        cells = line.split(_SEPARATOR if _SEPARATOR in line else "|")
        if len(cells) == len(fields) + 1 and not cells[-1]:  # `-p` ends with one
            cells.pop()
        values = dict(zip(fields, (one.strip() for one in cells)))
        record = _record(values) if len(cells) == len(fields) else None
        if record is None:
            damaged.append(line)
        else:
            records.setdefault(record.job, []).append(record)
    return Accounts(records, damaged)


def _record(values: Mapping[str, str]) -> Record | None:
    found = _STEP.fullmatch(values.get("JobID", "") or values.get("JobIDRaw", ""))
    state, by = read_state(values.get("State", ""))
    if not found or not state:
        return None
    times = {name: time_of(values.get(name, "")) for name in ("Submit", "Start", "End")}
    return Record(
        found["job"], found["step"] or "", state, by, times["Submit"], times["Start"], times["End"], dict(values)
    )


def read_state(text: str) -> tuple[str, str]:
    """A state and who caused it: `CANCELLED by 1000`, `OUT_OF_ME+`, `NODE_FAIL`."""
    word, _, rest = text.strip().partition(" ")
    by = rest[3:].strip() if rest.startswith("by ") else ""
    word = word.upper()
    if word.endswith("+"):
        named = [one for one in STATES if one.startswith(word[:-1])]
        return (named[0] if len(named) == 1 else word[:-1]), by
    return (word if re.fullmatch(r"[A-Z_]+", word) else ""), by


def time_of(text: str) -> int | None:
    """A time in ms: seconds since 1970, or ISO 8601 in this machine's time zone; None for `Unknown`."""
    if re.fullmatch(r"[0-9]{1,12}", text):
        return int(text) * 1000 or None
    try:
        return int(datetime.datetime.fromisoformat(text).timestamp() * 1000)
    except (ValueError, OverflowError, OSError):
        return None


def bytes_of(text: str) -> int | None:
    """A size as Slurm prints it, in bytes: `1234K`, `2.5G`, `4Gn`, `4000Mc`; None for what is none."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([KMGTP]?)[nc]?", text.strip())
    return round(float(found[1]) * _SIZES[found[2]]) if found else None


def resource(tres: str, name: str) -> str:
    """A resource of `cpu=4,mem=8G,gres/gpu=2`; of several kinds of gpu their sum."""
    pairs = dict(one.partition("=")[::2] for one in tres.split(",") if "=" in one)
    if name in pairs:
        return pairs[name]
    kinds = [int(value) for key, value in pairs.items() if key.startswith(f"{name}:") and value.isdecimal()]
    return str(sum(kinds)) if kinds else ""
