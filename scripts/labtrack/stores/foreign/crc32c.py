"""CRC-32C, which TFRecord files have and the standard library has not."""

from __future__ import annotations

import functools
import struct
from array import array

_POLYNOMIAL = 0x82F63B78
_WORD = 4


@functools.lru_cache(maxsize=1)
def _tables() -> tuple[list[int], array[int], array[int]]:
    """For one byte, and for the low and the high half of four bytes: a quarter of the steps of a byte at a time.

    Arrays, since lists of 65,536 numbers do not fit into a processor's cache.
    """
    one = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (_POLYNOMIAL if crc & 1 else 0)
        one.append(crc)
    two, three = ([0] * 256 for _ in range(2))
    four = [0] * 256
    for byte in range(256):
        two[byte] = one[byte] >> 8 ^ one[one[byte] & 0xFF]
    for byte in range(256):
        three[byte] = two[byte] >> 8 ^ one[two[byte] & 0xFF]
    for byte in range(256):
        four[byte] = three[byte] >> 8 ^ one[three[byte] & 0xFF]
    low = array("I", (four[half & 0xFF] ^ three[half >> 8] for half in range(1 << 16)))
    high = array("I", (two[half & 0xFF] ^ one[half >> 8] for half in range(1 << 16)))
    return one, low, high


def crc32c(data: bytes) -> int:
    """The checksum of some bytes."""
    one, low, high = _tables()
    crc = 0xFFFFFFFF
    words = len(data) // _WORD
    for word in struct.unpack_from(f"<{words}I", data):
        crc ^= word
        crc = low[crc & 0xFFFF] ^ high[crc >> 16]
    for byte in data[words * _WORD :]:
        crc = crc >> 8 ^ one[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> int:
    """The same as TFRecord writes it."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF
