"""One event file of TensorBoard, whatever wrote it: TensorFlow 1 and 2, torch, tensorboardX, Lightning, Keras.

    Event{1 wall_time, 2 step, 3 file_version, 5 summary}   Summary{1 value*}
    Value{1 tag, 2 simple_value, 8 tensor, 9 metadata{1 plugin_data{1 name, 2 content}}}     (summary.proto)

Absent fields are 0.  Nearly all events are one scalar each, and differ in nothing but time, step and value.
"""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

from labtrack.stores.foreign import protobuf
from labtrack.stores.foreign.crc32c import masked
from labtrack.stores.foreign.logs import Log, Seen
from labtrack.stores.foreign.tfrecord import Damage, Record, records
from labtrack.stores.model import MetricPoint
from labtrack.stores.values import milliseconds

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


@dataclass
class Session:
    """What the hparams plugin wrote."""

    params: dict[str, str] = field(default_factory=dict)
    status: str = ""
    end: float = 0.0


@dataclass
class Events(Seen):
    """What an event file has up to a place; times in seconds since 1970."""

    session: Session = field(default_factory=Session)
    first: float = math.inf
    last: float = 0.0

    def at(self, time: float) -> None:
        """Notes the time of an event."""
        self.first = min(self.first, time)
        self.last = max(self.last, time)


class EventFile(Log[Events]):
    """A file of events."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._head = b""
        self._is_session = False
        self._forms: dict[bytes, tuple[str, struct.Struct]] = {}

    def _nothing(self) -> Events:
        return Events()

    def _records(self, file: BinaryIO, start: int) -> Iterator[Record | Damage]:
        return records(file, start)

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
        """Whether it is one of those that torch's `add_hparams` begins, as far as it can be read."""
        if not self._is_session:
            first = []
            with contextlib.suppress(OSError), self.path.open("rb") as file:
                first = [one.data for one in islice(records(file), 3) if isinstance(one, Record)]
            self._is_session = all(any(tag in data for data in first) for tag in (b"_hparams_/experiment", _START))
        return self._is_session

    def _points(self, record: Record, seen: Events | None) -> Iterable[MetricPoint]:
        _, data, unchecked = record
        if unchecked is None:
            step, at = _split(data)
            form = self._forms.get(data[at:-4]) or self._forms.get(data[at:-8])
            if form is not None:  # an event with one scalar, in a form that was seen before
                tag, number = form
                (time,) = _FIXED.unpack_from(data)
                if seen is not None:
                    seen.at(time)
                (value,) = number.unpack_from(data, len(data) - number.size)
                return (MetricPoint(tag, value, milliseconds(time), step),)
        return self._whole(data, unchecked, seen)

    def _whole(self, data: bytes, unchecked: int | None, seen: Events | None) -> list[MetricPoint]:
        """The points of any event."""
        event = _event(data)
        numbers = [one for one in event.values if one.number is not None]
        read = numbers or any(one.plugin == _HPARAMS for one in event.values)
        if read and unchecked is not None and masked(data) != unchecked:
            raise ValueError("its checksum is another")
        if seen is not None:
            seen.at(event.time)
            for one in event.values:
                if one.number is None:
                    _note(one, seen)
        at = milliseconds(event.time)
        found = [MetricPoint(one.tag, one.number, at, event.step) for one in numbers if one.number is not None]
        if len(event.values) == len(found) == 1 and len(self._forms) < _MOST_KNOWN:
            self._remember(data, found[0])
        return found

    def _remember(self, data: bytes, scalar: MetricPoint) -> None:
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
                    self._forms[data[at:-size]] = (scalar.key, number)


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
    step, shift, at = 0, 0, _TIME_SIZE + 1
    for byte in data[at : at + 10]:
        step |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return step if step < 1 << 63 else protobuf.signed(step), at
        shift += 7
    return 0, 0


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


def _note(one: _Value, seen: Events) -> None:
    """Notes a value that is no metric."""
    if one.plugin != _HPARAMS:
        seen.other(one.kind or "value", one.tag)
        return
    if one.tag == _SESSION_START:
        seen.session.params.update(_params(one.content))
    elif one.tag == _SESSION_END:
        _ending(one.content, seen.session)


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
