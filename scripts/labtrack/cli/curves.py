"""`labtrack plot | report`: curves of runs, in the terminal and as a page."""

from __future__ import annotations

import math
import shutil
import sys
from typing import TYPE_CHECKING, Any

import click

from labtrack.cli import output
from labtrack.cli.results import sources, tell
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


COMMANDS: tuple[click.Command, ...] = (plot,)
