"""What the points of a metric come to: how many, the last, the best and where, without keeping them.

The last point is MLflow's: the one with the largest step, of these with the latest time, of these with the largest
value, where nan counts as 0 as in MLflow's tables.  nan is never the smallest or the largest value.
"""

from __future__ import annotations

import math
from typing import NamedTuple

LAST, RANGE, STEPS, FIRST, MEAN = "last", "range", "steps", "first", "mean"  # range: count, min and max
PARTS = frozenset({LAST, RANGE, STEPS, FIRST, MEAN})


class Summary(NamedTuple):
    """One metric of one run.  None is what was not asked for.

    points: how many.  min, max: nan where all values are.  min_step, max_step: the first step with that value.
    mean: of all points, nan where one of them is.  latest: the latest time, in ms; a server tells
    that of the last point.
    """

    points: int | None = None
    last: float | None = None
    last_step: int | None = None
    min: float | None = None
    max: float | None = None
    min_step: int | None = None
    max_step: int | None = None
    first: float | None = None
    first_step: int | None = None
    mean: float | None = None
    latest: int | None = None


Summaries = dict[str, dict[str, Summary]]  # by run and metric


def order(step: int, timestamp: int, value: float) -> tuple[int, int, float]:
    """The key by which a later point is greater."""
    return step, timestamp, 0.0 if math.isnan(value) else value
