"""Snakemake's events, written down as runs."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from logging import LogRecord
from pathlib import Path
from typing import Any

from labtrack.files import user_name
from labtrack.recorder.workflow import Step, note
from labtrack.run.masking import environment_secrets, mask
from labtrack.run.recording import address_of

_LONGEST = 4900  # characters of a tag: MLflow takes 5000
_LARGEST = 100 * 2**20  # bytes of a log that are kept
_INTERRUPTED = "Terminating processes on user request"  # which is no event
_SUBMITTED = re.compile(r"Job (\d+) has been submitted with SLURM jobid (\w+)")  # nor is this of the Slurm executor's
_OWN = ("_cores", "_nodes", "tmpdir")  # resources of Snakemake's own
_TEXTS = ("h:m:s", "jobid", "rule_name", "wildcards", "params", "threads", "resources")  # no measures of a benchmark


@dataclass
class Job:
    """A job of a rule and its run."""

    run: str
    name: str
    log: dict[Path, Path] = field(default_factory=dict)  # a log's path and where its text is: there, or kept
    benchmark: Path | None = None
    attempt: int = 1
    ended: bool = False
    failed: bool = False


class Workflow:
    """The run of a workflow and those of its jobs.

    folder: what is recorded into.  file: where jobs find their run.  name: of the workflow's run.
    experiment: its name.  parent: the run that the workflow's is nested in, or nothing.
    """

    def __init__(self, folder: Path, file: Path, name: str, experiment: str, parent: str) -> None:
        self._folder, self._file, self._name, self._parent = folder, file, name, parent
        self._experiment = experiment
        self._directory = Path.cwd()
        self._client: Any = None
        self._run = ""
        self._experiment_id = ""
        self._jobs: dict[int, Job] = {}
        self._error = ""
        self._interrupted = False
        self._now = 0  # milliseconds: when what is written down happened
        self._done: tuple[int, int] = (0, 0)

    def keep(self, record: LogRecord) -> None:
        """Copies the logs of a job that failed, in the thread that tells it: a filter of Snakemake's logger.

        `take` comes later, and by then a second try may have removed them.
        """
        errors = _errors(str(getattr(record, "event", None) or ""), vars(record))
        paths = dict.fromkeys(self._path(name) for info in errors for name in info.get("log") or ())
        there = [path for path in paths if path.is_file()]
        if there:
            folder = tempfile.TemporaryDirectory(prefix="labtrack-")
            logs: dict[Path, Path] = {}
            vars(record).update(labtrack_folder=folder, labtrack_logs=logs)
            for number, path in enumerate(there):
                copy = Path(folder.name, str(number), path.name)
                copy.parent.mkdir()
                logs[path] = Path(shutil.copyfile(path, copy)) if path.stat().st_size <= _LARGEST else path

    def open(self) -> None:
        """Imports MLflow, which takes seconds, before any job could begin: a job must find its run."""
        from mlflow import MlflowClient

        self._client = MlflowClient(address_of(self._folder))

    def take(self, event: str, record: LogRecord) -> None:
        """One of Snakemake's log records.  event: a snakemake_interface_logger_plugins.common.LogEvent, or nothing."""
        said, self._now, text = vars(record), int(record.created * 1000), record.getMessage()
        if text.startswith(_INTERRUPTED):
            self._interrupted = True
        elif event == "workflow_started":
            self._begin(said)
        elif not self._run:
            return
        elif event == "error":
            self._error = str(said.get("exception") or text)
        elif event == "job_info":
            self._start(said)
        elif event == "job_finished":
            # the number has two names in Snakemake's events
            self._finish(said.get("job_id", said.get("jobid")), failed=False)
        elif errors := _errors(event, said):
            for one in errors:
                self._fail(one, said.get("labtrack_logs") or {})
            if folder := said.get("labtrack_folder"):
                folder.cleanup()
        elif event == "progress":
            self._done = int(said["done"]), int(said["total"])
            self._client.log_metric(self._run, "jobs_done", self._done[0], step=self._done[0])
        elif (submitted := _SUBMITTED.match(text)) and (job := self._jobs.get(int(submitted[1]))):
            self._client.set_tag(job.run, "slurm.job_id", submitted[2])

    def end(self) -> None:
        """Ends the workflow's run: FAILED if a job has, KILLED if it was stopped, else FINISHED."""
        if not self._run:
            return
        self._now = int(time.time() * 1000)
        cut = [one for one in self._jobs.values() if not one.ended]
        for one in cut:
            self._close(one.run, "KILLED")
        failed = [one for one in self._jobs.values() if one.failed]
        if failed:
            self._tag("snakemake.failed", "\n".join(one.name for one in failed))
        done, total = self._done
        # an error without jobs is Snakemake's own; one that a second try has made good is none
        whole = not cut and not failed and done >= total and bool(total or not self._error)
        if self._error and not whole:
            self._tag("snakemake.error", self._error)
        stopped = self._interrupted or not (failed or self._error)
        self._close(self._run, "FINISHED" if whole else "KILLED" if stopped else "FAILED")
        self._run = ""

    def _begin(self, said: Mapping[str, Any]) -> None:
        self._directory = Path(str(said.get("rundir") or Path.cwd()))
        known = self._client.get_experiment_by_name(self._experiment)
        self._experiment_id = known.experiment_id if known else self._client.create_experiment(self._experiment)
        tags = {
            "snakemake.workflow_id": said.get("workflow_id"),
            "snakemake.snakefile": said.get("snakefile_main"),
            "snakemake.command": said.get("cmd"),
            "snakemake.version": said.get("snakemake_version"),
            "snakemake.directory": self._directory,
            "snakemake.config_files": said.get("configfiles"),
            "snakemake.host": socket.gethostname(),
            "mlflow.source.name": said.get("snakefile_main"),
            "mlflow.source.type": "PROJECT",
        }
        self._run = self._made(self._name, tags, self._parent)
        note(self._file, Step(self._run))

    def _start(self, said: Mapping[str, Any]) -> None:
        number, rule = int(said["jobid"]), str(said["rule_name"])
        log, benchmark = {(path := self._path(one)): path for one in said.get("log") or ()}, said.get("benchmark")
        if not (said.get("output") or said.get("shellcmd") or log or benchmark):
            return  # a rule like `all`, which only names what is wanted
        wildcards = {str(key): str(value) for key, value in dict(said.get("wildcards") or {}).items()}
        name = f"{rule}/{','.join(f'{key}={value}' for key, value in wildcards.items())}" if wildcards else rule
        before = self._jobs.get(number)
        attempt = before.attempt + 1 if before else 1
        tags = {
            "snakemake.rule": rule,
            "snakemake.job": number,
            "snakemake.attempt": attempt,
            "snakemake.reason": said.get("reason"),
            "snakemake.input": "\n".join(map(str, said.get("input") or ())),
            "snakemake.output": "\n".join(map(str, said.get("output") or ())),
            "snakemake.command": said.get("shellcmd"),
        }
        run = self._made(name, tags, self._run)
        job = Job(run, name, log, self._path(benchmark) if benchmark else None, attempt)
        self._jobs[number] = job
        commands = (_target(rule, wildcards), str(said.get("shellcmd") or "").strip())
        note(self._file, Step(run, f"{rule} {number}", tuple(filter(None, commands))))
        resources = {f"resources.{key}": value for key, value in _items(said.get("resources")) if key not in _OWN}
        for key, value in {**wildcards, "resources.threads": said.get("threads"), **resources}.items():
            if value is not None:
                self._client.log_param(run, key, str(value)[:_LONGEST])

    def _fail(self, said: Mapping[str, Any], kept: Mapping[Path, Path]) -> None:
        """A job's error names its logs and the scheduler's.  kept: which of them there were, and `keep`'s copies."""
        number = said.get("jobid", said.get("job_id"))
        job = self._jobs.get(int(number)) if number is not None else None
        if job:
            job.log = {path: kept[path] for path in map(self._path, said.get("log") or ()) if path in kept}
        self._finish(number, failed=True, words=said.get("rule_msg"))

    def _finish(self, number: Any, *, failed: bool, words: Any = None) -> None:
        job = self._jobs.get(int(number)) if number is not None else None
        if not job or job.ended:
            return
        job.ended, job.failed = True, failed
        try:
            if words:
                self._client.set_tag(job.run, "snakemake.error", self._clean(words))
            if not failed:  # the benchmark's file would be an earlier try's
                self._measure(job)
            self._attach(job)
        finally:
            self._close(job.run, "FAILED" if failed else "FINISHED")

    def _attach(self, job: Job) -> None:
        there = {path: text for path, text in job.log.items() if text.is_file()}
        large = [path for path, text in there.items() if text.stat().st_size > _LARGEST]
        if large:
            self._client.set_tag(job.run, "snakemake.log_too_large", self._clean([str(one) for one in large]))
        names = Counter(path.name for path in there)
        for number, (path, text) in enumerate(there.items(), 1):
            if path not in large:  # two logs of one name, a/log.txt and b/log.txt, are two files
                self._client.log_artifact(job.run, str(text), "log" if names[path.name] == 1 else f"log/{number}")

    def _measure(self, job: Job) -> None:
        """The benchmark's file: one line for each repetition, which is the step."""
        if not job.benchmark or not job.benchmark.is_file():
            return
        with job.benchmark.open(encoding="utf-8", errors="replace", newline="") as file:
            rows = map(json.loads, file) if job.benchmark.suffix == ".jsonl" else csv.DictReader(file, delimiter="\t")
            for step, row in enumerate(rows):
                for key, value in row.items():
                    number = _number(value)
                    if key and key not in _TEXTS and number is not None:
                        self._client.log_metric(job.run, f"benchmark.{key}", number, step=step)

    def _made(self, name: str, tags: Mapping[str, Any], parent: str) -> str:
        said = {key: self._clean(value) for key, value in tags.items() if value not in (None, "", [])}
        said["mlflow.user"] = user_name()
        if parent:
            said["mlflow.parentRunId"] = parent
        return str(self._client.create_run(self._experiment_id, self._now, said, name).info.run_id)

    def _close(self, run: str, status: str) -> None:
        self._client.set_terminated(run, status, self._now)

    def _tag(self, key: str, value: str) -> None:
        self._client.set_tag(self._run, key, self._clean(value))

    def _clean(self, value: Any) -> str:
        text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        text = mask(text, environment_secrets(os.environ))
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."

    def _path(self, name: Any) -> Path:
        """A file of a rule, which Snakemake names from its working directory, with remarks in brackets behind it."""
        path = self._directory / str(name)
        return path if path.exists() else self._directory / str(name).partition(" (")[0]


def _errors(event: str, said: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The failed jobs that an event tells of: one, or those of a group."""
    return [said] if event == "job_error" else said.get("job_error_info") or () if event == "group_error" else ()


def _target(rule: str, wildcards: Mapping[str, str]) -> str:
    """How Snakemake names a job to the process that runs it (`--target-jobs`)."""
    quoted = (f'{key}="{value}"' if "," in value else f"{key}={value}" for key, value in wildcards.items())
    return f"{rule}:{','.join(quoted)}"


def _items(resources: Any) -> Iterable[tuple[str, Any]]:
    return resources.items() if hasattr(resources, "items") else ()


def _number(said: Any) -> float | None:
    try:
        found = float(said)
    except (TypeError, ValueError):  # `-`, `NA` or null: not measured
        return None
    return found if math.isfinite(found) else None
