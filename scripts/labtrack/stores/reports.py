"""Results that were recorded without MLflow: `config.yaml`, `metrics.json` and `figures/` in a folder.

A folder of that kind is one run; a folder of such folders is several.  The two files and the figures
become the run's artifacts as they are, so nothing is lost that can't be a parameter or a metric.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from labtrack.errors import BadInputError
from labtrack.stores import numbers
from labtrack.stores.artifacts import LocalArtifacts
from labtrack.stores.model import (
    Artifact,
    Experiment,
    Findings,
    LoggedModel,
    MetricPoint,
    ModelPoint,
    Owner,
    Problem,
    RegisteredModel,
    Run,
    Trace,
)
from labtrack.stores.sqlite import unknown_run
from labtrack.stores.summary import PARTS, Summaries
from labtrack.stores.summing import of_points

CONFIG, METRICS = "config.yaml", "metrics.json"
# what `labtrack.experiment` writes beside them: id, status, times and tags of the run, and what git has not committed
FACTS, DIFF, FIGURES = "run.json", "git.diff", "figures"
_KEPT = (CONFIG, METRICS, FIGURES, DIFF)  # the folder may hold a whole project beside them
_STEPS = ("step", "global_step", "iteration", "iter", "epoch")  # the first that a record has is its step
_TIMES = ("timestamp", "time")
_SECONDS = 10**11  # a time below is in seconds, and else in milliseconds
_NOT_A_KEY = re.compile(r"[^\w\-./ :]")  # what MLflow refuses in a key


class ReportsStore:
    """A folder of reports, or of folders of them."""

    kind = "reports"

    def __init__(self, root: Path) -> None:
        """Reads the folder.  Raises BadInputError where there is nothing of that kind in it that can be read."""
        self.root = root
        self.found = Findings()
        self._runs: dict[str, Run] = {}
        self._points: dict[str, list[MetricPoint]] = {}
        self._files = LocalArtifacts(root, self.found)
        for folder in folders_of_reports(root):
            try:
                self._read(folder)
            except (ValueError, OSError, yaml.YAMLError) as error:
                said = " ".join(str(error).split())[:200]
                self.found.problem(folder, f"the report was left out: {said}")
        if not self._runs:
            said = str(self.problems()[0]) if self.problems() else f"there is no {METRICS} and no {CONFIG} in it"
            raise BadInputError(
                f"{root} has no reports that can be read: {said}.", "name the folder with metrics.json."
            )

    @property
    def location(self) -> str:
        return str(self.root)

    @property
    def identity(self) -> str:
        """The same for all reports of one experiment: it is a run's id that says which results these are."""
        names = "\n".join(sorted({run.experiment_id for run in self._runs.values()}))
        return hashlib.sha256(f"reports\n{names}".encode()).hexdigest()[:32]

    def experiments(self, *, deleted: bool = False) -> list[Experiment]:
        return [Experiment(name, name) for name in sorted({run.experiment_id for run in self._runs.values()})]

    def runs(self, experiment_id: str | None = None, *, deleted: bool = False) -> Iterator[Run]:
        return (run for run in self._runs.values() if experiment_id in (None, run.experiment_id))

    def heads(self, *, deleted: bool = False) -> Iterator[Run]:
        return self.runs(deleted=deleted)

    def run(self, run_id: str) -> Run:
        if run_id not in self._runs:
            raise unknown_run(run_id, self.location, self._runs)
        return self._runs[run_id]

    def metric_keys(self, run_id: str) -> dict[str, int]:
        found: dict[str, int] = {}
        for point in self._points[run_id]:
            found[point.key] = found.get(point.key, 0) + 1
        return found

    def points(
        self, run_id: str, skip: Mapping[str, int] | None = None, keys: Collection[str] | None = None
    ) -> Iterator[MetricPoint]:
        left = dict(skip or {})
        for point in self._points[run_id]:
            if left.get(point.key):
                left[point.key] -= 1
            elif keys is None or point.key in keys:
                yield point

    def summaries(
        self, run_ids: Sequence[str], keys: Collection[str] | None = None, parts: Collection[str] = PARTS
    ) -> Summaries:
        return of_points(self, run_ids, keys, parts)

    def artifacts(self, owner: Owner) -> Iterator[Artifact]:
        return self._files.list(owner, only=_KEPT)

    def local_path(self, owner: Owner, path: str) -> Path | None:
        return self._files.path(owner, path)

    def open_artifact(self, owner: Owner, path: str) -> BinaryIO:
        return self._files.open(owner, path)

    def logged_models(self, *, deleted: bool = False) -> Iterator[LoggedModel]:
        return iter(())

    def model_points(self, model_id: str) -> Iterator[ModelPoint]:
        return iter(())

    def registered_models(self) -> list[RegisteredModel]:
        return []

    def traces(self, experiment_id: str | None = None) -> Iterator[Trace]:
        return iter(())

    def spans(self, trace: Trace) -> bytes | None:
        return None

    def problems(self) -> list[Problem]:
        return self.found.problems()

    def close(self) -> None:
        """Nothing is kept open."""

    def __enter__(self) -> ReportsStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, folder: Path) -> None:
        parts = {name: folder / name for name in (CONFIG, METRICS) if (folder / name).is_file()}
        data = {name: path.read_bytes() for name, path in parts.items()}
        config = yaml.safe_load(data.get(CONFIG, b"")) or {}
        if not isinstance(config, dict):
            raise ValueError(f"{CONFIG} is not a list of keys and values")
        measured = json.loads(data.get(METRICS, b"{}"))
        # the same results are the same run wherever the folder is; new ones in the same folder are another
        run_id = hashlib.sha256(b"\0".join(data.get(name, b"") for name in (CONFIG, METRICS))).hexdigest()[:32]
        facts = _facts(folder)
        run_id = facts.get("run_id", run_id)
        times = [path.stat().st_mtime_ns // 1_000_000 for path in parts.values()]
        inside = folder.absolute().parent.name if folder.name == "reports" else folder.name
        name = str(config.get("name") or inside)
        run = Run(
            run_id,
            str(config.get("mlflow_experiment_name") or name),
            name,
            _owner(next(iter(parts.values()))),
            facts.get("status", "FINISHED"),
            facts.get("start_time", min(times)),
            facts.get("end_time", max(times)),
            artifact_uri=str(folder.absolute()),
            params=params_of(config),
            tags={**facts.get("tags", {}), "mlflow.runName": name},
        )
        self._files.prefer(run, folder.absolute())
        self._points[run_id] = list(_measured(measured, max(times)))
        self._runs[run_id] = run


def params_of(config: Mapping[Any, Any]) -> dict[str, str]:
    """A configuration as a run's parameters: what is nested has its names joined by dots."""
    return {key: _text(value) for key, value in _flat(config)}


def _facts(folder: Path) -> dict[str, Any]:
    """What run.json says, as far as it is what `labtrack.experiment` writes."""
    try:
        said = json.loads((folder / FACTS).read_bytes())
    except FileNotFoundError:
        return {}
    if not isinstance(said, dict) or not re.fullmatch("[0-9a-f]{32}", str(said.get("run_id"))):
        return {}  # of some other program
    kinds: dict[str, tuple[type, ...]] = {
        "run_id": (str,), "status": (str,), "start_time": (int,), "end_time": (int, type(None)), "tags": (dict,),
    }  # fmt: skip
    found = {name: said[name] for name, kind in kinds.items() if isinstance(said.get(name), kind) and name in said}
    if "tags" in found:
        found["tags"] = {str(key): str(value) for key, value in found["tags"].items()}
    return found


def folders_of_reports(root: Path) -> list[Path]:
    """The folder itself, or those of its subfolders that have metrics."""
    if (root / METRICS).is_file() or (root / CONFIG).is_file():
        return [root]
    return sorted(path.parent for path in root.glob(f"*/{METRICS}"))


def _measured(data: Any, now: int) -> Iterator[MetricPoint]:
    """The points in metrics.json: numbers by name, lists of numbers by name, or a list of records.

    now: the time of a point that has none.
    """
    if isinstance(data, list):
        for index, record in enumerate(data):
            if not isinstance(record, dict):
                raise ValueError(f"{METRICS} is a list, but not of records")
            yield from _of_record(record, index, now)
        return
    if not isinstance(data, dict):
        raise ValueError(f"{METRICS} holds neither names with values nor a list of records")
    for key, value in _flat(data):
        values = value if isinstance(value, list) else [value]
        for index, one in enumerate(values):
            if isinstance(one, dict):
                number = one.get("value")
                if number is not None and _is_number(number):
                    yield MetricPoint(key, float(number), _time(one, now), _step(one, index))
            elif _is_number(one):
                yield MetricPoint(key, float(one), now, index)


def _of_record(record: dict[str, Any], index: int, now: int) -> Iterator[MetricPoint]:
    step, timestamp = _step(record, index), _time(record, now)
    for key, value in _flat(record):
        if _is_number(value) and key not in (*_STEPS, *_TIMES):
            yield MetricPoint(key, float(value), timestamp, step)


def _flat(data: Mapping[Any, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in data.items():
        key = f"{above}{_NOT_A_KEY.sub('_', str(name))}"
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{key}.")
        else:
            yield key, value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))  # a bool too, as MLflow logs it


def _step(record: Mapping[str, Any], index: int) -> int:
    for name in _STEPS:
        found = numbers.floor(record.get(name))
        if found is not None:
            return found
    return index


def _time(record: Mapping[str, Any], now: int) -> int:
    for name in _TIMES:
        value = record.get(name)
        if isinstance(value, (int, float)):
            return int(value * 1000 if value < _SECONDS else value)
    return now


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, (list, dict)) else str(value)


def _owner(path: Path) -> str:
    try:
        return path.owner()
    except (KeyError, NotImplementedError, ImportError):  # a container without the cluster's accounts; Windows
        return str(path.stat().st_uid)
