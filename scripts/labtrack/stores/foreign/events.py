"""One event file of TensorBoard, whatever wrote it: TensorFlow 1 and 2, torch, tensorboardX, Lightning, Keras.

    Event{1 wall_time, 2 step, 3 file_version, 5 summary}   Summary{1 value*}
    Value{1 tag, 2 simple_value, 8 tensor, 9 metadata{1 plugin_data{1 name, 2 content}}}     (summary.proto)

Absent fields are 0.  Nearly all events are one scalar each, and differ in nothing but time, step and value.
"""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from labtrack.stores.foreign import protobuf
from labtrack.stores.foreign.crc32c import masked
from labtrack.stores.foreign.tfrecord import Damage, Record, records

_HPARAMS = "hparams"
_SESSION_START = "_hparams_/session_start_info"
_START = _SESSION_START.encode()
_SESSION_END = "_hparams_/session_end_info"
# fields of a Value that are no numbers, and what they are called
_OTHERS = {3: "histogram", 4: "image", 5: "histogram", 6: "audio"}
_PLUGINS = {"images": "image", "histograms": "histogram", "audio": "audio", "pr_curves": "PR curve", "mesh": "mesh"}
_NUMBERS = {1: "<f", 2: "<d", 3: "<i", 4: "<B", 5: "<h", 6: "<b", 9: "<q", 10: "<?", 19: "<e", 22: "<I", 23: "<Q"}
# where a TensorProto has its values when not in tensor_content, by dtype, and how they are packed
_LISTS = {5: "<f", 6: "<d", 7: "", 10: "", 11: "", 16: "", 17: ""}
_MOST_KNOWN = 10_000  # kinds of events whose form is remembered
_STATUS = {1: "FINISHED", 2: "FAILED", 3: "RUNNING"}
_EXACT = 2**53
_FIXED, _SINGLE, _DOUBLE = struct.Struct("<xd"), struct.Struct("<f"), struct.Struct("<d")
_TIME, _STEP, _TIME_SIZE = 0x09, 0x10, 9  # the first bytes of the fields, and a time with its own


class Scalar(NamedTuple):
    """A value of a tag; time: seconds since 1970."""

    tag: str
    value: float
    time: float
    step: int


@dataclass
class Session:
    """What the hparams plugin wrote."""

    params: dict[str, str] = field(default_factory=dict)
    status: str = ""
    end: float = 0.0


@dataclass
class Seen:
    """What a file has up to a place."""

    offset: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    others: dict[str, dict[str, int]] = field(default_factory=dict)  # by kind and tag, what is no metric
    session: Session = field(default_factory=Session)
    first: float = math.inf
    last: float = 0.0
    damaged: int = 0  # places with bytes that are no records
    cut: int = 0  # bytes at the end that are the beginning of a record

    def at(self, time: float) -> None:
        """Notes the time of an event."""
        self.first = min(self.first, time)
        self.last = max(self.last, time)

    def other(self, kind: str, tag: str) -> None:
        tags = self.others.setdefault(kind, {})
        tags[tag] = tags.get(tag, 0) + 1


class EventFile:
    """A file of events, which may be growing.  Only what is new is read to say how much there is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen = Seen()
        self._head = b""
        self._is_session = False
        self._forms: dict[bytes, tuple[str, struct.Struct]] = {}

    def head(self) -> bytes:
        """The first record, which never changes; empty where there is none yet.  Raises OSError."""
        if not self._head:
            with self.path.open("rb") as file:
                self._head = next((one.data for one in records(file) if isinstance(one, Record)), b"")
        return self._head

    def began(self) -> float:
        """The time of the first record; 0 where there is none.  Raises OSError."""
        try:
            return _time(self.head())
        except ValueError:
            return 0.0

    def is_session(self) -> bool:
        """Whether it is one of those that torch's `add_hparams` begins.  Raises OSError."""
        if not self._is_session:
            with self.path.open("rb") as file:
                first = [one.data for one in islice(records(file), 3) if isinstance(one, Record)]
            self._is_session = all(any(tag in data for data in first) for tag in (b"_hparams_/experiment", _START))
        return self._is_session

    def scan(self) -> Seen:
        """What is there now.  Raises OSError."""
        seen = self.seen
        size = self.path.stat().st_size
        if size < seen.offset:
            seen = self.seen = Seen()
        if size > seen.offset + seen.cut:
            counts = seen.counts
            for tag, _, _, _ in self._read(seen.offset, seen):
                counts[tag] = counts.get(tag, 0) + 1
        return seen

    def scalars(self, left: dict[str, int]) -> Iterator[Scalar]:
        """The scalars without the first left[tag] of each tag, which are counted down.  Raises OSError."""
        seen, start = self.seen, 0
        if all(left.get(tag, 0) >= count for tag, count in seen.counts.items()):
            start = seen.offset
            for tag, count in seen.counts.items():
                left[tag] -= count
        for one in self._read(start, None):
            if left.get(one.tag):
                left[one.tag] -= 1
            else:
                yield one

    def _read(self, start: int, seen: Seen | None) -> Iterator[Scalar]:
        """The scalars from a place on; what else is found there is noted in `seen`."""
        with self.path.open("rb") as file:
            for record in records(file, start):
                if isinstance(record, Damage):
                    if seen is not None:
                        self._note_damage(record, seen)
                    continue
                end, data, unchecked = record
                usual = self._usual(data) if unchecked is None else None
                if usual is not None:
                    yield usual
                    if seen is not None:
                        seen.at(usual.time)
                else:
                    yield from self._whole(data, unchecked, seen)
                if seen is not None:
                    seen.offset, seen.cut = end, 0

    def _note_damage(self, damage: Damage, seen: Seen) -> None:
        if damage.cut:
            seen.cut = damage.end - damage.start
            return
        seen.damaged += 1
        seen.offset = damage.end
        seen.cut = 0

    def _usual(self, data: bytes) -> Scalar | None:
        """An event with one scalar, in a form that was seen before."""
        step, at = _split(data)
        form = self._forms.get(data[at:-4]) or self._forms.get(data[at:-8])
        if form is None:
            return None
        tag, number = form
        return Scalar(tag, number.unpack_from(data, len(data) - number.size)[0], _FIXED.unpack_from(data)[0], step)

    def _whole(self, data: bytes, unchecked: int | None, seen: Seen | None) -> Iterator[Scalar]:
        """The scalars of any event."""
        try:
            event = _event(data)
        except ValueError:
            if seen is not None:
                seen.damaged += 1
            return
        scalars = []
        numbers = [one for one in event.values if one.number is not None]
        read = numbers or any(one.plugin == _HPARAMS for one in event.values)
        if read and unchecked is not None and masked(data) != unchecked:
            if seen is not None:
                seen.damaged += 1
            return
        for one in event.values:
            if one.number is not None:
                scalars.append(Scalar(one.tag, one.number, event.time, event.step))
            elif seen is not None:
                _note(one, seen)
        if seen is not None:
            seen.at(event.time)
        if len(event.values) == len(scalars) == 1 and len(self._forms) < _MOST_KNOWN:
            self._remember(data, scalars[0])
        yield from scalars

    def _remember(self, data: bytes, scalar: Scalar) -> None:
        """Remembers the form of an event whose last bytes are its value."""
        step, at = _split(data)
        for number in (_SINGLE, _DOUBLE):
            size = number.size
            if at == 0 or step != scalar.step or len(data) - at <= size or not scalar.value:
                continue
            if number.unpack_from(data, len(data) - size)[0] != scalar.value:
                continue
            # that these bytes are the value shows when the message has another one with others
            with contextlib.suppress(ValueError):
                event = _event(data[:-size] + number.pack(-scalar.value))
                if [one.number for one in event.values] == [-scalar.value]:
                    self._forms[data[at:-size]] = (scalar.tag, number)


class _Value(NamedTuple):
    tag: str
    number: float | None
    kind: str  # what it is where it is no number
    plugin: str
    content: bytes


class _Event(NamedTuple):
    time: float
    step: int
    values: list[_Value]


def _split(data: bytes) -> tuple[int, int]:
    """The step of an event that begins with its time, and where what follows begins; 0 for any other event."""
    if len(data) <= _TIME_SIZE or data[0] != _TIME:
        return 0, 0
    if data[_TIME_SIZE] != _STEP:
        return 0, _TIME_SIZE
    try:
        step, at = protobuf.varint(data, _TIME_SIZE + 1)
    except ValueError:
        return 0, 0
    return protobuf.signed(step), at


def _time(data: bytes) -> float:
    return next((protobuf.double(value) for number, _, value in protobuf.fields(data) if number == 1), 0.0)


def _event(data: bytes) -> _Event:
    time, step, values = 0.0, 0, []
    for number, _, value in protobuf.fields(data):
        if number == 1:
            time = protobuf.double(value)
        elif number == 2:
            step = protobuf.signed(protobuf.as_int(value))
        elif number == 5:
            parts = protobuf.fields(protobuf.as_bytes(value))
            values += [_value(protobuf.as_bytes(part)) for field, _, part in parts if field == 1]
    return _Event(time, step, values)


def _value(data: bytes) -> _Value:
    tag, number, kind, plugin, content = "", None, "", "", b""
    for field_number, _, value in protobuf.fields(data):
        if field_number == 1:
            tag = protobuf.text(value)
        elif field_number == 2:
            number = protobuf.single(value)
        elif field_number == 8:
            number = _scalar(protobuf.as_bytes(value))
            kind = kind or "tensor"
        elif field_number == 9:
            plugin, content = _plugin(protobuf.as_bytes(value))
            kind = _PLUGINS.get(plugin, plugin) or kind
        elif field_number in _OTHERS:
            kind = _OTHERS[field_number]
    return _Value(tag, number, kind, plugin, content)


def _plugin(metadata: bytes) -> tuple[str, bytes]:
    """Name and content of the plugin that a value is for."""
    name, content = "", b""
    for number, _, value in protobuf.fields(metadata):
        if number == 1:
            for part, _, inner in protobuf.fields(protobuf.as_bytes(value)):
                if part == 1:
                    name = protobuf.text(inner)
                elif part == 2:
                    content = protobuf.as_bytes(inner)
    return name, content


def _scalar(tensor: bytes) -> float | None:
    """The number in a tensor without dimensions; None for any other tensor.

    TensorProto{1 dtype, 2 shape{2 dim*}, 4 tensor_content, 5 float_val, 6 double_val, 7 int_val, 10 int64_val, ...}
    """
    kind, content, packed = 0, b"", None
    for number, wire, value in protobuf.fields(tensor):
        if number == 1:
            kind = protobuf.as_int(value)
        elif number == 2:
            if any(part in (2, 3) for part, _, _ in protobuf.fields(protobuf.as_bytes(value))):
                return None
        elif number == 4:
            content = protobuf.as_bytes(value)
        elif number in _LISTS:
            packed = _first(_LISTS[number], wire, value, signed=number in (7, 10))
    form = _NUMBERS.get(kind)
    if form is None:
        return None
    if content:
        return float(struct.unpack(form, content)[0]) if len(content) == struct.calcsize(form) else None
    return packed if packed is not None else 0.0


def _first(form: str, wire: int, value: protobuf.Value, *, signed: bool) -> float:
    if form:
        return protobuf.single(value) if form == "<f" else protobuf.double(value)
    found = value if isinstance(value, int) else protobuf.varint(value, 0)[0]
    return float(protobuf.signed(found) if signed else found)


def _note(one: _Value, seen: Seen) -> None:
    """Notes a value that is no metric."""
    if one.plugin != _HPARAMS:
        seen.other(one.kind or "value", one.tag)
        return
    try:
        if one.tag == _SESSION_START:
            seen.session.params.update(_params(one.content))
        elif one.tag == _SESSION_END:
            _ending(one.content, seen.session)
    except ValueError:
        seen.damaged += 1


def _params(content: bytes) -> Iterator[tuple[str, str]]:
    """HParamsPluginData{3 session_start_info{1 hparams map<name, Value{2 number, 3 string, 4 bool}>}}."""
    for info in _inner(content, 3):
        for entry in _inner(info, 1):
            name, said = "", ""
            for number, _, value in protobuf.fields(entry):
                if number == 1:
                    name = protobuf.text(value)
                elif number == 2:
                    said = _param(protobuf.as_bytes(value))
            yield name, said


def _param(value: bytes) -> str:
    for number, _, one in protobuf.fields(value):
        if number == 2:
            found = protobuf.double(one)
            # all numbers are doubles here, and most that are whole were whole
            return str(int(found)) if found.is_integer() and abs(found) < _EXACT else str(found)
        if number == 3:
            return protobuf.text(one)
        if number == 4:
            return str(bool(one))
    return ""


def _ending(content: bytes, session: Session) -> None:
    """HParamsPluginData{4 session_end_info{1 status, 2 end_time_secs}}."""
    for info in _inner(content, 4):
        found = {number: value for number, _, value in protobuf.fields(info)}
        end = protobuf.double(found[2]) if 2 in found else 0.0
        if end:  # torch says that all went well, without an end, while it is still going
            session.end, session.status = end, _STATUS.get(protobuf.as_int(found.get(1, 0)), "")


def _inner(data: bytes, wanted: int) -> Iterator[bytes]:
    return (protobuf.as_bytes(value) for number, _, value in protobuf.fields(data) if number == wanted)
