"""The logged models (MLflow >= 3.0) of an `mlruns` folder: <experiment>/models/<id>/{meta.yaml,params,tags,metrics}."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from labtrack.stores import tree
from labtrack.stores.model import ACTIVE, LoggedModel, ModelPoint
from labtrack.stores.numbers import Steps
from labtrack.stores.plainfiles import BrokenFileError, MetricFile, keys_in, point, read_meta, read_values, time_in
from labtrack.stores.sqlitemodels import MODEL_STATUS


def read(experiment: Path, tells: tree.Tells) -> Iterator[LoggedModel]:
    """The models of one experiment; what can't be read is told."""
    for folder in tree.subfolders(experiment / "models", tells):
        try:
            yield _model(read_meta(folder / "meta.yaml"), folder, experiment.name, tells)
        except (BrokenFileError, KeyError) as error:
            tells(folder, f"the logged model was left out: {error}")


def points(experiment: Path, model_id: str, tells: tree.Tells) -> Iterator[ModelPoint]:
    """The metric points that are linked to a model of the experiment."""
    for key, path in keys_in(experiment / "models" / model_id / "metrics", tells):
        steps, file = Steps(), MetricFile(path)
        try:
            for line in file.lines():
                run_id, name, digest = (*line.rest, "", "", "")[:3]
                yield ModelPoint(point(key, line, steps), run_id, name or None, digest or None)
        except OSError as error:
            tells(path, f"can't be read: {error.strerror}")
        if file.broken:
            tells(path, f"{file.broken} damaged line(s) of the model's metric {key} were left out")


def _model(meta: dict[str, Any], folder: Path, experiment: str, tells: tree.Tells) -> LoggedModel:
    status = meta.get("status")
    return LoggedModel(
        str(meta["model_id"]),
        experiment,
        str(meta.get("name") or ""),
        str(meta.get("artifact_location") or ""),
        MODEL_STATUS.get(status, str(status)) if isinstance(status, int) else str(status or "READY"),
        str(meta.get("status_message") or ""),
        str(meta.get("model_type") or ""),
        meta.get("source_run_id") or None,
        meta.get("lifecycle_stage") or ACTIVE,
        time_in(meta, "creation_timestamp", folder, tells),
        time_in(meta, "last_updated_timestamp", folder, tells),
        read_values(folder / "params", tells),
        read_values(folder / "tags", tells),
    )
