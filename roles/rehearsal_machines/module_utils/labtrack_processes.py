"""Which processes belong to a machine: read from /proc, so nothing that a crash could leave stale is trusted."""

from __future__ import annotations

from pathlib import Path

PROC = Path("/proc")


def boot_id() -> str:
    """The kernel's name for this boot: what was noted under another one is gone."""
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


def arguments(pid: int) -> list[str]:
    """The command line of a process; empty for kernel threads and processes that have gone."""
    try:
        return (PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def _status(pid: int) -> dict[str, str]:
    try:
        lines = (PROC / str(pid) / "status").read_text().splitlines()
    except OSError:
        return {}
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def pids() -> list[int]:
    """All processes that this one can see."""
    return [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()]


def started(pid: int) -> str | None:
    """When a process started, in clock ticks since boot: with the pid it names one process only."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def parents(pid: int) -> list[int]:
    """The ancestors of a process, nearest first."""
    found: list[int] = []
    while pid > 1 and (above := int(_status(pid).get("PPid", "0"))) > 0:
        found.append(above)
        pid = above
    return found


def nspawn(root: Path | None = None) -> dict[int, Path]:
    """The running systemd-nspawn processes with the tree that each runs; only those of `root` if it is given."""
    found = {}
    for pid in pids():
        words = arguments(pid)
        if not words or Path(words[0]).name != "systemd-nspawn":
            continue
        trees = [Path(word.partition("=")[2]) for word in words if word.startswith("--directory=")]
        if trees and root in (None, trees[0]):
            found[pid] = trees[0]
    return found


def leader(nspawn_pid: int) -> int | None:
    """The process that is PID 1 inside; nspawn's first child is a short-lived helper and is not it."""
    for pid in pids():
        status = _status(pid)
        if status.get("PPid") == str(nspawn_pid) and status.get("Name") == "systemd":
            inner = status.get("NSpid", "").split()
            if len(inner) > 1 and inner[-1] == "1":
                return pid
    return None


def inside(pid: int) -> list[int]:
    """A process and all below it; those of a machine, for its PID 1."""
    return [pid, *(one for one in pids() if pid in parents(one))]


def state(pid: int) -> str:
    """What a process does, by the kernel: R, S, D; T where it stands still since SIGSTOP; Z once it has ended."""
    return _status(pid).get("State", "Z")[0]
