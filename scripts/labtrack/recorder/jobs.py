"""One job, one run: the runs of a batch job, found again when it is started once more."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from labtrack.recorder import loading, workflow
from labtrack.recorder.live import Live
from labtrack.recorder.place import CHILD, END, EXIT_CODE, JOB_RUN_TAG, REQUEUED
from labtrack.recorder.scheduler import ATTEMPT_TAG, JOB_TAG, STEP
from labtrack.recorder.writer import log

_PARENT, _RESUMED = "mlflow.parentRunId", "resumedRun"


def create_run(live: Live, store: Any, make: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Makes a run by MLflow's `make`; of a job that was started again, the run that it had may go on.

    A run without a parent that is made in a step of a workflow is the step's child.
    """
    names = ("experiment_id", "user_id", "start_time", "tags", "run_name")
    given = {**dict(zip(names, args)), **kwargs}
    tags = list(given.get("tags") or [])
    said = {one.key: one.value for one in tags}
    settings = live.settings
    if said.get(_PARENT):
        return make(**given)
    from mlflow.entities import RunTag

    if parent := workflow.parent_of(os.environ):
        said[_PARENT] = parent
        tags.append(RunTag(_PARENT, parent))
    mine = dict(settings.tags)
    if settings.job:
        found, number = _earlier(live)
        mine.update({JOB_TAG: settings.job, ATTEMPT_TAG: str(settings.attempt), JOB_RUN_TAG: number})
        if settings.step:
            mine[STEP] = settings.step
        if found and settings.resume != CHILD:
            return _go_on(live, store, found, {**said, **mine})
        if found:
            mine.update({_PARENT: found, _RESUMED: "True"})
    given["tags"] = [*(one for one in tags if one.key not in mine), *(RunTag(*one) for one in mine.items())]
    return make(**given)


def _earlier(live: Live) -> tuple[str, str]:
    """The run of an earlier attempt that is to go on, if any, and the number of the run that is made now.

    Of a step of Slurm's the number is `<step>.<n>`: steps that run at once must not take each other's runs.
    """
    loading.load_job(live)
    jobs, attempts, numbers = (_tag_of_runs(live, key) for key in (JOB_TAG, ATTEMPT_TAG, JOB_RUN_TAG))
    step = f"{live.settings.step}." if live.settings.step else ""
    mine = [
        run_id
        for run_id, job in jobs.items()
        if job == live.settings.job and numbers.get(run_id, "").rpartition(".")[0] == live.settings.step
    ]
    now = str(live.settings.attempt)
    number = f"{step}{1 + sum(attempts.get(run_id) == now for run_id in mine)}"
    for run_id in mine:
        run = live.run_of(run_id)
        before = attempts.get(run_id) != now and numbers.get(run_id) == number
        if before and run.get("status") != "FINISHED" and run.get("lifecycle_stage") == "active":
            if live.settings.resume == CHILD and _is_child(live, run_id):
                continue  # the first attempt's run has all later ones below it
            return run_id, number
    return "", number


def _tag_of_runs(live: Live, key: str) -> dict[str, str]:
    return dict(live.database.execute("SELECT run_uuid, value FROM tags WHERE key = ?", [key]).fetchall())


def _is_child(live: Live, run_id: str) -> bool:
    sql = "SELECT 1 FROM tags WHERE run_uuid = ? AND key = ?"
    return live.database.execute(sql, [run_id, _RESUMED]).fetchone() is not None


def _go_on(live: Live, store: Any, run_id: str, tags: dict[str, str]) -> Any:
    from mlflow.entities import RunStatus, RunTag

    log.warning("labtrack: the job goes on with its run %s", run_id)
    live.resumed.add(run_id)
    tags.pop("mlflow.runName", None)
    before = store.get_run(run_id).data.tags
    attempt = f"attempt {before.get(ATTEMPT_TAG, '0')}: "
    if END in before or not before.get(REQUEUED, "").startswith(attempt):  # nobody could say that another would follow
        tags[REQUEUED] = attempt + before.get(END, "ended without a word")
    for key in {END, EXIT_CODE} & set(before):
        store.delete_tag(run_id, key)
    for key, value in tags.items():
        store.set_tag(run_id, RunTag(key, value))
    store.update_run_info(run_id, RunStatus.RUNNING, None, None)
    live.database.execute("UPDATE runs SET end_time = NULL WHERE run_uuid = ?", [run_id])
    return store.get_run(run_id)


@contextlib.contextmanager
def lenient(live: Live, run_id: str, params: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """The parameters that a run that goes on has not, or has with the same value: MLflow refuses a change."""
    if run_id not in live.resumed or not params:
        yield params
        return
    with live.lock:
        known = dict(live.database.execute("SELECT key, value FROM params WHERE run_uuid = ?", [run_id]).fetchall())
    other = [one for one in params if known.get(one.key, str(one.value)) != str(one.value)]
    for one in other:
        what = (
            f"labtrack: the parameter {one.key} of the run {run_id} is {one.value} now; recorded stays {known[one.key]}"
        )
        live.writer.warn(f"param {run_id} {one.key}", what)
    yield [one for one in params if one not in other]
