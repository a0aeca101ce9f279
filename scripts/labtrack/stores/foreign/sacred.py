"""Sacred's observer of files: numbered folders with run.json, config.json, metrics.json, cout.txt and artifacts.

metrics.json {name: {steps, timestamps, values}}    run.json {status, start_time, stop_time, heartbeat, result, ...}
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from labtrack.stores import tree
from labtrack.stores.foreign.written import WrittenRun, WrittenStore
from labtrack.stores.gathered import Place, run_id_of
from labtrack.stores.model import RUNNING, MetricPoint, Run
from labtrack.stores.numbers import floor, number
from labtrack.stores.values import QUIET, flat, number_in, owner, params, read_json

KIND = "sacred"
RUN, CONFIG, METRICS, INFO, OUTPUT = "run.json", "config.json", "metrics.json", "info.json", "cout.txt"
_SOURCES = "_sources"
_STATUS = {"COMPLETED": "FINISHED", "RUNNING": RUNNING, "INTERRUPTED": "KILLED", "QUEUED": "SCHEDULED"}  # else FAILED


def claims(folder: Path, files: Iterable[str], folders: Iterable[str]) -> bool:
    """Whether a folder is a run of Sacred."""
    return RUN in files and (CONFIG in files or OUTPUT in files)


def is_file(name: str) -> bool:
    """Whether a file is called as the one that says what a run is."""
    return name == RUN


class SacredStore(WrittenStore):
    """The folder of an observer, with its runs 1, 2, ..., or one of them."""

    kind = KIND

    nothing = RUN, "it has no start, so that it is no run yet"

    _claims = staticmethod(claims)

    def _made(self, folder: Path, there: list[Path]) -> _Run:
        return _Run(folder)


class _Run(WrittenRun):
    """One numbered folder."""

    def begins(self) -> bool:
        """Whether the run has begun."""
        if not self.id:
            facts = self._facts()
            if facts.get("start_time"):
                host = _inner(facts, "host").get("hostname")
                self.id = run_id_of(KIND, _inner(facts, "experiment").get("name"), facts["start_time"], host)
        return bool(self.id)

    def run(self) -> Run:
        facts = self._facts()
        experiment = _inner(facts, "experiment")
        status = _status(facts)
        end = floor(facts.get("stop_time")) or (floor(facts.get("heartbeat")) if status == "KILLED" else None)
        return Run(
            self.id,
            str(experiment.get("name") or "Default"),
            self.folder.resolve().name,
            owner(self.folder),
            status,
            floor(facts.get("start_time")),
            end,
            artifact_uri=str(self.folder.absolute()),
            params=params(self.reading(self.folder / CONFIG, read_json)),
            tags={"mlflow.runName": self.folder.resolve().name, **_tags(facts, experiment)},
        )

    def files(self) -> list[Path]:
        return [self.folder / name for name in (RUN, METRICS, INFO)]

    def places(self) -> list[Place]:
        try:
            names = sorted(path.name for path in self.folder.iterdir())
        except OSError:
            names = []
        found = [Place(self.folder, tuple(name for name in names if name != METRICS) or (RUN,))]
        sources = _inner(self._facts(), "experiment").get("sources")
        kept = [Path(str(one[-1])) for one in sources if one] if isinstance(sources, list) else []
        copies = tuple(path.name for path in kept if path.parent.name == _SOURCES)
        place = self.folder.parent / _SOURCES
        return [*found, Place(place, copies, "sources")] if copies and tree.is_folder(place) else found

    def read(self) -> Iterator[MetricPoint]:
        last = 0
        for key, found in self.reading(self.folder / METRICS, read_json).items():
            columns = found if isinstance(found, dict) else {}
            values, steps, times = (columns.get(name) for name in ("values", "steps", "timestamps"))
            for index, value in enumerate(values if isinstance(values, list) else ()):
                measured = number_in(value)
                if measured is None:
                    self.other("text" if isinstance(value, str) else type(value).__name__, key)
                    continue
                step = floor(_at(steps, index))
                last = max(last, index if step is None else step)
                yield MetricPoint(key, measured, floor(_at(times, index)) or 0, index if step is None else step)
        facts = self._facts()
        if _status(facts) == RUNNING:
            return  # what comes last is not there yet
        end = floor(facts.get("stop_time")) or 0
        more = {"result": facts.get("result"), **{f"info.{key}": one for key, one in flat(self._info())}}
        for key, value in more.items():
            measured = number_in(value)
            if measured is not None:
                yield MetricPoint(key, measured, end, last)

    def _facts(self) -> dict[str, Any]:
        return self.reading(self.folder / RUN, read_json)

    def _info(self) -> dict[str, Any]:
        return self.reading(self.folder / INFO, read_json)


def _status(facts: dict[str, Any]) -> str:
    """A run that was not heard of for an hour was killed."""
    status = _STATUS.get(str(facts.get("status")), "FAILED")
    heard = number(facts.get("heartbeat") or facts.get("start_time"))
    return "KILLED" if status == RUNNING and time.time() - (heard or 0) / 1000 >= QUIET else status


def _tags(facts: dict[str, Any], experiment: dict[str, Any]) -> dict[str, str]:
    repositories = experiment.get("repositories")
    first = repositories[0] if isinstance(repositories, list) and repositories else {}
    git = first if isinstance(first, dict) else {}
    found = {
        "labtrack.recorded_with": "Sacred",
        "mlflow.source.name": experiment.get("mainfile"),
        "mlflow.source.git.commit": git.get("commit"),
        "mlflow.source.git.repoURL": git.get("url"),
        "mlflow.note.content": _inner(facts, "meta").get("comment"),
        "sacred.command": facts.get("command"),
        "sacred.host": _inner(facts, "host").get("hostname"),
        "sacred.git.dirty": git.get("dirty"),
    }
    return {key: str(value) for key, value in found.items() if value not in (None, "")}


def _inner(facts: dict[str, Any], name: str) -> dict[str, Any]:
    found = facts.get(name)
    return found if isinstance(found, dict) else {}


def _at(values: Any, index: int) -> Any:
    return values[index] if isinstance(values, list) and index < len(values) else None
