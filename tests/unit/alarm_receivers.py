"""labtrack-alarm on a server that is a folder."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import ROOT
from receivers import Hook


def certificate(folder: Path, name: str = "localhost") -> Path:
    """A certificate and its key in one file, for a name."""
    file = folder / "relay.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}", "-keyout", file, "-out", folder / "ca.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    file.write_text(file.read_text() + (folder / "ca.pem").read_text())
    return file


PROGRAM = ROOT / "roles/monitoring/files/labtrack_alarm.py"
HOUR, DAY = 3600, 24 * 3600
TOKEN = "tk-not-to-be-seen"


class Alarms:
    """A server's look, its settings, its state and its receiver."""

    def __init__(self, here: Path, hook: Hook) -> None:
        self.here, self.hook = here, hook
        self.states = [here / "disk", here / "memory"]
        for folder in self.states:
            folder.mkdir()
        self.settings(webhook={"url": hook.url("/hook"), "template": "json"}, heartbeat=hook.url("/beat"))
        self.look()

    def settings(self, **receivers: Any) -> None:
        named = {"lab": "climate", "fqdn": "mlflow.example.org", "mail": {}, "webhook": {}, "heartbeat": ""}
        (self.here / "labtrack-alarm.json").write_text(json.dumps(named | receivers))

    def look(self, age: float = 0, parts: Sequence[str] = (), **status: str) -> None:
        """What labtrack-status has written: disk (with its parts), store and clock, ok unless said otherwise."""
        rows = [
            {
                "check": name,
                "status": status.get(name, "ok"),
                "seen": f"{name} seen",
                "hint": f"mend {name}",
                "parts": [*parts] if name == "disk" else [],
                "seconds": 0,
            }
            for name in ("disk", "store", "clock", "alarms")
        ]
        said = {"version": 1, "status": "ok", "time": time.time() - age, "host": "server", "results": rows}
        (self.here / "look.json").write_text(json.dumps(said))

    def environment(self) -> dict[str, str]:
        states = ":".join(map(str, self.states))
        named = {"CREDENTIALS_DIRECTORY": self.here, "LABTRACK_ALARM_LOOK": self.here / "look.json"}
        return {**os.environ, **{name: str(path) for name, path in named.items()}, "LABTRACK_ALARM_STATES": states}

    def __call__(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(PROGRAM), *arguments]
        done = subprocess.run(
            command, env=self.environment() | more, capture_output=True, text=True, timeout=60, check=False
        )
        assert "Traceback" not in done.stderr and TOKEN not in done.stdout + done.stderr
        return done

    def run(self, **status: str) -> list[str]:
        """A look and what is told then: kind, check and status of each event."""
        self.look(**status)
        before = len(self.hook.on("/hook"))
        assert self().returncode == 0
        sent = self.hook.on("/hook")[before:]
        return [f"{one['kind']} {one['check']} {one['status']}" for request in sent for one in request.json["events"]]

    def age(self, seconds: float) -> None:
        """Let time pass in the state."""
        file = self.states[0] / "state.json"
        state = json.loads(file.read_text())
        for problem in state["open"].values():
            problem["since"] -= seconds
            problem["told"] -= seconds
            problem["lately"] = {part: then - seconds for part, then in problem["lately"].items()}
            if "well" in problem:
                problem["well"] -= seconds
        state["over"] = {check: then - seconds for check, then in state["over"].items()}
        file.write_text(json.dumps(state))

    def beats(self) -> int:
        return len(self.hook.on("/beat"))


def module(alarms: Alarms, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program as a module, in this process."""
    for name, value in alarms.environment().items():
        monkeypatch.setenv(name, value)
    spec = importlib.util.spec_from_file_location("labtrack_alarm", PROGRAM)
    assert spec and spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found
