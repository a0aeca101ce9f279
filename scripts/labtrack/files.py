"""Files that only their owner may read: written whole or not at all, and locked while they change."""

from __future__ import annotations

import contextlib
import datetime
import errno
import getpass
import json
import os
import socket
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from labtrack.errors import BadInputError, Exit, LabtrackError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

OTHERS_CAN_WRITE = stat.S_IWGRP | stat.S_IWOTH
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def user_number() -> str:
    """What tells this user from others on this machine: the uid, or a name where there are none."""
    return str(os.getuid()) if hasattr(os, "getuid") else os.environ.get("USERNAME", "nobody")


def home(env: Mapping[str, str]) -> Path:
    """The user's home; for one without any (a container's), a folder of their own among the temporary files."""
    try:
        return Path(env.get("HOME") or Path.home())
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"labtrack-{user_number()}"


def make_private_folder(folder: Path) -> None:
    """Makes a folder (0700) where it is missing, with what is missing above it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot("make the folder", folder, error) from error


def write_private(path: Path, data: bytes) -> None:
    """Puts `data` at `path`, mode 0600: after a crash at any moment the old or the new content is there.

    Raises LabtrackError when the disk is full or the folder can't be written to; the old content stays.
    """
    _write(path, data, None)


def write_whole(path: Path, data: bytes) -> None:
    """The same with the mode that the file has, or that new files get here."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        mode = 0o666 & ~umask()
    _write(path.resolve() if path.is_symlink() else path, data, mode)


def umask() -> int:
    """The mode bits that new files don't get."""
    found = os.umask(0o077)
    os.umask(found)
    return found


def _write(path: Path, data: bytes, mode: int | None) -> None:
    try:
        for left_over in path.parent.glob(f".{path.name}.*.tmp"):  # of a call that was killed
            left_over.unlink(missing_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if mode is not None:
                temporary.chmod(mode)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise _cannot("write", path, error) from error


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # where folders can't be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cannot(action: str, path: Path, error: OSError) -> LabtrackError:
    if error.errno in _NO_ROOM:
        return LabtrackError(
            f"The disk is full: {path} was not written, and what was there before is unchanged.",
            f"free some space (`df -h {path.parent}`) and run the same command again; it goes on where it stopped.",
        )
    return LabtrackError(f"Can't {action} {path}: {error.strerror}.", f"look at `ls -ld {path.parent}`.")


def refuse_open_folder(folder: Path) -> None:
    """Raises BadInputError where others could replace a file in `folder`."""
    mode = folder.stat().st_mode
    if mode & OTHERS_CAN_WRITE:
        raise BadInputError(
            f"Others can write to the folder {folder} ({stat.filemode(mode)}), so they could swap a file in it.",
            f"`chmod go-w {folder}`, or choose another folder.",
        )


@contextlib.contextmanager
def lock(path: Path, doing: str, on: str = "this lab", *, needed: bool = True) -> Iterator[str]:
    """Holds the lock file `path`; the kernel lets go of it however the process ends.

    needed: whether to go without is worse than not to go at all.  Gives an empty string, or why there is no lock:
    the folder can't be written to, or its file system (some of Lustre and NFS) or this system has none.
    Raises LabtrackError with Exit.LOCKED, naming the holder, when another call has it.
    """
    try:
        descriptor = _open_lock(path)
    except LabtrackError as error:
        if needed:
            raise
        yield error.what
        return
    try:
        trouble = _take(descriptor, path, on, needed=needed)
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "user": user_name(), "doing": doing, "since": now}
        with contextlib.suppress(OSError):  # on a full disk the lock still locks
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.write(descriptor, json.dumps(holder).encode())
        yield trouble
    finally:
        os.close(descriptor)


def _open_lock(path: Path) -> int:
    make_private_folder(path.parent)
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
    except OSError as error:
        raise _cannot("write", path, error) from None


def _take(descriptor: int, path: Path, on: str, *, needed: bool) -> str:
    """Takes the lock; gives why there is none."""
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, "this system has no such locks")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise LabtrackError(
            f"Another call is at work on {on}: {_holder(descriptor)}.",
            "wait until it has ended and run the command again.",
            Exit.LOCKED,
        ) from None
    except OSError as error:
        why = f"{path} can't be locked: {error.strerror}."
        if needed:
            raise LabtrackError(why, f"put it on a disk that has locks: `df -h {path.parent}`.") from None
        return why
    return ""


def _holder(descriptor: int) -> str:
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        held = json.loads(os.read(descriptor, 4096))
        return "`{doing}`, process {pid} of {user} on {host}, since {since}".format(**held)
    except (ValueError, KeyError, TypeError):
        return "it has not said who it is"


def user_name() -> str:
    """Who this is; the number of a user that the machine has no name for."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container whose user has no name
        return user_number()


def boot_id() -> str:
    """What tells this start of the machine from others; empty where it is not told."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
