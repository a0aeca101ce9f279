"""Uploads in parts that are under way, kept on this machine so that a sync that was killed goes on with its parts.

One private file for each: its first line says what the store was asked for, each further line is a part that arrived.
A record may be lost, torn or old: then the file is sent anew.  It holds the addresses that a server gave, which let
their holder write to that one file for some time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from labtrack.errors import LabtrackError
from labtrack.files import make_private_folder, write_private

MOST_PARTS = 10_000  # S3's limit
_MOST = 64  # records: a sync has a few files under way at once, so more are left over from sources that are gone


@dataclass(frozen=True)
class Part:
    """A part that arrived.  etag: the store's word for it.  digest: SHA-256 of its bytes."""

    etag: str
    digest: str


@dataclass
class Upload:
    """A file on its way.  place: where to.  length: its bytes.  size: of a part.  given: what else the store said."""

    place: str
    length: int
    size: int
    id: str
    given: Any = None
    parts: dict[int, Part] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many parts it has."""
        return -(-self.length // self.size)


class Uploads:
    """The uploads of one recording to one server.  May be used by several threads.  folder: None keeps nothing."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder, self._lock = folder, threading.Lock()
        self._kept: set[str] = set()  # those whose record could be written

    def known(self, place: str) -> Upload | None:
        """What is remembered of an upload to a place."""
        found = _read(self._file(place)) if self._folder else None
        if found is None or found.place != place:
            return None
        self._kept.add(place)
        return found

    def begin(self, upload: Upload) -> Upload:
        """Notes an upload that the store has just begun."""
        if self._folder is not None:
            about = {key: value for key, value in asdict(upload).items() if key != "parts"}
            with contextlib.suppress(LabtrackError), self._lock:
                make_private_folder(self._folder)
                write_private(self._file(upload.place), (json.dumps(about) + "\n").encode())
                self._kept.add(upload.place)
                for old in sorted(self._folder.glob("*.jsonl"), key=_age)[:-_MOST]:
                    old.unlink(missing_ok=True)
        return upload

    def arrived(self, upload: Upload, number: int, part: Part) -> None:
        """Notes that a part is there."""
        with self._lock:
            upload.parts[number] = part
            if upload.place in self._kept:
                line = json.dumps([number, part.etag, part.digest], separators=(",", ":"))
                try:
                    descriptor = os.open(self._file(upload.place), os.O_WRONLY | os.O_APPEND)
                    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                        file.write(f"\n{line}")  # a torn line before it ends here
                except OSError:
                    self._kept.discard(upload.place)

    def is_kept(self, upload: Upload) -> bool:
        """Whether the next sync will know of an upload."""
        return upload.place in self._kept

    def forget(self, upload: Upload) -> None:
        """An upload is done, or given up."""
        self._kept.discard(upload.place)
        if self._folder is not None:
            with contextlib.suppress(OSError):
                self._file(upload.place).unlink(missing_ok=True)

    def abandon(self, give_up: Callable[[Upload], None]) -> None:
        """Ends those of earlier syncs that nothing asked for since.  give_up: tells the store."""
        for path in sorted(self._folder.glob("*.jsonl")) if self._folder else ():
            found = _read(path)
            if found is not None and found.place not in self._kept:
                give_up(found)
            if found is None or found.place not in self._kept:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)

    def _file(self, place: str) -> Path:
        assert self._folder is not None  # noqa: S101 - asked by all callers
        return self._folder / f"{hashlib.sha256(place.encode('utf-8', 'surrogatepass')).hexdigest()[:24]}.jsonl"


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _read(path: Path) -> Upload | None:
    """A record; None where there is none that can be used."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        about = json.loads(lines[0])
        found = Upload(str(about["place"]), about["length"], about["size"], str(about["id"]), about.get("given"))
        if not (isinstance(found.length, int) and isinstance(found.size, int) and 0 < found.count <= MOST_PARTS):
            return None
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError):
        return None
    found.parts = {number: part for number, part in _parts(lines[1:]) if 0 < number <= found.count}
    return found


def _parts(lines: list[str]) -> Iterator[tuple[int, Part]]:
    for line in lines:
        with contextlib.suppress(ValueError, TypeError):  # a torn line of a killed call: that part is sent again
            number, etag, digest = json.loads(line)
            if isinstance(number, int) and isinstance(etag, str) and isinstance(digest, str):
                yield number, Part(etag, digest)
