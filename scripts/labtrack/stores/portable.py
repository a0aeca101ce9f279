"""Runs in one file that can be sent to somebody: a zip with a SQLite store and the artifacts beside it.

    mlflow.db                         the runs, as labtrack.stores.writing writes them
    artifacts/<run or model>/artifacts/<path>

Only the database is unpacked, under a name of ours; artifacts are read in place.  So nothing in such a
file can be written anywhere, whatever names are in it.
"""

from __future__ import annotations

import errno
import io
import shutil
import struct
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, ClassVar

from labtrack.errors import BadInputError, LabtrackError
from labtrack.stores.model import Artifact, Owner
from labtrack.stores.sqlite import IDENTITY, SqliteStore

DATABASE = "mlflow.db"
_CHUNK = 1 << 18
# an export has tables; a view or a virtual table in their place could keep a reader busy for ever
_NOT_TABLES = "SELECT 1 FROM sqlite_master WHERE type NOT IN ('table', 'index') OR sql LIKE 'CREATE VIRTUAL%'"
_LARGEST_RATIO = 100  # of unpacked to packed, beyond which a file of some size is made to hurt
# what zipfile raises for what it can't read; ValueError: names that are no text; RuntimeError: a password
_BROKEN = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, NotImplementedError, RuntimeError)
_HARMLESS = 1_000_000_000  # bytes that may be unpacked from any file


class PortableStore(SqliteStore):
    """A file that `labtrack export` wrote."""

    kind = "portable"

    def __init__(self, path: Path) -> None:
        """Opens the file.  Raises BadInputError where it isn't an exported one, or is damaged."""
        self.file = path
        self._zip = _opened(path)
        self._shelf = _Shelf.of(path)
        try:
            super().__init__(self._shelf.database(self._unpack))
            if not self._db.columns(IDENTITY) or self._db.rows(_NOT_TABLES):
                self._db.close()
                raise _not_ours(path)
        except BaseException:
            self._shelf.leave()
            self._zip.close()
            raise
        self._members = {entry.filename: entry for entry in self._zip.infolist() if not entry.is_dir()}

    @property
    def location(self) -> str:
        return str(self.file)

    def _unpack(self, place: Path) -> None:
        try:
            entry = self._zip.getinfo(DATABASE)
        except KeyError:
            raise _not_ours(self.file) from None
        if shutil.disk_usage(place.parent).free < entry.file_size + 1_000_000:
            raise LabtrackError(
                f"{self.file} holds a database of {entry.file_size / 1e6:.0f} MB, and {place.parents[1]} has no room.",
                "set TMPDIR to a folder with room and run the same command again.",
            )
        try:
            with self._zip.open(entry) as packed, place.open("xb") as file:
                shutil.copyfileobj(packed, file)
        except BaseException as error:
            place.unlink(missing_ok=True)
            if _is_damage(error):
                raise _damaged(self.file, error) from error
            raise

    def artifacts(self, owner: Owner) -> Iterator[Artifact]:
        prefix = artifact_name(owner, "")
        for name in sorted(self._members, key=lambda one: one.split("/")):
            path = name[len(prefix) :]
            if name.startswith(prefix) and _is_plain(path):
                yield Artifact(path, self._members[name].file_size)

    def local_path(self, owner: Owner, path: str) -> Path | None:
        return None

    def open_artifact(self, owner: Owner, path: str) -> BinaryIO:
        entry = self._members.get(artifact_name(owner, path))
        if entry is None:
            raise LabtrackError(
                f"There is no artifact {path} of {owner.id} in {self.file}.", "was the run exported whole?"
            )
        try:
            return io.BufferedReader(_Member(self.file, self._zip.open(entry)), _CHUNK)
        except Exception as error:
            if _is_damage(error):
                raise _damaged(self.file, error) from error
            raise

    def close(self) -> None:
        super().close()
        self._zip.close()
        self._shelf.leave()


class _Member(io.RawIOBase):
    """An artifact in the file, whose damage is told in words."""

    def __init__(self, file: Path, packed: IO[bytes]) -> None:
        self._file, self._packed = file, packed

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._packed.read(len(buffer))
        except Exception as error:
            if _is_damage(error):
                raise _damaged(self._file, error) from error
            raise
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._packed.close()
        super().close()


class _Shelf:
    """The unpacked database of a file, which readers of the same file share: a sync opens one for each thread."""

    _all: ClassVar[dict[tuple[str, int, int], _Shelf]] = {}
    _lock = threading.RLock()

    def __init__(self, key: tuple[str, int, int]) -> None:
        self._key = key
        self._readers = 0
        self._folder = tempfile.TemporaryDirectory(prefix="labtrack-import-")

    @classmethod
    def of(cls, path: Path) -> _Shelf:
        """The shelf of a file as it is now.  Call `leave` when it isn't needed any more."""
        facts = path.stat()
        key = (str(path.absolute()), facts.st_mtime_ns, facts.st_size)
        with cls._lock:
            if key not in cls._all:
                cls._all[key] = cls(key)
            shelf = cls._all[key]
            shelf._readers += 1
            return shelf

    def database(self, unpack: Callable[[Path], None]) -> Path:
        """The unpacked database; the first reader unpacks it."""
        place = Path(self._folder.name) / DATABASE
        with self._lock:
            if not place.exists():
                unpack(place)
        return place

    def leave(self) -> None:
        """The last one takes it away."""
        with self._lock:
            self._readers -= 1
            if self._readers == 0:
                self._all.pop(self._key, None)
                self._folder.cleanup()


def artifact_name(owner: Owner, path: str) -> str:
    """Where an artifact is in the file; also found there when somebody unpacks it by hand."""
    return f"artifacts/{owner.id}/artifacts/{path}"


def _is_plain(path: str) -> bool:
    """Without a way out of the folder, also where somebody unpacks it by hand on Windows."""
    parts = path.split("/")
    out = ".." in path.replace("\\", "/").split("/")
    return not any(part in ("", ".", "..") for part in parts) and not out and "\0" not in path


def _is_damage(error: BaseException) -> bool:
    """Whether it says that the file is damaged; a place before its beginning is an EINVAL of the system's."""
    return isinstance(error, _BROKEN) or (isinstance(error, OSError) and error.errno == errno.EINVAL)


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        found = zipfile.ZipFile(path)
    except _BROKEN as error:
        raise _damaged(path, error) from error
    except OSError as error:
        raise BadInputError(f"{path} can't be read: {error.strerror}.", f"look at `ls -l {path}`.") from error
    unpacked, packed = sum(entry.file_size for entry in found.infolist()), path.stat().st_size
    names = sorted(entry.filename for entry in found.infolist())
    if unpacked > max(_HARMLESS, _LARGEST_RATIO * packed):
        found.close()
        raise BadInputError(
            f"{path} has {packed / 1e6:.0f} MB and says that it unpacks to {unpacked / 1e9:.0f} GB.",
            "no export does that: ask whoever sent it; it may be meant to fill your disk.",
        )
    odd = [name for name in names if not _is_plain(name)] + [
        one for one, next_ in zip(names, names[1:]) if one == next_
    ]
    if odd:
        found.close()
        raise BadInputError(f"{path} has a name in it that no export has: {odd[0]!r}.", "ask whoever sent it.")
    return found


def _not_ours(path: Path) -> BadInputError:
    return BadInputError(f"{path} is a zip, but not one of `labtrack export`.", "unpack it, and name what is in it.")


def _damaged(path: Path, error: BaseException) -> BadInputError:
    return BadInputError(f"{path} is damaged or not whole ({error}).", "copy it again, or export it again.")
