"""One run of a table."""

from __future__ import annotations

from labtrack.stores.model import Run
from labtrack.stores.summary import Summary


class Row:
    """One run, where it is from, and what its metrics come to.

    metrics: summaries by name, of those that were asked for.  values_at: values of a metric at a step.
    last_time: of the latest point of any metric, in ms, where that was asked for.
    """

    __slots__ = ("experiment", "last_time", "metrics", "run", "source", "values_at")

    def __init__(self, run: Run, experiment: str, source: str) -> None:
        self.run, self.experiment, self.source = run, experiment, source
        self.metrics: dict[str, Summary] = {}
        self.last_time: int | None = None
        self.values_at: dict[tuple[str, int], float] = {}
