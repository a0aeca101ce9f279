"""Folders of wandb: `wandb/offline-run-*`, and `wandb/run-*` of runs that were online.

A run that was resumed has several folders, which are joined in the order in which they were begun.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from labtrack.stores import tree
from labtrack.stores.foreign.logs import LoggedRun, added
from labtrack.stores.foreign.walk import walk
from labtrack.stores.foreign.wandblog import WandbLog, summarised
from labtrack.stores.gathered import GatheredStore, Place, counted, run_id_of, skipping
from labtrack.stores.model import RUNNING, Findings, MetricPoint, Run
from labtrack.stores.values import QUIET, milliseconds, owner, params, read_json

KIND = "wandb"
_FILES, _METADATA = "files", "wandb-metadata.json"
_NO_PROJECT = "uncategorized"  # as wandb calls it


def claims(folder: Path, files: Iterable[str], folders: Iterable[str]) -> bool:
    """Whether a folder is one of a run of wandb."""
    return any(is_log(name) for name in files)


def is_log(name: str) -> bool:
    """Whether a file is one in which wandb records a run."""
    return name.startswith("run-") and name.endswith(".wandb")


class WandbStore(GatheredStore):
    """A `wandb` folder, one that holds it, or the folder of one run."""

    kind = KIND

    def __init__(self, root: Path) -> None:
        """Looks for runs.  Raises BadInputError where the folder can't be read."""
        self._logs: dict[Path, WandbLog] = {}
        super().__init__(root)

    def _look(self) -> Iterator[_Run]:
        runs: dict[str, list[WandbLog]] = {}
        for folder, names, folders in walk(self.root, self.looked.problem):
            for name in names:
                if is_log(name):
                    folders[:] = []
                    log = self._logs.setdefault(folder / name, WandbLog(folder / name))
                    if self._has_begun(log):
                        runs.setdefault(_id_of(log), []).append(log)
        return (_Run(run_id, logs) for run_id, logs in runs.items())

    def _has_begun(self, log: WandbLog) -> bool:
        try:
            log.scan()
        except OSError as error:
            self.looked.problem(log.path, f"it can't be read: {error.strerror}")
            return False
        if not log.seen.facts and not log.seen.counts and not log.seen.damaged:
            self.looked.warning(log.path, "nothing is recorded in it yet")
            return False
        return True


def _id_of(log: WandbLog) -> str:
    name = log.path.name[len("run-") : -len(".wandb")]
    return run_id_of(KIND, log.seen.facts.get("project", ""), log.seen.facts.get("run_id", name))


class _Run(LoggedRun[WandbLog]):
    """One run, with the log of each time it was started."""

    def __init__(self, run_id: str, logs: list[WandbLog]) -> None:
        self._id, self._logs = run_id, sorted(logs, key=lambda log: (log.seen.start, log.path))
        super().__init__(self._logs[0].path.parent)

    @property
    def id(self) -> str:
        return self._id

    @property
    def logs(self) -> list[WandbLog]:
        return self._logs

    def run(self) -> Run:
        self.scan()
        facts = self._facts()
        name = facts.get("name") or facts.get("run_id") or self.folder.name
        start = min((log.seen.start for log in self._logs if log.seen.start), default=0.0)
        status = self.status()
        config: dict[str, Any] = {}
        for log in self._logs:
            config.update(log.seen.config)
        config.pop("_wandb", None)
        return Run(
            self.id,
            facts.get("project") or _NO_PROJECT,
            name,
            facts.get("username") or owner(self._logs[0].path),
            status,
            milliseconds(start) or None,
            None if status == RUNNING else self._end,
            artifact_uri=str(self.folder.absolute()),
            params=params(config),
            tags={"mlflow.runName": name, **self._tags(facts)},
        )

    def counts(self) -> dict[str, int]:
        return added([super().counts(), counted(self._summary())])

    def points(self, skip: Mapping[str, int]) -> Iterator[MetricPoint]:
        left = dict(skip)
        yield from self.rest(left)
        self.scan()
        yield from skipping(self._summary(), left)

    def places(self) -> list[Place]:
        found = [log.path.parent for log in self._logs]
        return [Place(one / _FILES, (), "" if one is found[0] else one.name) for one in found]

    def tell(self, found: Findings) -> None:
        super().tell(found)
        names = sorted({name for log in self._logs for name in log.seen.artifacts})
        if names:
            what = f"artifacts that wandb keeps in a place of its own are not here: {', '.join(names)[:300]}"
            found.warning(self.folder, what, self.id)

    @property
    def _end(self) -> int | None:
        return milliseconds(max(max(log.seen.end, log.seen.start) for log in self._logs)) or None

    def status(self) -> str:
        """By the exit code; a run that has none, and was quiet for an hour, was killed."""
        code = self._logs[-1].seen.exit_code
        if code is not None:
            return "FAILED" if code else "FINISHED"
        return RUNNING if time.time() - (self._end or 0) / 1000 < QUIET else "KILLED"

    def _summary(self) -> Iterator[MetricPoint]:
        """What is in the summary of a run that is over, and in no history."""
        if self.status() == RUNNING:
            return
        last: dict[str, tuple[float, int]] = {}
        summary: dict[str, Any] = {}
        for log in self._logs:
            last.update(log.seen.last)
            summary.update(log.seen.summary)
        step = max(log.seen.step for log in self._logs)
        for key, value in summarised(last, summary):
            yield MetricPoint(key, value, self._end or 0, step)

    def _facts(self) -> dict[str, str]:
        """What is known of the run; older versions have a part of it in a file."""
        found = self._metadata()
        for log in self._logs:
            found.update({key: value for key, value in log.seen.facts.items() if value})
        return found

    def _metadata(self) -> dict[str, str]:
        path = self._logs[-1].path.parent / _FILES / _METADATA
        known: dict[str, Any] = {}
        if tree.is_file(path):
            self.reading(path, lambda: known.update(read_json(path.read_bytes())))
        git = known.get("git")
        if isinstance(git, dict):
            known.update(repository=git.get("remote"), commit=git.get("commit"))
        names = ("host", "username", "program", "repository", "commit", "email")
        return {key: known[key] for key in names if isinstance(known.get(key), str)}

    def _tags(self, facts: Mapping[str, str]) -> dict[str, str]:
        tags = {
            "labtrack.recorded_with": f"{KIND} {facts.get('version', '')}".strip(),
            "mlflow.note.content": facts.get("notes", ""),
            "mlflow.source.name": facts.get("program", ""),
            "mlflow.source.git.commit": facts.get("commit", ""),
            "mlflow.source.git.repoURL": facts.get("repository", ""),
            "wandb.run_id": facts.get("run_id", ""),
            "wandb.entity": facts.get("entity", ""),
            "wandb.group": facts.get("group", ""),
            "wandb.job_type": facts.get("job_type", ""),
            "wandb.sweep_id": facts.get("sweep_id", ""),
            "wandb.host": facts.get("host", ""),
            "wandb.tags": ", ".join(self._logs[-1].seen.tags),
        }
        return {key: value for key, value in tags.items() if value}
