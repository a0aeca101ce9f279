"""An MLflow tracking store that records into a folder: `MLFLOW_TRACKING_URI=labtrack:///scratch/me/runs`.

Each process writes a journal of its own, from a thread; nothing is shared, locked or waited for.  What the disk or the
file system does never reaches the training.  `labtrack.stores` reads the folder, `labtrack sync` sends it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labtrack.recorder.amending import amend

__all__ = ["amend"]


def __getattr__(name: str) -> Any:
    """`amend`, when it is asked for: MLflow imports this package with itself."""
    if name != "amend":
        raise AttributeError(name)
    from labtrack.recorder.amending import amend

    return amend
