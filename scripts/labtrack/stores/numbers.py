"""Numbers as recorders really write them, and the whole numbers that MLflow means.

MLflow's stores take what they are given: numpy integers become BLOBs in SQLite, a step may be 50.0 or 0.5, a
time may be a date.  What has one meaning is read so; what has none is None, and the caller says so.
"""

from __future__ import annotations

import math
import struct
from datetime import date, datetime, timezone
from typing import Any

_LARGEST = 2**63  # MLflow's columns are BIGINT
_WHOLE = {1: "<b", 2: "<h", 4: "<i", 8: "<q"}  # numpy writes them as they are in memory
_FRACTIONS = {2: "<e", 4: "<f"}  # np.float64 is a float for sqlite3, so 8 bytes are an integer
_TINY = 1e-30  # a float32 below is an int32 that was taken for one


def number(value: Any) -> float | int | None:
    """An int or a float, whatever it was written as; None where it is no number.  A date becomes ms since 1970."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, (int, float)):
        return value
    if isinstance(value, bytes):
        return struct.unpack(_WHOLE[len(value)], value)[0] if len(value) in _WHOLE else None
    if isinstance(value, date):
        return _milliseconds(value)
    if isinstance(value, str):
        return _of_text(value.strip())
    return None


def whole(value: Any) -> int | None:
    """A whole number that MLflow's columns can hold: 50.0 is 50; None for 0.5, nan and what is no number."""
    found = number(value)
    if found is None or not math.isfinite(found) or found != math.floor(found) or not -_LARGEST <= found < _LARGEST:
        return None
    return int(found)


def floor(value: Any) -> int | None:
    """The whole number at or below; None for nan, infinities and what is no number."""
    found = number(value)
    return whole(math.floor(found)) if found is not None and math.isfinite(found) else None


def metric_value(value: Any) -> float | None:
    """A metric's value; SQLite has NULL for nan.  None where it is no number."""
    if value is None:
        return math.nan
    if isinstance(value, bytes) and len(value) in _FRACTIONS:
        found = float(struct.unpack(_FRACTIONS[len(value)], value)[0])
        if found == 0 or abs(found) > _TINY:
            return found
    if isinstance(value, (date, datetime)):
        return None
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    got = number(value)
    return None if got is None else float(got)


def text(value: Any) -> str:
    """A text, whatever it was written as; empty for none."""
    if type(value) is str:
        return value
    if value is None:
        return ""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


class Steps:
    """The whole steps of a run's points, which come in the order of their recording.

    A step that is no whole number is rounded down.  From the first such one of a metric on, a step that is not
    greater than all before it becomes the next whole number, so that no two points fall on one.  What comes later
    changes nothing of what was given before.
    """

    def __init__(self) -> None:
        self._largest: dict[str, int] = {}
        self._odd: set[str] = set()

    def copy(self) -> Steps:
        """The same, to go on from here twice."""
        other = Steps()
        other._largest, other._odd = dict(self._largest), set(self._odd)
        return other

    def of(self, key: str, recorded: Any) -> int:
        """The step of the next point of a metric."""
        last = self._largest.get(key)
        if type(recorded) is int and key not in self._odd:
            if last is None or recorded > last:
                self._largest[key] = recorded
            return recorded
        found = whole(recorded)
        if found is None:
            self._odd.add(key)
            found = floor(recorded)
        if key in self._odd and last is not None and (found is None or found <= last):
            found = last + 1
        found = found or 0
        if last is None or found > last:
            self._largest[key] = found
        return found


def _of_text(value: str) -> float | int | None:
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    try:
        return _milliseconds(datetime.fromisoformat(value.replace("Z", "+00:00")))
    except ValueError:
        return None


def _milliseconds(value: date) -> int:
    """Of a date without a time zone as YAML has it: in UTC."""
    moment = value if isinstance(value, datetime) else datetime(value.year, value.month, value.day)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
    return int(moment.timestamp() * 1000)
