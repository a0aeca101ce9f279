#!/usr/bin/python3
"""Looks at everything that keeps the lab's server well.  Run as root.

labtrack-status              a table, a row for each check, with how to fix what is not well
labtrack-status --json       the same for machines: {"version": 1, "status": ..., "results": [...]}
labtrack-status --write FILE the same into a file, for the alarms; what is not well is looked at again after 20 s,
                             because a service that is being restarted is no alarm.  Exit code 0.

Exit code 0 all is well, 1 warnings, 2 something failed.  The checks run beside each other, each for LIMIT seconds at
most; one that fails or hangs is a row and stops no other.  What MLflow needs is looked at by `mlflowctl check`.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(os.environ.get("LABTRACK_STATUS_ROOT", "/"))
VERSION = 1  # of the JSON: grows where a key that was there means something else
LIMIT = 30  # seconds for a check
GRACE = 5  # seconds, in which a check that is stopped cleans up
DAY = 24 * 3600  # seconds
DEPLOY = "run playbooks/deploy.yml."
MLFLOW = ("database", "accounts", "connections", "wal", "store", "quota", "instances")
FOLDERS = ("/", "/boot", "/var", "/var/lib/mlflow", "/var/lib/postgresql", "/var/log", "/var/tmp")  # noqa: S108
NEARLY, FULL = 0.80, 0.90  # of a disk, or its inodes: warning, failed
LITTLE, LEAST = 0.10, 0.04  # of the memory that is available: warning, failed
REBOOT_WITHIN = 7 * DAY
UPGRADES_WITHIN = 3 * DAY  # the timers are daily
STARTING = 600  # seconds after the boot in which the clock may not be set yet
AGAIN = 20  # seconds
FIRST_DRILL = 9 * DAY  # the timer is weekly
# What has to run.  Others are told only when they have failed, as a warning.
OURS = (
    "nginx.service", "postgresql@*.service", "mlflow@*.service", "labtrack-*.timer", "labtrack-*.path", "certbot.timer",
)  # fmt: skip
ALARMS = "labtrack-alarm.timer"  # which runs where somebody is to be told
WORST = ("ok", "skipped", "warning", "failed")  # the last is the worst
CODES = {"ok": 0, "skipped": 0, "warning": 1, "failed": 2}

Found = tuple[str, str, str]  # status, what was seen, how to fix it
Joined = tuple[str, str, str, list[str]]  # and the names of what is not well


class LateError(Exception):
    """No answer in time."""


def call(*command: str) -> tuple[int, str]:
    """Run a program; its exit code and what it said.  One that hangs is ended, with time to clean up."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True
    ) as running:
        try:
            output, errors = running.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGTERM)
            try:
                running.wait(GRACE)
            except subprocess.TimeoutExpired:
                os.killpg(running.pid, signal.SIGKILL)
            raise LateError(f"{command[0]} gave no answer within {LIMIT} s") from None
    return running.returncode, output.strip() or errors.strip()


def told(missing: Found, *command: str, hint: str = "") -> Found:
    """What another role's program says of its own, as JSON in its last line.

    missing: the row where there is no such program; hint: how to fix it, where the program does not say.
    """
    try:
        code, said = call(*command)
    except FileNotFoundError:
        return missing
    try:
        row = json.loads(said.splitlines()[-1])
        return row["status"], row["seen"], row.get("hint", "" if row["status"] == "ok" else hint)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        seen = said.splitlines()[-1] if said else "nothing"
        return "failed", f"{command[0]} ended with code {code} and said: {seen}", DEPLOY


def backups() -> dict[str, dict[str, Any]] | None:
    """The last result of each job; None where nothing is backed up."""
    try:
        return dict(json.loads(call("labtrack-backup", "status")[1]))
    except FileNotFoundError:
        return None


def job(name: str, result: dict[str, Any]) -> Found:
    """What a job of the backups has left."""
    hint = f"`journalctl -u labtrack-backup@{name}` has more; `systemctl start labtrack-backup@{name}` tries again."
    message, _, fix = str(result.get("message", "")).partition("\nTo fix: ")
    if not result.get("time"):
        settings = ROOT / "etc/labtrack-backup.json"
        since = settings.stat().st_mtime if settings.exists() else 0
        if time.time() - since < FIRST_DRILL:
            return "ok", f"{name}: not run yet, its timer starts it", ""
        return "failed", f"{name}: never run", hint
    if not result.get("ok"):
        return "failed", f"{name}: {message}", fix or hint
    if result.get("too_old"):
        days = (time.time() - result["last_ok"]) / DAY
        return "failed", f"{name}: the last that worked was {days:.1f} days ago", hint
    if result.get("warning"):
        return "warning", f"{name}: {message}", result["warning"]
    return "ok", f"{name}, {(time.time() - result['time']) / 3600:.1f} h ago: {message}", ""


def backup() -> Found | Joined:
    results = backups()
    if results is None:
        return "skipped", "lab_backup is not set", ""
    return join((name, job(name, result)) for name, result in results.items() if name != "drill")


def drill() -> Found:
    results = backups()
    return ("skipped", "lab_backup is not set", "") if results is None else job("drill", results.get("drill", {}))


def join(found: Iterable[tuple[str, Found]]) -> Joined:
    """Several findings, by name, as one row: all that is not well, the worst first, or all that is well."""
    rows = sorted(found, key=lambda named: -WORST.index(named[1][0]))
    bad = [(name, row) for name, row in rows if row[0] in ("warning", "failed")]
    told = [row for _, row in bad or rows]
    worst, hint = (told[0][0], told[0][2]) if told else ("ok", "")
    return worst, "; ".join(seen for _, seen, _ in told), hint, [name for name, _ in bad]


def places() -> Iterator[tuple[str, os.statvfs_result]]:
    """A folder on each disk."""
    seen = set()
    for name in FOLDERS:
        path = ROOT / name.lstrip("/")
        if path.exists() and path.stat().st_dev not in seen:
            seen.add(path.stat().st_dev)
            yield name, os.statvfs(path)


def fullness(folder: str, taken: int, free: int, total: str, hint: str) -> Found:
    """How much of a disk is in use, as `df` has it."""
    share = taken / (taken + free)
    status = "ok" if share < NEARLY else "warning" if share < FULL else "failed"
    return status, f"{folder} {share:.0%} of {total}", hint.format(folder) if status != "ok" else ""


def gibibytes(of: os.statvfs_result) -> str:
    return f"{of.f_blocks * of.f_frsize / 2**30:.1f}"


def disk() -> Joined:
    hint = "`du -xh --max-depth=2 {} | sort -h | tail` shows what takes it; lab_data_volume_gb and lab_boot_volume_gb."
    return join(
        (folder, fullness(folder, of.f_blocks - of.f_bfree, of.f_bavail, f"{gibibytes(of)} GiB", hint))
        for folder, of in places()
        if of.f_blocks
    )


def inodes() -> Joined:
    hint = "`du -x --inodes --max-depth=2 {} | sort -n | tail` shows where the files are."
    return join(
        (folder, fullness(folder, of.f_files - of.f_ffree, of.f_favail, f"{of.f_files:,} inodes", hint))
        for folder, of in places()
        if of.f_files  # not each file system counts them
    )


def memory() -> Found:
    lines = (line.split() for line in (ROOT / "proc/meminfo").read_text().splitlines())
    amounts = {line[0].rstrip(":"): int(line[1]) for line in lines if len(line) > 1}
    free, total = amounts["MemAvailable"], amounts["MemTotal"]
    status = "ok" if free / total >= LITTLE else "warning" if free / total >= LEAST else "failed"
    hint = "" if status == "ok" else "`ps aux --sort=-rss | head` shows who has it; lab_mlflow_instances, lab_flavor."
    return status, f"{free / 2**20:.1f} of {total / 2**20:.1f} GiB available", hint


def units() -> Found | Joined:
    """Units that have failed, and ours that do not run."""
    code, said = call("systemctl", "list-units", "--all", "--full", "--plain", "--no-legend", "--no-pager")
    if code:
        return "failed", f"systemctl: {said}", "`systemctl` on the server."
    bad: dict[str, str] = {}
    other: dict[str, str] = {}
    for line in said.splitlines():
        name, load, active = line.split()[:3]
        ours = any(fnmatch.fnmatch(name, pattern) for pattern in (*OURS, "labtrack-*", "certbot.service"))
        runs = any(fnmatch.fnmatch(name, pattern) for pattern in OURS)
        if active == "failed":
            (bad if ours else other)[name] = "failed"
        elif runs and active == "inactive" and load == "loaded" and (name != ALARMS or alerts().exists()):
            bad[name] = "is not running"
    found = {**bad, **other}
    if not found:
        return "ok", "none has failed, and ours run", ""
    seen = ", ".join(f"{name} {what}" for name, what in found.items())
    hint = f"`journalctl -u {next(iter(found))}` says why; `systemctl restart` it, or `systemctl reset-failed`."
    return "failed" if bad else "warning", seen, hint, list(found)


def versions() -> Found:
    """Whether the night's upgrades run, and leave no hole open that Debian has closed."""
    rules = ROOT / "etc/apt/apt.conf.d/60labtrack-upgrades"
    ran = ROOT / "var/lib/apt/periodic/unattended-upgrades-stamp"
    if not rules.exists() or 'Unattended-Upgrade "1"' not in rules.read_text():
        return "skipped", "no upgrades are installed by themselves", ""
    last = (ran if ran.exists() else rules).stat().st_mtime
    hint = "`journalctl -u apt-daily -u apt-daily-upgrade`, and /var/log/unattended-upgrades, say why."
    if min(time.time() - last, uptime()) > UPGRADES_WITHIN:
        return "warning", f"no upgrades were installed for {(time.time() - last) / DAY:.0f} days", hint
    if not ran.exists():
        return "ok", "the first upgrades are still to come", ""
    code, said = call("apt-get", "--simulate", "--quiet", "-o", "Debug::NoLocking=1", "upgrade")
    if code:
        return "warning", f"apt-get: {said.splitlines()[-1]}", "`apt-get --simulate upgrade` on the server."
    missing = re.findall(r"(?m)^Inst (\S+) \[.*Debian-Security", said)
    fetched = ROOT / "var/lib/apt/lists/partial"  # changes with each update
    waiting = fetched.exists() and fetched.stat().st_mtime > last
    held = [] if waiting else [name for name in missing if not (name.startswith("postgresql-") and window())]
    if held:
        return "warning", f"security upgrades that are not installed: {', '.join(held)}", hint
    return "ok", f"{len(missing) or 'no'} security upgrades wait", ""


def reboot() -> Found:
    asked = ROOT / "run/reboot-required"
    if not asked.exists():
        return "ok", "none is asked for", ""
    packages = asked.with_name("reboot-required.pkgs")
    names = sorted(set(packages.read_text().split())) if packages.exists() else []
    age = time.time() - asked.stat().st_mtime
    seen = f"asked for since {age / DAY:.0f} days" + (f", by {', '.join(names)}" if names else "")
    within, hint = REBOOT_WITHIN, "`systemctl reboot` at a quiet hour: what was answered to a run is kept."
    if planned := window():
        within, hint = within + DAY, "`journalctl -u labtrack-window` has what was in the way; or `systemctl reboot`."
        seen += f"; will be in the window of {planned}"
        last = ROOT / "var/lib/labtrack-window/last.json"
        said = json.loads(last.read_text()) if last.exists() else {"time": 0}
        if said["time"] > asked.stat().st_mtime:
            seen += f"; {(time.time() - said['time']) / DAY:.1f} days ago: {said['said']}"
    return ("ok", seen, "") if age < within else ("warning", seen, hint)


def window() -> str:
    """When the machine may be restarted the next time; empty where it has no window."""
    _, said = call("systemctl", "show", "--property=NextElapseUSecRealtime", "--value", "labtrack-window.timer")
    return said if re.fullmatch(r"[A-Z][a-z]{2} \d{4}-\d\d-\d\d \S+( \S+)?", said) else ""


def uptime() -> float:
    return float((ROOT / "proc/uptime").read_text().split()[0])


def clock() -> Found:
    try:
        if call("systemd-detect-virt", "--quiet", "--container")[0] == 0:
            return "skipped", "a container has the clock of its host", ""
    except FileNotFoundError:
        pass
    code, said = call("timedatectl", "show", "--property=NTPSynchronized", "--value")
    if code:
        return "failed", f"timedatectl: {said}", "`timedatectl` on the server."
    if said == "yes":
        return "ok", "synchronised", ""
    if uptime() < STARTING:
        return "ok", "not synchronised yet, after a boot", ""
    hint = (
        "`systemctl status systemd-timesyncd` says why. The store refuses requests of a clock that is 15 minutes off."
    )
    return "warning", "not synchronised", hint


def alerts() -> Path:
    """Who is to be told; not there without lab_alerts."""
    return ROOT / "etc/labtrack-alarm.json"


def alarms() -> Found:
    """Whether those who are to be told could be reached."""
    if not alerts().exists():
        return "skipped", "lab_alerts is not set: nobody is told", ""
    states = []
    for folder in ("var/lib/labtrack-alarm", "run/labtrack-alarm"):
        with contextlib.suppress(OSError, ValueError):
            states.append(json.loads((ROOT / folder / "state.json").read_text()))
    state: dict[str, Any] = max(states, key=lambda one: one["saved"], default={"down": {}})
    if not state["down"]:
        return "ok", "all could be reached" if states else "the first look is still to come", ""
    down = state["down"].items()
    seen = "; ".join(f"{name}, for {(time.time() - one['since']) / 3600:.1f} h: {one['why']}" for name, one in down)
    return (
        "failed",
        f"not reached: {seen}",
        "`labtrack-alarm --test` tries each; lab_alerts, and the secrets that it names.",
    )


NO_MLFLOW = ("failed", "MLflow is not installed", DEPLOY)
CHECKS: dict[str, Callable[[], Found | Joined]] = {
    **{name: partial(told, NO_MLFLOW, "mlflowctl", "check", name) for name in MLFLOW},
    "closed": partial(told, ("skipped", "there is no nginx yet", ""), "labtrack-closed"),
    "certificate": partial(
        told, ("skipped", "there is none yet", ""), "labtrack-certificate", "status", "--json",
        hint="`labtrack-certificate status`, and docs/admin/certificates.md.",
    ),
    "backup": backup, "drill": drill, "disk": disk, "inodes": inodes, "memory": memory,
    "units": units, "versions": versions, "reboot": reboot, "clock": clock, "alarms": alarms,
}  # fmt: skip


def look(names: Iterable[str]) -> list[dict[str, Any]]:
    """The rows of these checks, in their order."""
    rows: dict[str, dict[str, Any]] = {}

    def one(name: str) -> None:
        start = time.monotonic()
        parts: list[list[str]] = []
        try:
            status, seen, hint, *parts = CHECKS[name]()
        except Exception as error:  # whatever is wrong is the answer
            said = " ".join(str(error).split())
            seen = said if isinstance(error, LateError) else f"{type(error).__name__}: {said}"
            status, hint = "failed", "`journalctl --since -1h -p warning` on the server."
        seconds = round(time.monotonic() - start, 3)
        seen = " ".join(seen.split())
        row = {"check": name, "status": status, "seen": seen, "hint": hint, "seconds": seconds}
        rows[name] = {**row, "parts": parts[0] if parts else []}

    threads = {name: threading.Thread(target=one, args=(name,), daemon=True) for name in names}
    until = time.monotonic() + LIMIT + 2 * GRACE
    for thread in threads.values():
        thread.start()
    for name, thread in threads.items():
        thread.join(max(0, until - time.monotonic()))
        late = {"status": "failed", "seen": f"no answer within {LIMIT} s", "hint": "`dmesg` on the server."}
        # its thread hangs, and nobody waits for it
        rows.setdefault(name, {"check": name, **late, "seconds": LIMIT, "parts": []})
    return [rows[name] for name in threads]


def document(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """All rows, as others read them."""
    status = max((row["status"] for row in rows), key=WORST.index)
    status = "ok" if status == "skipped" else status
    return {"version": VERSION, "status": status, "time": time.time(), "host": socket.gethostname(), "results": rows}


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    width = max(len(row["check"]) for row in rows)
    for row in rows:
        yield f"{row['check']:<{width}}  {row['status']:<7}  {row['seen']}"
        if row["hint"]:
            yield f"{'':<{width}}  {'':<7}  To fix: {row['hint']}"


def write(path: Path) -> None:
    """Look, once more where something is not well, and leave what was found at a path, whole."""
    rows = look(CHECKS)
    if bad := [row["check"] for row in rows if row["status"] not in ("ok", "skipped")]:
        time.sleep(AGAIN)
        again = {row["check"]: row for row in look(bad)}
        rows = [again.get(row["check"], row) for row in rows]
    part = path.with_suffix(".part")
    part.write_text(json.dumps(document(rows)) + "\n")
    part.chmod(0o644)
    part.replace(path)


def main(arguments: list[str]) -> int:
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/usr/bin"
    if arguments[:1] == ["--write"] and len(arguments) == len(("--write", "FILE")):
        write(Path(arguments[1]))
        return 0
    if set(arguments) - {"--json"}:
        print(__doc__, file=sys.stderr)
        return 2
    found = document(look(CHECKS))
    print(json.dumps(found) if arguments else "\n".join(table(found["results"])))
    return CODES[found["status"]]


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)  # not held up by a check that hangs
