"""Reading what was recorded, whatever MLflow version recorded it and whether or not the job still runs."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
_OPENING = ("find_stores", "open_store", "open_stores")


def __getattr__(name: str) -> Any:
    """What is asked for: the recorder, in a training, needs a small part of it and must start quickly."""
    if name not in __all__:
        raise AttributeError(f"module 'labtrack.stores' has no attribute {name!r}")
    return getattr(import_module(f"labtrack.stores.{'opening' if name in _OPENING else 'model'}"), name)
