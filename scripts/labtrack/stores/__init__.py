"""Reading what was recorded, whatever MLflow version recorded it and whether or not the job still runs."""

from __future__ import annotations

from labtrack.stores.model import (
    Artifact,
    DatasetInput,
    Experiment,
    LoggedModel,
    MetricPoint,
    ModelLink,
    ModelPoint,
    ModelVersion,
    Owner,
    Problem,
    RegisteredModel,
    Run,
    Store,
    Trace,
)
from labtrack.stores.opening import find_stores, open_store, open_stores

__all__ = [
    "Artifact",
    "DatasetInput",
    "Experiment",
    "LoggedModel",
    "MetricPoint",
    "ModelLink",
    "ModelPoint",
    "ModelVersion",
    "Owner",
    "Problem",
    "RegisteredModel",
    "Run",
    "Store",
    "Trace",
    "find_stores",
    "open_store",
    "open_stores",
]
