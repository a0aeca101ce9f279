"""A value over several runs, and whether two groups of runs differ.

Python's `statistics` does what it can; Student's t is scipy's, which `labtrack[stats]` brings.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labtrack.analysis.table import Spread
from labtrack.errors import BadInputError
from labtrack.stores.summing import mean_of

SPREADS = ("std", "sem", "ci95", "minmax", "iqr")
SMALLEST = 3  # values on each side, below which a comparison says nothing
_CONFIDENCE = 0.95
_NOISE = 1e-12  # of the values, below which differences are those of rounding


def spread(values: Sequence[float], kind: str = "std") -> Spread:
    """The mean of some values and how far they lie apart, of n runs; of a single one only the value.

    kind: std (of n - 1), sem, ci95 (of the mean, by Student's t), minmax, iqr.
    Raises BadInputError for ci95 without scipy.
    """
    found = mean_of(values)
    if len(values) < 2 or not all(map(math.isfinite, values)):  # noqa: PLR2004
        return Spread(found, len(values), None, kind)
    return Spread(found, len(values), _spread(values, kind), kind)


def _spread(values: Sequence[float], kind: str) -> float | tuple[float, float]:
    if kind == "minmax":
        return float(min(values)), float(max(values))
    if kind == "iqr":
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        return low, high
    deviation = statistics.stdev(values)
    if kind == "std":
        return deviation
    error = deviation / math.sqrt(len(values))
    if kind == "sem":
        return error
    middle = mean_of(values)
    if error == 0:
        return middle, middle
    low, high = _scipy("ci95").t.interval(_CONFIDENCE, len(values) - 1, loc=middle, scale=error)
    return float(low), float(high)


def _scipy(what: str) -> Any:
    try:
        from scipy import stats
    except ModuleNotFoundError:
        raise BadInputError(
            f"{what} needs Student's t distribution, which is scipy's, and scipy is not installed.",
            "pip install 'labtrack[stats]'   (--spread std, sem, minmax and iqr need nothing)",
        ) from None
    return stats


@dataclass(frozen=True)
class Comparison:
    """How a group of runs differs from another.  why: a reason where nothing can be said.

    n: pairs, or runs on both sides.  p: not yet corrected for several comparisons.
    """

    test: str
    n: str
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    why: str = ""


def compare(one: Mapping[str, float], other: Mapping[str, float]) -> Comparison:
    """Whether the values of a group differ from those of another, which is taken from them.

    one, other: values by seed.  The same seeds on both sides are compared pair by pair (paired t test), else by Welch's
    t test.  Raises BadInputError without scipy.
    """
    stats = _scipy("--vs")
    paired = set(one) == set(other)
    sizes = str(len(one)) if paired else f"{len(one)} vs {len(other)}"
    test = "paired" if paired else "Welch"
    values = [list(map(float, side.values())) for side in (one, other)]
    if not all(map(math.isfinite, [*values[0], *values[1]])):
        return Comparison(test, sizes, why="nan or inf among the values")
    difference = mean_of(values[0]) - mean_of(values[1])
    if min(len(one), len(other)) < SMALLEST:
        return Comparison(test, sizes, difference, why=f"n < {SMALLEST}: nothing can be said")
    if paired:
        left, right = ([side[seed] for seed in sorted(one)] for side in (one, other))
        apart = [a - b for a, b in zip(left, right)]
        if max(apart) - min(apart) <= _NOISE * max(map(abs, (*left, *right))):
            return Comparison(test, sizes, difference, why="all differences are equal")
        found = stats.ttest_rel(left, right)
    else:
        if all(max(side) - min(side) <= _NOISE * max(map(abs, side)) for side in values):
            return Comparison(test, sizes, difference, why="all values of a side are equal")
        found = stats.ttest_ind(*values, equal_var=False)
    interval = found.confidence_interval(_CONFIDENCE)
    return Comparison(test, sizes, difference, float(interval.low), float(interval.high), float(found.pvalue))


def holm(values: Sequence[float | None]) -> list[float | None]:
    """p values corrected for their number by Holm's method; what has none stays."""
    order = sorted((p, at) for at, p in enumerate(values) if p is not None)
    found: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, (p, at) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - rank)))
        found[at] = largest
    return found
