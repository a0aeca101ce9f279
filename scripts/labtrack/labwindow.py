"""lab_reboot_window: what the schema can't say of it."""

from __future__ import annotations

import datetime
import re
import shutil
import subprocess
import zoneinfo
from collections.abc import Mapping
from typing import Any

WHERE = ("lab_reboot_window",)
INSTEAD = 'Write like "Sun 04:00-05:00", or "Mon..Fri 23:30-00:30 America/Toronto"; at least 15 minutes.'
SHORTEST = datetime.timedelta(minutes=15)
_TIME = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_FORM = re.compile(rf"((?:[A-Za-z.,]+ )?{_TIME})-({_TIME})((?: \S+)?)")


def why_not(data: Mapping[str, Any]) -> str:
    """Why nothing can be restarted in this window; empty when it can, or the schema has told what is wrong."""
    given = data.get(WHERE[0])
    form = _FORM.fullmatch(given) if isinstance(given, str) else None
    if form is None:
        return ""
    begins, ends = (datetime.datetime.strptime(text[-5:], "%H:%M") for text in form.groups()[:2])
    if (ends - begins) % datetime.timedelta(days=1) < SHORTEST:
        return f"{WHERE[0]} is {given}, which is shorter than {SHORTEST.seconds // 60} minutes."
    zone = form[3].strip()
    try:
        zoneinfo.ZoneInfo(zone or "UTC")
    except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
        return f"{WHERE[0]} is {given}, and there is no time zone {zone}."
    said = _systemd(f"{form[1]}:00{form[3]}")
    return f"{WHERE[0]} is {given}, which systemd does not take: {said}" if said else ""


def _systemd(calendar: str) -> str:
    """What systemd has against a time, where this machine has one; the server's is asked by the deploy."""
    program = shutil.which("systemd-analyze")
    if not program:
        return ""
    done = subprocess.run([program, "calendar", calendar], capture_output=True, text=True, timeout=30, check=False)
    return " ".join(done.stderr.split()) if done.returncode else ""
