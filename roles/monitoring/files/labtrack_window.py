#!/usr/bin/python3
"""Brings into effect what waits for the lab's window: PostgreSQL's upgrades, a restart of the machine.  Run as root.

labtrack-window in "Sun 04:00-05:00"    started by its timer; does nothing outside of the window, and nothing while
                                        something is not well, somebody works on a closed server, or a deploy, backup or
                                        restore is under way: it waits for that until the window ends
labtrack-window services                after each night's upgrades: MLflow's instances that run with files that were
                                        replaced, one after the other, so that the server answers meanwhile

What it did, or why it did nothing, is in the journal and in labtrack-status' row "reboot".
"""

from __future__ import annotations

import datetime
import fcntl
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(os.environ.get("LABTRACK_WINDOW_ROOT", "/"))
ASKED = ROOT / "run/reboot-required"
DEPLOY = ROOT / "run/labtrack-lab.lock"  # of a run of the playbooks
DEPLOY_ENDS = 120 * 60  # seconds, after which it counts no more
# Held by a backup, a drill or a restore, of the databases and of the artifacts; by an upgrade and a gc of MLflow's.
LOCKS = (
    "var/lib/labtrack-backup/lock", "var/lib/labtrack-backup-artifacts/lock", "run/lock/mlflow-upgrade",
    "var/lib/mlflow/gc.lock",
)  # fmt: skip
WORK = ("labtrack-*", "certbot.service", "apt-daily-upgrade.service")
NO_WORK = re.compile(r"labtrack-(window|look|alarm|egress)\b")  # quick, or this
STATE = ROOT / "var/lib/labtrack-window/last.json"
WAITS = "61labtrack-window"  # in apt.conf.d: what the night's upgrades leave to the window
AGAIN = 30  # seconds
LOOK, UPGRADE, RESTART = 180, 3600, 300  # seconds for each


def run(*command: str, limit: float = 60, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", timeout=limit, check=False, env={**os.environ, **(env or {})},
    )  # fmt: skip


def ends(window: str, now: float) -> float:
    """When the window ends that is open now, in seconds since the epoch; 0: none is open.

    systemd says when windows begin, so that days, zones and summer time are understood as its timer does.
    """
    begin, end = re.findall(r"\d\d:\d\d", window)[:2]
    minutes = [int(one[:2]) * 60 + int(one[3:]) for one in (begin, end)]
    length = (minutes[1] - minutes[0]) % (24 * 60) * 60
    calendar = re.sub(r"-\d\d:\d\d", ":00", window, count=1)
    before = f"--base-time=@{int(now - length)}"
    said = run("systemd-analyze", "calendar", before, calendar, env={"TZ": "UTC", "LC_ALL": "C.UTF-8"})
    next_one = re.search(r"Next elapse: \w+ (\S+ \S+) UTC", said.stdout)
    if not next_one:
        raise SystemExit(f"systemd does not take {window!r}: {said.stdout.strip()}")
    began = datetime.datetime.fromisoformat(f"{next_one[1]}+00:00").timestamp()
    return began + length if began <= now else 0


def waiting() -> list[str]:
    """What waits for the window."""
    found = [f"upgrade of {name}" for name in upgrades()]
    found += [f"restart of {name}" for name in outdated("postgresql")]
    if ASKED.exists():
        packages = ASKED.with_name("reboot-required.pkgs")
        names = sorted(set(packages.read_text().split())) if packages.exists() else []
        found.append("restart of the machine" + (f", asked for by {', '.join(names)}" if names else ""))
    return found


def upgrades() -> list[str]:
    """Packages that the night's upgrades leave to the window, and that have a newer version."""
    pattern = run("apt-config", "dump", "--format", "%v%n", "Unattended-Upgrade::Package-Blacklist").stdout.split()
    said = run("apt-get", "--simulate", "--quiet", "upgrade", "--with-new-pkgs", limit=UPGRADE).stdout
    names = re.findall(r"(?m)^Inst (\S+) \[", said)
    return [name for name in names if any(re.match(one, name) for one in pattern)]


def outdated(kind: str) -> list[str]:
    """Services of a kind that run with files that an upgrade has replaced."""
    try:
        said = run("needrestart", "-b", "-r", "l", "-l", limit=RESTART).stdout
    except FileNotFoundError:
        return []
    return sorted(re.findall(rf"(?m)^NEEDRESTART-SVC: ({kind}@\S+\.service)$", said))


def unwell() -> str:
    """Why the machine is left alone: the rows that have failed, and a server that somebody has closed to work on it.

    Nothing, where a move has taken the lab elsewhere.  Nobody is served here then, and it would wait for ever: the row
    "closed" stays, and a certificate can't be renewed where its name leads to another server.
    """
    if elsewhere():
        return ""
    try:
        said: dict[str, Any] = json.loads(run("labtrack-status", "--json", limit=LOOK).stdout.splitlines()[-1])
        bad = [
            f"{row['check']}: {row['seen']}"
            for row in said["results"]
            if row["status"] == "failed" or (row["check"], row["status"]) == ("closed", "warning")
        ]
    except (OSError, ValueError, LookupError, TypeError, subprocess.TimeoutExpired) as error:
        return f"labtrack-status gave no answer ({type(error).__name__})"
    return "; ".join(bad)


def elsewhere() -> bool:
    """Whether a move has taken the lab to another server, as the role that closes this one says."""
    try:
        return bool(json.loads(run("labtrack-closed").stdout)["elsewhere"])
    except (OSError, ValueError, LookupError, TypeError, subprocess.TimeoutExpired):
        return False  # what is wrong there is a row of the look, which counts then


def busy(held: list[int]) -> str:
    """Who is at work; what nobody holds is held from now on, so that nothing begins."""
    if DEPLOY.exists() and DEPLOY.stat().st_size and time.time() - DEPLOY.stat().st_mtime < DEPLOY_ENDS:
        return "a playbook is at work"
    units = run(
        "systemctl", "list-units", "--type=service", "--state=activating,running", "--plain", "--no-legend", *WORK
    )
    for line in units.stdout.splitlines():
        if not NO_WORK.match(name := line.split()[0]):
            return f"{name} is at work"
    for lock in filter(Path.exists, (ROOT / name for name in LOCKS)):
        descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        held.append(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return f"somebody holds {lock}"
    packages = ROOT / "var/lib/dpkg/lock-frontend"
    if packages.exists():
        with packages.open("r+b") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return "apt is at work"
    return ""


def quiet(until: float) -> tuple[str, list[int]]:
    """Wait until all is well and nobody is at work.  Gives what was in the way to the end, or nothing; the locks."""
    said = ""
    while True:
        held: list[int] = []
        why = busy(held) or unwell()
        if not why:
            return "", held
        for descriptor in held:
            os.close(descriptor)
        if why != said:
            print(f"waits: {why}", flush=True)
        said = why
        if time.time() + AGAIN >= until:
            return why, []
        time.sleep(AGAIN)


def upgrade() -> None:
    """Install what the night's upgrades leave to the window, by the same rules but that one."""
    parts, folder = ROOT / "etc/apt/apt.conf.d", ROOT / "run/labtrack-window"
    without = folder / "apt.conf.d"
    without.mkdir(parents=True, exist_ok=True)
    for old in without.iterdir():
        old.unlink()
    for part in parts.iterdir():
        if part.name != WAITS:
            (without / part.name).symlink_to(part)
    configuration = folder / "apt.conf"
    configuration.write_text(f'Dir::Etc::Parts "{without}";\n')
    done = run("unattended-upgrade", "-v", limit=UPGRADE, env={"APT_CONFIG": str(configuration)})
    print(f"upgrades: exit code {done.returncode} {done.stdout.strip()}", flush=True)


def restart(names: list[str]) -> None:
    """One after the other: each that is started answers."""
    for name in names:
        done = run("systemctl", "restart", name, limit=RESTART)
        print(f"restarted {name}" if not done.returncode else f"{name}: {done.stdout.strip()}", flush=True)


def note(said: str) -> None:
    print(said, flush=True)
    STATE.parent.mkdir(parents=True, exist_ok=True)
    STATE.write_text(json.dumps({"time": time.time(), "said": said}) + "\n")


def window(given: str) -> None:
    until = ends(given, time.time())
    if not until:
        print(f"{given} is not now")
        return
    wanted = waiting()
    if not wanted:
        note("nothing waited for the window")
        return
    print(f"waiting for the window: {'; '.join(wanted)}", flush=True)
    why, _held = quiet(until)
    if why:
        note(f"the window was not used, because {why}")
        return
    if any(one.startswith("upgrade") for one in wanted):
        upgrade()
    if not ASKED.exists():
        restart(outdated("postgresql"))
        note(f"done: {'; '.join(wanted)}")
        return
    if time.time() >= until:
        note("not restarted, because the upgrades have taken the whole window")
    elif why := unwell():
        note(f"not restarted, because after the upgrades {why}")
    else:
        note(f"done: {'; '.join(wanted)}")
        run("systemctl", "reboot")


def main(arguments: list[str]) -> int:
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
    if arguments[:1] == ["in"] and len(arguments) == len(("in", "WINDOW")):
        window(arguments[1])
    elif arguments == ["services"]:
        restart(outdated("mlflow"))
    else:
        print(__doc__, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
