"""Where known values are in a text, however programs have written them: quoted, escaped, encoded, split over lines."""

from __future__ import annotations

import base64
import html
import json
import re
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

SHORTEST = 4  # characters of a value that is looked for
_CORE = 6  # characters of a value's base64, without those that what is before and after it changes: less is chance
# What journalctl and syslog begin a line with; the group tells one program's lines from those between them.
_HEAD = re.compile(r"(?:\d{4}-\d\d-\d\dT\S+|[A-Z][a-z]{2} [ \d]\d [\d:.]{8,15}) (\S+ [^\s:]+): ?")
_BASE64 = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_=")
_PERCENT = re.compile(r"(?:%[0-9A-Fa-f]{2})+")
_BACKSLASH = re.compile(r"(?:\\u[0-9A-Fa-f]{4})+|\\U00[01][0-9A-Fa-f]{5}|(?:\\x[0-9A-Fa-f]{2})+|\\.")
_SPACES = "nrtbfv"  # after a backslash

Spans = list[tuple[int, int]]


class _View(NamedTuple):
    """A text without white space, and for each of its characters where that begins and ends in the one it is of."""

    text: str
    starts: array[int]
    ends: array[int]


def cut(text: str, values: Iterable[str], instead: str) -> str:
    """`text` with `instead` in the place of each value."""
    out, last = [], 0
    for start, end in _merged(_found(text, set(values))):
        out += [text[last:start], instead]
        last = end
    return "".join([*out, text[last:]])


def _found(text: str, values: set[str]) -> Spans:
    plain = sorted({form for value in values if len(value) >= SHORTEST for form in _forms(value)})
    encoded = sorted({core for value in values if len(value) >= SHORTEST for core in _cores(value)})
    found: Spans = []
    for view in _views(text):
        for form in plain:
            for at in _places(view.text, form):
                found += _spans(text, view, at, at + len(form))
        for core in encoded:
            for at in _places(view.text, core):
                found += _spans(text, view, *_widened(text, view, at, at + len(core)))
    return found


def _forms(value: str) -> Iterator[str]:
    """How a value may stand in a view of a text."""
    for one in (value, value.replace("'", "'\"'\"'"), html.escape(value), html.escape(value, quote=False)):
        yield "".join(one.split())
    yield "".join(value.replace(" ", "+").split())  # of forms
    if len(value) > SHORTEST:
        yield value.encode().hex()
        yield value.encode().hex().upper()


def _cores(value: str) -> Iterator[str]:
    """What the base64 of every text has that has the value in it, by how many bytes are before: `user:`, say."""
    for data in {value.encode(), value.strip().encode()}:
        for before in range(3):
            whole = base64.b64encode(bytes(before) + data).decode()
            end = -(0, 3, 2)[(before + len(data)) % 3] or None
            core = whole[(0, 2, 3)[before] : end]
            if len(core) >= _CORE:
                yield from (core, core.replace("+", "-").replace("/", "_"))


def _views(text: str) -> Iterator[_View]:
    """A text as it is, and with one or two layers of escapes taken away; each once."""
    plain = _unsplit(text)
    percent, backslash = _decoded(plain, _PERCENT, _of_percent), _decoded(plain, _BACKSLASH, _of_backslash)
    views = (
        plain, percent, backslash,
        _decoded(percent, _PERCENT, _of_percent), _decoded(percent, _BACKSLASH, _of_backslash),
        _decoded(backslash, _PERCENT, _of_percent), _decoded(backslash, _BACKSLASH, _of_backslash),
    )  # fmt: skip
    yield from {view.text: view for view in views}.values()


def _unsplit(text: str) -> _View:
    """The lines of each program one after the other, without what the journal begins them with, and without space."""
    streams: dict[str, Spans] = {}
    name = ""
    for line in re.finditer(r"[^\n]+", text):
        head = _HEAD.match(text, *line.span())
        name = head[1] if head else name
        streams.setdefault(name, []).append((head.end() if head else line.start(), line.end()))
    out: list[str] = []
    starts: array[int] = array("L")
    for lines in streams.values():
        for start, end in lines:
            for word in re.compile(r"\S+").finditer(text, start, end):
                out.append(word[0])
                starts.extend(range(*word.span()))
        out.append("\n")  # in no value
        starts.append(len(text))
    return _View("".join(out), starts, array("L", (start + 1 for start in starts)))


def _decoded(view: _View, escape: re.Pattern[str], decode: Callable[[str], str]) -> _View:
    out: list[str] = []
    starts: array[int] = array("L")
    ends: array[int] = array("L")
    last = 0
    for one in escape.finditer(view.text):
        start, end = one.span()
        new = "".join(decode(one[0]).split())
        out += [view.text[last:start], new]
        starts += view.starts[last:start]
        ends += view.ends[last:start]
        starts.extend([view.starts[start]] * len(new))
        ends.extend([max(view.ends[start:end])] * len(new))
        last = end
    return _View("".join([*out, view.text[last:]]), starts + view.starts[last:], ends + view.ends[last:])


def _of_percent(escapes: str) -> str:
    return unquote_to_bytes(escapes).decode(errors="replace")


def _of_backslash(escapes: str) -> str:
    if escapes[1] == "u" and len(escapes) > len(r"\u"):
        return str(json.loads(f'"{escapes}"'))
    if escapes[1] == "U" and len(escapes) > len(r"\U"):
        code = int(escapes[2:], 16)
        return chr(code) if code <= sys.maxunicode else escapes
    if escapes[1] == "x" and len(escapes) > len(r"\x"):
        data = bytes.fromhex(escapes.replace("\\x", ""))
        try:
            return data.decode()
        except UnicodeDecodeError:
            return data.decode("latin-1")
    return "" if escapes[1] in _SPACES else escapes[1]


def _places(text: str, value: str) -> Iterator[int]:
    at = text.find(value)
    while at >= 0:
        yield at
        at = text.find(value, at + 1)


def _spans(text: str, view: _View, first: int, last: int) -> Spans:
    """Where some characters of a view are in the text that it is of: one place in each line."""
    spans: Spans = []
    for at in range(first, last):
        if spans and "\n" not in text[spans[-1][1] : view.starts[at]]:
            spans[-1] = spans[-1][0], max(spans[-1][1], view.ends[at])
        else:
            spans.append((view.starts[at], view.ends[at]))
    return spans


def _merged(spans: Spans) -> Spans:
    merged: Spans = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def _widened(text: str, view: _View, first: int, last: int) -> tuple[int, int]:
    """The same with what is of the same base64 before and after: it has a part of the value, and whose it is.

    Also in the line before and after, where the base64 goes on there.
    """

    def joined(at: int) -> bool:
        between = text[view.ends[at - 1] : view.starts[at]]
        return view.text[at - 1] in _BASE64 and view.text[at] in _BASE64 and (not between or between[0] == "\n")

    while first > 0 and joined(first):
        first -= 1
    while last < len(view.text) and view.text[last - 1] != "=" and joined(last):
        last += 1
    while last < len(view.text) and view.text[last] == "=":
        last += 1
    return first, last
