"""Bringing recordings home without thinking of it: a job after the job, a line of scrontab, or a job that comes again.

Which of them is chosen by what the site allows.  Asked twice, there is one.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from labtrack.errors import BadInputError, LabtrackError
from labtrack.run import recording, slurm
from labtrack.tracking import address

AFTER, CRON, AGAIN = "a job after this one", "a line of scrontab", "a job that submits itself again"
PLACE = "follow"
_PREFIX = "labtrack-follow"
_MINUTES = 10
_TIME = "00:30:00"
# how sites call the partition whose nodes reach the internet
_PARTITIONS = ("transfer", "xfer", "dtn", "data", "datamover", "copy", "internet", "io", "archive")
# not the job's own variables, which Slurm would take for options, and no login: that comes from mlflow_env.sh
_EXPORTED = "HOME,USER,LOGNAME,PATH,SHELL,LANG,XDG_STATE_HOME,XDG_CACHE_HOME"
_NAME = re.compile(r"[A-Za-z0-9_.,-]+")


@dataclass(frozen=True)
class Wanted:
    """folder: of the recordings.  destination: the server.  partition, account: for Slurm, or its default ones.

    minutes: between two looks, of what comes again.
    """

    folder: Path
    destination: str
    partition: str = ""
    account: str = ""
    minutes: int = _MINUTES
    env_file: str = ""


@dataclass
class Done:
    """way: what was chosen.  what: what was done, in words.  new: whether it is new.  lines: more to know."""

    way: str
    what: str
    new: bool = True
    lines: list[str] = field(default_factory=list)


def wanted(
    folder: Path, destination: str | None, partition: str | None, account: str | None, env: Mapping[str, str]
) -> Wanted:
    """What is to be followed.  Raises BadInputError for a server or a partition that can't be one."""
    for what, value in (("partition", partition), ("account", account)):
        if value and not _NAME.fullmatch(value):
            raise BadInputError(f"{value!r} is no {what}.", "`sinfo -s` lists the partitions, `sacctmgr` the accounts.")
    said = destination or env.get("MLFLOW_TRACKING_URI", "")
    file = env.get("LABTRACK_ENV_FILE", "")
    if not said.lower().startswith("http") and not file:
        raise BadInputError(
            "It is not known to which server.", "source your mlflow_env.sh first, or give the address: -d https://..."
        )
    base = address.parse(said) if said.lower().startswith("http") or destination else ""
    return Wanted(folder, base, partition or "", account or "", env_file=file)


def follow(what: Wanted, env: Mapping[str, str]) -> Done:
    """Sees to it that the folder is sent.  Raises LabtrackError where Slurm refuses or is not here."""
    if not slurm.has("sbatch"):
        raise LabtrackError(
            "sbatch is not on the PATH: there is no Slurm here.",
            "with another scheduler, run `labtrack sync --watch` on a login node, or by cron (docs: offline.md).",
        )
    job = env.get("SLURM_ARRAY_JOB_ID") or env.get("SLURM_JOB_ID", "")
    if job:
        return _after(what, job)
    return _cron(what) if _has_scrontab() else _again(what)


def stop(folder: Path) -> list[str]:
    """Takes away everything that follows a folder; gives what was taken away."""
    done = []
    mark = f"{_PREFIX}-{_mark(folder)}"
    if slurm.has("scrontab"):  # first, as Slurm plans a job for each line
        before = _scrontab()
        after = _without(before, folder)
        if after != before:
            _write_scrontab(after)
            done.append("removed the line of scrontab")
    if slurm.has("squeue"):
        for number, name in _queued():
            if name == mark or name.startswith(f"{mark}-"):
                slurm.ask(["scancel", number])
                done.append(f"cancelled job {number} ({name})")
    for file in sorted((folder / PLACE).glob("*")):
        file.unlink(missing_ok=True)
    return done


def _after(what: Wanted, job: str) -> Done:
    name = f"{_PREFIX}-{_mark(what.folder)}-{job}"
    claim = what.folder / PLACE / f"after-{job}"
    there = _claimed(claim, name)
    if there:
        return Done(AFTER, f"job {there} follows job {job} already", new=False)
    partition, lines = _partition(what)
    options = [f"--dependency=afterany:{job}", "--kill-on-invalid-dep=no"]
    try:
        number = _submit(_script(what), name, what, partition, options)
    except LabtrackError:
        claim.unlink(missing_ok=True)
        raise
    claim.write_text(number)
    return Done(AFTER, f"submitted job {number}, which sends {what.folder} after job {job} has ended", lines=lines)


def _again(what: Wanted) -> Done:
    name = f"{_PREFIX}-{_mark(what.folder)}"
    file = what.folder / PLACE / "again.sh"
    there = [number for number, known in _queued() if known == name]
    if there:
        return Done(AGAIN, f"job {there[0]} comes again every {what.minutes} minutes already", new=False)
    partition, lines = _partition(what)
    # submitted first, so that a failing sync ends nothing; `singleton` keeps two from being at work at once
    words = ["sbatch", "--quiet", f"--begin=now+{what.minutes}minutes", "--dependency=singleton"]
    more = f"[ -e {shlex.quote(str(file))} ] || exit 0\n{shlex.join([*words, str(file)])}\n"
    head = "".join(f"#SBATCH {one}\n" for one in _options(name, what, partition))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(_script(what, head, more))
    number = _number(slurm.ask(["sbatch", "--parsable", "--dependency=singleton", str(file)]))
    done = f"submitted job {number}, which sends {what.folder} and submits itself again every {what.minutes} minutes"
    return Done(AGAIN, done, lines=lines)


def _cron(what: Wanted) -> Done:
    before = _scrontab()
    partition, lines = _partition(what)
    options = "".join(f"#SCRON {one}\n" for one in _options(f"{_PREFIX}-{_mark(what.folder)}", what, partition))
    file = what.folder / PLACE / "cron.sh"
    begin, end = _marks(what.folder)
    block = f"{begin}\n{options}*/{what.minutes} * * * * /bin/sh {shlex.quote(str(file))}\n{end}\n"
    if block in before and file.exists():
        return Done(CRON, f"scrontab sends {what.folder} every {what.minutes} minutes already", new=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(_script(what))
    rest = _without(before, what.folder)
    _write_scrontab(rest + ("\n" if rest and not rest.endswith("\n") else "") + block)
    return Done(CRON, f"wrote a line of scrontab, which sends {what.folder} every {what.minutes} minutes", lines=lines)


def _script(what: Wanted, head: str = "", first: str = "") -> str:
    """What the job does.  The login is in mlflow_env.sh, never in the script."""
    source = f". {shlex.quote(what.env_file)}\n" if what.env_file else ""
    to = ["-d", what.destination] if what.destination else []
    place = recording.address_of(what.folder)
    python = [sys.executable, "-m", "labtrack"]
    sync = shlex.join([*python, "sync", "-s", place, *to])  # which reconciles, too
    # labtrack may be a file (labtrack.pyz) or a checkout
    path = Path(__file__).absolute().parents[2]
    known = f"export PYTHONPATH={shlex.quote(str(path))}${{PYTHONPATH:+:$PYTHONPATH}}\n"
    return f"#!/bin/sh\n{head}{first}{source}{known}exec {sync}\n"


def _options(name: str, what: Wanted, partition: str) -> list[str]:
    log = what.folder / PLACE / "%j.log"
    return [
        f"--export={_EXPORTED if what.env_file else 'ALL'}", f"--job-name={name}", f"--time={_TIME}", "--ntasks=1",
        f"--output={log}", "--open-mode=append", "--no-requeue",
        *([f"--partition={partition}"] if partition else []),
        *([f"--account={what.account}"] if what.account else []),
    ]  # fmt: skip


def _submit(script: str, name: str, what: Wanted, partition: str, more: Sequence[str]) -> str:
    head = "".join(f"#SBATCH {one}\n" for one in _options(name, what, partition))
    text = script.replace("#!/bin/sh\n", f"#!/bin/sh\n{head}", 1)
    with tempfile.NamedTemporaryFile("w", suffix=".sh", prefix="labtrack-") as file:
        file.write(text)
        file.flush()
        return _number(slurm.ask(["sbatch", "--parsable", *more, file.name]))


def _number(said: str) -> str:
    found = said.strip().splitlines()[-1].partition(";")[0] if said.strip() else ""
    if not re.fullmatch(r"[0-9]+", found):
        raise LabtrackError(f"sbatch said {said.strip()[:200]!r}, which is no job's number.", "try sbatch by hand.")
    return found


def _claimed(claim: Path, name: str) -> str:
    """The job that follows already; the claim is this call's where there is none.

    Of an array all tasks ask at the same moment: one of them makes the file.
    """
    claim.parent.mkdir(parents=True, exist_ok=True)
    queued = {known: number for number, known in _queued()}
    if name in queued:
        return queued[name]
    try:
        os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        said = claim.read_text().strip()
        # submitted and gone already, which a job that runs can't be; or about to be submitted
        return said or "of another task"
    return ""


def _queued() -> list[tuple[str, str]]:
    """The user's jobs in the queue: number and name."""
    user = str(os.getuid())
    lines = slurm.ask(["squeue", "-h", "-u", user, "-o", "%i %j"]).splitlines()
    return [(number, name) for number, _, name in (line.strip().partition(" ") for line in lines) if name]


def _partition(what: Wanted) -> tuple[str, list[str]]:
    """The partition to use, and what to say about it."""
    if what.partition:
        return what.partition, []
    try:
        names = [one.rstrip("*") for one in slurm.ask(["sinfo", "-h", "-o", "%P"]).split()]
    except LabtrackError:
        names = []
    found = [one for one in names for word in _PARTITIONS if word == one.lower()]
    found += [one for one in names for word in _PARTITIONS[:4] if word in one.lower()]
    if found:
        return found[0], [f"partition {found[0]} is taken for the one that reaches the server; else give --partition"]
    return "", ["the default partition is used; if its nodes don't reach the server, give --partition"]


def _has_scrontab() -> bool:
    if not slurm.has("scrontab"):
        return False
    try:
        return "enable" in slurm.settings().get("ScronParameters", "").lower()
    except LabtrackError:
        return False


def _scrontab() -> str:
    try:
        return slurm.ask(["scrontab", "-l"])
    except LabtrackError as error:
        if "no crontab" in error.what.lower():
            return ""
        raise


def _write_scrontab(text: str) -> None:
    with tempfile.NamedTemporaryFile("w", prefix="labtrack-") as file:
        file.write(text)
        file.flush()
        slurm.ask(["scrontab", file.name])


def _without(text: str, folder: Path) -> str:
    begin, end = _marks(folder)
    return re.sub(rf"(?ms)^{re.escape(begin)}\n.*?^{re.escape(end)}\n?", "", text)


def _marks(folder: Path) -> tuple[str, str]:
    return f"# labtrack follow {folder}: begin", f"# labtrack follow {folder}: end"


def _mark(folder: Path) -> str:
    """What tells the jobs of one folder from those of another."""
    return hashlib.sha256(str(folder).encode()).hexdigest()[:8]
