#!/usr/bin/python
"""Ansible module: one machine by systemd-nspawn."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

try:
    from ansible.module_utils import labtrack_processes as processes
except ImportError:  # imported by a test, not through Ansible
    import labtrack_processes as processes

DOCUMENTATION = r"""
module: nspawn_machine
short_description: A Debian machine by systemd-nspawn, with systemd as PID 1
description:
  - Unpacks an image, boots, stops and removes one machine.
  - What runs is read from the process table, so a machine that was killed, or lost by a reboot, is simply not running.
options:
  name: {type: str, required: true, description: Name of the machine, and its host name.}
  folder: {type: path, required: true, description: Where the machine is kept. Its file tree is C(root) in there.}
  state:
    type: str
    choices: [present, started, paused, stopped, absent]
    default: started
    description: >-
      C(present) unpacks the image where there is no tree yet, and boots nothing. C(paused) lets all processes of a
      machine that runs stand still, so that its tree can be copied as a power cut would leave it; C(started) lets them
      go on.
  files:
    type: dict
    default: {}
    description: Path in the tree and content. Readable by all, but for those in root's home.
  image:
    type: path
    description: >-
      Tar archive of a file tree, or a folder, which becomes the tree and so is gone. Needed where there is no tree yet.
  bridge: {type: str, description: Bridge of the host that the machine is plugged into.}
  options: {type: list, elements: str, default: [], description: More options of systemd-nspawn.}
  environment: {type: dict, default: {}, description: Environment of systemd-nspawn.}
  timeout: {type: int, default: 90, description: Seconds that booting or stopping may take.}
"""

EXAMPLES = r"""
- name: Boot the machine
  nspawn_machine:
    name: login
    folder: /root/.cache/labtrack/rehearsal/machines/login
    image: /root/.cache/labtrack/cache/bookworm.tar.zst
    bridge: labtrack0
"""

RETURN = r"""
leader: {type: int, returned: when running, description: The process that is PID 1 inside.}
root: {type: str, returned: always, description: The file tree.}
"""

STATES = ["present", "started", "paused", "stopped", "absent"]
CGROUPS = Path("/sys/fs/cgroup")
SERVICE_MANAGER = Path("/run/systemd/system")  # there where systemd is PID 1
POWER_OFF = signal.SIGRTMIN + 4  # what systemd as PID 1 takes for `systemctl poweroff`


class Machine:
    """One machine: its tree, its processes, its control groups."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.name: str = module.params["name"]
        self.folder = Path(module.params["folder"])
        self.root = self.folder / "root"
        self.timeout: int = module.params["timeout"]

    # --- what is there

    def nspawn(self) -> int | None:
        return next(iter(processes.nspawn(self.root)), None)

    def leader(self) -> int | None:
        nspawn = self.nspawn()
        return processes.leader(nspawn) if nspawn else None

    def cgroups(self) -> list[Path]:
        """The machine's own control group in every hierarchy of the host; none where systemd has them."""
        if SERVICE_MANAGER.is_dir():
            return []
        top = [CGROUPS] if (CGROUPS / "cgroup.controllers").exists() else sorted(CGROUPS.glob("*/cgroup.procs"))
        return [(path if path.is_dir() else path.parent) / "labtrack" / self.name for path in top]

    def members(self) -> set[int]:
        """Every process in the machine's control groups, also those whose systemd-nspawn is gone."""
        found = set()
        for group in self.cgroups():
            for procs in [group / "cgroup.procs", *group.glob("**/cgroup.procs")]:
                try:
                    found |= {int(pid) for pid in procs.read_text().split()}
                except OSError:
                    continue
        return found - {os.getpid()}

    # --- the tree

    def unpack(self) -> bool:
        """Make the tree from the image; a half-made one of a crash is made again."""
        if self.root.exists():
            return False
        image = self.module.params["image"]
        if not image or not Path(image).exists():
            self.module.fail_json(msg=f"The machine {self.name} has no tree yet, and there is no image {image}.")
        if self.module.check_mode:
            return True
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        if Path(image).is_dir():
            Path(image).rename(self.root)
            return True
        part = self.folder / "root.part"
        self.remove_tree(part)
        part.mkdir()
        # xattrs: file capabilities are in them; zeros: an image may be several archives, one after the other
        command = ["tar", "--extract", "--ignore-zeros", "--numeric-owner", "--xattrs", "--xattrs-include=*"]
        self.module.run_command([*command, f"--file={image}", f"--directory={part}"], check_rc=True)
        part.chmod(0o755)
        part.rename(self.root)
        return True

    def write_files(self) -> bool:
        """Write the files that make this machine another one than the next."""
        different = []
        for name, content in self.module.params["files"].items():
            path = self.root / name.lstrip("/")
            if path.is_symlink() or not path.exists() or path.read_text() != content:
                different.append((path, content))
        for path, content in [] if self.module.check_mode else different:
            private = path.is_relative_to(self.root / "root")
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700 if private else 0o755)
            # not through a link, which would be followed on the host
            part = path.with_name(path.name + ".part")
            part.write_text(content)
            part.chmod(0o600 if private else 0o644)
            part.replace(path)
        return bool(different)

    def remove_tree(self, tree: Path) -> None:
        """Remove a file tree, and first whatever is still mounted in it."""
        mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for point in sorted((p for p in mounted if Path(p).is_relative_to(tree)), reverse=True):
            self.module.run_command(["umount", "--lazy", point], check_rc=True)
        if tree.exists():
            shutil.rmtree(tree)

    # --- starting

    def start(self) -> bool:
        if self.leader():
            return self.resume()
        if self.module.check_mode:
            return True
        self.end()  # what a crash has left
        command = [
            "systemd-nspawn",
            "--quiet",
            "--register=no",
            "--keep-unit",
            "--boot",
            f"--directory={self.root}",
            f"--machine={self.name}",
            "--resolv-conf=off",
            "--timezone=off",
            "--link-journal=no",
            "--console=pipe",
        ]
        if self.module.params["bridge"]:
            command.append(f"--network-bridge={self.module.params['bridge']}")
        command += self.module.params["options"]
        if SERVICE_MANAGER.is_dir():
            self.start_as_unit(command)
        else:
            self.start_detached(command)
        # nspawn that ends before it has booted is not waited for
        self.wait(lambda: self.leader() or not self.nspawn())
        if not self.leader():
            log = (self.folder / "console.log").read_text(errors="replace")[-2000:]
            self.module.fail_json(msg=f"The machine {self.name} does not boot. The end of its console:\n{log}")
        return True

    def start_as_unit(self, command: list[str]) -> None:
        """On a host with systemd: a transient unit, whose control group is the machine's."""
        console = f"append:{self.folder / 'console.log'}"
        properties = {
            "Delegate": "yes",
            "KillMode": "mixed",
            "StandardError": console,
            "StandardOutput": console,
            "TasksMax": "infinity",
        }
        unit = ["systemd-run", "--quiet", "--collect", f"--unit={self.unit}"]
        unit += [f"--property={key}={value}" for key, value in properties.items()]
        unit += [f"--setenv={key}={value}" for key, value in self.module.params["environment"].items()]
        self.module.run_command(unit + command, check_rc=True)

    @property
    def unit(self) -> str:
        return f"labtrack-{self.name}.service"

    def start_detached(self, command: list[str]) -> None:
        """On a host without systemd: a session of its own, in control groups of its own."""
        for group in self.cgroups():
            self.make_cgroup(group)
        with (self.folder / "console.log").open("ab") as console:
            # Popen returns when the new process has become systemd-nspawn
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                cwd="/",
                env=os.environ | self.module.params["environment"],
                start_new_session=True,
                preexec_fn=self.enter_cgroups,  # noqa: PLW1509 - a module has one thread
            )

    def make_cgroup(self, group: Path) -> None:
        top = group.parent.parent
        group.parent.mkdir(exist_ok=True)
        if (top / "cpuset.cpus").exists():
            # a new cpuset is empty, and takes no process, until it is told its CPUs and memory nodes
            for file in ("cpuset.cpus", "cpuset.mems"):
                (group.parent / file).write_text((top / file).read_text())
            (group.parent / "cgroup.clone_children").write_text("1")
        if (group.parent / "cpu.shares").exists():
            # a new group has 1024, the weight of one process: all machines together, beside everything else on the host
            (group.parent / "cpu.shares").write_text("8192")
        group.mkdir(exist_ok=True)

    def enter_cgroups(self) -> None:
        for group in self.cgroups():
            (group / "cgroup.procs").write_text(str(os.getpid()))

    # --- pausing

    def pause(self) -> bool:
        if not self.leader():
            self.module.fail_json(msg=f"The machine {self.name} does not run, so it can't be paused.")
        return self.signal_all(signal.SIGSTOP, lambda pid: processes.state(pid) not in "TZ")

    def resume(self) -> bool:
        return self.signal_all(signal.SIGCONT, lambda pid: processes.state(pid) == "T")

    def signal_all(self, number: signal.Signals, needs_it: Callable[[int], bool]) -> bool:
        """Send a signal to all processes of the machine that need it; those may start others until they have it."""

        def left() -> list[int]:
            leader = self.leader()
            return [pid for pid in processes.inside(leader) if needs_it(pid)] if leader else []

        def none_left() -> bool:
            for pid in left():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            return not left()

        changed = bool(left())
        if changed and not self.module.check_mode and not self.wait(none_left):
            self.module.fail_json(msg=f"Processes of the machine {self.name} don't take {number.name}: {left()}.")
        return changed

    # --- stopping

    def stop(self) -> bool:
        nspawn, leader = self.nspawn(), self.leader()
        if not nspawn and not self.members():
            return False
        if self.module.check_mode:
            return True
        if leader:
            self.resume()
            os.kill(leader, POWER_OFF)
            self.wait(lambda: not self.nspawn())
        self.end()
        return True

    def end(self) -> None:
        """Kill what is left of the machine, and remove its control groups."""
        if SERVICE_MANAGER.is_dir():
            # whatever is in the unit's control group; not an error where there is no such unit
            self.module.run_command(["systemctl", "kill", "--signal=SIGKILL", self.unit])
            self.module.run_command(["systemctl", "stop", self.unit])
        deadline = time.monotonic() + self.timeout
        while left := self.members() | set(processes.nspawn(self.root)):
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            if time.monotonic() > deadline:
                self.module.fail_json(msg=f"Processes of the machine {self.name} can't be killed: {sorted(left)}.")
            time.sleep(0.2)
        # a process that was killed leaves its control group a moment after it leaves the process table
        if not self.wait(self.cgroups_removed):
            self.module.fail_json(msg=f"The control groups of the machine {self.name} can't be removed.")

    def cgroups_removed(self) -> bool:
        try:
            for group in self.cgroups():
                for folder in sorted((path for path in group.glob("**/") if path.is_dir()), reverse=True):
                    folder.rmdir()
                if group.parent.is_dir() and not any(path.is_dir() for path in group.parent.iterdir()):
                    group.parent.rmdir()
        except OSError:
            return False
        return True

    def remove(self) -> bool:
        changed = self.stop() or self.folder.exists()
        if not self.module.check_mode:
            self.end()
            self.remove_tree(self.folder)
        return changed

    def wait(self, condition: Callable[[], object]) -> bool:
        deadline = time.monotonic() + self.timeout
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "folder": {"type": "path", "required": True},
            "state": {"type": "str", "default": "started", "choices": STATES},
            "files": {"type": "dict", "default": {}},
            "image": {"type": "path"},
            "bridge": {"type": "str"},
            "options": {"type": "list", "elements": "str", "default": []},
            "environment": {"type": "dict", "default": {}},
            "timeout": {"type": "int", "default": 90},
        },
        supports_check_mode=True,
    )
    machine = Machine(module)
    if module.params["state"] in ("present", "started"):
        changed = machine.unpack()
        changed = machine.write_files() or changed
        if module.params["state"] == "started":
            changed = machine.start() or changed
    elif module.params["state"] == "paused":
        changed = machine.pause()
    elif module.params["state"] == "stopped":
        changed = machine.stop()
    else:
        changed = machine.remove()
    module.exit_json(changed=changed, root=str(machine.root), leader=machine.leader())


if __name__ == "__main__":
    main()
