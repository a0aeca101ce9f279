"""The installed `labtrack`, as a person calls it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LABTRACK = Path(sys.executable).with_name("labtrack")


def labtrack(*arguments: object, **more: object) -> subprocess.CompletedProcess[str]:
    """Calls it; no call may end in a traceback."""
    done = subprocess.run(
        [LABTRACK, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False, **more
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done
