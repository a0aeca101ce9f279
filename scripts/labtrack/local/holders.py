"""Who holds a file: the processes of this machine that have it open or have locked it."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

_PROC = Path("/proc")
_BESIDE = ("", "-wal", "-shm", "-journal")
_JOB = ("SLURM_JOB_ID", "SLURM_JOBID", "PBS_JOBID", "LSB_JOBID")


@dataclass(frozen=True)
class Holder:
    """A process.  job: its batch job.  open, locks: what it has of the file.  writes: whether it opened it to write."""

    pid: int
    user: str
    host: str
    command: str
    job: str
    open: tuple[str, ...]
    locks: tuple[str, ...]
    writes: bool

    def data(self) -> dict[str, object]:
        """As plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Found:
    """The holders, and how many processes of other people could not be looked into."""

    holders: tuple[Holder, ...]
    hidden: int


def holders(path: Path, proc: Path = _PROC) -> Found:
    """Who on this machine has a file, or what SQLite keeps beside it, open or locked; nobody without /proc."""
    wanted = {}
    for suffix in _BESIDE:
        with contextlib.suppress(OSError):
            facts = path.with_name(path.name + suffix).stat()
            wanted[facts.st_dev, facts.st_ino] = suffix or "file"
    locks = _locks(proc, {number: what for (_, number), what in wanted.items()})
    found, hidden = [], 0
    for process in sorted((one for one in _entries(proc) if one.name.isdecimal()), key=lambda one: int(one.name)):
        pid = int(process.name)
        try:
            opened = list(_opened(process, wanted))
        except PermissionError:
            hidden += 1
            opened = []
        except OSError:  # it has just ended
            continue
        if pid != os.getpid() and (opened or locks.get(pid)):
            kept = tuple(sorted({what for what, _ in opened}))
            writes = any(how for _, how in opened) or any("WRITE" in one for one in locks.get(pid, ()))
            found.append(_holder(process, pid, kept, tuple(locks.get(pid, ())), writes))
    return Found(tuple(found), hidden)


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []


def _opened(process: Path, wanted: dict[tuple[int, int], str]) -> Iterator[tuple[str, bool]]:
    """Which of the wanted files a process has open, and whether to write."""
    for link in (process / "fd").iterdir():
        with contextlib.suppress(OSError):
            facts = link.stat()
            what = wanted.get((facts.st_dev, facts.st_ino))
            if what:
                yield what, _writes(process / "fdinfo" / link.name)


def _writes(info: Path) -> bool:
    for line in info.read_text().splitlines():
        if line.startswith("flags:"):
            return int(line.split()[1], 8) & os.O_ACCMODE != os.O_RDONLY
    return False


def _locks(proc: Path, wanted: dict[int, str]) -> dict[int, list[str]]:
    """The locks on the files by the processes of this machine that have them."""
    found: dict[int, list[str]] = {}
    try:
        lines = (proc / "locks").read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        fields = [one for one in line.split() if one != "->"]
        # 1: POSIX ADVISORY WRITE 1234 08:01:5678 0 EOF
        with contextlib.suppress(ValueError, IndexError):
            number = int(fields[5].rpartition(":")[2])
            if number in wanted:
                waits = " (waits)" if "->" in line.split() else ""
                found.setdefault(int(fields[4]), []).append(f"{fields[3]} on {wanted[number]}{waits}")
    return found


def _holder(process: Path, pid: int, opened: tuple[str, ...], locks: tuple[str, ...], writes: bool) -> Holder:
    user, command, job = "?", "?", ""
    with contextlib.suppress(OSError):
        owner = process.stat().st_uid
        user = str(owner)
        with contextlib.suppress(KeyError, ImportError):
            import pwd

            user = pwd.getpwuid(owner).pw_name
        command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
        command = command or f"[{(process / 'comm').read_text().strip()}]"
        variables = dict(
            one.partition("=")[::2] for one in (process / "environ").read_bytes().decode("utf-8", "replace").split("\0")
        )
        job = next((f"{name}={variables[name]}" for name in _JOB if variables.get(name)), "")
    return Holder(pid, user, socket.gethostname(), command, job, opened, locks, writes)
