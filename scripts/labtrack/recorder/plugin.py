"""What MLflow's entry points name.  It is imported with MLflow, so it imports nothing that is not there already."""

from __future__ import annotations

import sys
from typing import Any

if "requests" in sys.modules:
    from labtrack.recorder import health

    health.answer()

_WITHOUT_SQLALCHEMY = (
    "Recording to labtrack: needs the whole mlflow: mlflow-skinny has no SQLAlchemy.\n"
    "To fix: pip install mlflow, of the same version."
)


def tracking_store(store_uri: str, artifact_uri: str | None = None) -> Any:
    """The tracking store of `labtrack:///abs/path`."""
    try:
        from labtrack.recorder.tracking import tracking_store as made
    except ModuleNotFoundError as error:
        if error.name not in ("sqlalchemy", "alembic"):
            raise
        raise RuntimeError(_WITHOUT_SQLALCHEMY) from None
    return made(store_uri)


def registry_store(store_uri: str, tracking_uri: str | None = None) -> Any:
    """The model registry's store of `labtrack:///abs/path`."""
    from labtrack.recorder.tracking import registry_store as made

    return made(store_uri)


def artifact_repository(artifact_uri: str, *_: Any, **__: Any) -> Any:
    """The artifacts in a place that the recorder has given."""
    from labtrack.recorder.artifacts import repository

    return repository(artifact_uri)
