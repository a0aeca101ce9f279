"""The page with the figures of all benchmarks, docs/reference/performance.md: each writes its own part of it."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "performance.md"
HERE = f"{os.cpu_count()} cores, Python {platform.python_version()}"


def write(name: str, where: str, figures: str) -> None:
    """Put the FIGURES of `make NAME` between its marks; where: on what they were measured, without a full stop."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end {name} -->"
    head, found, rest = PAGE.read_text().partition(begin)
    _, ended, tail = rest.partition(end)
    if not found or not ended:
        raise SystemExit(f"{PAGE} has no {begin.strip()} and {end}.  To fix: put both where the figures belong.")
    day = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    PAGE.write_text(f"{head}{begin}Made by `make {name}` on {day}: {where}.\n\n{figures}\n{end}{tail}")
