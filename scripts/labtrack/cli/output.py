"""How results are printed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import click

from labtrack.doctor.result import Result, Status, as_json, worst

_COLORS = {Status.OK: "green", Status.SKIPPED: "bright_black", Status.WARNING: "yellow", Status.FAILED: "red"}

DOCTOR_EXIT = {Status.OK: 0, Status.SKIPPED: 0, Status.WARNING: 1, Status.FAILED: 2}


def results(rows: Iterable[Result], *, as_data: bool) -> Status:
    """Prints a checker's rows, as a table or as JSON; gives the worst status."""
    rows = list(rows)
    if as_data:
        click.echo(json.dumps(as_json(rows), indent=1))
        return worst(rows)
    width = max((len(row.check) for row in rows), default=0)
    indent = " " * (width + len("skipped") + 4)
    for row in rows:
        state = click.style(row.status.value.ljust(len("skipped")), fg=_COLORS[row.status])
        click.echo(f"{row.check.ljust(width)}  {state}  {row.seen.replace(chr(10), chr(10) + indent)}")
        if row.hint:
            click.echo(f"{indent}To fix: {row.hint.replace(chr(10), chr(10) + indent)}")
    return worst(rows)


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """Prints a plain table."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        click.echo("  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip())


def data(value: Any) -> None:
    """Prints plain data as JSON."""
    click.echo(json.dumps(value, indent=1))
