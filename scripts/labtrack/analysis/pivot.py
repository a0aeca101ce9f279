"""The table for a paper: rows, columns, and one value over several runs in each cell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from labtrack.analysis import columns, groups, statistics
from labtrack.analysis.board import Asked, smallest_first, value_of
from labtrack.analysis.columns import Column
from labtrack.analysis.frame import Frame, Needs
from labtrack.analysis.rows import Row
from labtrack.analysis.table import NOTHING, Marked, Spread, Table

_FEW = 3  # cells in a note


def pivot(
    asked: Asked,
    rows: Sequence[Column],
    cols: Sequence[Column],
    value: str,
    over: str | None = None,
    *,
    direction: str | None = None,
    spread: str = "std",
) -> tuple[Table, Frame]:
    """Puts a value into a table by what its runs have: rows by one thing, columns by another.

    over: what the runs of one cell differ in, for example `seed`; cells whose runs differ in more are told.
    The best cell of each column is marked, and those that lie within its spread.
    """  # fmt: skip
    column = columns.parse(value)
    smallest, note = smallest_first(column, direction)
    asked_for = [column, *rows, *cols]
    frame = asked.collect(Needs.of(asked_for))
    column, *rest = frame.resolve(asked_for)
    down, across = rest[: len(rows)], rest[len(rows) :]
    cells: dict[tuple[tuple[Any, ...], tuple[Any, ...]], list[Row]] = {}
    without = 0
    for row in frame.rows:
        found = value_of(column, row)
        if found is None or found is NOTHING:
            without += 1
            continue
        place = tuple(tuple(_text(value_of(one, row)) for one in some) for some in (down, across))
        cells.setdefault((place[0], place[1]), []).append(row)
    heads = sorted({place[1] for place in cells}, key=_natural)
    sides = sorted({place[0] for place in cells}, key=_natural)
    several = over is not None or any(len(some) > 1 for some in cells.values())
    table: list[list[Any]] = []
    for side in sides:
        line: list[Any] = list(side)
        for head in heads:
            some = [float(value_of(column, row)) for row in cells.get((side, head), ())]
            line.append(None if not some else statistics.spread(some, spread) if several else some[0])
        table.append(line)
    for at in range(len(down), len(down) + len(heads)):
        _mark([line[at] for line in table], table, at, smallest=smallest)
    names = [*(one.label for one in down), *(" ".join(map(str, head)) or column.label for head in heads)]
    left_out = {**frame.left_out, f"without {column.label}": without}
    notes = [one for one in (note, _mixed(cells, over)) if one]
    title = f"{column.label}{f' over {over}' if over else ''}{' (smallest is best)' if smallest else ''}"
    query = asked.query(
        command="table", rows=[one.label for one in down], cols=[one.label for one in across], value=value, over=over,
        spread=spread, best="min" if smallest else "max",
    )  # fmt: skip
    return Table(title, names, table, left_out, query, notes), frame


def _text(value: Any) -> str:
    return "-" if value is None or value is NOTHING else str(value)


def _natural(texts: tuple[str, ...]) -> tuple[tuple[int, float, str], ...]:
    """Numbers in the order of numbers, texts in that of texts."""
    found = []
    for text in texts:
        try:
            found.append((0, float(text), text))
        except ValueError:
            found.append((1, 0.0, text))
    return tuple(found)


def _mark(cells: Sequence[Any], table: list[list[Any]], at: int, *, smallest: bool) -> None:
    """Marks the best of a column and what lies within its spread, where there is something to choose from."""
    numbers = [(_number(one), line) for one, line in zip(cells, table) if one is not None]
    numbers = [(number, line) for number, line in numbers if not math.isnan(number)]
    if len(numbers) < 2:  # noqa: PLR2004
        return
    best_value, best_line = (min if smallest else max)(numbers, key=lambda pair: pair[0])
    best = best_line[at]
    for number, line in numbers:
        is_best = number == best_value
        tied = not is_best and groups.is_within(number, best)
        cell = line[at]
        line[at] = (
            replace(cell, best=is_best, tied=tied)
            if isinstance(cell, Spread)
            else Marked(cell, best=is_best, tied=tied)
        )


def _number(cell: Any) -> float:
    return cell.value if isinstance(cell, Spread) else float(cell)


def _mixed(cells: dict[Any, list[Row]], over: str | None) -> str:
    """Words on cells whose runs differ in more than their seed."""
    names = groups.names_of(over or "seed")
    found = []
    for place, some in cells.items():
        if len(some) > 1:
            grouping = groups.group(some, names)
            if len(grouping.groups) > 1:
                differ = ", ".join(grouping.names[:_FEW]) or "their configuration"
                found.append(f"{' '.join(map(str, (*place[0], *place[1])))} ({differ})")
    if not found:
        return ""
    more = f" and {len(found) - _FEW} more" if len(found) > _FEW else ""
    what = f"cells with runs that differ in more than {over or 'a seed'}"
    return f"{what}: {', '.join(found[:_FEW])}{more}; --filter chooses"
