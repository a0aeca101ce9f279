"""labtrack as a library: read recorded runs, look at them, send them to a tracking server, compare both.

    import labtrack

    report = labtrack.sync("mlflow.db", "https://mlflow.example.org")
    assert report.exit_code == 0, report.failed

Nothing is imported before it is used.  No call ends the process, sets a signal handler or prints: what happens is in
the report and in the logger `labtrack`, and KeyboardInterrupt goes through.  The login is that of MLflow's variables.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labtrack.analysis.frame import Frame as Frame
    from labtrack.analysis.frame import frame as frame
    from labtrack.errors import BadInputError as BadInputError
    from labtrack.errors import Exit as Exit
    from labtrack.errors import LabtrackError as LabtrackError
    from labtrack.library import sync as sync
    from labtrack.library import verify as verify
    from labtrack.local.experiment import BaseExperiment as BaseExperiment
    from labtrack.local.experiment import experiment as experiment
    from labtrack.stores import open_store as open_store
    from labtrack.stores.model import Store as Store
    from labtrack.sync.main import Options as Options
    from labtrack.sync.report import Report as Report
    from labtrack.tracking.answers import ServerError as ServerError

__version__ = "0.2.0.dev0"

# `sync` is the package of that name, which can be called.
_PLACES = {
    "open_store": "labtrack.stores",
    "frame": "labtrack.analysis.frame",
    "Frame": "labtrack.analysis.frame",
    "verify": "labtrack.library",
    "experiment": "labtrack.local.experiment",
    "BaseExperiment": "labtrack.local.experiment",
    "Store": "labtrack.stores.model",
    "Options": "labtrack.sync.main",
    "Report": "labtrack.sync.report",
    "Exit": "labtrack.errors",
    "LabtrackError": "labtrack.errors",
    "BadInputError": "labtrack.errors",
    "ServerError": "labtrack.tracking.answers",
}
__all__ = [  # noqa: RUF022 - in the order of the reference
    "open_store", "frame", "sync", "verify", "experiment", "BaseExperiment",
    "Options", "Report", "Frame", "Store",
    "LabtrackError", "BadInputError", "ServerError", "Exit",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "sync":
        return import_module("labtrack.sync")
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'labtrack' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
