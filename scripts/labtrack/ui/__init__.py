"""MLflow's own UI over any recording, for one person alone."""

from __future__ import annotations

from labtrack.ui.session import Settings, View, view

__all__ = ["Settings", "View", "view"]
