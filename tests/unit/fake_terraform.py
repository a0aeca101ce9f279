"""A stand-in for the program `terraform`: for failures, and ends half way, that the real one can't be made to show.

It knows no provider and no cloud.  `fake.json` beside it says what is wanted and how it misbehaves; the state is a file
of its own making, in the place that it is told.  What the real one prints is asked in tests/terraform.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

SERVER = "module.server.openstack_compute_instance_v2.server"
PORT = "module.server.openstack_networking_port_v2.server"
NETWORK = "module.network.openstack_networking_network_v2.lab[0]"
BUCKET = "module.bucket.openstack_objectstorage_container_v1.artifacts[0]"
ADDRESS = "module.server.openstack_networking_floatingip_v2.server[0]"
VOLUME = "module.server.openstack_blockstorage_volume_v3.data[0]"
WANTED = {
    NETWORK: {"id": "n1"},
    PORT: {"id": "p1", "device_id": "s1"},
    SERVER: {"id": "s1"},
    ADDRESS: {"id": "a1", "address": "203.0.113.9"},
    BUCKET: {"id": "b1", "name": "climate-mlflow"},
}
HOSTS = """# Written by playbooks/provision.yml, which writes it again.
mlflow: &machine
  hosts:
    server: {ansible_host: 203.0.113.9, cloud_server_id: s1, cloud_project_id: pppp}
nginx: *machine
postgresql: *machine
"""


class FakeTerraform:
    """What a test says to the stand-in, and what it was asked."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder, self.program = folder, folder / "terraform"
        shutil.copy(__file__, folder / "fake_terraform.py")
        self.program.write_text(f'#!/bin/sh\nexec {sys.executable} -SI {folder}/fake_terraform.py "$@"\n')
        self.program.chmod(0o755)
        self.says: dict[str, Any] = {"wanted": WANTED}
        self.write()

    def write(self, **changed: Any) -> None:
        """Changes what it does from now on: wanted, fails, half, waits, prints."""
        self.says.update(changed)
        (self.folder / "fake.json").write_text(json.dumps(self.says))

    @property
    def calls(self) -> list[list[str]]:
        """The arguments of each call."""
        log = self.folder / "calls"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def last(self, command: str) -> list[str]:
        """The arguments of the last call of a command."""
        return [call for call in self.calls if call[0] == command][-1]


class _Run:
    """One call."""

    def __init__(self, arguments: list[str]) -> None:
        here = Path(__file__).parent
        self.says, self.arguments, self.here = json.loads((here / "fake.json").read_text()), arguments, here
        self.file = Path(os.environ["TF_DATA_DIR"]).parent / "terraform.tfstate"
        text = self.file.read_text() if self.file.exists() else ""
        self.state: dict[str, Any] = json.loads(text)["fake"] if text else {}

    def __call__(self) -> int:
        command, *rest = self.arguments
        with (self.here / "calls").open("a") as log:
            log.write(json.dumps(self.arguments) + "\n")
        if (said := self.says.get("fails", {}).get(command)) is not None:
            print(said, file=sys.stderr)
            return 1
        if command in self.says.get("prints", {}):
            print(self.says["prints"][command])
            return 0
        return getattr(self, f"do_{command}")(rest) or 0

    def save(self) -> None:
        self.file.write_text(json.dumps({"version": 4, "fake": self.state}))

    def do_init(self, _rest: list[str]) -> None:
        """Nothing to get ready."""

    def do_state(self, rest: list[str]) -> int:
        if rest[0] == "list":
            print("\n".join(self.state))
        elif self.state.pop(rest[-1], None) is None:
            print("Error: No matching objects found", file=sys.stderr)
            return 1
        else:
            self.save()
        return 0

    def do_plan(self, rest: list[str]) -> None:
        given = dict(one.split("=", 1) for one in rest if one.startswith("-out"))
        replace = {one.removeprefix("-replace=") for one in rest if one.startswith("-replace=")}
        targets = {one.removeprefix("-target=") for one in rest if one.startswith("-target=")}
        wanted = {} if "-destroy" in rest else self.says["wanted"]
        changes = []
        for address in targets or {**self.state, **wanted}:
            actions = ["no-op"]
            if address not in wanted:
                actions = ["delete"]
            elif address not in self.state:
                actions = ["create"]
            elif address in [*replace, *self.says.get("replaces", [])]:
                actions = ["delete", "create"]
            changes.append({"address": address, "mode": "managed", "change": {"actions": actions}})
        shown = {
            "format_version": "1.2",
            "resource_changes": changes,
            "output_changes": {},
            "prior_state": self.shown(),
        }
        Path(given["-out"]).write_text(json.dumps(shown))
        print("\n".join(f"  # {one['address']} {one['change']['actions']}" for one in changes))
        print("      + id = (known after apply)")

    def shown(self) -> dict[str, Any]:
        now = self.says.get("found", {})
        found = [{"address": a, "mode": "managed", "values": {**v, **now.get(a, {})}} for a, v in self.state.items()]
        return {"format_version": "1.0", "values": {"root_module": {"child_modules": [{"resources": found}]}}}

    def do_show(self, rest: list[str]) -> None:
        print(Path(rest[-1]).read_text() if rest[-1] != "-json" else json.dumps(self.shown() if self.state else {}))

    def do_apply(self, rest: list[str]) -> int:
        changes = json.loads(Path(rest[-1]).read_text())["resource_changes"]
        stopped: list[int] = []
        signal.signal(signal.SIGINT, lambda *_: stopped.append(1))
        for number, one in enumerate(changes):
            if number == 1 and self.says.get("half"):
                print("Error: Error creating openstack_x: Quota exceeded", file=sys.stderr)
                return 1
            if "delete" in one["change"]["actions"]:
                self.state.pop(one["address"])
            if "create" in one["change"]["actions"]:
                self.state[one["address"]] = self.says["wanted"][one["address"]]
            self.save()
            if number == 0 and self.says.get("waits"):
                (self.here / "at work").touch()
                while not stopped:
                    time.sleep(0.01)
                print("Error: execution halted", file=sys.stderr)
                return 1
        return 0

    def do_output(self, _rest: list[str]) -> None:
        hosts = {"server": {"server_id": "s1"}}
        values = {"hosts_yml": HOSTS, "hosts": hosts, "port_id": "p1"}
        print(json.dumps({name: {"value": value} for name, value in values.items()}))


if __name__ == "__main__":
    sys.exit(_Run(sys.argv[1:])())
