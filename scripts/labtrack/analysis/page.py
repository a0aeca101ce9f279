"""The page of a report: one HTML file with everything in it, that fetches nothing."""

from __future__ import annotations

import base64
import hashlib
import html
import os
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from labtrack import __version__, files
from labtrack.analysis.board import Asked, value_of
from labtrack.analysis.columns import ATTRIBUTES
from labtrack.analysis.drawing import chart
from labtrack.analysis.frame import opened
from labtrack.analysis.groups import SEEDS, Group
from labtrack.analysis.report import MEMBERS, ROWS, Report, Wish, commit, dirty, gather
from labtrack.analysis.rows import Row
from labtrack.analysis.table import Moment, Spread, cell, moment, plain
from labtrack.errors import BadInputError, LabtrackError
from labtrack.printable import one_line

MARK = "<!-- labtrack report 1 -->"
_FEW = 20  # things that are named one by one
_DIFFERENCES = 200  # parameters
_MINUTE, _HOUR, _DAY = 60, 3_600, 86_400


def written(found: Report, precision: int = 4) -> str:
    """The page.  precision: digits behind the point."""
    style, script = (_part(name) for name in ("report.css", "report.js"))
    policy = f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'"
    title = _text(found.title or f"Results: {_what(found)}")
    parts = [
        "<!DOCTYPE html>",
        MARK,
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title>",
        f"<style>{style}</style>",
        "</head>",
        "<body>",
        "<main>",
        f"<h1>{title}</h1>",
        f'<p class="soft">{_about(found)}</p>',
        *_leaderboard(found, precision),
        *_curves(found, precision),
        *_differences(found),
        *_runs(found, precision),
        *_left_out(found),
        "</main>",
        f"<footer>Made by labtrack {_text(__version__)}. Times are UTC.</footer>",
        f"<script>{script}</script>",
        "</body>",
        "</html>",
    ]
    return "\n".join(parts) + "\n"


def _what(found: Report) -> str:
    """What is shown, as `max:f1 over seed`."""
    return f"{found.column.label}{f' over {found.asked}' if found.over else ''}"


def _part(name: str) -> str:
    return resources.files("labtrack.analysis").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _text(value: object) -> str:
    return html.escape(one_line(str(value)))


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _about(found: Report) -> str:
    runs = [row.run for row in found.frame.rows]
    said = [_count(len(runs), "run")]
    if found.over:
        said.append(_count(len(found.groups), "group"))
    begun = sorted(run.start_time for run in runs if run.start_time is not None)
    if begun:
        said.append(f"recorded {' to '.join(dict.fromkeys(moment(one)[:10] for one in (begun[0], begun[-1])))}")
    sources = list(dict.fromkeys(_source(one) for one in found.frame.sources))
    more = f" and {len(sources) - _FEW} more" if len(sources) > _FEW else ""
    return f"{', '.join(said)}, in {', '.join(sources[:_FEW])}{more}"


def _source(place: str) -> str:
    """A recording's name: not its path, which is of no use elsewhere."""
    return _text(place if place.startswith(("http:", "https:")) else Path(place).name or place)


def _key(place: int) -> str:
    return f'<span class="key k{place % 8}{" d" if place >= 8 else ""}"></span>'  # noqa: PLR2004 eight colors


def name_of(found: Report, group: Group) -> str:
    """A group in words: what tells it from the others; without --over the run."""
    if not found.over:
        run = group.rows[0].run
        return f"{run.name} ({run.id[:8]})" if run.name else run.id
    pairs = [f"{name.removeprefix('params.')}={fact}" for name, fact in zip(found.names, group.facts)]
    return ", ".join(pairs) or "all runs"


def _table(heads: Iterable[tuple[str, bool]], rows: Iterable[list[tuple[Any, str]]], label: str) -> Iterator[str]:
    """A table in a box that scrolls.

    heads: HTML, and whether it is of numbers.  rows: a value to sort by, and HTML.
    """
    heads = list(heads)
    yield f'<div class="scroll" tabindex="0" role="region" aria-label="{_text(label)}"><table class="sorts"><thead><tr>'
    for head, number in heads:
        yield f'<th scope="col"{" class=number" if number else ""}>{head}</th>'
    yield "</tr></thead><tbody>"
    for row in rows:
        cells = []
        for (value, shown), (_, number) in zip(row, heads):
            sort = "" if value is None else f' data-v="{_text(value)}"'
            cells.append(f"<td{' class=number' if number else ''}{sort}>{shown}</td>")
        yield f"<tr>{''.join(cells)}</tr>"
    yield "</tbody></table></div>"


def _sortable(value: Any) -> Any:
    """What a cell of a column of numbers is sorted by."""
    found = plain(value.value) if isinstance(value, Spread) else plain(value)
    return "" if found is None or found == "NaN" else found


def _leaderboard(found: Report, precision: int) -> Iterator[str]:
    table = found.table
    rows = table.rows[:ROWS]
    places = [at for at in range(len(table.columns)) if any(row[at] not in (None, "") for row in rows)]
    numbers = [
        any(isinstance(row[at], (int, float, Spread)) and not isinstance(row[at], Moment) for row in rows)
        for at in places
    ]
    yield "<h2>Leaderboard</h2>"
    said = "mean of each group, " if found.over else ""
    said += "the smallest first" if found.smallest else "the largest first"
    yield f'<p class="note">{_text(_what(found))}: {said}</p>'
    if not rows:
        yield "<p>No results.</p>"
        return
    names = [_text(found.column.label if table.columns[at] == "value" else table.columns[at]) for at in places]
    heads = [("#", True), *zip(names, numbers)]

    def lines() -> Iterator[list[tuple[Any, str]]]:
        for place, row in enumerate(rows):
            key = f"{_key(place)} " if place < found.shown else ""
            cells: list[tuple[Any, str]] = [(place + 1, f"{key}{place + 1}")]
            for at, number in zip(places, numbers):
                cells.append((_sortable(row[at]) if number else None, _text(cell(row[at], precision))))
            yield cells

    yield from _table(heads, lines(), "Leaderboard")


def _curves(found: Report, precision: int) -> Iterator[str]:
    yield "<h2>Curves</h2>"
    if not found.charts:
        yield "<p>No metric has more than one point.</p>"
    else:
        if found.over:
            said = (
                f"Mean and {_text(found.spread)} of a group's runs that have a value there. Tick a group for its runs."
            )
        else:
            said = f"The best {found.shown} runs." if found.shown < len(found.groups) else "All runs."
        # the boxes stand before the charts, so that styles alone can show a group's runs
        yield f'<div class="curves"><p class="note what-this-is">{said}</p>'
        for place, group in enumerate(found.groups[: found.shown]):
            value = _value(found, place, precision)
            what = f'{_key(place)}<span class="what">{_text(name_of(found, group))}</span>'
            value = f'<span class="value">{_text(value)}</span>'
            box, of = "<span></span>", ""
            if found.over:
                box, of = f'<input type="checkbox" id="m{place}" class="m{place}">', f' for="m{place}"'
            yield f'{box}<label{of} class="l{place}">{what}{value}</label>'
        yield '<div class="charts">'
        for number, one in enumerate(found.charts):
            yield chart(found, one, number)
        yield "</div></div>"
    if found.single:
        yield from _named(found.single, "logged once, so without a curve", "metric")
    if found.undrawn:
        yield from _named(found.undrawn, "not drawn (-m NAME draws it)", "metric")


def _value(found: Report, place: int, precision: int) -> str:
    """What a group is ranked by."""
    if found.over:
        from labtrack.analysis.groups import together

        return cell(together(found.column, found.groups[place], found.spread), precision)
    return cell(value_of(found.column, found.groups[place].rows[0]), precision)


def _named(names: list[str], why: str, what: str) -> Iterator[str]:
    shown = ", ".join(f"<code>{_text(one)}</code>" for one in names[: 5 * _FEW])
    more = f" and {len(names) - 5 * _FEW:,} more" if len(names) > 5 * _FEW else ""
    yield f"<details><summary>{_count(len(names), what)} {why}</summary><p>{shown}{more}</p></details>"


def _differences(found: Report) -> Iterator[str]:
    drawn = found.groups[: found.shown]
    yield "<h2>What differs</h2>"
    whose = "groups" if found.over else "runs"
    if len(drawn) < 2:  # noqa: PLR2004
        yield f"<p>There is nothing to compare: one of the {whose} is shown.</p>"
    elif not found.differences:
        yield f"<p>The {len(drawn)} {whose} above have the same parameters.</p>"
    else:
        yield f'<p class="note">Parameters that are not the same in the {len(drawn)} {whose} above.</p>'
        heads = [("parameter", False), *((f"{_key(at)} {at + 1}", False) for at in range(len(drawn)))]
        rows = found.differences[:_DIFFERENCES]
        lines = [
            [(None, f"<code>{_text(name)}</code>"), *((None, _text(one)) for one in cells)] for name, cells in rows
        ]
        yield from _table(heads, lines, "What differs")
        if len(found.differences) > len(rows):
            yield f'<p class="note">and {len(found.differences) - len(rows):,} more: `labtrack diff`</p>'
    if found.equal:
        yield f"<details><summary>{_count(len(found.equal), 'parameter')} the same in all of them</summary><ul>"
        for name, value in found.equal[:_DIFFERENCES]:
            yield f"<li><code>{_text(name)}</code> {_text(value)}</li>"
        if len(found.equal) > _DIFFERENCES:
            yield f"<li>and {len(found.equal) - _DIFFERENCES:,} more</li>"
        yield "</ul></details>"


def _runs(found: Report, precision: int) -> Iterator[str]:
    places = {row.run.id: place for place, group in enumerate(found.groups) for row in group.rows}
    rows = sorted(found.frame.rows, key=lambda row: (places.get(row.run.id, len(places)), row.run.start_time or 0))
    states = {dirty(row) for row in rows}
    over = [name for name in found.over if any(name in row.run.params or name in row.run.tags for row in rows)]
    seeds = over if found.over == SEEDS else list(found.over)
    heads: list[tuple[str, bool]] = [
        ("#", True),
        ("name", False),
        ("run", False),
        *((_text(one), False) for one in seeds),
    ]
    heads += [(_text(found.column.label), True), ("status", False), ("start", False), ("duration", True)]
    heads += [("commit", False), *([("uncommitted changes", False)] if states != {None} else [])]

    def line(row: Row) -> list[tuple[Any, str]]:
        run, place = row.run, places.get(row.run.id)
        value, took = value_of(found.column, row), ATTRIBUTES["duration"](row)
        key = f"{_key(place)} " if place is not None and place < found.shown else ""
        cells: list[tuple[Any, str]] = [
            ("", "-") if place is None else (place + 1, f"{key}{place + 1}"),
            (None, _text(run.name)),
            (None, f'<span class="id" title="{_text(run.id)}">{_text(run.id[:8])}</span>'),
            *((None, _text(run.params.get(one, run.tags.get(one, "-")))) for one in seeds),
            (_sortable(value), _text(cell(value, precision))),
            (None, _text(run.status)),
            (None, "-" if run.start_time is None else _text(moment(run.start_time)[:16])),
            ("" if took is None else took, "-" if took is None else duration(took)),
        ]
        said = commit(row)
        cells.append((None, f'<span class="id" title="{_text(said)}">{_text(said[:8])}</span>' if said else "-"))
        if states != {None}:
            changed = dirty(row)
            cells.append((None, "-" if changed is None else "yes" if changed else "no"))
        return cells

    yield "<h2>Runs and commits</h2>"
    if all(not commit(row) for row in rows):
        yield '<p class="note">No run says from which commit it was made.</p>'
    yield from _table(heads, map(line, rows[:ROWS]), "Runs and commits")


def duration(seconds: float) -> str:
    """A duration for a person: the two largest units."""
    if seconds < _MINUTE:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE:02} s"
    if whole < 2 * _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE:02} min"
    return f"{whole // _DAY} d {whole % _DAY // _HOUR:02} h"


def _left_out(found: Report) -> Iterator[str]:
    """What is not on the page, and why."""
    counted = {what: count for what, count in found.table.left_out.items() if count}
    said = [f"{_count(count, 'run')}: {what}" for what, count in counted.items()]
    whose = "groups" if found.over else "runs"
    if found.shown < len(found.groups):
        rest = len(found.groups) - found.shown
        said.append(f"curves of {rest:,} {whose}: the best {found.shown} are drawn (--curves)")
    if any(drawn.runs > MEMBERS for one in found.charts for drawn in one.drawn.values()):
        said.append(f"lines of a group's runs beyond the first {MEMBERS}: mean and band are of all")
    if len(found.table.rows) > ROWS:
        said.append(f"{len(found.table.rows) - ROWS:,} rows of the leaderboard: the first {ROWS:,} are here")
    if len(found.frame.rows) > ROWS:
        said.append(f"{len(found.frame.rows) - ROWS:,} rows of the runs: the first {ROWS:,} are here")
    said += [*found.frame.notes, *found.table.notes]
    words = (f"{'can not be read' if one.damage else 'warning'}: {one}" for one in found.frame.problems)
    problems = list(dict.fromkeys(words))
    said += problems[:_FEW]
    if len(problems) > _FEW:
        said.append(f"and {len(problems) - _FEW} more that can not be read")
    yield "<h2>What was left out</h2>"
    if said:
        yield f"<ul>{''.join(f'<li>{_text(one)}</li>' for one in said)}</ul>"
    else:
        yield "<p>Nothing.</p>"


def write(asked: Asked, path: Path, wish: Wish, *, precision: int = 4, force: bool = False) -> tuple[Report, int]:
    """Writes the page to a file, whole or not at all; gives its size in bytes.

    Raises BadInputError where the file is there, is no report, and not `force`.
    """
    path = Path(os.path.realpath(path.expanduser()))
    old = _refuse(path, asked, force=force)
    found = gather(asked, wish)
    data = written(found, precision).encode("utf-8", "backslashreplace")
    files.write_private(path, data)
    mode = old if old is not None else 0o666 & ~_umask()
    try:
        path.chmod(mode)
    except OSError as error:
        raise LabtrackError(f"{path} is written, and only you can read it: {error.strerror}.", "") from None
    return found, len(data)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _refuse(path: Path, asked: Asked, *, force: bool) -> int | None:
    """The mode of the report that is there; None where nothing is.  Raises BadInputError for anything else."""
    if path.is_dir():
        raise BadInputError(f"{path} is a folder.", "name a file: -o results.html")
    if not path.parent.is_dir():
        raise BadInputError(f"There is no folder {path.parent}.", f"mkdir -p {path.parent}")
    if not path.exists():
        return None
    if not path.is_file():
        raise BadInputError(f"{path} is not a file (a device, a pipe, a socket).", "name a file: -o results.html")
    with opened(asked.sources) as (stores, _):
        for store in stores:
            if Path(store.location).exists() and path.samefile(store.location):
                raise BadInputError(f"{path} is the recording itself.", "name another file: -o results.html")
    with path.open("rb") as file:
        head = file.read(200)
    if MARK.encode() not in head and head and not force:
        raise BadInputError(f"{path} is there already, and is no report of labtrack's.", "--force writes over it.")
    return path.stat().st_mode & 0o777
