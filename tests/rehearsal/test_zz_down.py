"""Taking the rehearsal down leaves the host as it was.  The last file: after it there is no rehearsal."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Rehearsal

SETTINGS = ("fs.aio-max-nr", "fs.inotify.", "kernel.keys.", "net.bridge.", "net.ipv4.conf.", "net.ipv4.ip_forward")


def asked(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def snapshot() -> dict[str, Any]:
    """What a rehearsal changes on its host."""
    sysctl = (line.split(" = ", 1) for line in asked("sysctl", "-a").splitlines() if line.startswith(SETTINGS))
    links = json.loads(asked("ip", "-json", "link") or "[]")
    mounts = (line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return {
        "settings": dict(pair for pair in sysctl if len(pair) == 2),
        "interfaces": sorted(link["ifname"] for link in links),
        "routes": sorted(asked("ip", "route").splitlines()),
        "tables": sorted(asked("nft", "list", "tables").splitlines()),
        # without those of tests that run beside these
        "mounts": sorted(one for one in mounts if "/pytest-of-" not in one),
        "hosts": Path("/etc/hosts").read_text(),
        "control groups": sorted(map(str, Path("/sys/fs/cgroup").glob("**/labtrack/*/"))),
        "machines": sorted(line for line in asked("ps", "-eo", "args").splitlines() if "systemd-nspawn" in line),
    }


# Taken when the tests are collected: before the first of them starts the rehearsal.
UP_BEFORE = Path("/sys/class/net/labtrack0").exists()
BEFORE = {} if UP_BEFORE else snapshot()


@pytest.mark.skipif(UP_BEFORE, reason="the rehearsal was up before the tests, so it stays up")
def test_down_leaves_the_host_as_it_was(rehearsal: Rehearsal) -> None:
    assert snapshot()["machines"] != BEFORE["machines"]
    rehearsal.run("scripts/dev/down.sh", check=True)
    assert snapshot() == BEFORE
    assert not rehearsal.private.exists()

    again = rehearsal.run("scripts/dev/down.sh", check=True)
    assert "No rehearsal is up" in again.stdout
