"""Making the machine for a test, and what there is then."""

from __future__ import annotations

import dataclasses
import json
import stat
from pathlib import Path
from typing import Any

from labtrack.provision import make
from labtrack.provision.make import Wish
from labtrack.provision.terraform import Place


def changed(place: Place, **wishes: Any) -> Place:
    """The same with other wishes for the machine."""
    lab = place.lab
    return Place(dataclasses.replace(lab, machine=dataclasses.replace(lab.machine, **wishes)), place.source)


def made(place: Place, **wish: Any) -> list[str]:
    """Plans and applies; what that has changed."""
    planned = make.plan(place, Wish(**wish))
    assert planned.error is None
    return make.apply(place).lines


def state(place: Place) -> dict[str, Any]:
    """What the stand-in for Terraform looks after."""
    return json.loads(place.state.read_text() or '{"fake": {}}')["fake"]


def mode(path: Path) -> int:
    """The permissions of a file."""
    return stat.S_IMODE(path.stat().st_mode)
