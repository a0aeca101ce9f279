"""The truth about runs that nobody ended: Slurm's accounting is asked, and what it says is written down.

A run that is RUNNING, in a recording or at a server, with the tag `labtrack.job`, is asked about.  What Slurm does not
know yet is left alone: accounting lags, and the next call asks again.
"""

from __future__ import annotations

import getpass
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from labtrack.errors import BadInputError, LabtrackError
from labtrack.recorder.place import END as LABTRACK_END
from labtrack.recorder.place import EXIT_CODE
from labtrack.recorder.scheduler import ATTEMPT_TAG, JOB_TAG, STEP, Key, parse_key
from labtrack.run import heartbeat, recording, sacct, slurm, verdict
from labtrack.run.attaching import Attacher
from labtrack.run.ending import FAILED
from labtrack.run.verdict import Verdict
from labtrack.stores.model import RUNNING, Run
from labtrack.tracking import address
from labtrack.tracking.destination import Destination
from labtrack.tracking.http import Http

RECONCILER = "labtrack-reconcile"
_REMEMBERED = 14 * 86_400_000  # ms: so long after its end a run is asked about


@dataclass(frozen=True)
class Left:
    """A run that nobody ended, or that ended with its command, whose exit code does not tell why.

    run_id, name: its.  key, attempt: of its job.  user: whose it is.  ended: whether it is not RUNNING any more.
    closed: whether it was ended by its command's exit code, and not by the training.
    """

    run_id: str
    name: str
    key: Key
    text: str
    attempt: int
    user: str = ""
    start_time: int | None = None
    end_time: int | None = None
    ended: bool = False
    closed: bool = False


@dataclass(frozen=True)
class Change:
    """What was written about a run, or would be.  where: the folder or the server."""

    where: str
    run_id: str
    name: str
    job: str
    verdict: Verdict


@dataclass
class Outcome:
    """changes: what was written.  left: runs that may go on, or that nobody knows about, with the reason.

    notes: what the user should know.  failed: what could not be written.
    """

    changes: list[Change] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def as_data(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "version": 1,
            "changes": [
                {
                    "where": one.where, "run_id": one.run_id, "name": one.name, "job": one.job,
                    "status": one.verdict.status, "end_time": one.verdict.end, "tags": dict(one.verdict.tags),
                }
                for one in self.changes
            ],
            "left": self.left,
            "notes": self.notes,
            "failed": self.failed,
        }  # fmt: skip


def reconcile(
    folder: Path | None = None,
    destination: str | None = None,
    *,
    dry_run: bool = False,
    env: Mapping[str, str] | None = None,
) -> Outcome:
    """Ends the RUNNING runs of jobs that are over, in a folder of recordings, at a server, or in both.

    Runs of other people are left alone.  Raises BadInputError for a folder without recordings, LabtrackError where the
    server can't be used.
    """
    env = os.environ if env is None else env
    outcome = Outcome()
    if folder is not None:
        if not recording.holds_recordings(folder):
            raise BadInputError(
                f"{folder} holds no recordings of jobs.", "name the folder that `labtrack run --folder` records into."
            )
        with recording.opened(folder) as store:
            # with what is nested in them, which has no tags of the job
            found = [one for run in _unclear(store.runs()) for one in _with_children(store, run)]
        _apply(found, folder, str(folder), _writer(folder), outcome, dry_run=dry_run)
        if not dry_run:
            _attach(folder, outcome)
    if destination is not None:
        base = address.parse(destination)
        server = Destination(Http(base, env), RECONCILER)
        _apply(_at_server(server), folder, base, _sender(server), outcome, dry_run=dry_run)
    return outcome


def _unclear(runs: Iterable[Run]) -> list[Run]:
    """The runs of jobs that are RUNNING, or that ended in a way that Slurm may know more about."""
    return [one for one in runs if parse_key(one.tags.get(JOB_TAG, "")) and (one.status == RUNNING or _may_tell(one))]


def _may_tell(run: Any) -> bool:
    return (
        run.tags.get(EXIT_CODE, "0") != "0"
        and verdict.END not in run.tags
        and (run.end_time or 0) > _now() - _REMEMBERED
    )


def _with_children(store: Any, run: Run) -> list[Left]:
    found = [_left(run, run.tags)]
    found += [
        _left(one, run.tags)
        for one in recording.with_children(store, [run])[1:]
        if one.status == RUNNING and not one.tags.get(JOB_TAG)
    ]
    return [one for one in found if one is not None]


def _left(run: Any, tags: Mapping[str, str]) -> Left | None:
    text = tags.get(JOB_TAG, "")
    key = parse_key(text)
    if key is not None and not key.step.isdecimal() and tags.get(STEP, "").isdecimal():
        key = replace(key, step=tags[STEP])  # of several that one command has started
    attempt = tags.get(ATTEMPT_TAG, "0")
    if key is None:
        return None
    return Left(
        run.id, run.name, key, text, int(attempt) if attempt.isdecimal() else 0, run.user_id, run.start_time,
        run.end_time, run.status != RUNNING, LABTRACK_END in run.tags,
    )  # fmt: skip


def _at_server(server: Destination) -> list[Left]:
    """The user's own runs there that nobody ended."""
    experiments = [one.id for one in server.experiments().values() if one.stage == "active"]
    me = {getpass.getuser(), os.environ.get("MLFLOW_TRACKING_USERNAME", "")} - {""}
    found = []
    for run in server.search(experiments, f"attributes.status = '{RUNNING}' AND tags.`{JOB_TAG}` LIKE '%'"):
        left = _left(run, run.tags)
        owner = run.tags.get("mlflow.user") or run.user_id
        # MLflow's own client notes nobody: then the server knows whether it may be changed
        mine = owner in me or owner in ("", "unknown")
        if left is not None and run.lifecycle_stage == "active" and mine:
            found.append(left)
    return found


def _apply(
    found: Sequence[Left],
    folder: Path | None,
    where: str,
    write: Callable[[str, Verdict], None],
    outcome: Outcome,
    *,
    dry_run: bool,
) -> None:
    verdicts = _judge(found, folder, outcome)
    for one in found:
        judged = verdicts.get(one.run_id)
        if judged is None:
            continue
        end = judged.end
        if end is not None and one.start_time is not None and end < one.start_time:
            end = None  # another job of the same number, or clocks that differ
        judged = Verdict(judged.status, end, judged.tags)
        if one.ended:  # the exit code was first; of what Slurm knows better, that is taken
            better = one.closed and judged.tags.get(verdict.END) not in ("COMPLETED", "FAILED")
            judged = Verdict(judged.status if better else "", one.end_time, judged.tags)
        try:
            if not dry_run:
                write(one.run_id, judged)
        except (LabtrackError, OSError) as error:
            outcome.failed[one.run_id] = " ".join(str(error).split())
            continue
        except Exception as error:  # a server's refusal has a class of its own
            outcome.failed[one.run_id] = f"{type(error).__name__}: {error}"
            continue
        outcome.changes.append(Change(where, one.run_id, one.name, one.text, judged))


def _judge(found: Sequence[Left], folder: Path | None, outcome: Outcome) -> dict[str, Verdict]:
    """What is known of the end of each run's job; what is not is told."""
    verdicts: dict[str, Verdict] = {}
    known = _asked(found, outcome)
    for one in found:
        judged: Verdict | None = None
        why = "nobody knows its job (yet)"
        records = known.get((one.key.cluster, one.key.job))
        if records is not None:
            judged = verdict.judge(records, one.attempt, one.key.step)
            last = verdict.attempts_of(records)
            why = f"its job is {last[-1][0].state}" if last else why
        elif one.key.is_slurms:
            judged, why = _of_scontrol(one, why)
        if judged is None and records is None and folder is not None and not one.ended:
            judged = heartbeat.judge(heartbeat.read(folder, one.text))
        if judged is not None:
            verdicts[one.run_id] = _of_its_process(one, judged)
        elif not one.ended:
            outcome.left[one.run_id] = why
    return verdicts


def _of_its_process(one: Left, judged: Verdict) -> Verdict:
    """A process that ends as it should ends its runs: one that did not failed, if its job's script went on after it."""
    if not one.key.unwatched or one.ended or one.key.step.isdecimal() or judged.tags.get(verdict.END) != "COMPLETED":
        return judged
    return Verdict(FAILED, judged.end, {**judged.tags, LABTRACK_END: "its process ended before its job's script did"})


def _asked(found: Sequence[Left], outcome: Outcome) -> dict[tuple[str, str], Sequence[sacct.Record]]:
    """What sacct says, by cluster and job."""
    jobs: dict[str, set[str]] = defaultdict(set)
    for one in found:
        if one.key.is_slurms:
            jobs[one.key.cluster].add(one.key.job)
    known: dict[tuple[str, str], Sequence[sacct.Record]] = {}
    if not jobs:
        return known
    here = _cluster_here()
    for cluster, some in jobs.items():
        try:
            accounts = sacct.ask(some, cluster if here and cluster not in (here, "slurm") else "")
        except LabtrackError as error:
            outcome.notes.append(" ".join(str(error).split()))
            continue
        if accounts.damaged:
            first = accounts.damaged[0][:200]
            outcome.notes.append(
                f"{len(accounts.damaged)} lines of sacct's answer can't be read, the first is: {first!r}"
            )
        for job, records in accounts.records.items():
            named = {one.value("Cluster") for one in records} - {""}
            if not named or cluster in named or cluster == "slurm":  # another cluster's job may have the same number
                known[cluster, job] = records
    return known


def _cluster_here() -> str:
    name = os.environ.get("SLURM_CLUSTER_NAME", "")
    if name or not slurm.has("scontrol"):
        return name
    try:
        return slurm.settings().get("ClusterName", "")
    except LabtrackError:
        return ""


def _of_scontrol(one: Left, why: str) -> tuple[Verdict | None, str]:
    """The same without accounting: Slurm itself knows a job for some minutes after its end."""
    if not slurm.has("scontrol"):
        return None, why
    try:
        job = slurm.show_job(one.key.job, slurm.PATIENCE)
    except LabtrackError:
        return None, why
    if job is None:
        return None, why
    return verdict.of_scontrol(job), f"its job is {job.get('JobState', 'known to Slurm')}"


def _writer(folder: Path) -> Callable[[str, Verdict], None]:
    def write(run_id: str, judged: Verdict) -> None:
        status = {"status": judged.status, "end_time": judged.end or _now()} if judged.status else {}
        recording.amend(folder, run_id, tags=dict(judged.tags), **status)

    return write


def _sender(server: Destination) -> Callable[[str, Verdict], None]:
    def write(run_id: str, judged: Verdict) -> None:
        server.log_batch(run_id, tags=judged.tags)
        if judged.status:
            server.update_run(run_id, judged.status, judged.end or _now())

    return write


def _attach(folder: Path, outcome: Outcome) -> None:
    """Puts to the runs what a job that was killed could not."""
    for key in {one.job for one in outcome.changes}:
        try:
            Attacher(folder, key, None).attach(last=True)
        except (LabtrackError, OSError) as error:
            outcome.notes.append(f"{key}: {' '.join(str(error).split())}")


def _now() -> int:
    return time.time_ns() // 10**6
