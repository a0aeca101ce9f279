"""A file system that hangs, as one does whose server is gone: FUSE, of which nobody answers the requests.

Needs root and /dev/fuse.  Whoever touches it waits until it is taken away again.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterator
from pathlib import Path

_INIT = 26  # the kernel's first request, which has to be answered (linux/fuse.h)
_DETACH, _FORCE = 2, 1


def can_hang() -> bool:
    """Whether this machine lets us."""
    return hasattr(os, "geteuid") and os.geteuid() == 0 and os.access("/dev/fuse", os.R_OK | os.W_OK)


@contextlib.contextmanager
def hanging(folder: Path) -> Iterator[None]:
    """Has everything in a folder hang, for as long as the context lasts.  Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={descriptor},rootmode=40000,user_id=0,group_id=0,allow_other"
    try:
        if libc.mount(b"hanging", os.fsencode(folder), b"fuse", 0, options.encode()):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        try:
            _answer_the_first(descriptor)
            yield
        finally:
            libc.umount2(os.fsencode(folder), _FORCE | _DETACH)
    finally:
        os.close(descriptor)


def _answer_the_first(descriptor: int) -> None:
    request = os.read(descriptor, 1 << 17)
    _, kind, number = struct.unpack_from("=IIQ", request)
    if kind != _INIT:
        raise OSError(0, f"the kernel began with {kind}")
    major, minor = struct.unpack_from("=II", request, 40)
    body = struct.pack("=IIIIHHIIHHI7I", major, min(minor, 31), 65536, 0, 12, 10, 65536, 1, 0, 0, 0, *[0] * 7)
    os.write(descriptor, struct.pack("=IiQ", 16 + len(body), 0, number) + body)
