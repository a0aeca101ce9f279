"""One run of a table."""

from __future__ import annotations

from labtrack.stores.model import Run
from labtrack.stores.summary import Summary


class Row:
    """One run, where it is from, and what its metrics come to.

    metrics: summaries by name, of those that were asked for.  values_at: values of a metric at a step.
    """

    __slots__ = ("experiment", "metrics", "run", "source", "values_at")

    def __init__(self, run: Run, experiment: str, source: str) -> None:
        self.run, self.experiment, self.source = run, experiment, source
        self.metrics: dict[str, Summary] = {}
        self.values_at: dict[tuple[str, int], float] = {}
