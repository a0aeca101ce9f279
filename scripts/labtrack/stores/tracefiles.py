"""The traces of an `mlruns` folder: <experiment>/traces/<id>/{trace_info.yaml,tags,assessments,artifacts}."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from labtrack.stores import numbers, tree
from labtrack.stores.model import Trace
from labtrack.stores.plainfiles import BrokenFileError, read_meta, read_values

RUN = "mlflow.sourceRun"  # in a trace's metadata: the run in which it was made
_TIMES = ("timestamp_ms", "request_time")


def read(experiment: Path, tells: tree.Tells) -> Iterator[Trace]:
    """The traces of one experiment; those that can't be read are told."""
    for folder in tree.subfolders(experiment / "traces", tells):
        try:
            info = read_meta(folder / "trace_info.yaml")
        except BrokenFileError as error:
            tells(folder, f"the trace was left out: {error}")
            continue
        metadata = read_values(folder / "request_metadata", tells)
        files = list(tree.files(folder / "assessments", tells)) if tree.is_folder(folder / "assessments") else []
        yield Trace(
            folder.name,
            experiment.name,
            _time(info),
            metadata.get(RUN) or None,
            None,
            sum(not tree.is_clutter(one.name) for one in files),
        )


def _time(info: dict[str, Any]) -> int | None:
    return next((found for found in (numbers.floor(info.get(name)) for name in _TIMES) if found is not None), None)
