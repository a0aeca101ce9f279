"""What an experiment leaves without MLflow: config.yaml, metrics.json and figures/, as `labtrack import` takes them."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from labtrack.files import write_whole
from labtrack.stores.reports import CONFIG, DIFF, FACTS, FIGURES, METRICS

_EVERY = 5.0  # seconds between two times that metrics are written while the experiment runs


class Reports:
    """A folder of reports of one run, as far as it has come at each moment.  Every call may raise OSError."""

    def __init__(self, folder: Path, config: Mapping[str, Any], facts: dict[str, Any], diff: str) -> None:
        self.folder, self.facts = folder, facts
        self._written = 0.0
        self._metrics: dict[str, list[dict[str, Any]]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for old in (METRICS, DIFF):
            (folder / old).unlink(missing_ok=True)
        shutil.rmtree(folder / FIGURES, ignore_errors=True)
        write_whole(folder / CONFIG, dumped(config).encode())
        if diff:
            write_whole(folder / DIFF, diff.encode())
        self._write()

    def add(self, points: Mapping[str, list[dict[str, Any]]]) -> None:
        """Takes new points of metrics."""
        for name, new in points.items():
            self._metrics.setdefault(name, []).extend(new)
        if time.monotonic() > self._written + _EVERY:
            self._write()

    def figure(self, file: Path, name: str) -> None:
        """Takes a figure that is in a file."""
        to = self.folder / FIGURES / name
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, to)

    def end(self, status: str, now: int) -> None:
        """Writes what is left, and how it ended."""
        self.facts.update(status=status, end_time=now)
        self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        write_whole(self.folder / METRICS, json.dumps(self._metrics, indent=1).encode())
        write_whole(self.folder / FACTS, json.dumps(self.facts, indent=1).encode())


def dumped(config: Mapping[str, Any]) -> str:
    """A configuration as YAML."""
    return yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    """What YAML can write without tags of Python's."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(one) for one in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
