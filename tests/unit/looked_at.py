"""A server that is a folder, with stand-ins for the programs that labtrack-status asks."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import ROOT

PROGRAM = ROOT / "roles/monitoring/files/labtrack_status.py"
CLOSED = ROOT / "roles/nginx/templates/labtrack_closed.py"
UNITS = """\
mlflow@1.service loaded active running MLflow tracking server, instance 1
nginx.service loaded active running A high performance web server
postgresql@17-main.service loaded active running PostgreSQL Cluster 17-main
labtrack-egress.service loaded inactive dead Keep services to the addresses that they need
labtrack-egress.timer loaded active waiting Look up each minute where services may go
no-such.service not-found inactive dead no-such.service
"""
WELL = {
    "mlflowctl": """printf '{"check": "%s", "status": "ok", "seen": "well", "hint": ""}\\n' "$2" """,
    "labtrack-certificate": """echo '{"status": "ok", "seen": "selfsigned, valid for 300 more days"}'""",
    "systemctl": f"cat <<'END'\n{UNITS}END",
    "systemd-detect-virt": "exit 1",
    "timedatectl": "echo yes",
}
ALL = [
    "database", "accounts", "connections", "wal", "store", "quota", "instances", "closed", "certificate", "backup",
    "drill", "disk", "inodes", "memory", "units", "versions", "reboot", "clock", "alarms",
]  # fmt: skip


def ago(seconds: float) -> float:
    """A time in the past, in seconds since the epoch."""
    return time.time() - seconds


class Server:
    """A server's programs and files."""

    def __init__(self, here: Path) -> None:
        self.bin, self.root = here / "bin", here / "root"
        for folder in (self.bin, self.root / "proc", self.root / "run", self.root / "etc"):
            folder.mkdir(parents=True)
        for name, script in WELL.items():
            self.program(name, script)
        self.closed = self.root / "etc/nginx/labtrack.closed"
        program = CLOSED.read_text().replace("{{ __nginx_closed_file }}", str(self.closed))
        (self.bin / "labtrack-closed").write_text(program)
        (self.bin / "labtrack-closed").chmod(0o755)
        self.memory(16, 8)
        (self.root / "proc/uptime").write_text("86400.00 1.00\n")

    def program(self, name: str, script: str) -> None:
        (self.bin / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.bin / name).chmod(0o755)

    def memory(self, total: float, available: float) -> None:
        lines = f"MemTotal: {total * 2**20:.0f} kB\nMemFree: 1 kB\nMemAvailable: {available * 2**20:.0f} kB\n"
        (self.root / "proc/meminfo").write_text(lines)

    def close(self, why: str, age: float = 0) -> None:
        """As playbooks/close.yml does, so many seconds ago."""
        self.closed.parent.mkdir(exist_ok=True)
        self.closed.write_text(f"{why}\n")
        os.utime(self.closed, (ago(age), ago(age)))

    def backups(self, **results: dict[str, Any]) -> None:
        (self.root / "etc/labtrack-backup.json").write_text("{}")
        self.program("labtrack-backup", f"cat <<'END'\n{json.dumps(results)}\nEND\nexit 1")

    def environment(self) -> dict[str, str]:
        return {"PATH": f"{self.bin}:/usr/bin:/bin", "LABTRACK_STATUS_ROOT": str(self.root)}

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(PROGRAM), *arguments]
        return subprocess.run(
            command, env=self.environment(), capture_output=True, text=True, timeout=60, check=False
        )  # fmt: skip

    def look(self) -> dict[str, dict[str, Any]]:
        """The rows by name; the disk's are this machine's, and not looked at."""
        said = json.loads(self("--json").stdout)
        return {row["check"]: row for row in said["results"]}

    def found(self) -> dict[str, str]:
        """What is not well."""
        rows = self.look().items()
        return {name: row["status"] for name, row in rows if row["status"] not in ("ok", "skipped") and name != "disk"}


def loaded(server: Server, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """labtrack-status as a module, on that server."""
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    spec = importlib.util.spec_from_file_location("labtrack_status", PROGRAM)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "labtrack_status", module)
    spec.loader.exec_module(module)
    return module
