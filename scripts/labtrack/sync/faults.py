"""What can go wrong with one run, file or experiment, and must not keep the others back."""

from __future__ import annotations

import sqlite3

from labtrack.errors import LabtrackError
from labtrack.tracking.http import ApiError

# The last ones are what odd values of a recording make of code that expects others.
FAULTS = (LabtrackError, ApiError, OSError, sqlite3.Error, ValueError, TypeError, KeyError, ArithmeticError)


def words(error: BaseException) -> str:
    """What a fault says, on one line."""
    said = " ".join(str(error).split())
    known = isinstance(error, (LabtrackError, ApiError, OSError, sqlite3.Error))
    return said if known and said else f"{type(error).__name__}: {said}"
