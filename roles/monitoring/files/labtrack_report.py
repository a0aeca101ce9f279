#!/usr/bin/python3
"""What the lab's server has done in a week, how it grows, and until when there is room.  Run as root.

labtrack-report              the report of the seven days until now
labtrack-report --json       the same for machines: {"version": 1, "text": ..., "figures": ...}
labtrack-report --write      note the week's figures, and leave the report to labtrack-alarm, which sends it; by a timer

Growth is what differs from figures that earlier calls with --write have noted; the first week has none.
"""

from __future__ import annotations

import importlib.machinery
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = Path(os.environ.get("LABTRACK_REPORT_FOLDER", "/var/lib/labtrack-report"))
STATUS = os.environ.get("LABTRACK_STATUS", "/usr/local/sbin/labtrack-status")
VERSION = 1  # of the JSON
DAY = 24 * 3600  # seconds
KEPT = 60  # weeks
OVER = 35 * DAY  # the time over which growth is looked at, where so much is known
LEAST = 3 * DAY  # growth of less time says nothing
FAR = 3650  # days: after that nobody asks
# Rows of the look that each report has; others where they are not well.
ALWAYS = ("backup", "drill", "certificate", "versions", "reboot")

Figures = dict[str, Any]  # time; what mlflowctl figures says; disks: {folder: {"used": bytes, "free": bytes}}


def status_program() -> ModuleType:
    """labtrack-status, which knows how the server is looked at."""
    sys.dont_write_bytecode = True
    loader = importlib.machinery.SourceFileLoader("labtrack_status", STATUS)
    module = ModuleType(loader.name)
    loader.exec_module(module)
    return module


def figures(status: ModuleType) -> Figures:
    """The figures of now."""
    found: Figures = {"time": time.time()}
    try:
        code, said = status.call("mlflowctl", "figures")
        found |= json.loads(said) if code == 0 else {"why": said.splitlines()[-1] if said else f"it ended with {code}"}
    except (OSError, ValueError, status.LateError) as error:
        found["why"] = str(error)
    found["disks"] = {
        folder: {"used": (of.f_blocks - of.f_bfree) * of.f_frsize, "free": of.f_bavail * of.f_frsize}
        for folder, of in status.places()
        if of.f_blocks
    }
    return found


def noted() -> list[Figures]:
    """The figures of earlier weeks, the oldest first."""
    try:
        return list(json.loads((FOLDER / "weeks.json").read_text()))
    except (OSError, ValueError):
        return []


def earlier(weeks: list[Figures], now: float) -> Figures | None:
    """The figures that growth is told from: the oldest of the last five weeks."""
    return next((week for week in weeks if LEAST <= now - week["time"] <= OVER), None)


def number(value: int | None) -> str:
    return "not known" if value is None else f"{value:,}"


def size(value: float) -> str:
    """Bytes as people read them."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while abs(value) >= 1024 and len(units) > 1:  # noqa: PLR2004
        value, units = value / 1024, units[1:]
    return f"{value:.0f} B" if units[0] == "B" else f"{value:.1f} {units[0]}"


def a_week(now: float | None, before: float | None, seconds: float) -> float | None:
    """How much more there is each week; None where that is not known."""
    return None if now is None or before is None else (now - before) / seconds * 7 * DAY


def grown(change: float | None) -> str:
    if change is None:
        return "growth not known yet"
    return f"{size(abs(change))} {'less' if change < 0 else 'more'} a week"


def until(free: float, change: float | None) -> str:
    """When it is full, if it goes on like that."""
    if change is None:
        return ""
    days = free / (change / 7) if change > 0 else FAR
    return "; room for years" if days >= FAR else f"; full in {days:.0f} days, if it goes on like that"


def lines(found: Figures, before: Figures | None, rows: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """The report: what each line is about, and what it says."""
    then: Figures = before or {}
    seconds = found["time"] - then.get("time", 0)
    if "runs" not in found:
        yield "runs", f"not known: {found.get('why', 'mlflowctl said nothing')}"
    else:
        failed = f", {found['failed_week']:,} of them failed" if found["failed_week"] else ""
        began = f"{found['runs_week']:,} began, by {found['people_week']:,} people{failed}"
        yield "runs", f"{began if found['runs_week'] else 'none began'}; {found['runs']:,} in all"
        yield "experiments", f"{found['experiments_week']:,} new; {found['experiments']:,} in all"
        yield "accounts", number(found["accounts"])
        yield (
            "database",
            (
                f"{size(found['database'])}, {grown(a_week(found['database'], then.get('database'), seconds))}; "
                f"about {number(found['points'])} points of metrics"
            ),
        )
        yield "bucket", bucket(found, then, seconds)
    for folder, disk in found["disks"].items():
        used = then.get("disks", {}).get(folder, {}).get("used")
        change = a_week(disk["used"], used, seconds)
        share = disk["used"] / ((disk["used"] + disk["free"]) or 1)
        room = f"{share:.0%} in use, {size(disk['free'])} free"
        yield f"disk {folder}", f"{room}, {grown(change)}{until(disk['free'], change)}"
    for row in rows:
        if row["check"] in ALWAYS or row["status"] not in ("ok", "skipped"):
            fix = f" To fix: {row['hint']}" if row["hint"] else ""
            yield row["check"], f"{row['status']}: {row['seen']}{'.' if fix else ''}{fix}"


def bucket(found: Figures, then: Figures, seconds: float) -> str:
    if found["bucket"] is None:
        return f"not known: {found.get('why', 'to count its objects takes longer than a minute')}"
    change = a_week(found["bucket"], then.get("bucket"), seconds)
    limit = found["bucket_limit"]
    room = "" if limit is None else until(limit - found["bucket"], change)
    of = "" if limit is None else f" of {size(limit)}"
    return f"{size(found['bucket'])}{of} in {number(found['objects'])} objects, {grown(change)}{room}"


def report(found: Figures, weeks: list[Figures], rows: list[dict[str, Any]]) -> str:
    """The text."""
    before = earlier(weeks, found["time"])
    said = list(lines(found, before, rows))
    width = max(len(name) for name, _ in said)
    since = "there is no earlier week yet" if before is None else f"growth since {day(before['time'])}"
    head = f"The week to {day(found['time'])} ({since}):"
    return "\n".join([head, *(f"  {name:<{width}}  {what}" for name, what in said)])


def day(when: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(when))


def write(path: Path, what: object) -> None:
    """Put a document at a path, whole."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(what) + "\n")
    part.chmod(0o644)
    part.replace(path)


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--json"], ["--write"]):
        print(__doc__, file=sys.stderr)
        return 2
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/usr/bin"
    status = status_program()
    found, weeks = figures(status), noted()
    text = report(found, weeks, status.look(status.CHECKS))
    if arguments == ["--write"]:
        # The report first: a call that is killed between is made again, and compares with the same week.
        write(FOLDER / "report.json", {"version": VERSION, "time": found["time"], "text": text})
        write(FOLDER / "weeks.json", [*weeks, found][-KEPT:])
    elif arguments == ["--json"]:
        print(json.dumps({"version": VERSION, "time": found["time"], "text": text, "figures": found}))
    else:
        print(text)
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)  # not held up by a check that hangs
