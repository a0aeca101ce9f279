"""The folder that jobs record into: room, age, the SQLite files in it."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from labtrack.doctor import locks, mounts
from labtrack.doctor.bounded import doing
from labtrack.doctor.result import Result, failed, ok, skipped, warning
from labtrack.errors import BadInputError, LabtrackError
from labtrack.local.holders import holders
from labtrack.stores.database import HEADER
from labtrack.stores.mounts import Mount, mount_of

PURGE = "LABTRACK_PURGE_DAYS"
_SUFFIXES = (".db", ".sqlite", ".sqlite3")
_FILES = 20  # SQLite files that are looked at
_ENTRIES, _SECONDS = 20_000, 0.8  # that the search for the oldest file may take
_SCARCE, _NEARLY = 0.05, 0.9  # of room that is left, of an age or quota that is reached
_DAY = 86400.0
_MB = 2**20


@dataclass(frozen=True)
class Place:
    """A folder, and the variables of whoever records there.  known: the mount it is in, where that was asked before."""

    folder: Path
    known: Mount | None
    env: Mapping[str, str]

    @property
    def mount(self) -> Mount | None:
        """The mount it is in."""
        doing("find its file system")
        return self.known or mount_of(self.folder)


def check(place: Place) -> Iterator[Result]:
    """All checks of the folder, the cheap ones first."""
    place = replace(place, known=place.mount)
    yield mounts.check(place.folder, place.known)
    doing("look at the folder")
    folder = place.folder
    try:
        facts = folder.stat()
    except FileNotFoundError:
        yield failed("folder", f"there is no {folder}", f"mkdir -p {folder}")
        return
    except OSError as error:
        yield failed("folder", f"{folder}: {error.strerror}", f"look at `ls -ld {folder}`.")
        return
    if not stat.S_ISDIR(facts.st_mode):
        yield failed("folder", f"{folder} is a file", "name the folder that it is in.")
        return
    if not os.access(folder, os.W_OK | os.X_OK):
        yield failed(
            "folder", f"{folder} can't be written to by you", f"look at `ls -ld {folder}`, and record elsewhere."
        )
        yield from _files(place)
        return
    yield ok("folder", f"{folder} can be written to")
    yield from _room(folder)
    yield from locks.here(folder)
    yield from _files(place)
    yield _oldest(place)


def _room(folder: Path) -> Iterator[Result]:
    doing("ask for the free space")
    found = os.statvfs(folder)
    free, whole = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    seen = f"{free / 1e9:.1f} GB free of {whole / 1e9:.1f} GB"
    hint = f"labtrack usage {folder}   (what takes the room), then labtrack prune, or another folder."
    if free < 10 * _MB:
        yield failed("space", seen, hint)
    elif whole and free / whole < _SCARCE:
        yield warning("space", seen, hint)
    else:
        yield ok("space", seen)
    if not found.f_files:
        yield skipped("inodes", "this file system does not count them")
    elif found.f_favail / found.f_files < _SCARCE:
        seen = f"{found.f_favail:,} of {found.f_files:,} left"
        hint = f"find {folder} -type f | wc -l   (how many files are yours); pack or remove old ones."
        yield (failed if found.f_favail < 100 else warning)("inodes", seen, hint)  # noqa: PLR2004
    else:
        yield ok("inodes", f"{found.f_favail:,} left")


def _files(place: Place) -> Iterator[Result]:
    """The SQLite files: the mode they are in, who writes them, whose schema they have."""
    doing("look for SQLite files")
    found = []
    with contextlib.suppress(OSError), os.scandir(place.folder) as entries:
        for one in entries:
            if one.name.endswith(_SUFFIXES):
                found.append(Path(one.path))
    heads = {path: head for path in sorted(found)[:_FILES] for head in (_head(path),) if head.startswith(HEADER)}
    if not heads:
        yield skipped("SQLite files", "none in the folder itself")
        return
    for path, head in heads.items():
        yield from _file(path, head, place)
    yield from _schemas(list(heads))


def _head(path: Path) -> bytes:
    doing(f"read {path.name}")
    try:
        with path.open("rb") as file:
            return file.read(20)
    except OSError:
        return b""


def _file(path: Path, head: bytes, place: Place) -> Iterator[Result]:
    if head[18] == 2 or head[19] == 2:  # noqa: PLR2004  https://sqlite.org/fileformat2.html
        seen, hint = (
            f"{path.name} is in WAL mode",
            f"when nothing has it open: sqlite3 {path} 'PRAGMA journal_mode=DELETE'",
        )
        if place.known and place.known.network:
            yield failed("journal mode", f"{seen} on {place.known.kind}: two machines that write it destroy it", hint)
        else:
            yield ok("journal mode", f"{seen}, which is right while one machine has it")
    else:
        yield ok("journal mode", f"{path.name} has a rollback journal, which is right on shared file systems")
    doing(f"ask who has {path.name} locked")
    pid = locks.writer(path)
    if pid is None:
        yield from _left_behind(path)
        return
    names = [
        f"process {one.pid} of {one.user}, {one.job or one.command[:60]}" for one in holders(path).holders if one.writes
    ]
    known = pid and Path(f"/proc/{pid}").exists()
    who = "; ".join(names) or (f"process {pid}" if known else "a process of another machine")
    yield warning("locked database", f"{path.name} is being written by {who}", f"labtrack who {path}")


def _left_behind(path: Path) -> Iterator[Result]:
    journal = path.with_name(f"{path.name}-journal")
    with contextlib.suppress(OSError):
        if journal.stat().st_size:
            seen = f"{journal.name} is there and nobody writes: a job was killed in the middle of a commit"
            yield warning(
                "journal", seen, "delete it never: whoever opens the database next to write undoes that commit."
            )


def _schemas(paths: list[Path]) -> Iterator[Result]:
    from labtrack.stores.sqlite import SqliteStore
    from labtrack.ui.program import find_mlflow

    doing("look for MLflow")
    try:
        mlflow = find_mlflow(ui=False)
    except BadInputError:
        yield skipped("schema", "MLflow is not installed in this environment")
        return
    for path in paths:
        doing(f"read the schema of {path.name}")
        try:
            with SqliteStore(path) as store:
                schema = store.schema
        except LabtrackError:  # of another program, or locked
            continue
        if not schema:
            continue
        if schema == mlflow.schema:
            yield ok("schema", f"{path.name} is of MLflow {mlflow.version}, as installed here")
        elif schema in mlflow.revisions:
            hint = (
                f"labtrack backup {path} -o FOLDER && mlflow db upgrade sqlite:///{path}   (labtrack reads it as it is)"
            )
            yield warning("schema", f"{path.name} is of an older MLflow: {mlflow.version} refuses it until then", hint)
        else:
            hint = "use the MLflow that made it; labtrack reads it as it is."
            yield warning("schema", f"{path.name} is of a newer MLflow than {mlflow.version}, which refuses it", hint)


def _oldest(place: Place) -> Result:
    """Sites purge scratch by the age of files; only the site knows which age."""
    doing("look for the oldest file")
    until, seen, oldest = time.monotonic() + _SECONDS, 0, (time.time(), "")
    whole = True
    for above, _, names in os.walk(place.folder):
        for name in names:
            seen += 1
            with contextlib.suppress(OSError):
                facts = os.lstat(os.path.join(above, name))  # noqa: PTH118  a Path for each is slow
                oldest = min(oldest, (max(facts.st_atime, facts.st_mtime), os.path.join(above, name)))  # noqa: PTH118
        if seen > _ENTRIES or time.monotonic() > until:
            whole = False
            break
    if not oldest[1]:
        return ok("oldest file", "no file yet")
    days = (time.time() - oldest[0]) / _DAY
    name = os.path.relpath(oldest[1], place.folder)
    said = f"{name} was last used {days:.0f} days ago" + ("" if whole else f" (of the first {seen:,} files)")
    limit = place.env.get(PURGE, "")
    if not limit.isdecimal() or not int(limit):
        return ok("oldest file", f"{said}; when this site purges is not known here ({PURGE}=60)")
    if days > _NEARLY * int(limit):
        hint = "labtrack sync -s ... brings the runs to the server; copy away what else is to stay."
        return warning("oldest file", f"{said}, and this site purges after {limit}", hint)
    return ok("oldest file", f"{said}; this site purges after {limit}")


def quota(place: Place) -> Iterator[Result]:
    """What the file system's own command says about this user's quota."""
    mount = place.mount
    kind = mount.kind if mount else ""
    user = str(os.getuid())
    commands = {
        "lustre": ["lfs", "quota", "-q", "-u", user, mount.point if mount else "/"],
        "gpfs": ["mmlsquota", "-u", user, "--block-size", "1K"],
        "beegfs": ["beegfs-ctl", "--getquota", "--uid", user],
    }
    command = commands.get(kind, ["quota", "-w", "-p", "-u"])
    if shutil.which(command[0]) is None:
        yield skipped("quota", f"there is no `{command[0]}` here; your site's page names its own command")
        return
    doing(f"ask {command[0]} for the quota")
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    lines = [line.split() for line in done.stdout.splitlines()]
    if kind not in ("lustre", "nfs", "nfs4", "ext4", "xfs", ""):
        said = " ".join(done.stdout.split())[-300:]
        yield ok("quota", said) if said else skipped("quota", f"`{' '.join(command)}` says nothing")
        return
    source, point = (mount.source, mount.point) if mount else ("", "")
    rows = [_limits(line[1:]) for line in lines if line and line[0] in (point, source)]
    if not rows:
        yield skipped("quota", f"`{' '.join(command)}` names none for this file system")
        return
    for name, used, limit, unit in rows[0]:
        if not limit:
            yield ok("quota", f"{name}: no limit")
            continue
        seen = f"{name}: {used / unit:,.0f} of {limit / unit:,.0f}" + (" GB" if unit > 1 else "")
        if used >= limit:
            yield failed("quota", seen, "remove something: nothing more can be written.")
        elif used > _NEARLY * limit:
            yield warning("quota", seen, f"labtrack usage {place.folder}, then labtrack prune.")
        else:
            yield ok("quota", seen)


def _limits(fields: list[str]) -> list[tuple[str, float, float, float]]:
    """Space in kB and files, used and limit, of `blocks quota limit grace files quota limit grace`."""
    numbers = [int(one.rstrip("*")) if one.rstrip("*").isdecimal() else None for one in fields]
    kept = numbers[:3], numbers[4:7]
    found = []
    for name, values, unit in (("space", kept[0], 1e6), ("files", kept[1], 1.0)):
        if len(values) == 3 and values[0] is not None:  # noqa: PLR2004
            found.append((name, float(values[0]), float(values[2] or values[1] or 0), unit))
    return found
