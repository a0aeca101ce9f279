"""The small files of an `mlruns` folder: meta.yaml, one file per parameter and tag, one per metric.

A job may be writing any of them at this moment, and may have been killed while it did.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from labtrack.stores import tree
from labtrack.stores.model import RUNNING, MetricPoint
from labtrack.stores.numbers import Steps, floor

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # five times as fast where PyYAML has it
_AGAIN = 0.1  # seconds: MLflow empties a file before it writes it
_LARGEST = 2**63
_STATUS = {1: "RUNNING", 2: "SCHEDULED", 3: "FINISHED", 4: "FAILED", 5: "KILLED"}
_FRESH = 5.0  # seconds since a file was written, in which its writer may not be done
_CHUNK = 1 << 16  # the regular expression needs thirty times as much memory
_NUMBER = rb"(?:-?\d+(?:\.\d+)?(?:e[-+]?\d+)?|nan|-?inf)"
_USUAL = re.compile(rb"(?:-?\d{1,13} " + _NUMBER + rb" -?\d{1,18}(?:\.\d+)?\n)*")
_WHOLE = rb"(-?\d{1,19}(?:\.\d*)?(?:e[-+]?\d+)?)"  # 50.0 of frameworks that count in floats, nanoseconds, and 0.5
_LINE = re.compile(_WHOLE + rb" ([^\s_]+) " + _WHOLE + rb"(?: (.+))?\r?\n?")
_USUAL_LINE = re.compile(rb"(-?\d{1,18}) ([^\s_]+) (-?\d{1,18})\n")  # nearly all: it takes a third of the time
_OLD_LINE = re.compile(rb"(-?\d{1,18}) ([^\s_]+)\r?\n?")
_VALUE_AND_STEP = re.compile(_NUMBER.decode() + r" -?\d+(?:\.\d*)?")
_RUN_ID = re.compile(r"[0-9a-f]{32}")
_FAR_FUTURE = 10**13  # ms: the year 2286; a time that jumps beyond it is the start of one line and the time of the next
_OFTEN, _JUMP = 10**9, 5  # seconds: the year 2001, and the factor by which a time in seconds may not jump


class Line(NamedTuple):
    """One line of a metric file; `rest` is what stands after the step: a run's id, a dataset's name and digest.

    Time and step are floats where they are written as such.
    """

    timestamp: float
    value: float
    step: float
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


def read_values(folder: Path, tells: tree.Tells) -> dict[str, str]:
    """A folder with one file per key, where a key with slashes is a path; what can't be read is told."""
    found = {}
    for key, path in keys_in(folder, tells):
        try:
            data = path.read_bytes()
            if not data and time.time() - path.stat().st_mtime < _FRESH:
                time.sleep(_AGAIN)
                data = path.read_bytes()
        except FileNotFoundError:
            if path.is_symlink():
                tells(path, f"is a link to {path.readlink()}, which is not there")
            continue  # deleted in this moment
        except OSError as error:
            tells(path, f"can't be read: {error.strerror}")
            continue
        found[key] = data.decode("utf-8", "replace")
    return found


def keys_in(folder: Path, tells: tree.Tells) -> Iterator[tuple[str, Path]]:
    """Keys and their files, sorted; folders that can't be read are told."""
    found = [(path.relative_to(folder), path) for path in tree.files(folder, tells)]
    for name, path in sorted(found, key=lambda one: one[0].parts):
        if not any(tree.is_clutter(part) for part in name.parts):
            yield os.fsencode(name.as_posix()).decode("utf-8", "replace"), path


def never() -> bool:
    """Of a run that goes on."""
    return False


class MetricFile:
    """A metric's file, whose last line may be half written and whose other lines may be damaged."""

    def __init__(self, path: Path, ended: Callable[[], bool] = never) -> None:
        """ended: whether the run is over, and a last line without an end therefore whole."""
        self.path = path
        self.broken = 0  # whole lines that could not be read, as far as it was read
        self._ended = ended
        self._counted = (0, 0)  # bytes, good lines in them

    def lines(self) -> Iterator[Line]:
        """All good lines; one that has no end yet is left for a later call.  Raises OSError."""
        self.broken = 0
        legacy, last = None, 0.0
        with self.path.open("rb") as file:
            for raw in file:
                cut = not raw.endswith(b"\n")
                if cut and not self._ended():
                    return
                if legacy is None:
                    legacy = raw.count(b" ") == 1 and not cut
                line = parse(raw, legacy=legacy)
                if line is None:
                    self.broken += 1
                    continue
                time = line[0]
                if (time >= _FAR_FUTURE or type(time) is float) and _is_too_late(time, last):
                    self.broken += 1
                else:
                    last = time
                    yield line

    def count(self) -> int:
        """How many lines `lines` gives now; only what is new since the last call is read.  Raises OSError."""
        place, count = self._counted
        with self.path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < place:
                place = count = 0
            file.seek(place)
            while chunk := file.read(_CHUNK):
                whole = chunk[: chunk.rfind(b"\n") + 1]
                if not _USUAL.fullmatch(whole):  # damaged, old or with datasets
                    return sum(1 for _ in self.lines())
                if len(whole) < len(chunk) < _CHUNK and self._ended():
                    return sum(1 for _ in self.lines())
                if not whole:
                    break
                count += whole.count(b"\n")
                place += len(whole)
                file.seek(place)
        self._counted = (place, count)
        return count


def _is_too_late(time: float, last: float) -> bool:
    """Whether a time is the start of one line and the time of the next: it jumps, and far."""
    if isinstance(time, float) and last >= _OFTEN:
        return time > _JUMP * last
    return time >= _FAR_FUTURE and 0 < last < _FAR_FUTURE


def parse(raw: bytes, *, legacy: bool = False) -> Line | None:
    """One line of a metric file: `time value step`, since MLflow 3 with a dataset's name and digest behind it.

    legacy: the file is of MLflow 0.x, whose lines are `time value`.  Without that a line with two
    fields has lost its step and must not be taken for step 0.
    None: the line is not one of these.
    """
    usual = None if legacy else _USUAL_LINE.fullmatch(raw)
    if usual:
        time, value, step = usual.groups()
        try:
            return Line(int(time), float(value), int(step), ())
        except ValueError:
            return None
    return _unusual(raw, legacy=legacy)


def _unusual(raw: bytes, *, legacy: bool) -> Line | None:
    """A line that is old, or has floats for integers, a dataset or another end."""
    fields = (_OLD_LINE if legacy else _LINE).fullmatch(raw)
    if not fields:
        return None
    try:
        timestamp, value = _count(fields[1]), float(fields[2])
        step = 0 if legacy else _count(fields[3])
    except ValueError:
        return None
    if timestamp is None or step is None:
        return None
    if legacy:
        return Line(timestamp, value, 0, ())
    rest = tuple(fields[4].decode("utf-8", "replace").split(" ")) if fields[4] else ()
    if _looks_like_a_second_line(rest, fields[3]):
        return None
    return Line(timestamp, value, step, rest)


def _count(field: bytes) -> float | None:
    """An int, or a float where it is written as one that is no whole number; None beyond MLflow's columns."""
    found = float(field) if b"." in field or b"e" in field else int(field)
    if not -_LARGEST <= found < _LARGEST:
        return None
    return int(field[:-2]) if field.endswith(b".0") else found


def _looks_like_a_second_line(rest: tuple[str, ...], step: bytes) -> bool:
    """Whether a line was cut where a job was killed, and goes on as the next job's first.

    rest: what follows the step: nothing, a run's id, a dataset's name and digest, or all three.
    """
    if not rest or _RUN_ID.fullmatch(rest[0]):
        return False
    if len(rest) == 1 or not step.lstrip(b"-").isdigit():  # cut in or behind the time: `step` is the next line's value
        return True
    return len(rest) == 2 and bool(_VALUE_AND_STEP.fullmatch(" ".join(rest)))  # noqa: PLR2004


def point(key: str, line: Line, steps: Steps) -> MetricPoint:
    """The point in a line, which is the next one of its metric."""
    time, value, recorded, _ = line
    step = steps.of(key, recorded)
    if type(time) is int and recorded == step:
        return MetricPoint(key, value, time, step)
    moment = floor(line.timestamp) or 0
    odd = moment != line.timestamp or step != line.step
    return MetricPoint(key, line.value, moment, step, (line.timestamp, line.step) if odd else None)


def status_in(meta: Mapping[str, Any]) -> str:
    """The status of a run's meta.yaml, where MLflow writes it as a number."""
    found = meta.get("status")
    return _STATUS.get(found, RUNNING) if isinstance(found, int) else str(found or RUNNING)


def time_in(meta: Mapping[str, Any], name: str, folder: Path, tells: tree.Tells) -> int | None:
    """A time of a meta.yaml in ms; what is none is told."""
    value = meta.get(name)
    found = floor(value)
    if found is None and value is not None:
        tells(folder / "meta.yaml", f"the {name} {str(value)[:60]!r} is no time and was left out")
    return found
