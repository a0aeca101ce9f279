"""The records of a TFRecord file, which may be damaged in places and be cut at its end.

u64 length  u32 masked crc32c(length)  data  u32 masked crc32c(data)        little endian
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from labtrack.stores.foreign.crc32c import masked

_CHUNK = 1 << 18
_HEADER, _CHECK = 12, 4
_UNCHECKED = 1 << 16  # bytes: of images and audio, whose checksum would take longer than all else
_MOST_KNOWN = 4096
_LOWER, _UPPER = 4, b"\0\0\0\0"  # the halves of a length
_SOMETHING = re.compile(rb"[^\0]")
_U32 = struct.Struct("<I")
_LENGTH = struct.Struct("<QI")


class Record(NamedTuple):
    """Where the record ends in the file, its data, and the checksum where that is still to be compared."""

    end: int
    data: bytes
    unchecked: int | None = None


class Damage(NamedTuple):
    """Bytes that are no records: from, to, and whether they are the beginning of one that is not all there."""

    start: int
    end: int
    cut: bool


def records(file: BinaryIO, start: int = 0) -> Iterator[Record | Damage]:
    """What a file has from a place on at which a record starts; its end is as it is now.

    Behind damage the next record is looked for, by its checksums.  A cut record is the last thing that is given.
    """
    window = _Window(file, start)
    known: dict[bytes, int] = {}
    while window.place < window.size:
        header = window.peek(_HEADER)
        length = known.get(header)
        if length is None:
            if len(header) < _HEADER:
                break
            length = _length(header)
            if length is None:
                found = _next(file, window.place, window.size)
                yield Damage(window.place, found or window.size, cut=False)
                window.go(found or window.size)
                continue
            if len(known) < _MOST_KNOWN:
                known[header] = length
        whole = window.peek(_HEADER + length + _CHECK)
        if len(whole) < _HEADER + length + _CHECK:
            break
        place = window.place
        window.go(place + len(whole))
        data = whole[_HEADER:-_CHECK]
        (check,) = _U32.unpack_from(whole, len(whole) - _CHECK)
        if length > _UNCHECKED:
            yield Record(window.place, data, check)
        elif masked(data) == check:
            yield Record(window.place, data, None)
        else:
            yield Damage(place, window.place, cut=False)
    if window.place < window.size:
        yield Damage(window.place, window.size, cut=True)


class _Window:
    """A place in a file, and a piece of the file around it."""

    def __init__(self, file: BinaryIO, place: int) -> None:
        self.place = place
        self.size = os.fstat(file.fileno()).st_size
        self._file, self._buffer, self._base = file, b"", place

    def peek(self, count: int) -> bytes:
        """The next bytes; fewer where the file has no more."""
        at = self.place - self._base
        if at + count > len(self._buffer) and self.place + count <= self.size:
            rest = self._buffer[at:]
            self._file.seek(self.place + len(rest))
            wanted = min(max(_CHUNK, count - len(rest)), self.size - self.place - len(rest))
            self._buffer, self._base, at = rest + self._file.read(wanted), self.place, 0
        return self._buffer[at : at + count]

    def go(self, place: int) -> None:
        """To another place, often the next one."""
        self.place = place
        if place - self._base > len(self._buffer):
            self._buffer, self._base = b"", place


def _length(header: bytes) -> int | None:
    length, check = _LENGTH.unpack(header)
    return int(length) if masked(header[:8]) == check else None


def _next(file: BinaryIO, start: int, size: int) -> int | None:
    """Where the next record with a good length begins behind `start`; a length is below 4 GiB."""
    place = start + 1
    while place + _HEADER <= size:
        file.seek(place)
        chunk = file.read(_CHUNK)
        at = 0
        while (upper := chunk.find(_UPPER, at + _LOWER)) >= 0:
            at = upper - _LOWER
            header = chunk[at : at + _HEADER]
            if len(header) < _HEADER:
                break
            if not any(header):  # a hole in the file, which may be long
                something = _SOMETHING.search(chunk, at)
                at = max(at + 1, (something.start() if something else len(chunk)) - len(_UPPER) - _LOWER)
                continue
            if _length(header) is not None:
                return place + at
            at += 1
        place += max(1, len(chunk) - _HEADER + 1)
    return None
