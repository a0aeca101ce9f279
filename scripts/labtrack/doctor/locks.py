"""Whether a lock of one process keeps another one away: on this machine, and between the nodes of a Slurm job.

SQLite takes POSIX locks.  Some mounts refuse them, and some keep them within one machine without saying so.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from labtrack.doctor.bounded import doing
from labtrack.doctor.result import Result, failed, ok, skipped

try:
    import fcntl
except ImportError:  # Windows, which `cluster.examine` refuses
    fcntl = None  # type: ignore[assignment]

BETWEEN = "locks between nodes"
_TRY = """\
import fcntl, os, sys
try:
    fcntl.lockf(os.open(sys.argv[1], os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)
    said = "taken"
except (BlockingIOError, PermissionError):
    said = "refused"
except OSError as error:
    said = error.strerror.replace(" ", "-")
node = os.environ.get("SLURMD_NODENAME") or os.uname().nodename.partition(".")[0]
sys.stdout.write(f"labtrack {node} {said}\\n")
"""
_HINT = (
    "let each job record into a file of its own (MLFLOW_TRACKING_URI=labtrack://{folder}), or put a shared SQLite file "
    "on a file system with locks; Lustre needs the mount option `flock`."
)
_WITHOUT = "locks on this machine"
_PENDING, _RESERVED = 0x40000000, 0x40000001  # https://sqlite.org/src/file/src/os.h: who writes holds these bytes
_PREFIX, _LEFT = ".labtrack-doctor-", 60.0  # seconds after which such a file is nobody's
_FLOCK = "hhqqi4x"


@contextmanager
def _locked(folder: Path) -> Iterator[Path]:
    """A file in a folder that this process has locked."""
    descriptor, name = tempfile.mkstemp(prefix=_PREFIX, dir=folder)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield Path(name)
    finally:
        os.close(descriptor)
        with contextlib.suppress(OSError):
            os.unlink(name)  # noqa: PTH108  the parent may be gone


def here(folder: Path) -> Iterator[Result]:
    """Two processes of this machine want the same lock."""
    doing("take a lock")
    for left in folder.glob(f"{_PREFIX}*"):  # of a call that was ended while the file system hung
        with contextlib.suppress(OSError):
            if left.stat().st_uid == os.getuid() and left.stat().st_mtime < time.time() - _LEFT:
                left.unlink()
    hint = _HINT.format(folder=folder)
    try:
        with _locked(folder) as file:
            command = [sys.executable, "-I", "-S", "-c", _TRY, str(file)]
            said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    except OSError as error:
        yield failed(_WITHOUT, f"none can be taken in {folder}: {error.strerror}", hint)
        return
    if said[2:] == ["refused"]:
        yield ok(_WITHOUT, "a second process was kept away, as it must be")
    elif said[2:] == ["taken"]:
        yield failed(_WITHOUT, "two processes had the same lock: SQLite files that both write are destroyed here", hint)
    else:
        yield failed(_WITHOUT, f"a second process could not even ask: {' '.join(said[2:]) or 'no answer'}", hint)


def between(folder: Path, env: Mapping[str, str]) -> Iterator[Result]:
    """The same on another node of this Slurm job."""
    nodes = env.get("SLURM_JOB_NUM_NODES") or env.get("SLURM_NNODES") or "1"
    if not env.get("SLURM_JOB_ID"):
        yield skipped(BETWEEN, "not within a Slurm job; in one of two nodes (`salloc -N 2`) this is tried")
        return
    if not nodes.isdecimal() or int(nodes) <= 1:
        yield skipped(BETWEEN, "this job has one node")
        return
    srun = shutil.which("srun", path=env.get("PATH"))
    if srun is None:
        yield skipped(BETWEEN, "there is no srun here")
        return
    doing("ask another node for a lock, by srun")
    step = [srun, "--overlap", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--quiet", "--cpu-bind=none"]
    try:
        with _locked(folder) as file:
            # `python3`, since this one may be in an environment on a disk of this node
            done = subprocess.run(
                [*step, "python3", "-I", "-S", "-c", _TRY, str(file)], capture_output=True, text=True, check=False,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
    except OSError as error:
        yield failed(BETWEEN, f"none can be taken in {folder}: {error.strerror}", _HINT.format(folder=folder))
        return
    me = env.get("SLURMD_NODENAME") or socket.gethostname().partition(".")[0]
    answers = [line.split() for line in done.stdout.splitlines() if line.startswith("labtrack ")]
    others = [(node, said) for _, node, said in answers if node != me]
    if not others:
        yield skipped(
            BETWEEN, f"srun reached no other node: {(done.stderr or done.stdout).strip()[-200:] or 'silence'}"
        )
    for node, said in others:
        if said == "refused":
            yield ok(BETWEEN, f"{node} was kept away from what {me} has locked")
        elif said == "taken":
            seen = f"{node} got what {me} has locked: two nodes that write one SQLite file destroy it here"
            yield failed(BETWEEN, seen, _HINT.format(folder=folder))
        else:
            yield failed(BETWEEN, f"{node} could not ask for a lock: {said}", _HINT.format(folder=folder))


def writer(path: Path) -> int | None:
    """The process that has a SQLite file locked to write; 0 where it is on another machine, None where there is none.

    Asks only, and takes no lock.
    """
    with path.open("rb") as file:
        for place in (_PENDING, _RESERVED):
            wanted = struct.pack(_FLOCK, fcntl.F_RDLCK, os.SEEK_SET, place, 1, 0)
            try:
                kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, wanted))
            except OSError:
                return None
            if kind != fcntl.F_UNLCK:
                return max(0, int(pid))
    return None
