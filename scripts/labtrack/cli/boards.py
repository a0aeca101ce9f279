"""`labtrack leaderboard | runs | table`: results whose columns a person chooses."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from labtrack.cli.options import together
from labtrack.cli.results import asked, options, show
from labtrack.errors import BadInputError

if TYPE_CHECKING:
    from labtrack.analysis.choice import Choice

_SPREADS = ("std", "sem", "ci95", "minmax", "iqr")


def columns() -> Callable[[Any], Any]:
    """The options that choose columns."""
    decorators = [
        click.option(
            "--columns", "more", multiple=True, metavar="LIST",
            help="More columns: params.lr, tags.stage, max:f1, attr.duration, 'params.*', max:f1 as best, ...",
        ),
        click.option("--only", "only_columns", multiple=True, metavar="LIST", help="These columns and no others."),
        click.option("--keep", metavar="REGEX", help="Of the columns that patterns give, those whose name matches."),
        click.option("--drop", metavar="REGEX", help="No columns whose name matches."),
        click.option(
            "--only-changed", is_flag=True, help="No columns that are equal everywhere; alone: of all parameters."
        ),
    ]  # fmt: skip
    return together(decorators)


def chosen(given: dict[str, Any]) -> Choice:
    """The columns that are asked for."""
    from labtrack.analysis.choice import choice

    return choice(
        given["more"], given["only_columns"], keep=given["keep"], drop=given["drop"],
        only_changed=given["only_changed"],
    )  # fmt: skip


def statistics() -> Callable[[Any], Any]:
    """The options for values over several runs."""

    def add(command: Any) -> Any:
        spread = click.option(
            "--spread", type=click.Choice(_SPREADS), default="std", show_default=True,
            help="How far values lie apart; std is that of n - 1, ci95 needs scipy.",
        )  # fmt: skip
        over = click.option(
            "--over", is_flag=False, flag_value="seed", metavar="[NAMES]",
            help="Take runs together that differ only in this: seed stands for seed, random_seed, random_state, trial.",
        )  # fmt: skip
        return over(spread(command))

    return add


@click.command()
@click.option("--metric", required=True, metavar="COLUMN", help="Rank by this: f1, max:f1, f1@min:val_loss, ...")
@click.option("--top", type=click.IntRange(min=0), default=10, show_default=True, help="How many; 0 for all.")
@click.option("--min", "direction", flag_value="min", help="The smallest value is the best.")
@click.option("--max", "direction", flag_value="max", help="The largest value is the best.")
@statistics()
@click.option("--by", metavar="LIST", help="With --over: what is equal in a group.  [default: all other parameters]")
@click.option("--vs", metavar="GROUP", help="With --over: compare with this group; a run in it, or NAME=VALUE.")
@columns()
@options()
def leaderboard(metric: str, top: int, direction: str | None, **given: Any) -> None:
    """Rank runs by a metric.

    Finished runs only, unless --all; the last line says what was left out.  A plain name is the metric's last value.
    A name that speaks of a loss or an error is ranked from the smallest, which is told; --min and --max say it.

    --over shows the mean, the spread and the number of runs: 0.913 ± 0.004 (5).  --vs compares the groups with one of
    them: paired where both have the same seeds, else by Welch's test, p by Holm's method; it needs three runs a group.
    """
    from labtrack.analysis import board, groups
    from labtrack.analysis.columns import parse_list

    over, by, vs, spread = (given.pop(one) for one in ("over", "by", "vs", "spread"))
    if over is None and (by or vs):
        raise BadInputError(f"{'--by' if by else '--vs'} is for groups of runs, and there is no --over.", "--over seed")
    if over is None:
        table, frame = board.leaderboard(asked(given), metric, top, direction, choice=chosen(given))
    else:
        table, frame = groups.over_seeds(
            asked(given), metric, over, by=parse_list(by) if by else (), top=top, direction=direction, spread=spread,
            vs=vs, choice=chosen(given),
        )  # fmt: skip
    show(given, [table], frame)


@click.command()
@click.option("--failed", is_flag=True, help="Failed and killed ones, and RUNNING ones that show no life.")
@columns()
@options()
def runs(failed: bool, **given: Any) -> None:
    """List runs, the latest first.

    --failed also lists runs that say RUNNING and have recorded nothing for 24 hours: they may have vanished with their
    job, or be waiting.  last_sign says when they last recorded something; what became of them is not known.
    """
    from labtrack.analysis import board

    table, frame = board.runs(asked(given), failed=failed, choice=chosen(given))
    show(given, [table], frame)


@click.command()
@click.option("--rows", required=True, metavar="LIST", help="What the rows are: params.model, or several.")
@click.option("--cols", metavar="LIST", help="What the columns are: tags.dataset, or several.")
@click.option("--value", required=True, metavar="COLUMN", help="What is in the cells: f1, max:f1, f1@min:val_loss, ...")
@click.option("--min", "direction", flag_value="min", help="The smallest value is the best.")
@click.option("--max", "direction", flag_value="max", help="The largest value is the best.")
@statistics()
@options()
def table(rows: str, cols: str | None, value: str, direction: str | None, **given: Any) -> None:
    """Make the table for a paper: rows and columns by what runs have, and a value in each cell.

    The best of each column is bold in md, latex and html, and what lies within its spread is marked.  LaTeX needs the
    package booktabs.  Cells whose runs differ in more than --over are told on standard error.
    """
    from labtrack.analysis.columns import parse_list
    from labtrack.analysis.pivot import pivot

    over, spread = given.pop("over"), given.pop("spread")
    found, frame = pivot(
        asked(given), parse_list(rows), parse_list(cols) if cols else (), value, over, direction=direction,
        spread=spread,
    )  # fmt: skip
    show(given, [found], frame)


COMMANDS: tuple[click.Command, ...] = (leaderboard, runs, table)
