"""Results that were recorded without MLflow: `config.yaml`, `metrics.json` and `figures/` in a folder.

A folder of that kind is one run; a folder of such folders is several.  The two files and the figures
become the run's artifacts as they are, so nothing is lost that can't be a parameter or a metric.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labtrack.errors import BadInputError
from labtrack.stores import numbers
from labtrack.stores.gathered import GatheredStore, Place, counted, skipping
from labtrack.stores.model import Findings, MetricPoint, Run
from labtrack.stores.values import flat, is_number, moment, owner, params, read_yaml

CONFIG, METRICS = "config.yaml", "metrics.json"
# what `labtrack.experiment` writes beside them: id, status, times and tags of the run, and what git has not committed
FACTS, DIFF, FIGURES = "run.json", "git.diff", "figures"
_KEPT = (CONFIG, METRICS, FIGURES, DIFF)  # the folder may hold a whole project beside them
_STEPS = ("step", "global_step", "iteration", "iter", "epoch")  # the first that a record has is its step
_TIMES = ("timestamp", "time")


class ReportsStore(GatheredStore):
    """A folder of reports, or of folders of them."""

    kind = "reports"

    def __init__(self, root: Path) -> None:
        """Reads the folder.  Raises BadInputError where there is nothing of that kind in it that can be read."""
        self._read: list[_Report] | None = None
        super().__init__(root)
        if not self._recordings:
            said = str(self.problems()[0]) if self.problems() else f"there is no {METRICS} and no {CONFIG} in it"
            raise BadInputError(
                f"{root} has no reports that can be read: {said}.", "name the folder with metrics.json."
            )

    @property
    def identity(self) -> str:
        """The same for all reports of one experiment: it is a run's id that says which results these are."""
        names = "\n".join(sorted({run.experiment_id for run in self._runs()}))
        return hashlib.sha256(f"reports\n{names}".encode()).hexdigest()[:32]

    def _look(self) -> list[_Report]:
        if self._read is None:
            self._read = []
            for folder in folders_of_reports(self.root):
                try:
                    self._read.append(_read(folder))
                except (ValueError, OSError) as error:
                    said = " ".join(str(error).split())[:200]
                    self.found.problem(folder, f"the report was left out: {said}")
        return self._read


@dataclass(frozen=True)
class _Report:
    """One folder, read whole: its files are written once."""

    folder: Path
    found: Run
    measured: list[MetricPoint]
    appends = True

    @property
    def id(self) -> str:
        return self.found.id

    def run(self) -> Run:
        return self.found

    def counts(self) -> dict[str, int]:
        return counted(self.measured)

    def points(self, skip: Mapping[str, int]) -> Iterator[MetricPoint]:
        return skipping(self.measured, skip)

    def places(self) -> list[Place]:
        return [Place(self.folder, _KEPT)]

    def tell(self, found: Findings) -> None:
        """All has been read already."""


def _read(folder: Path) -> _Report:
    parts = {name: folder / name for name in (CONFIG, METRICS) if (folder / name).is_file()}
    data = {name: path.read_bytes() for name, path in parts.items()}
    try:
        config = read_yaml(data.get(CONFIG, b""))
    except ValueError as error:
        raise ValueError(f"{CONFIG}: {error}") from None
    measured = json.loads(data.get(METRICS, b"{}"))
    # the same results are the same run wherever the folder is; new ones in the same folder are another
    run_id = hashlib.sha256(b"\0".join(data.get(name, b"") for name in (CONFIG, METRICS))).hexdigest()[:32]
    facts = _facts(folder)
    times = [path.stat().st_mtime_ns // 1_000_000 for path in parts.values()]
    inside = folder.absolute().parent.name if folder.name == "reports" else folder.name
    name = str(config.get("name") or inside)
    run = Run(
        facts.get("run_id", run_id),
        str(config.get("mlflow_experiment_name") or name),
        name,
        owner(next(iter(parts.values()))),
        facts.get("status", "FINISHED"),
        facts.get("start_time", min(times)),
        facts.get("end_time", max(times)),
        artifact_uri=str(folder.absolute()),
        params=params(config),
        tags={**facts.get("tags", {}), "mlflow.runName": name},
    )
    return _Report(folder, run, list(_measured(measured, max(times))))


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
    for key, value in flat(data):
        values = value if isinstance(value, list) else [value]
        for index, one in enumerate(values):
            if isinstance(one, dict):
                number = one.get("value")
                if number is not None and is_number(number):
                    yield MetricPoint(key, float(number), _time(one, now), _step(one, index))
            elif is_number(one):
                yield MetricPoint(key, float(one), now, index)


def _of_record(record: dict[str, Any], index: int, now: int) -> Iterator[MetricPoint]:
    step, timestamp = _step(record, index), _time(record, now)
    for key, value in flat(record):
        if is_number(value) and key not in (*_STEPS, *_TIMES):
            yield MetricPoint(key, float(value), timestamp, step)


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
            return moment(value)
    return now
