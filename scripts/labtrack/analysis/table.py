"""A table as plain data, and how it is written: for a terminal, as CSV, JSON, Markdown, LaTeX and HTML."""

from __future__ import annotations

import csv
import html
import io
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from labtrack.printable import one_line

VERSION = 1  # of the JSON
FORMATS = ("table", "csv", "json", "md", "latex", "html")
MISSING, FAILED = "-", "!"
_LARGE = 1e15  # from here on all digits are before the point
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "±": r"$\pm$",
}  # fmt: skip


class Moment(int):
    """Milliseconds since 1970, which people read as a date."""


class Nothing:
    """A cell without a value that is not just missing.  shown: for a person; programs see none."""

    def __init__(self, shown: str) -> None:
        self._shown = shown

    def __repr__(self) -> str:
        return self._shown


NOTHING = Nothing(FAILED)  # of a run that failed before it had a value
ABSENT = Nothing("None")  # of a run that does not have the parameter


class Marked(float):
    """A number that is the best of its column, or as good."""

    best: bool
    tied: bool

    def __new__(cls, value: float, *, best: bool, tied: bool) -> Marked:
        """Makes one."""
        made = super().__new__(cls, value)
        made.best, made.tied = best, tied
        return made


@dataclass(frozen=True)
class Spread:
    """A value over several runs.  spread: a distance, or the two ends of a range, or None of a single run.

    best: that it is the best of its column; tied: that it is within the spread of the best.
    """

    value: float
    n: int
    spread: float | tuple[float, float] | None = None
    kind: str = "std"
    best: bool = False
    tied: bool = False


@dataclass
class Table:
    """Columns, rows of cells, and what is not in them.

    A cell is None (missing), NOTHING (missing since the run failed), a number, a text, a Moment or a Spread.
    left_out: how many runs are not in it, and why.  query: what was asked.  notes: for a person.  head: lines below the
    title.  more: rows that come after the others, and are read only once.
    """

    title: str
    columns: list[str]
    rows: list[list[Any]]
    left_out: dict[str, int] = field(default_factory=dict)
    query: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    head: list[str] = field(default_factory=list)
    more: Iterable[list[Any]] = ()

    def __post_init__(self) -> None:
        self.columns = _unique(self.columns)

    def all_rows(self) -> Iterator[list[Any]]:
        """All rows, once."""
        return itertools.chain(self.rows, self.more)

    def records(self) -> list[dict[str, Any]]:
        """A dict for each row."""
        return [dict(zip(self.columns, row)) for row in self.rows]

    def _repr_html_(self) -> str:
        return written(self, "html")


def _unique(names: Iterable[str]) -> list[str]:
    found: list[str] = []
    for name in names:
        number, one = 2, name
        while one in found:
            one, number = f"{name}_{number}", number + 1
        found.append(one)
    return found


def what_is_left_out(left_out: Mapping[str, int], hint: str = "--all") -> str:
    """The last line: which runs are not in a table; empty where all are."""
    words = ", ".join(f"{count} {what}" for what, count in left_out.items() if count)
    return f"left out: {words}; {hint}" if words else ""


def written(table: Table, form: str = "table", precision: int = 6) -> str:
    """A table in one of FORMATS.  precision: digits behind the point, where a person reads it."""
    return "\n".join(lines(table, form, precision))


def lines(table: Table, form: str = "table", precision: int = 6) -> Iterator[str]:
    """The lines of a table in one of FORMATS; a table with `more` rows is never in memory as a whole."""
    makes: dict[str, Callable[[Table, int], Iterator[str]]] = {
        "table": as_text, "csv": as_csv, "json": as_json, "md": as_markdown, "latex": as_latex, "html": as_html,
    }  # fmt: skip
    return makes[form](table, precision)


def number(value: float, precision: int = 6) -> str:
    """A number for a person, with digits enough for one that is small or large."""
    if math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if isinstance(value, int):
        return str(value)
    if value != 0 and (abs(value) < 0.5 * 10**-precision or abs(value) >= _LARGE):
        return f"{value:.{max(precision, 1)}g}"
    return f"{value:.{precision}f}"


def moment(value: int) -> str:
    """A time in ms, in UTC."""
    try:
        return datetime.fromtimestamp(value / 1000, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return str(int(value))


def cell(value: Any, precision: int = 6) -> str:
    """A cell for a person, on one line."""
    if value is None:
        return MISSING
    if isinstance(value, Moment):
        return moment(value)
    if isinstance(value, Spread):
        return _spread(value, precision)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return number(value, precision)
    return one_line(str(value))


def _spread(value: Spread, precision: int) -> str:
    said = number(value.value, precision)
    if isinstance(value.spread, tuple):
        low, high = (number(one, precision) for one in value.spread)
        said += f" [{low}, {high}]"
    elif value.spread is not None:
        said += f" ± {number(value.spread, precision)}"
    return f"{said} ({value.n})"


def width(text: str) -> int:
    """How many places of a terminal a text takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def as_text(table: Table, precision: int = 6) -> Iterator[str]:
    """For a terminal: a title, columns to the right, the number of rows."""
    if table.title:
        title = one_line(table.title)
        yield from ("", title, "=" * width(title))
    yield from table.head
    if not table.rows:
        yield "(no results)"
        return
    names = [one_line(name) for name in table.columns]
    rows = [[cell(value, precision) for value in row] for row in table.rows]
    widths = [max(map(width, column)) for column in zip(names, *rows)]
    head = _line(names, widths)
    yield from (head, "-" * width(head))
    count = 0
    for row in itertools.chain(rows, ([cell(value, precision) for value in row] for row in table.more)):
        count += 1
        yield _line(row, widths)
    yield from ("", f"({count} rows)")


def _line(texts: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(" " * (places - width(text)) + text for text, places in zip(texts, widths))


def plain(value: Any) -> Any:
    """A cell as JSON has it, at full precision; numbers that JSON has not as MLflow writes them."""
    if value is None or isinstance(value, Nothing):
        return None
    if isinstance(value, Spread):
        spread = [plain(one) for one in value.spread] if isinstance(value.spread, tuple) else plain(value.spread)
        found = {"value": plain(value.value), "n": value.n, value.kind: spread}
        return {**found, **({"best": True} if value.best else {}), **({"tied": True} if value.tied else {})}
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Moment):
        return int(value)
    if isinstance(value, (bool, int, float)):
        return value
    return value.hex() if isinstance(value, bytes) else str(value)


def as_json(table: Table, precision: int = 6) -> Iterator[str]:
    """The whole table with what was asked and what was left out, at full precision."""
    first = {"version": VERSION, "title": table.title, "columns": table.columns, "left_out": table.left_out,
             "query": table.query}  # fmt: skip
    yield json.dumps(first, indent=1)[:-2] + ","
    last = ""
    for row in table.all_rows():
        if last:
            yield f"{last},"
        one = json.dumps(dict(zip(table.columns, map(plain, row))))
        last = f"  {one}" if last else f' "rows": [\n  {one}'
    yield f"{last}\n ]" if last else ' "rows": []'
    yield "}"


def as_csv(table: Table, precision: int = 6) -> Iterator[str]:
    """Full precision, nothing where nothing is; a value over several runs takes columns for its spread and n."""
    spread = [
        next((row[at].kind for row in table.rows if isinstance(row[at], Spread)), "")
        for at in range(len(table.columns))
    ]
    heads = zip(table.columns, spread)
    yield _csv_line([one for name, kind in heads for one in ([name, *_beside(name, kind)] if kind else [name])])
    for row in table.all_rows():
        cells: list[Any] = []
        for value, kind in zip(row, spread):
            if not kind:
                cells.append(csv_cell(value))
            elif isinstance(value, Spread):
                ends = list(value.spread) if isinstance(value.spread, tuple) else [value.spread]
                ends += [None] * (len(_beside("", kind)) - 1 - len(ends))
                cells += map(csv_cell, (value.value, *ends, value.n))
            else:
                cells += [csv_cell(value), *([""] * len(_beside("", kind)))]
        yield _csv_line(cells)


def _csv_line(cells: Sequence[Any]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow(cells)
    return out.getvalue()


def _beside(name: str, kind: str) -> list[str]:
    ends = [f"{name}_low", f"{name}_high"] if kind in RANGES else [f"{name}_{kind}"]
    return [*ends, f"{name}_n"]


RANGES = ("ci95", "minmax", "iqr")  # spreads with two ends


def csv_cell(value: Any) -> str:
    """A cell of a CSV file."""
    if value is None or isinstance(value, Nothing):
        return ""
    if isinstance(value, float):
        return number(value) if not math.isfinite(value) else repr(float(value))
    if isinstance(value, bytes):
        return value.hex()
    return str(int(value)) if isinstance(value, Moment) else str(value)


def as_markdown(table: Table, precision: int = 6) -> Iterator[str]:
    """A table as GitHub and others show it."""

    def escaped(text: str) -> str:
        return re.sub(r"([\\|*_`<>\[\]])", r"\\\1", text)

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    sides = ["---:" if _is_number_column(table, at) else "---" for at in range(len(table.columns))]
    yield line(map(escaped, map(one_line, table.columns)))
    yield line(sides)
    for row in table.all_rows():
        yield line(_marked(value, escaped(cell(value, precision)), "**{}**", "{}\\*") for value in row)


def _marked(value: Any, text: str, best: str, tied: str) -> str:
    if getattr(value, "best", False):
        return best.format(text)
    return tied.format(text) if getattr(value, "tied", False) else text


def _is_number_column(table: Table, at: int) -> bool:
    found = [row[at] for row in table.rows if row[at] is not None and row[at] is not NOTHING]
    return bool(found) and all(isinstance(one, (int, float, Spread)) and not isinstance(one, bool) for one in found)


def as_latex(table: Table, precision: int = 6) -> Iterator[str]:
    """A tabular of booktabs; the best is bold, what is within its spread has a dagger."""

    def escaped(text: str) -> str:
        return "".join(_LATEX.get(one, one) for one in text)

    def line(cells: Iterable[str]) -> str:
        return f"{' & '.join(cells)} \\\\"

    sides = "".join("r" if _is_number_column(table, at) else "l" for at in range(len(table.columns)))
    yield from (f"% {one_line(table.title)}", f"\\begin{{tabular}}{{{sides}}}", "\\toprule")
    yield line(map(escaped, map(one_line, table.columns)))
    yield "\\midrule"
    for row in table.all_rows():
        yield line(_marked(value, escaped(cell(value, precision)), "\\textbf{{{}}}", "{}$^\\dagger$") for value in row)
    yield from ("\\bottomrule", "\\end{tabular}")


def as_html(table: Table, precision: int = 6) -> Iterator[str]:
    """A table for a page of somebody's."""

    def line(kind: str, cells: Iterable[str]) -> str:
        return "<tr>" + "".join(f"<{kind}>{one}</{kind}>" for one in cells) + "</tr>"

    def shown(value: Any) -> str:
        return _marked(value, html.escape(cell(value, precision)), "<b>{}</b>", "{}*")

    yield "<table>"
    if table.title:
        yield f"<caption>{html.escape(one_line(table.title))}</caption>"
    names = (html.escape(one_line(name)) for name in table.columns)
    yield from (f"<thead>{line('th', names)}</thead>", "<tbody>")
    for row in table.all_rows():
        yield line("td", map(shown, row))
    yield from ("</tbody>", "</table>")
