"""Recordings of another machine, fetched over ssh: `ssh://host/path` as a source."""

from __future__ import annotations

from labtrack.stores.pull.address import Address, is_address, refuse
from labtrack.stores.pull.mirror import pull

__all__ = ["Address", "is_address", "pull", "refuse"]
