"""What the mount of a folder means for recordings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from labtrack.doctor.result import Result, failed, ok, warning
from labtrack.stores.mounts import Mount

_CHECK = "file system"
_OWN_FILE = "let each process record into a file of its own: MLFLOW_TRACKING_URI=labtrack://{folder}"


def check(folder: Path, mount: Mount | None) -> Result:
    """The row about type and flags."""
    if mount is None:
        return ok(_CHECK, "its type is not known here")
    seen = f"{mount.kind} at {mount.point}"
    if "ro" in mount.flags:
        return failed(_CHECK, f"{seen}, mounted read-only", "record elsewhere; `mount` says `ro`.")
    for kinds, judge in _JUDGES:
        if mount.kind in kinds:
            return judge(seen, frozenset(mount.flags), _OWN_FILE.format(folder=folder))
    return ok(_CHECK, seen if mount.network else f"{seen}, on this machine only")


def _nfs(seen: str, flags: frozenset[str], hint: str) -> Result:
    held = sorted(flags & {"nolock", "local_lock=all", "local_lock=posix"})
    if held:
        return failed(_CHECK, f"{seen}, {held[0]}: a lock holds within one machine only", hint)
    if "soft" in flags:
        return warning(_CHECK, f"{seen}, soft: when its server is slow, writes fail", hint)
    version = next((one for one in sorted(flags) if one.startswith("vers=")), "with locks")
    return ok(_CHECK, f"{seen}, {version}")


def _lustre(seen: str, flags: frozenset[str], hint: str) -> Result:
    if "localflock" in flags:
        return failed(_CHECK, f"{seen}, localflock: a lock holds within one node only, without a word", hint)
    if "flock" not in flags:
        return failed(_CHECK, f"{seen}, without `flock`: SQLite fails here (disk I/O error)", hint)
    return ok(_CHECK, f"{seen}, flock")


def _beegfs(seen: str, _: frozenset[str], hint: str) -> Result:
    why = "locks hold between nodes only where the site has set tuneUseGlobalFileLocks"
    return warning(_CHECK, f"{seen}: {why}", hint)


def _windows(seen: str, flags: frozenset[str], hint: str) -> Result:
    if "nobrl" in flags:
        return failed(_CHECK, f"{seen}, nobrl: a lock holds within one machine only", hint)
    return ok(_CHECK, seen)


def _sshfs(seen: str, _: frozenset[str], hint: str) -> Result:
    return failed(_CHECK, f"{seen}: it has no locks between machines", hint)


def _memory(seen: str, *_: object) -> Result:
    hint = "bring the recording away before that: labtrack sync at the end of the job script."
    return warning(_CHECK, f"{seen}: it is memory, and gone with the job or the machine", hint)


def _of_container(seen: str, *_: object) -> Result:
    return warning(_CHECK, f"{seen}: it is a container's own, and gone with it", "bind a folder from outside.")


_JUDGES: tuple[tuple[tuple[str, ...], Callable[[str, frozenset[str], str], Result]], ...] = (
    (("nfs", "nfs4"), _nfs),
    (("lustre",), _lustre),
    (("beegfs",), _beegfs),
    (("cifs", "smb3", "smbfs"), _windows),
    (("fuse.sshfs",), _sshfs),
    (("tmpfs", "ramfs"), _memory),
    (("overlay",), _of_container),
)
