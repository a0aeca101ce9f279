"""One HTML file of some runs: leaderboard, curves, what differs, commits, what was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from labtrack.analysis import board, columns, groups, statistics
from labtrack.analysis.board import Asked
from labtrack.analysis.choice import NO_CHOICE, Choice
from labtrack.analysis.columns import Column
from labtrack.analysis.curves import STEP, Curve, Mean, curves, fewer, mean, metrics_of
from labtrack.analysis.frame import FINISHED, Frame, opened
from labtrack.analysis.rows import Row
from labtrack.analysis.table import NOTHING, Table
from labtrack.errors import BadInputError
from labtrack.stores.model import Store

GROUPS, METRICS, MEMBERS = 8, 12, 30  # what is drawn unless more is asked for
ROWS = 2_000  # rows of a table, beyond which a browser is slow
_POINTS = 300_000  # of all members' curves together, some 4 MB
_FEWEST, _SMOOTH = 40, 240  # points of one curve
_USUAL = ("f1", "accuracy", "acc", "auc", "mcc", "val_f1", "val_accuracy", "val_acc", "val_loss", "loss", "train_loss")
_COMMITS = ("mlflow.source.git.commit", "mlflow.git.commit", "git.commit", "git_commit", "sacred.git.commit")
_DIRTY = ("git.dirty", "mlflow.git.dirty", "git_dirty", "sacred.git.dirty")


@dataclass
class Drawn:
    """One metric of one group.  members: each run with its points, of the first MEMBERS."""

    mean: list[Mean]
    members: list[tuple[Row, Curve]]
    runs: int


@dataclass
class Chart:
    """One metric of all groups that are drawn; by their place."""

    metric: str
    drawn: dict[int, Drawn]
    unfinite: int = 0


@dataclass
class Report:
    """What is on the page.

    names: what tells the groups apart.  groups: best first; `shown` of them are drawn.  single: metrics that were
    logged once, which have no curve.  undrawn: metrics for which there is no place.
    """

    title: str
    table: Table
    frame: Frame
    column: Column
    names: list[str]
    groups: list[groups.Group]
    shown: int
    over: tuple[str, ...]
    spread: str
    x: str
    asked: str = ""
    smallest: bool = False
    charts: list[Chart] = field(default_factory=list)
    single: list[str] = field(default_factory=list)
    undrawn: list[str] = field(default_factory=list)
    differences: list[tuple[str, list[str]]] = field(default_factory=list)
    equal: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Wish:
    """What a report is to have.

    metric: a column to rank by; without it a usual one.  metrics: those that are drawn, else the first METRICS.
    over: names that may differ in a group, as of `leaderboard --over`; None for each run by itself.
    curves: how many groups are drawn.
    """

    metric: str | None = None
    direction: str | None = None
    metrics: tuple[str, ...] = ()
    over: str | None = None
    by: tuple[Column, ...] = ()
    spread: str = "std"
    choice: Choice = NO_CHOICE
    curves: int = GROUPS
    x: str = STEP
    title: str = ""


def gather(asked: Asked, wish: Wish) -> Report:
    """Reads everything that the page has.

    Raises BadInputError where there are no runs, or a metric is unknown.
    """
    metric = wish.metric or usual(asked)
    choice = wish.choice
    if wish.over is None:
        table, frame = board.leaderboard(asked, metric, 0, wish.direction, choice=choice)
    else:
        table, frame = groups.over_seeds(
            asked, metric, wish.over, by=wish.by, top=0, direction=wish.direction, spread=wish.spread, choice=choice
        )
    (column,) = columns.resolve([columns.parse(metric)], frame.rows, lambda: frame.known_metrics)
    smallest, _ = board.smallest_first(column, wish.direction)
    names, ranked = _ranked(frame, column, wish, smallest=smallest)
    over = groups.names_of(wish.over) if wish.over is not None else ()
    shown = min(wish.curves, len(ranked))
    found = Report(wish.title, table, frame, column, names, ranked, shown, over, wish.spread, wish.x)
    found.asked, found.smallest = wish.over or "", smallest
    _draw(found, asked, wish)
    found.differences, found.equal = _differences(found)
    return found


def usual(asked: Asked) -> str:
    """A metric to rank by, where nobody said one: a usual one that some run has, else the one that most have."""
    with opened(asked.sources) as (stores, _):
        count: Counter[str] = Counter()
        wanted = asked.wanted()
        for store in stores:
            looked = 0
            for run in store.runs():
                if (wanted is None or wanted(store, run)) and (asked.every or run.status == FINISHED):
                    count.update(list(metrics_of(store, run.id)))
                    looked += 1
                if looked == METRICS:  # a recording's runs are much alike
                    break
    if not count:
        raise BadInputError(
            "No run that has finished has a metric.", "--all takes others too; -s SOURCE names another."
        )
    found = next((one for one in _USUAL if count[one]), None)
    return columns.quoted(found or min(count, key=lambda one: (one.startswith("system/"), -count[one], one)))


def _ranked(frame: Frame, column: Column, wish: Wish, *, smallest: bool) -> tuple[list[str], list[groups.Group]]:
    """The groups in the order of the table; without --over each run is one."""
    found = [row for row in frame.rows if board.value_of(column, row) not in (None, NOTHING)]
    if wish.over is None:
        pairs = [(board.value_of(column, row), groups.Group((), [row])) for row in found]
        return [], [one for _, one in board.rank(pairs, smallest=smallest)]
    by = columns.resolve(wish.by, frame.rows, lambda: frame.known_metrics)
    grouping = groups.group(found, groups.names_of(wish.over), by)
    cells = [(statistics.spread(groups.values(column, one), wish.spread).value, one) for one in grouping.groups]
    return grouping.names, [one for _, one in board.rank(cells, smallest=smallest)]


def _chosen(found: Report, wish: Wish, places: dict[str, Store]) -> list[str]:
    """The metrics that are drawn; what is not is noted in the report."""
    most: Counter[str] = Counter()  # the largest number of points that a run has of a metric
    runs: Counter[str] = Counter()
    for group in found.groups[: found.shown]:
        for row in group.rows:
            counts = metrics_of(places[row.source], row.run.id)
            runs.update(list(counts))
            most |= Counter(counts)
    several = [one for one in runs if most[one] > 1]
    found.single = sorted(one for one in runs if most[one] <= 1)
    if wish.metrics:
        return [one for one in _asked_for(wish.metrics, runs) if one in several]
    first = [found.column.name, *([found.column.at[1]] if found.column.at else ())]
    order = sorted(several, key=lambda one: (one not in first, one.startswith("system/"), -runs[one], one))
    found.undrawn = sorted(order[METRICS:])
    return order[:METRICS]


def _draw(found: Report, asked: Asked, wish: Wish) -> None:
    """Reads the histories of the groups that are drawn."""
    drawn = found.groups[: found.shown]
    with opened(asked.sources) as (stores, _):
        places: dict[str, Store] = {store.location: store for store in stores}
        for store in stores:
            if store.kind == "server":  # which tells the last values with the runs, a thousand to a call
                list(store.runs())
        keys_drawn = _chosen(found, wish, places)
        read: dict[str, dict[str, Curve]] = {}
        for group in drawn if keys_drawn else ():
            for row in group.rows:
                points = places[row.source].points(row.run.id, keys=keys_drawn)
                read[row.run.id] = curves(points, wish.x, row.run.start_time)
    # a server tells only now how many points there are
    kept = sum(min(len(group.rows), MEMBERS) for group in drawn) * len(keys_drawn)
    each = max(_FEWEST, min(_SMOOTH, _POINTS // max(kept, 1)))
    for key in keys_drawn:
        chart = Chart(key, {})
        for place, group in enumerate(drawn):
            own = [(row, read[row.run.id][key]) for row in group.rows if key in read[row.run.id]]
            if own:
                chart.unfinite += sum(curve.unfinite for _, curve in own)
                line = mean([curve for _, curve in own], wish.spread) if wish.over is not None else []
                members = [(row, Curve(fewer(curve.points, each))) for row, curve in own[:MEMBERS]]
                chart.drawn[place] = Drawn(line, members, len(own))
        if not any(len(curve) > 1 for drawn_here in chart.drawn.values() for _, curve in drawn_here.members):
            found.single.append(key)
        elif chart.drawn:
            found.charts.append(chart)


def _asked_for(metrics: Sequence[str], known: Counter[str]) -> list[str]:
    found: dict[str, None] = {}
    for text in metrics:
        meant = [one for one in sorted(known) if columns.means(text, one)]
        if not meant:
            raise BadInputError(f"No run that is drawn has the metric {text!r}.", columns.near(text, known))
        found.update(dict.fromkeys(meant))
    return list(found)


def _differences(found: Report) -> tuple[list[tuple[str, list[str]]], list[tuple[str, str]]]:
    """The parameters in which the groups that are drawn differ, and those that all runs of them share."""
    drawn = found.groups[: found.shown]
    names = sorted({name for group in drawn for row in group.rows for name in row.run.params})
    differ, equal = [], []
    for name in names:
        cells, whole = [], set()
        for group in drawn:
            values = list(dict.fromkeys(row.run.params.get(name, "-") for row in group.rows))
            whole.update(values)
            cells.append(values[0] if len(values) == 1 else f"{len(values)} values")
        if len(whole) == 1:
            equal.append((name, next(iter(whole))))
        elif len(set(cells)) > 1 or not found.over:
            differ.append((name, cells))
    return differ, equal


def commit(row: Row) -> str:
    """The commit that a run was made from; empty where nothing says it."""
    return next((row.run.tags[one] for one in _COMMITS if row.run.tags.get(one)), "")


def dirty(row: Row) -> bool | None:
    """Whether files had been changed since that commit; None where nothing says it."""
    said = next((row.run.tags[one] for one in _DIRTY if row.run.tags.get(one)), None)
    return None if said is None else said.strip().lower() in ("true", "1", "yes", "dirty")
