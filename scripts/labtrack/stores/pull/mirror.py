"""A folder here that is the same as one on another machine, as it was at the last pull that came to its end.

In the cache: `$XDG_CACHE_HOME/labtrack/pulled/HOST-HASH/`, 0700, with
    files/NAME      what is read: whole files only
    staging/        databases as they are there, with their journals
    partial/, tmp/  files that are not all here yet; the next pull goes on with them
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from labtrack.errors import Exit, LabtrackError
from labtrack.files import home, lock, make_private_folder, write_private
from labtrack.printable import clean
from labtrack.stores.pull import databases, elsewhere
from labtrack.stores.pull.address import Address
from labtrack.stores.pull.ssh import PARTLY, SILENCE, VANISHED, Connection, Done, connected, end_left_over

_LOG = logging.getLogger("labtrack.pull")
_ADDRESS, _COMPLETE = "address", "complete"
_BESIDE = ("mlruns", "mlartifacts", "artifacts")  # folders beside a database that has its artifacts in them
_LEFT_OVER = re.compile(r"(.+)\.[A-Za-z0-9]{6}")  # rsync's name for a file under way
_ROOM = 500_000_000  # bytes that stay free
_TELLS = 5  # lines of what was left out


def cache_folder(env: Mapping[str, str]) -> Path:
    """Where recordings of other machines are kept: $XDG_CACHE_HOME/labtrack/pulled."""
    base = env.get("XDG_CACHE_HOME") or str(home(env) / ".cache")
    return Path(base) / "labtrack" / "pulled"


def pull(text: str, env: Mapping[str, str] | None = None) -> Path:
    """Brings the copy of `ssh://host/path` up to date; gives the path of the copy, for `open_store`.

    env: XDG_CACHE_HOME, LABTRACK_SSH, LABTRACK_REMOTE.
    What had to be left out, or for the next time, is told by the logger `labtrack.pull`.
    Raises BadInputError for an address that can't be meant or a path that is not there, LabtrackError where the
    machine can't be reached or the copy did not come to its end, and with Exit.LOCKED while another pull is at work.
    """
    env = os.environ if env is None else env
    address = Address.parse(text)
    folder = cache_folder(env) / address.key
    make_private_folder(folder.parent)
    make_private_folder(folder)
    with lock(folder / "lock", f"labtrack pull {address}", f"the copy of {address}", needed=False):
        with connected(address, env) as connection:
            mirror = _Mirror(connection, folder, env)
            place = mirror.update()
        for line in mirror.left_out[:_TELLS]:
            _LOG.warning("%s", clean(f"{address}: {line}"))
        if len(mirror.left_out) > _TELLS:
            _LOG.warning("%s", clean(f"{address}: and {len(mirror.left_out) - _TELLS} more"))
    return place


class _Mirror:
    def __init__(self, connection: Connection, folder: Path, env: Mapping[str, str]) -> None:
        self.connection, self.folder, self.env = connection, folder, env
        self.address = connection.address
        self.left_out: list[str] = []
        for name in ("files", "staging", "partial", "tmp"):
            make_private_folder(folder / name)
        write_private(folder / _ADDRESS, f"{self.address}\n".encode("utf-8", "surrogateescape"))
        connection.note = folder / "child"
        end_left_over(connection.note)
        self._resume()

    def update(self) -> Path:
        """Copies what is new there; gives the place to read."""
        place = self.folder / "files" / self.address.name
        kind = self._kind()
        if place.is_symlink() or (place.exists() and place.is_dir() != (kind == "d")):
            shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink()
        if kind == "d":
            make_private_folder(place)
            self._databases(f"{self.address.path}/", place)
            self._elsewhere(sorted(place.glob("*.*")), self.address.path, place.parent / "artifacts")
            self._tree(f"{self.address.path}/", place, databases.NOT_DATABASES)
        else:
            self._databases(self.address.path, place.parent, single=True)
            above = self.address.path.rpartition("/")[0] or ("/" if self.address.path.startswith("/") else ".")
            self._elsewhere([place], above, self.folder / "artifacts")
            beside = [f"--include=/{name}/***" for name in _BESIDE]
            self._tree(f"{above.rstrip('/')}/", place.parent, [*beside, "--exclude=*"])
        (self.folder / _COMPLETE).touch(0o600)
        return place

    def _kind(self) -> str:
        """`d` for a folder, `-` for a file."""
        try:
            done = self.connection.rsync(["--list-only", *self.connection.follow, "--dirs", SILENCE], self.address.path)
        except LabtrackError as error:
            if "option -L has been disabled" not in error.what or not self.connection.follow:
                raise
            self.connection.follow = []  # rrsync follows none
            return self._kind()
        lines = [line for line in done.out.splitlines() if line[:1] in "d-lspbc" and "/" in line]
        kind = lines[-1][0] if lines else ""
        if kind not in ("d", "-"):
            raise LabtrackError(
                f"{self.address} is neither a file nor a folder that can be read there.\n{done.err.strip()[-300:]}",
                f"ssh {self.address.machine} ls -ld {self.address.path}",
                Exit.BAD_INPUT,
            )
        return kind

    def _databases(self, path: str, place: Path, *, single: bool = False) -> None:
        what = databases.Fetched(self.connection, self.folder, self.env)
        busy = what.fetch(path, place, self.address.name if single else "")
        self.left_out += [why for why, _ in busy.values()]
        missing = [why for why, there in busy.values() if not there]
        if missing and (single or len(missing) == what.count):
            raise LabtrackError(
                "\n".join(missing),
                "run the same command again in a moment. Where labtrack is on that machine (on PATH, or in "
                "LABTRACK_REMOTE), the copy is made there and does not have to wait.",
                Exit.LOCKED,
            )

    def _elsewhere(self, files: list[Path], inside: str, target: Path) -> None:
        """Artifacts outside of the folder: they go to where a reader looks for those that have moved."""
        for file in files:
            if not file.is_file() or file.suffix not in databases.SUFFIXES:
                continue
            for place, names in elsewhere.folders(file, inside).items():
                here = target / place.lstrip("/")
                here.mkdir(mode=0o700, parents=True, exist_ok=True)
                write_private(self.folder / "names", "".join(f"/{name}/***\n" for name in sorted(names)).encode())
                chosen = [f"--include-from={self.folder / 'names'}", "--exclude=*"]
                try:
                    self._tell(self.connection.rsync([*self.options(), *chosen], f"{place}/", here))
                except LabtrackError as error:
                    if error.code != Exit.BAD_INPUT and "rrsync error" not in error.what:
                        raise  # else it is gone there, or not for this key: the reader tells of each run

    def _tree(self, path: str, place: Path, chosen: list[str]) -> None:
        """Everything but databases, twice: what ends while the first, long pass is under way is whole in the second."""
        if not (self.folder / _COMPLETE).exists():
            self._need_room(path, place, chosen)
        for _ in range(2):
            done = self.connection.rsync([*self.options(), *chosen], path, place)
            self._tell(done)
            if not any(line.startswith(">f") for line in done.out.splitlines()):
                break

    def _need_room(self, path: str, place: Path, chosen: list[str]) -> None:
        """Raises LabtrackError where what is to come the first time does not go on this disk: a home is named soon."""
        done = self.connection.rsync(["-rtln", "--stats", SILENCE, *chosen], path, place)
        found = re.search(r"^Total file size: ([\d,]+)", done.out, re.MULTILINE)
        size, free = int(found[1].replace(",", "")) if found else 0, shutil.disk_usage(place).free
        if size > free - _ROOM:
            left = max(0, free - _ROOM) / 1e9
            raise LabtrackError(
                f"{self.address} has {size / 1e9:.1f} GB, and {place} has room for {left:.1f} GB.",
                "name the folder with the recordings alone, or another disk for the copy: export XDG_CACHE_HOME=/data",
            )

    def options(self) -> list[str]:
        """How files are copied: whole or not at all, none that others may read, and no link that leads elsewhere."""
        return [
            "-rtli", "--safe-links", "--info=name1,symsafe1", "--chmod=Du+rwx,Fu+rw", "--delete-delay", SILENCE,
            f"--partial-dir={self.folder / 'partial'}", f"--temp-dir={self.folder / 'tmp'}",
        ]  # fmt: skip

    def _tell(self, done: Done) -> None:
        said = [line for line in done.out.splitlines() if line.startswith(("ignoring unsafe symlink", "[sender] "))]
        if done.code in (PARTLY, VANISHED):
            said += [line for line in done.err.splitlines() if line and "some files" not in line]
        self.left_out += [line for line in said if line not in self.left_out]

    def _resume(self) -> None:
        """Keeps what an rsync that was killed had of a file, where the next one looks for it."""
        for path in (self.folder / "tmp").iterdir():
            found = _LEFT_OVER.fullmatch(path.name)
            kept = self.folder / "partial" / (found[1] if found else path.name)
            if found and not path.is_dir() and (not kept.exists() or kept.stat().st_size < path.stat().st_size):
                path.replace(kept)
            elif path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        for left in self.folder.glob("work-*"):
            shutil.rmtree(left, ignore_errors=True)
