"""Sending recorded runs to a tracking server: each exactly once, with everything that was recorded.

The package can be called, as `labtrack.library.sync`, so that `labtrack.sync(...)` works whether or not one of its
modules was imported before.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

from labtrack.sync.main import Options, Syncer, opened, sync
from labtrack.sync.progress import Shows
from labtrack.sync.report import Report

__all__ = ["Options", "Report", "Syncer", "opened", "sync"]


class _Callable(ModuleType):
    def __call__(
        self, source: str | Path, destination: str, options: Options | None = None, shows: Shows | None = None
    ) -> Report:
        from labtrack.library import sync as library_sync

        return library_sync(source, destination, options, shows)


sys.modules[__name__].__class__ = _Callable
