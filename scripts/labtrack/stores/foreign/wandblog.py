"""One `run-ID.wandb` file, as wandb 0.10 to 0.31 write it (wandb_internal.proto).

    Record{2 history, 3 summary, 5 config, 7 stats, 8 artifact, 17 run, 18 exit, 26 environment}
    items{1 key, 2 nested_key*, 16 value_json}; of history also {3 none, 4 boolean, 5 integer, 6 number, 7 text, 8 json}

It is not a format that wandb promises; what is not known in it is passed over.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from labtrack.stores.foreign import protobuf
from labtrack.stores.foreign.leveldb import HEAD, records
from labtrack.stores.foreign.logs import Log, Seen
from labtrack.stores.foreign.tfrecord import Damage, Record
from labtrack.stores.model import MetricPoint
from labtrack.stores.values import flat, milliseconds, number_in

SYSTEM = "system/"
_TYPE = "_type"
_RUN = {
    1: "run_id", 2: "entity", 3: "project", 6: "group", 7: "job_type", 8: "name", 9: "notes", 12: "sweep_id",
    13: "host",
}  # fmt: skip
_ENVIRONMENT = {1: "os", 2: "python", 6: "program", 10: "email", 12: "host", 13: "username"}


@dataclass
class Logged(Seen):
    """What a file has up to a place.  Times in seconds since 1970."""

    offset: int = len(HEAD)
    last: dict[str, tuple[float, int]] = field(default_factory=dict)  # value and step of each metric
    facts: dict[str, str] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: list[str] = field(default_factory=list)
    start: float = 0.0
    end: float = 0.0  # of the latest record that has a time
    step: int = 0
    exit_code: int | None = None


class WandbLog(Log[Logged]):
    """A file with what was logged."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._start = 0.0  # of the run, for the points of which only that is known

    def _nothing(self) -> Logged:
        return Logged()

    def _records(self, file: BinaryIO, start: int) -> Iterator[Record | Damage]:
        if start == len(HEAD):
            head = file.read(len(HEAD))
            if head != HEAD:
                yield Damage(0, len(head), cut=HEAD.startswith(head))
        yield from records(file, start)

    def _points(self, record: Record, seen: Logged | None) -> Iterator[MetricPoint]:
        for number, _, value in protobuf.fields(record.data):
            if number == 17:
                self._start = self._start or _start(protobuf.as_bytes(value))
            if number == 2:
                found = _history(protobuf.as_bytes(value), self._start, seen)
            else:
                found = _system(protobuf.as_bytes(value), self._start) if number == 7 else []
            if seen is not None:
                _note(number, value, seen)
                for point in found:
                    seen.end = max(seen.end, point.timestamp / 1000)
                    if number == 2:
                        seen.last[point.key] = point.value, point.step
            yield from found


def _history(data: bytes, start: float, seen: Logged | None) -> list[MetricPoint]:
    items: dict[str, Any] = {}
    step = 0
    for number, _, value in protobuf.fields(data):
        if number == 1:
            path, found = _item(protobuf.as_bytes(value))
            items[".".join(path)] = found
        elif number == 2:
            step = next(
                (protobuf.signed(protobuf.as_int(n)) for part, _, n in protobuf.fields(_b(value)) if part == 1), 0
            )
    values = dict(flat(items))
    step = _whole(values.get("_step"), step)
    moment = number_in(values.get("_timestamp"))
    if moment is None:
        moment = start + (number_in(values.get("_runtime")) or 0)
    typed = {key[: -len(_TYPE) - 1]: str(kind) for key, kind in values.items() if key.endswith(f".{_TYPE}")}
    found, at = [], milliseconds(moment)
    for key, value in values.items():
        if key.startswith("_") or any(key.startswith(f"{one}.") for one in typed):
            continue
        measured = number_in(value)
        if measured is not None:
            found.append(MetricPoint(key, measured, at, step))
        elif seen is not None and value is not None:
            seen.other("text" if isinstance(value, str) else type(value).__name__, key)
    if seen is not None:
        for key, kind in typed.items():
            seen.other(kind, key)
        seen.end, seen.step = max(seen.end, at / 1000), max(seen.step, step)
    return found


def _system(data: bytes, start: float) -> list[MetricPoint]:
    """What wandb measures of the machine, each some seconds; the step is the second since the start of the process."""
    moment, found = 0.0, []
    for number, _, value in protobuf.fields(data):
        if number == 2:
            moment = _timestamp(protobuf.as_bytes(value))
        elif number == 3:
            path, one = _item(protobuf.as_bytes(value))
            measured = number_in(one)
            if measured is not None:
                found.append((".".join(path), measured))
    step = int(moment - start) if start else 0
    return [MetricPoint(f"{SYSTEM}{key}", value, milliseconds(moment), step) for key, value in found]


def _note(number: int, value: protobuf.Value, seen: Logged) -> None:
    if number == 17:
        _run(protobuf.as_bytes(value), seen)
    elif number == 5:
        _update(protobuf.as_bytes(value), seen.config)
    elif number == 3:
        _update(protobuf.as_bytes(value), seen.summary)
    elif number == 18:
        codes = [protobuf.as_int(one) for n, _, one in protobuf.fields(_b(value)) if n == 1]
        seen.exit_code = protobuf.signed(codes[0]) if codes else 0
    elif number == 8:
        names = [protobuf.text(one) for n, _, one in protobuf.fields(_b(value)) if n == 5]
        seen.artifacts += names[:1]
    elif number == 26:
        for n, _, one in protobuf.fields(_b(value)):
            if n in _ENVIRONMENT:
                seen.facts.setdefault(_ENVIRONMENT[n], protobuf.text(one))
            elif n == 9:
                _git(one, seen)


def _run(data: bytes, seen: Logged) -> None:
    """The run itself; it is written again when something of it changes, and then says all of it."""
    tags = []
    for number, _, value in protobuf.fields(data):
        if number in _RUN:
            seen.facts[_RUN[number]] = protobuf.text(value)
        elif number == 4:
            _update(protobuf.as_bytes(value), seen.config)
        elif number == 5:
            _update(protobuf.as_bytes(value), seen.summary)
        elif number == 10:
            tags.append(protobuf.text(value))
        elif number == 17:
            seen.start = seen.start or _timestamp(protobuf.as_bytes(value))
        elif number == 19:
            for part, _, one in protobuf.fields(_b(value)):
                if part == 5:
                    seen.facts["version"] = protobuf.text(one)
        elif number == 21:
            _git(value, seen)
    seen.tags = tags or seen.tags


def _git(value: protobuf.Value, seen: Logged) -> None:
    for number, _, one in protobuf.fields(_b(value)):
        if number in (1, 2):
            seen.facts["repository" if number == 1 else "commit"] = protobuf.text(one)


def _start(run: bytes) -> float:
    return next((_timestamp(_b(value)) for number, _, value in protobuf.fields(run) if number == 17), 0.0)


def _update(data: bytes, into: dict[str, Any]) -> None:
    """{1 update{item}, 2 remove{item}}."""
    for number, _, value in protobuf.fields(data):
        path, found = _item(protobuf.as_bytes(value))
        if not path:
            continue
        place = into
        for name in path[:-1]:
            inner = place.get(name)
            if not isinstance(inner, dict):
                inner = place[name] = {}
            place = inner
        if number == 1:
            place[path[-1]] = found
        elif number == 2:
            place.pop(path[-1], None)


def _item(data: bytes) -> tuple[list[str], Any]:
    """The path of names that leads to a value, and the value."""
    key: list[str] = []
    nested: list[str] = []
    found: Any = None
    for number, _, value in protobuf.fields(data):
        if number == 1:
            key = [protobuf.text(value)]
        elif number == 2:
            nested.append(protobuf.text(value))
        elif number in (16, 8):
            found = json.loads(protobuf.as_bytes(value) or b"null")
        elif number == 4:
            found = bool(value)
        elif number == 5:
            found = protobuf.signed(protobuf.as_int(value))
        elif number == 6:
            found = protobuf.double(value)
        elif number == 7:
            found = protobuf.text(value)
    return nested or key, found


def _whole(value: Any, otherwise: int) -> int:
    number = number_in(value)
    return int(number) if number is not None and math.isfinite(number) else otherwise


def _timestamp(data: bytes) -> float:
    """Of google.protobuf.Timestamp{1 seconds, 2 nanos}."""
    found = {number: protobuf.as_int(value) for number, wire, value in protobuf.fields(data) if wire == protobuf.VARINT}
    return protobuf.signed(found.get(1, 0)) + found.get(2, 0) / 1e9


def _b(value: protobuf.Value) -> bytes:
    return protobuf.as_bytes(value)


def summarised(seen: Mapping[str, tuple[float, int]], summary: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The values of a summary that are in no history.  seen: the last value of each metric.

    A value that was set for a metric with a history, and is not its last one, is called `KEY.summary`.
    """
    values = dict(flat(summary))
    typed = {key[: -len(_TYPE)] for key in values if key.endswith(f".{_TYPE}")}
    for key, value in values.items():
        number = number_in(value)
        if number is None or key.startswith("_") or any(key.startswith(one) for one in typed):
            continue
        known = seen.get(key)
        if known is None:
            yield key, number
        elif known[0] != number and not (math.isnan(known[0]) and math.isnan(number)):
            yield f"{key}.summary", number
