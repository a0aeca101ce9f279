"""The fields of a protocol buffer message, without its description."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Union

Value = Union[int, bytes]
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_SIGN, _ALL = 1 << 63, 1 << 64
_LONGEST = 70  # bits of a varint


def fields(data: bytes) -> Iterator[tuple[int, int, Value]]:
    """Number, wire type and value of each field; 32 and 64 bits as bytes.  Raises ValueError where it is no message."""
    at, size = 0, len(data)
    while at < size:
        tag, at = varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, at = varint(data, at)
            yield number, wire, value
            continue
        if wire == BYTES:
            length, at = varint(data, at)
        elif wire in (FIXED32, FIXED64):
            length = 4 if wire == FIXED32 else 8
        else:
            raise ValueError(f"a field of type {wire}")
        if at + length > size:
            raise ValueError("a field is longer than the message")
        yield number, wire, data[at : at + length]
        at += length


def varint(data: bytes, at: int) -> tuple[int, int]:
    """A number and the place behind it.  Raises ValueError where there is none."""
    value = shift = 0
    try:
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
            shift += 7
            if shift >= _LONGEST:
                raise ValueError("a number that does not end")
    except IndexError:
        raise ValueError("the message is cut") from None


def signed(value: int) -> int:
    """A varint as an int64 is written."""
    value &= _ALL - 1
    return value - _ALL if value & _SIGN else value


def as_bytes(value: Value) -> bytes:
    """A field that is to be bytes.  Raises ValueError where it is a number."""
    if not isinstance(value, bytes):
        raise ValueError("a number where a message was expected")
    return value


def as_int(value: Value) -> int:
    """A field that is to be a whole number.  Raises ValueError where it is none."""
    if isinstance(value, bytes):
        raise ValueError("bytes where a number was expected")
    return value


def text(value: Value) -> str:
    """A field that is to be a text."""
    return as_bytes(value).decode("utf-8", "replace")


def double(value: Value) -> float:
    """A field that is to be a double.  Raises ValueError where it is none."""
    return _unpacked("<d", value)


def single(value: Value) -> float:
    """A field that is to be a float.  Raises ValueError where it is none."""
    return _unpacked("<f", value)


def _unpacked(form: str, value: Value) -> float:
    try:
        return float(struct.unpack(form, as_bytes(value))[0])
    except struct.error as error:
        raise ValueError(str(error)) from None
