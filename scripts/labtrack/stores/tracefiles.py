"""The traces of an `mlruns` folder: <experiment>/traces/<id>/{trace_info.yaml,tags,assessments,artifacts}."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from labtrack.stores import numbers, tree
from labtrack.stores.model import Trace
from labtrack.stores.plainfiles import BrokenFileError, read_meta, read_values

DATA = "traces.json"
LOCATION = "mlflow.artifactLocation"  # in a trace's tags: where its traces.json is


def read(experiment: Path, tells: tree.Tells) -> Iterator[Trace]:
    """The traces of one experiment; those that can't be read are told."""
    for folder in tree.subfolders(experiment / "traces", tells):
        try:
            info = read_meta(folder / "trace_info.yaml")
        except BrokenFileError as error:
            tells(folder, f"the trace was left out: {error}")
            continue
        yield trace(
            info,
            folder.name,
            experiment.name,
            tags=read_values(folder / "tags", tells),
            metadata=read_values(folder / "request_metadata", tells),
            assessments=tuple(_assessments(folder / "assessments", tells)),
        )


def trace(
    info: Mapping[str, Any],
    trace_id: str,
    experiment_id: str,
    *,
    tags: Mapping[str, str],
    metadata: Mapping[str, str],
    assessments: tuple[Mapping[str, Any], ...],
) -> Trace:
    """A trace as MLflow's interface and its files have it, of version 2 (timestamp_ms) or 3 (request_time)."""
    times = (numbers.floor(info.get(name)) for name in ("request_time", "timestamp_ms"))
    client, request, response = (
        str(info.get(name) or "") for name in ("client_request_id", "request_preview", "response_preview")
    )
    return Trace(
        trace_id,
        experiment_id,
        next((one for one in times if one is not None), None),
        _duration(info),
        str(info.get("state") or info.get("status") or "OK"),
        client,
        request,
        response,
        tags,
        metadata,
        assessments,
    )


def _duration(info: Mapping[str, Any]) -> int | None:
    """In ms; version 3 writes seconds, as '1.5s'."""
    said = info.get("execution_duration")
    if isinstance(said, str) and said.endswith("s"):
        seconds = numbers.number(said[:-1])
        return None if seconds is None else numbers.floor(seconds * 1000)
    return numbers.floor(said if said is not None else info.get("execution_time_ms"))


def _assessments(folder: Path, tells: tree.Tells) -> Iterator[Mapping[str, Any]]:
    for path in sorted(tree.files(folder, tells)) if tree.is_folder(folder) else ():
        if path.suffix == ".yaml" and not tree.is_clutter(path.name):
            try:
                yield read_meta(path)
            except BrokenFileError as error:
                tells(path, f"the assessment was left out: {error}")
