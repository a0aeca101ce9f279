"""What a file is mounted from."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

MOUNTS = Path("/proc/self/mounts")
NETWORK = (
    "nfs", "nfs4", "lustre", "gpfs", "beegfs", "cifs", "smb3", "smbfs", "ceph", "panfs", "afs", "orangefs", "9p",
    "pvfs2", "wekafs", "daos", "glusterfs",
)  # fmt: skip


@dataclass(frozen=True)
class Mount:
    """A line of /proc/self/mounts."""

    source: str
    point: str
    kind: str
    flags: tuple[str, ...]

    @property
    def network(self) -> bool:
        """Whether other machines see it, too."""
        return self.kind in NETWORK or (self.kind.startswith("fuse.") and self.kind not in ("fuse.snapfuse",))


def mount_of(folder: Path, table: Path = MOUNTS) -> Mount | None:
    """The mount that a folder is in.  Follows links, and so hangs where the file system does."""
    try:
        lines = table.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    where, best = os.path.realpath(folder), None
    for line in lines:
        fields = line.split(" ")
        if len(fields) < 4:  # noqa: PLR2004
            continue
        point = fields[1].encode("utf-8", "surrogateescape").decode("unicode_escape", "replace")
        inside = where == point or where.startswith(point.rstrip("/") + "/")
        if inside and (best is None or len(point) >= len(best.point)):
            best = Mount(fields[0], point, fields[2], tuple(fields[3].split(",")))
    return best
