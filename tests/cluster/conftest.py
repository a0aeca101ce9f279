"""The rehearsal's cluster for the tests, as its users see it."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import subprocess

    from conftest import Rehearsal

OVER = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"}


def until(condition: Callable[[], Any], seconds: float) -> Any:
    """Wait until something holds, and give it."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s; it is {found!r}"
        time.sleep(0.3)
    return found


class Cluster:
    """What Ada does on the cluster."""

    def __init__(self, rehearsal: Rehearsal) -> None:
        self.rehearsal = rehearsal

    def root(self, node: str, command: str, **more: Any) -> subprocess.CompletedProcess:
        """Run a command as root on a machine of the cluster."""
        return self.rehearsal.ssh(node, command, **more)

    def ada(self, command: str, *, node: str = "login", check: bool = True, timeout: float = 60) -> str:
        """What a command prints that Ada runs on a machine of the cluster."""
        done = self.root(node, f"su - ada -c {shlex.quote(command)}", check=check, timeout=timeout)
        return done.stdout.strip()

    def submit(self, command: str, *options: str) -> str:
        """Submit a job of one command; gives its id."""
        usual = ["--parsable", "--output=/dev/null", "--mem=100"]
        return self.ada(shlex.join(["sbatch", *usual, *options, f"--wrap={command}"]))

    def states(self, job: str, *options: str) -> list[str]:
        """What sacct says of a job, without its steps: one state, or with -D one for each of its starts."""
        said = self.ada(shlex.join(["sacct", "-nXP", "--format=state", "-j", job, *options]))
        return [line.split()[0] for line in said.splitlines()]

    def state(self, job: str) -> str:
        """How a job is now, by sacct."""
        return "".join(self.states(job)[-1:])

    def ended(self, job: str, seconds: float = 40) -> str:
        """Wait until a job has ended; gives how, by sacct."""
        return until(lambda: (now := self.state(job)) in OVER and now, seconds)

    def running(self, job: str, seconds: float = 20) -> None:
        """Wait until a job runs."""
        until(lambda: self.state(job) == "RUNNING", seconds)

    def cut_power(self, node: str) -> None:
        """End all of a machine's processes at once, with its PID 1."""
        (system,) = self.rehearsal.machine(node).children()
        system.kill()

    def power_on(self, node: str) -> None:
        """Start a machine that is off, and wait until it answers."""
        started = ["-e", f"machine={node}", "-e", "state=started"]
        self.rehearsal.playbook("playbooks/rehearsal/power.yml", *started, check=True)

    def idle(self) -> set[str]:
        """The nodes that take jobs and have none."""
        return set(self.ada("sinfo -hN -t idle -o %N").split())


@pytest.fixture(scope="session")
def cluster(rehearsal: Rehearsal) -> Cluster:
    """The cluster of the rehearsal."""
    return Cluster(rehearsal)
