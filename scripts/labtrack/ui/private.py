"""A folder for one session, which only its owner can enter, and the programs of the session.

The folder and the programs are gone when the session has ended, in whatever way: a keeper watches beside it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import IO, cast

from labtrack.errors import LabtrackError
from labtrack.ui import keeper

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_KEPT = ("MLFLOW_S3_", "MLFLOW_BOTO_", "MLFLOW_AZURE_", "MLFLOW_GCS_")  # how artifacts in a store are reached
_LONGEST = 80  # bytes of a folder whose sockets can be opened: their paths have 104 at most
_ENDS = 10.0  # seconds for the keeper to clear away


class Private:
    """A context manager.  folder: the session's, 0700.  sockets: the same, or another whose path is short enough."""

    def __init__(self) -> None:
        self._groups: list[int] = []
        self._locks: list[int] = []
        self.folder = self._made(Path(tempfile.gettempdir()))
        too_long = len(os.fsencode(self.folder)) > _LONGEST
        self.sockets = self._made(Path("/tmp")) if too_long else self.folder  # noqa: S108 it is made 0700
        script = self.folder / "keeper.py"
        script.write_text((files("labtrack.ui") / "keeper.py").read_text(encoding="utf-8"), encoding="utf-8")
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", script, *self._folders], cwd="/", stdin=subprocess.PIPE, text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, pass_fds=self._locks,
        )  # fmt: skip

    def start(self, program: Path, *arguments: str, out: IO[bytes] | int, **more: str) -> subprocess.Popen[bytes]:
        """Starts a program of MLflow's environment in the folder.  out: where what it says goes.  more: variables."""
        process = subprocess.Popen(
            [program, *arguments], cwd=self.folder, env={**environment(), **more}, stdin=subprocess.DEVNULL, stdout=out,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        self._groups.append(process.pid)
        with contextlib.suppress(OSError):  # without a keeper it is `close` that ends it
            pipe = cast("IO[str]", self._keeper.stdin)
            pipe.write(f"{process.pid}\n")
            pipe.flush()
        return process

    def close(self) -> None:
        """Ends the programs and removes the folder."""
        keeper.end(self._groups, self._folders)
        with contextlib.suppress(OSError):
            cast("IO[str]", self._keeper.stdin).close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._keeper.wait(_ENDS)
        for descriptor in self._locks:
            os.close(descriptor)

    def __enter__(self) -> Private:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _folders(self) -> list[str]:
        return [str(one) for one in {self.folder, self.sockets}]

    def _made(self, base: Path) -> Path:
        """A folder with a lock that is held as long as the session or its keeper lives."""
        _sweep(base)
        try:
            folder = Path(tempfile.mkdtemp(prefix=_prefix(), dir=base)).absolute()
            part = folder / "lock.part"
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise LabtrackError(f"No folder can be made in {base}: {error.strerror}.", "set TMPDIR to one.") from error
        self._locks.append(descriptor)
        with contextlib.suppress(OSError):
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                part.rename(folder / keeper.LOCK)
        return folder


def environment() -> dict[str, str]:
    """The variables for MLflow's programs: no address, login or setting of the caller's work."""
    plain = {
        name: value
        for name, value in os.environ.items()
        if not name.lstrip("_").startswith("MLFLOW_") or name.startswith(_KEPT)
    }
    return {
        **plain, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "PYTHONUNBUFFERED": "1",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }  # fmt: skip


def _prefix() -> str:
    return f"{keeper.PREFIX}{socket.gethostname().partition('.')[0]}-"


def _sweep(base: Path) -> None:
    """Removes what sessions of this user on this machine have left whose keepers were killed too."""
    if fcntl is None:
        return
    for folder in base.glob(f"{_prefix()}*"):
        with contextlib.suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            descriptor = os.open(folder / keeper.LOCK, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)
