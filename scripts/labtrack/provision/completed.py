"""The completed lab, build/<lab>/lab.json: every setting, and what the cloud has under the names in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from labtrack import files
from labtrack.lab import Lab


def complete(lab: Lab, found: Mapping[str, str]) -> dict[str, Any]:
    """All settings of lab.yml with their defaults (None: not given), the admins' keys, and `found`: ids by kind."""
    return {
        **lab.settings,
        "public_keys": list(lab.public_keys),
        "own_key": lab.own_key.is_file(),
        "found": dict(found),
    }


def write(lab: Lab, found: Mapping[str, str]) -> Path:
    """Writes the completed lab, and says where.  It has no secret."""
    file = lab.root / "build" / lab.name / "lab.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    files.write_whole(file, (json.dumps(complete(lab, found), indent=2, sort_keys=True) + "\n").encode())
    return file
