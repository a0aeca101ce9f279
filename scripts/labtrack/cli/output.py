"""How results are printed: the one place from which text reaches a terminal."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from typing import Any

import click

from labtrack.doctor.result import Result, Status, as_json, worst
from labtrack.printable import clean

_COLORS = {Status.OK: "green", Status.SKIPPED: "bright_black", Status.WARNING: "yellow", Status.FAILED: "red"}

_HOME, _REST_OF_LINE, _BELOW = "\x1b[H", "\x1b[K", "\x1b[J"

DOCTOR_EXIT = {Status.OK: 0, Status.SKIPPED: 0, Status.WARNING: 1, Status.FAILED: 2}


def line(text: str, *, err: bool = False) -> None:
    """Prints a line, or several; recordings, servers and file names may have put anything into it.

    err: to standard error.
    """
    _echo(clean(text), err=err)


def _echo(text: str, *, err: bool = False) -> None:
    encoding = getattr(sys.stderr if err else sys.stdout, "encoding", None) or "utf-8"
    click.echo(text.encode(encoding, "backslashreplace").decode(encoding), err=err)


def has_colors() -> bool:
    """Whether escape sequences are understood: by a terminal that says no other."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "") != "dumb"


def drawing(lines: Iterable[str], *, over: bool = False) -> None:
    """Prints a drawing that was made to be printed as it is, with its colors.

    over: a terminal's whole screen, in the place of what is there.
    """
    for number, text in enumerate(lines):
        _echo((_HOME if over and not number else "") + text + (_REST_OF_LINE if over else ""))
    if over:
        click.echo(_BELOW, nl=False)


def results(rows: Iterable[Result], *, as_data: bool) -> Status:
    """Prints a checker's rows, as a table or as JSON; gives the worst status."""
    rows = list(rows)
    if as_data:
        data(as_json(rows))
        return worst(rows)
    width = max((len(row.check) for row in rows), default=0)
    indent = " " * (width + len("skipped") + 4)
    for row in rows:
        state = click.style(row.status.value.ljust(len("skipped")), fg=_COLORS[row.status])
        _echo(f"{row.check.ljust(width)}  {state}  {clean(row.seen).replace(chr(10), chr(10) + indent)}")
        if row.hint:
            line(f"{indent}To fix: {row.hint.replace(chr(10), chr(10) + indent)}")
    return worst(rows)


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """Prints a plain table, each row on one line."""
    lines = [tuple(" ".join(clean(text).split("\n")) for text in row) for row in (head, *rows)]
    widths = [max(len(row[column]) for row in lines) for column in range(len(head))]
    for row in lines:
        line("  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip())


def data(value: Any) -> None:
    """Prints plain data as JSON."""
    click.echo(json.dumps(value, indent=1))
