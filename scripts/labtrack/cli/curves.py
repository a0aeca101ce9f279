"""`labtrack plot | report`: curves of runs, in the terminal and as a page."""

from __future__ import annotations

import math
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from labtrack.cli import output
from labtrack.cli.boards import chosen, columns, statistics
from labtrack.cli.results import asked, options, sources, tell
from labtrack.errors import BadInputError

if TYPE_CHECKING:
    from labtrack.analysis.plot import Drawn, Paper

_EVERY = "2"  # seconds
_SHORTEST, _LONGEST = 0.2, 86_400.0


@click.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option("-m", "--metric", "keys", multiple=True, metavar="NAME", help="A metric, or 'val_*'; repeatable.")
@click.option("--x", type=click.Choice(("step", "time")), default="step", show_default=True)
@click.option("--log", is_flag=True, help="A logarithmic scale for the values.")
@click.option("--height", type=click.IntRange(5, 200), help="Lines.  [default: those of the terminal]")
@click.option(
    "--watch", is_flag=False, flag_value=_EVERY, metavar="[SECONDS]",
    help="Draw again when there is more, until the run has ended; looks every 2 seconds.",
)  # fmt: skip
@click.option(
    "-s", "--source", "sources", multiple=True, metavar="SOURCE",
    help="What was recorded, as of `labtrack leaderboard`.",
)  # fmt: skip
def plot(runs: tuple[str, ...], keys: tuple[str, ...], x: str, log: bool, **given: Any) -> None:
    """Draw metrics of runs in the terminal; without RUN those of the latest run.

    A run is named by its id, the beginning of its id, or its name.  Several runs are drawn into one picture, several
    metrics below each other.  Colours only in a terminal; elsewhere each run has a letter.  Needs labtrack[plot].
    """
    from labtrack.analysis.plot import Plotter
    from labtrack.analysis.plot import watch as watching

    height, watch, seconds = given["height"], given["watch"], None
    if watch is not None:
        try:
            seconds = float(watch)
        except ValueError:  # the next word was no number: it is a run
            runs, seconds = (watch, *runs), float(_EVERY)
        if math.isnan(seconds) or not _SHORTEST <= seconds <= _LONGEST:
            raise BadInputError(f"--watch {watch}: from {_SHORTEST} seconds to a day.", f"--watch {_EVERY}")
    plotter = Plotter(sources(given["sources"]), runs, keys, x, log=log)
    for note in plotter.notes:
        output.line(f"note: {note}", err=True)
    if seconds is None:
        _show(plotter.draw(_paper(height)))
    else:
        again = sys.stdout.isatty()
        for number, drawn in enumerate(watching(plotter, lambda: _paper(height), seconds)):
            if number and not again:
                output.line("")
            _show(drawn, over=again)
    tell(plotter.frame)


def _paper(height: int | None) -> Paper:
    from labtrack.analysis.plot import Paper

    size = shutil.get_terminal_size((80, 24))
    encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "")
    return Paper(size.columns, height or size.lines, output.has_colors(), not encoding.startswith("utf"))


def _show(drawn: Drawn, *, over: bool = False) -> None:
    """Prints a drawing; over: in the place of the last one."""
    lines = [*drawn.lines, *(f"note: {one}" for one in drawn.notes)] if over else drawn.lines
    output.drawing(lines, over=over)
    for note in () if over else drawn.notes:
        output.line(f"note: {note}", err=True)


@click.command()
@click.option("-o", "--output", "file", required=True, type=click.Path(path_type=Path), metavar="FILE")
@click.option("--metric", metavar="COLUMN", help="Rank by this: f1, max:f1, ...  [default: f1, accuracy, ..., loss]")
@click.option(
    "-m", "--curve", "metrics", multiple=True, metavar="NAME", help="Draw this metric, or 'val_*'; repeatable."
)
@click.option("--curves", type=click.IntRange(1, 24), default=8, show_default=True, help="How many groups are drawn.")
@click.option("--x", type=click.Choice(("step", "time")), default="step", show_default=True)
@click.option("--min", "direction", flag_value="min", help="The smallest value is the best.")
@click.option("--max", "direction", flag_value="max", help="The largest value is the best.")
@statistics()
@click.option("--by", metavar="LIST", help="With --over: what is equal in a group.  [default: all other parameters]")
@columns()
@click.option("--title", default="", help="What stands above the page.")
@click.option("--precision", type=click.IntRange(0, 17), default=4, show_default=True, help="Digits behind the point.")
@click.option("--force", is_flag=True, help="Write over a FILE that is no report.")
@options(forms=False)
def report(file: Path, metric: str | None, force: bool, precision: int, **given: Any) -> None:
    """Write one HTML FILE: leaderboard, curves, what differs, commits, and what was left out.

    Everything is in the file: it opens without network and fetches nothing.  --over seed draws the mean and the band of
    each group, and its runs when asked.  The same runs give the same bytes.  Curves keep their least and greatest
    values, and tables the first 2,000 rows, so the file stays small: 1,000 runs of 1,000 points came to 0.9 MB.
    """
    from labtrack.analysis import page
    from labtrack.analysis.columns import parse_list
    from labtrack.analysis.report import Wish

    if given["by"] and given["over"] is None:
        raise BadInputError("--by is for groups of runs, and there is no --over.", "--over seed")
    by = tuple(parse_list(given["by"])) if given["by"] else ()
    wish = Wish(
        metric, given["direction"], given["metrics"], given["over"], by, given["spread"], chosen(given),
        given["curves"], given["x"], given["title"],
    )  # fmt: skip
    found, size = page.write(asked(given), file, wish, precision=precision, force=force)
    output.line(f"{file}: {len(found.frame):,} runs, {size / 1e6:.1f} MB")
    tell(found.frame)


COMMANDS: tuple[click.Command, ...] = (plot, report)
