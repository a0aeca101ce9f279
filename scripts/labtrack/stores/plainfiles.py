"""The small files of an `mlruns` folder: meta.yaml, one file per parameter and tag, one per metric.

A job may be writing any of them at this moment, and may have been killed while it did.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # five times as fast where PyYAML has it
_AGAIN = 0.1  # seconds: MLflow empties a file before it writes it
_FRESH = 5.0  # seconds since a file was written, in which its writer may not be done
_CHUNK = 1 << 16  # the regular expression needs thirty times as much memory
_NUMBER = rb"(?:-?\d+(?:\.\d+)?(?:e[-+]?\d+)?|nan|-?inf)"
_USUAL = re.compile(rb"(?:-?\d{1,13} " + _NUMBER + rb" -?\d{1,18}\n)*")
_LINE = re.compile(rb"(-?\d{1,18}) ([^\s_]+) (-?\d{1,18})(?: (.+))?\r?\n")
_OLD_LINE = re.compile(rb"(-?\d{1,18}) ([^\s_]+)\r?\n")
_VALUE_AND_STEP = re.compile(_NUMBER.decode() + r" -?\d+")
_FAR_FUTURE = 10**13  # ms: the year 2286; a time that jumps beyond it is the start of one line and the time of the next


class Line(NamedTuple):
    """One line of a metric file; `rest` is what stands after the step: a run's id, a dataset's name and digest."""

    timestamp: int
    value: float
    step: int
    rest: tuple[str, ...]


class BrokenFileError(Exception):
    """A file that does not hold what it should, in words."""


def read_meta(path: Path) -> dict[str, Any]:
    """The content of a meta.yaml.  Raises BrokenFileError."""
    for again in (True, False):
        try:
            found = yaml.load(path.read_bytes(), Loader=_LOADER)  # noqa: S506  it is a safe loader
            if isinstance(found, dict):
                return found
            said = "is empty" if found is None else "is not a list of keys and values"
        except FileNotFoundError:
            raise BrokenFileError(f"{path.name} is missing") from None
        except OSError as error:
            raise BrokenFileError(f"{path.name} can't be read ({error.strerror})") from error
        except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date that is none
            said = f"is damaged ({' '.join(str(error).split())[:120]})"
        if again:
            time.sleep(_AGAIN)
    raise BrokenFileError(f"{path.name} {said}")


def read_values(folder: Path) -> dict[str, str]:
    """A folder with one file per key, where a key with slashes is a path."""
    found = {}
    for key, path in keys_in(folder):
        try:
            data = path.read_bytes()
            if not data and time.time() - path.stat().st_mtime < _FRESH:
                time.sleep(_AGAIN)
                data = path.read_bytes()
        except FileNotFoundError:
            continue  # deleted in this moment
        except OSError as error:
            raise BrokenFileError(f"{folder.name}/{key} can't be read ({error.strerror})") from error
        found[key] = data.decode("utf-8", "replace")
    return found


def keys_in(folder: Path) -> Iterator[tuple[str, Path]]:
    """Keys and their files, sorted."""
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(place, name)
            yield os.fsencode(path.relative_to(folder).as_posix()).decode("utf-8", "replace"), path


class MetricFile:
    """A metric's file, whose last line may be half written and whose other lines may be damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.broken = 0  # whole lines that could not be read, as far as it was read
        self._counted = (0, 0)  # bytes, good lines in them

    def lines(self) -> Iterator[Line]:
        """All good lines; one that has no end yet is left for a later call."""
        self.broken = 0
        legacy, last = None, 0
        try:
            with self.path.open("rb") as file:
                for raw in file:
                    if not raw.endswith(b"\n"):
                        return
                    if legacy is None:
                        legacy = raw.count(b" ") == 1
                    line = parse(raw, legacy=legacy)
                    if line is None or (line.timestamp >= _FAR_FUTURE and 0 < last < _FAR_FUTURE):
                        self.broken += 1
                    else:
                        last = line.timestamp
                        yield line
        except FileNotFoundError:
            return

    def count(self) -> int:
        """How many lines `lines` gives now; only what is new since the last call is read."""
        place, count = self._counted
        with self.path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < place:
                place = count = 0
            file.seek(place)
            while chunk := file.read(_CHUNK):
                whole = chunk[: chunk.rfind(b"\n") + 1]
                if not _USUAL.fullmatch(whole):  # damaged, old or with datasets
                    return sum(1 for _ in self.lines())
                if not whole:
                    break
                count += whole.count(b"\n")
                place += len(whole)
                file.seek(place)
        self._counted = (place, count)
        return count


def parse(raw: bytes, *, legacy: bool = False) -> Line | None:
    """One line of a metric file: `time value step`, since MLflow 3 with a dataset's name and digest behind it.

    legacy: the file is of MLflow 0.x, whose lines are `time value`.  Without that a line with two
    fields has lost its step and must not be taken for step 0.
    None: the line is not one of these.
    """
    fields = (_OLD_LINE if legacy else _LINE).fullmatch(raw)
    if not fields:
        return None
    try:
        timestamp, value = int(fields[1]), float(fields[2])
    except ValueError:
        return None
    if legacy:
        return Line(timestamp, value, 0, ())
    rest = tuple(fields[4].decode("utf-8", "replace").split(" ")) if fields[4] else ()
    if _looks_like_a_second_line(rest):
        return None
    return Line(timestamp, value, int(fields[3]), rest)


def _looks_like_a_second_line(rest: tuple[str, ...]) -> bool:
    """Whether `value step` follow the step: a line that was cut where a job was killed, and the next job's first."""
    return len(rest) == 2 and bool(_VALUE_AND_STEP.fullmatch(" ".join(rest)))  # noqa: PLR2004
