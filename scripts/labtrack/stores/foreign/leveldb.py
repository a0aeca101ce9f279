"""The records of a log in LevelDB's format, as wandb writes it; it may be damaged in places and be cut at its end.

    ":W&B" 0xBEE1 0   then blocks of 32 KiB with pieces: u32 crc32(type, data)  u16 length  u8 type  data

A piece does not cross a block; a record is one FULL piece, or FIRST, any number of MIDDLE, LAST.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from labtrack.stores.foreign.tfrecord import Damage, Record

HEAD = b":W&B\xe1\xbe\x00"
_BLOCK, _HEADER = 1 << 15, 7
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_BAD, _CUT = -1, -2  # no types, but what there is instead of a piece
_PIECE = struct.Struct("<IHB")


def records(file: BinaryIO, start: int = len(HEAD)) -> Iterator[Record | Damage]:
    """What a file has from the end of a record on; its end is as it is now.

    Behind damage the next piece is looked for, by its checksum.  A cut record is the last thing that is given.
    """
    size = os.fstat(file.fileno()).st_size
    parts: list[bytes] | None = None
    began = start
    lost = False  # whether pieces of a record whose beginning is lost may follow
    for place, end, kind, data in _pieces(file, start, size):
        if kind in (_FULL, _FIRST):
            if parts is not None:
                yield Damage(began, place, cut=False)
            parts, began, lost = ([data], place, False) if kind == _FIRST else (None, place, False)
            if kind == _FULL:
                yield Record(end, data)
        elif kind in (_MIDDLE, _LAST):
            if parts is None:
                if not lost:
                    yield Damage(place, end, cut=False)
                lost = True
                continue
            parts.append(data)
            if kind == _LAST:
                yield Record(end, b"".join(parts))
                parts = None
        elif kind == _CUT:
            yield Damage(began if parts is not None else place, size, cut=True)
            return
        else:
            yield Damage(began if parts is not None else place, end, cut=False)
            parts, lost = None, True
    if parts is not None:
        yield Damage(began, size, cut=True)


def _pieces(file: BinaryIO, start: int, size: int) -> Iterator[tuple[int, int, int, bytes]]:
    """From, to, type and data of each piece; `_BAD` for bytes that are none, `_CUT` for the beginning of one."""
    base = start - start % _BLOCK
    at = start - base
    while base + at < size:
        file.seek(base)
        block = file.read(min(_BLOCK, size - base))
        while at + _HEADER <= len(block):
            length = _length(block, at)
            if length is None:
                found = next((one for one in range(at + 1, len(block)) if _length(block, one)), None)
                if found is None:
                    whole = len(block) == _BLOCK or not _goes_on(block, at)
                    yield base + at, base + len(block), _BAD if whole else _CUT, b""
                    at = len(block)
                    break
                yield base + at, base + found, _BAD, b""
                at = found
                continue
            end = at + _HEADER + length
            yield base + at, base + end, block[at + _HEADER - 1], block[at + _HEADER : end]
            at = end
        if len(block) < _BLOCK:
            if at < len(block):
                yield base + at, size, _CUT, b""
            return
        base, at = base + _BLOCK, 0


def _length(block: bytes, at: int) -> int | None:
    """The length of the data of the piece that begins there; None where none does."""
    if at + _HEADER > len(block):
        return None
    check, length, kind = _PIECE.unpack_from(block, at)
    end = at + _HEADER + length
    if not _FULL <= kind <= _LAST or end > len(block):
        return None
    return length if zlib.crc32(block[at + _HEADER - 1 : end]) == check else None


def _goes_on(block: bytes, at: int) -> bool:
    """Whether these are the first bytes of a piece that ends behind what is there of the block."""
    _, length, kind = _PIECE.unpack_from(block, at)
    return bool(_FULL <= kind <= _LAST and len(block) < at + _HEADER + length <= _BLOCK)
