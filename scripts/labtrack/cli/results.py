"""`labtrack leaderboard | compare | diff | sweep | dataset | ...`: parsing and printing of results."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from labtrack.cli import output
from labtrack.cli.options import together
from labtrack.errors import Exit

if TYPE_CHECKING:
    from labtrack.analysis.board import Asked
    from labtrack.analysis.frame import Frame
    from labtrack.analysis.table import Table

_FORMATS = ("table", "csv", "json", "md", "latex", "html")
_SHOWN = 10  # problems
_AT_ONCE = 500  # lines that are printed together
_SOURCE = (
    "What was recorded: what `labtrack sync -s` takes, also a folder of many recordings; repeatable.  "
    "[default: MLFLOW_TRACKING_URI, else this folder]"
)


def options(*, facts: bool = True, which: bool = True, forms: bool = True) -> Callable[[Any], Any]:
    """The options of every command about results.

    facts: --dataset and its like.  which: those that choose runs.  forms: --format.
    """
    decorators = [click.option("-s", "--source", "sources", multiple=True, metavar="SOURCE", help=_SOURCE)]
    if facts:
        decorators += [
            click.option(f"--{one}", metavar="NAME", help=f"Only runs with this {one} (a tag or a parameter).")
            for one in ("dataset", "stage", "model", "scenario")
        ]
    if which:
        decorators += [
            click.option("--filter", "expression", metavar="EXPR", help="Only runs like this, as in `labtrack sync`."),
            click.option("--only-experiment", "only", multiple=True, metavar="NAME", help="Of this one; repeatable."),
            click.option("--exclude-experiment", "exclude", multiple=True, metavar="NAME", help="Not of this one."),
            click.option("--all", "every", is_flag=True, help="Also runs that have not finished or have no value."),
        ]
    if forms:
        decorators += [
            click.option("--format", "form", type=click.Choice(_FORMATS), default="table", show_default=True),
            click.option(
                "--precision", type=click.IntRange(0, 17), default=6, show_default=True,
                help="Digits behind the point; csv and json have all.",
            ),
        ]  # fmt: skip
    return together(decorators)


def sources(given: Sequence[str]) -> list[str]:
    """Where runs are read from."""
    return list(given) or [os.environ.get("MLFLOW_TRACKING_URI") or "."]


def asked(given: dict[str, Any]) -> Asked:
    """Which runs are meant."""
    from labtrack.analysis.board import Asked

    facts = {one: given.get(one) for one in ("dataset", "stage", "model", "scenario")}
    return Asked(
        sources(given["sources"]), given.get("expression"), facts, given.get("only", ()), given.get("exclude", ()),
        bool(given.get("every")),
    )  # fmt: skip


def show(given: dict[str, Any], tables: Iterable[Table], frame: Frame) -> None:
    """Prints tables, and what a person should know beside them; ends with 3 where something could not be read."""
    from labtrack.analysis import table as writing

    form = given["form"]
    left_out: dict[str, int] = {}
    tables = list(tables)
    if form == "json" and len(tables) > 1:  # one document
        every = [json.loads(writing.written(one, form)) for one in tables]
        output.data({"version": writing.VERSION, "tables": every})
        tables = []
    for note in frame.notes:
        output.line(f"note: {note}", err=True)
    for one in tables:
        for note in one.notes:
            output.line(f"note: {note}", err=True)
        lines = writing.lines(one, form, given["precision"])
        while some := list(itertools.islice(lines, _AT_ONCE)):
            output.line("\n".join(some))
        left_out.update(one.left_out)
    said = writing.what_is_left_out(left_out)
    if said and form != "json":
        output.line(said, err=form != "table")
    tell(frame)


def tell(frame: Frame) -> None:
    """Says what could not be read; ends with 3 where something is missing for it."""
    damage = list(dict.fromkeys(f"{'could not be read' if one.damage else 'warning'}: {one}" for one in frame.problems))
    for line in damage[:_SHOWN]:
        output.line(line, err=True)
    if len(damage) > _SHOWN:
        output.line(f"... and {len(damage) - _SHOWN} more", err=True)
    if frame.damaged:
        sys.exit(Exit.DAMAGED)


@click.command()
@click.argument("run_a", metavar="A")
@click.argument("run_b", metavar="B")
@click.option("--metric", "keys", multiple=True, metavar="NAME", help="Only this metric; repeatable.")
@options(facts=False, which=False)
def compare(run_a: str, run_b: str, keys: tuple[str, ...], **given: Any) -> None:
    """Put the last values of all metrics of the runs A and B side by side; delta is B minus A.

    A run is named by its id, the beginning of its id, or its name.
    """
    from labtrack.analysis import pairs

    table, frame = pairs.compare(sources(given["sources"]), run_a, run_b, keys or None)
    show(given, [table], frame)


@click.command()
@click.argument("run_a", metavar="A")
@click.argument("run_b", metavar="B")
@click.option("--tags", is_flag=True, help="Also tags, but those that MLflow sets.")
@options(facts=False, which=False)
def diff(run_a: str, run_b: str, tags: bool, **given: Any) -> None:
    """Show the parameters that differ between the runs A and B; None where a run does not have one.

    A run is named by its id, the beginning of its id, or its name.
    """
    from labtrack.analysis import pairs

    table, frame = pairs.diff(sources(given["sources"]), run_a, run_b, tags=tags)
    show(given, [table], frame)


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--metric", "keys", multiple=True, metavar="NAME", help="Only this metric; repeatable.")
@options(facts=False, which=False)
def lineage(run: str, keys: tuple[str, ...], **given: Any) -> None:
    """Show what RUN comes from and what came from it, and its metrics minus theirs.

    Teacher and students by the tag teacher_run_id (an id or a name), parents and children, Anemoi's resumed and forked
    runs; to the first and the last of them.
    """
    from labtrack.analysis import pairs

    tables, frame = pairs.lineage(sources(given["sources"]), run, keys)
    show(given, tables, frame)


@click.command()
@click.option("--param", required=True, metavar="NAME", help="The parameter, as lr or training.lr.")
@click.option("--metric", required=True, metavar="COLUMN", help="f1, max:f1, f1@min:val_loss, ...")
@click.option("--min", "direction", flag_value="min", help="The smallest mean comes first.")
@click.option("--max", "direction", flag_value="max", help="The largest mean comes first.")
@options()
def sweep(param: str, metric: str, direction: str | None, **given: Any) -> None:
    """Sum up a metric for each value of a parameter: how many runs, smallest, largest, mean."""
    from labtrack.analysis import board

    table, frame = board.sweep(asked(given), param, metric, direction)
    show(given, [table], frame)


@click.command()
@click.argument("name")
@options(facts=False)
def dataset(name: str, **given: Any) -> None:
    """Show the runs of the dataset NAME, and the best of them by f1, accuracy, auc and mcc."""
    from labtrack.analysis import board

    tables, frame = board.dataset(asked(given), name)
    if given["form"] == "table":
        output.line(f"\nDataset: {name}\nRuns: {len(tables[0].rows)}")
    show(given, [one for one in tables if one.rows or given["form"] == "json"], frame)


@click.command()
@click.option("-o", "--output", "file", required=True, type=click.Path(path_type=Path), metavar="FILE")
@click.option("--no-history", "history", is_flag=True, default=True, flag_value=False, help="Without every point.")
@click.option("--force", is_flag=True, help="Write over FILE.")
@options(facts=False, which=False)
def snapshot(file: Path, history: bool, force: bool, **given: Any) -> None:
    """Write all runs into one SQLite FILE with the views runs, params, metrics, history, tags, best, lineage.

    The same views whatever the runs were recorded in: `datasette FILE`, DuckDB, pandas and `labtrack query -s FILE`
    open it.  Only you can read FILE (mode 0600); it is there whole or not at all.
    """
    from labtrack.analysis import snapshot as snapshots

    frame = snapshots.write(sources(given["sources"]), file, history=history, force=force)
    output.line(f"{file}: {len(frame)} runs, {file.stat().st_size / 1e6:.1f} MB")
    tell(frame)


@click.command()
@click.argument("sql")
@options(facts=False, which=False)
def query(sql: str, **given: Any) -> None:
    """Ask in SQL: one statement that reads the views runs, params, metrics, history, tags, best, lineage.

    `SELECT * FROM runs WHERE dataset = 'hcrl_sa'`: runs has a column for each tag and parameter.  Nothing can be
    changed by it, here or in a recording.  A SOURCE that `labtrack snapshot` wrote is asked as it is.
    """
    from labtrack.analysis import query as queries

    with queries.asked(sources(given["sources"]), sql) as (table, frame):
        show(given, [table], frame)


COMMANDS: tuple[click.Command, ...] = (compare, diff, sweep, dataset, lineage, query, snapshot)
