"""Sending recorded runs to a tracking server: each exactly once, with everything that was recorded."""

from __future__ import annotations

from labtrack.sync.main import Options, Syncer, opened, sync
from labtrack.sync.report import Report

__all__ = ["Options", "Report", "Syncer", "opened", "sync"]
