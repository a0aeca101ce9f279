#!/usr/bin/python
"""Ansible module: units that run with what is on the disk."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: current_unit
short_description: Have units run, also after a boot, with what is on the disk now
description:
  - Compares states, not events.  A unit that was started before one of its files was last written is restarted, one
    that was loaded before is reloaded, one that does not run is started, whichever run wrote the file.
  - What systemd knows of the unit (its file and drop-ins) is loaded again where it has changed, and counts as files
    that the unit is restarted for.  What a timer, socket or path starts is loaded again, too.
  - The time of a file is that of its last change (ctime), which no copying and no C(touch) sets back.
options:
  names: {type: list, elements: str, required: true, description: "The units, one after the other."}
  restart: {type: bool, default: true, description: "Whether they may be restarted; without it, they are reloaded."}
  restart_for: {type: list, elements: path, default: [], description: Files and folders that are read at the start.}
  reload_for: {type: list, elements: path, default: [], description: Files and folders that a reload reads again.}
  probe: {type: list, elements: str, default: [], description: Command that says by exit code 0 whether all is loaded.}
  stamps: {type: path, default: /run/labtrack, description: Folder where the time of the last reload is kept.}
"""

EXAMPLES = r"""
- name: Run nginx with what is on the disk
  current_unit:
    names: [nginx.service]
    reload_for: [/etc/nginx/nginx.conf]
"""

RETURN = r"""
done: {type: list, elements: str, returned: always, description: "What was done, for example C(restart nginx.service)."}
"""

ASKED = (
    "ActiveState",
    "ConditionResult",
    "ConditionTimestamp",
    "DropInPaths",
    "FragmentPath",
    "InactiveExitTimestamp",
    "Triggers",
    "UnitFileState",
)
ADMIN = Path("/etc/systemd/system")
FAILED = """{action} of {unit} failed: {said}
To fix: `systemctl status {unit}` and `journalctl -u {unit}` on the server say why; then run the same playbook again."""
UNKNOWN = """systemd on the server knows no unit {unit}.
To fix: if somebody has removed its package, install it again; then run the same playbook again."""


def written(paths: list[str]) -> float:
    """When the newest of these files was last changed, in seconds since the epoch; 0 without any."""
    return max((path.lstat().st_ctime for path in found(paths)), default=0)


def found(paths: list[str]) -> Iterator[Path]:
    """Those of the paths that are there, with all that is below folders."""
    for path in map(Path, paths):
        if path.name != "__pycache__" and (path.exists() or path.is_symlink()):
            yield path
            if path.is_symlink():
                yield path.resolve()
            elif path.is_dir():
                yield from found([str(child) for child in path.iterdir()])


def seconds(shown: str) -> float:
    """A time as systemctl shows it, in seconds since the epoch; 0 for none."""
    if not shown:
        return 0
    return datetime.strptime(shown, "%a %Y-%m-%d %H:%M:%S.%f %Z").replace(tzinfo=timezone.utc).timestamp()


class Unit:
    """A unit as systemd sees it."""

    def __init__(self, module: AnsibleModule, name: str) -> None:
        self.module, self.name = module, name
        self.stamp = Path(module.params["stamps"], f"{name}.reloaded")
        self.refresh()

    def refresh(self) -> None:
        """Ask systemd."""
        self.shown = self.show(ASKED, self.name)

    def show(self, properties: tuple[str, ...], *names: str) -> dict[str, str]:
        asked = [f"--property={','.join(properties)}", "--timestamp=us+utc"]
        said = self.module.run_command(["systemctl", "show", *asked, *names], check_rc=True)[1]
        return dict(line.split("=", 1) for line in said.splitlines())

    @property
    def files(self) -> list[str]:
        """The unit's own files, and the folders of its drop-ins: one that was removed counts too."""
        template = re.sub("@.*[.]", "@.", self.name)
        folders = [str(ADMIN / f"{name}.d") for name in {self.name, template}]
        paths = [self.shown["FragmentPath"], *self.shown["DropInPaths"].split(), *folders]
        return [path for path in paths if path and not path.startswith("/run/")]

    @property
    def known(self) -> bool:
        """Whether systemd has read its files, and those of what it starts, since they were written.

        NeedDaemonReload misses new folders.
        """
        files = [file for name in self.shown["Triggers"].split() for file in Unit(self.module, name).files]
        manager = self.show(("UnitsLoadTimestamp", "UnitsLoadStartTimestamp"))
        # the first is that of the last daemon-reload, and empty when there was none since the boot
        read = manager["UnitsLoadTimestamp"] or manager["UnitsLoadStartTimestamp"]
        return written(self.files + files) < seconds(read)

    @property
    def running(self) -> bool:
        """Whether it runs; what its own conditions keep from running here (as in a container) need not."""
        kept = self.shown["ConditionResult"] == "no" and self.shown["ConditionTimestamp"]
        return self.shown["ActiveState"] in ("active", "reloading") or bool(kept)

    @property
    def started(self) -> float:
        """When its start began: whatever was written before, it has read."""
        return seconds(self.shown["InactiveExitTimestamp"] or self.shown["ConditionTimestamp"])

    @property
    def loaded(self) -> float:
        """When its start or its last reload began."""
        return max(self.started, self.stamp.stat().st_mtime if self.stamp.exists() else 0)

    def call(self, action: str) -> None:
        """Have systemd do something.  Ends the module if that fails."""
        code, _, said = self.module.run_command(["systemctl", action, self.name])
        if code:
            self.module.fail_json(msg=FAILED.format(action=action, unit=self.name, said=" ".join(said.split())))

    def misses(self, probe: list[str]) -> bool:
        """Whether a command says that not all is loaded."""
        return bool(probe) and self.module.run_command(probe)[0] != 0

    def reload(self) -> None:
        """Reload it, and note when that began.  A reload that fails, or whose end nobody has seen, is none."""
        self.stamp.parent.mkdir(mode=0o755, exist_ok=True)
        part = self.stamp.with_suffix(".part")
        part.touch()
        os.utime(part)
        self.call("reload")
        part.replace(self.stamp)


def wanted(unit: Unit, given: dict[str, Any]) -> Iterator[str]:
    """What has to be done with a unit, in this order."""
    if not unit.known:
        yield "daemon-reload"
    if unit.shown["UnitFileState"] == "disabled":
        yield "enable"
    if not unit.running:
        yield "start"
    elif given["restart"] and written(unit.files + given["restart_for"]) >= unit.started:
        yield "restart"
    elif written(given["reload_for"]) >= unit.loaded or unit.misses(given["probe"]):
        yield "reload"


def main() -> None:
    """Run the module."""
    lists = {name: {"type": "list", "elements": "path", "default": []} for name in ("restart_for", "reload_for")}
    module = AnsibleModule(
        argument_spec={
            "names": {"type": "list", "elements": "str", "required": True},
            "restart": {"type": "bool", "default": True},
            "probe": {"type": "list", "elements": "str", "default": []},
            "stamps": {"type": "path", "default": "/run/labtrack"},
            **lists,
        },
        supports_check_mode=True,
    )
    done = []
    for name in module.params["names"]:
        unit = Unit(module, name)
        if not unit.shown["FragmentPath"] and not module.check_mode:
            module.run_command(["systemctl", "daemon-reload"], check_rc=True)
            unit.refresh()
            if not unit.shown["FragmentPath"]:
                module.fail_json(msg=UNKNOWN.format(unit=name))
        for action in wanted(unit, module.params):
            done.append(f"{action} {name}")
            if module.check_mode:
                continue
            if action == "daemon-reload":
                module.run_command(["systemctl", action], check_rc=True)
                unit.refresh()
            elif action == "reload":
                unit.reload()
            else:
                unit.call(action)
    module.exit_json(changed=bool(done), done=done)


if __name__ == "__main__":
    main()
