"""Finding out from the server what it has of a run, where the journal does not know."""

from __future__ import annotations

import math
import struct
import sys

from labtrack.stores.model import MetricPoint, Run
from labtrack.sync import limits
from labtrack.sync.journal import Entry
from labtrack.sync.source import Source
from labtrack.tracking.destination import BATCH, Destination
from labtrack.tracking.remote import RemoteRun

LARGEST = sys.float_info.max


def as_kept(value: float) -> float:
    """A metric's value as MLflow's database keeps it: infinities become the largest number."""
    return math.copysign(LARGEST, value) if math.isinf(value) else value


def kept(one: MetricPoint) -> int:
    """A hash of what tells one point of a metric from another at the server.

    A run has millions, so that the points themselves would fill the memory.  NaN is like NaN, and 0.0 like -0.0.
    """
    value = math.nan if math.isnan(one.value) else as_kept(one.value) + 0.0
    # of bytes: Python's hash of a tuple is the same for steps -1 and -2
    return hash(struct.pack("<qqd", max(0, one.timestamp), one.step, value))


def rebuilt(
    source: Source, destination: Destination, run: Run, copy: RemoteRun, fit: limits.Fit, *, entry: Entry
) -> Entry:
    """The entry of a copy that was made by an earlier call, or by Anemoi's own sync.

    For each metric, as many points from its beginning as the server has without a gap; the rest is sent
    again, which the server takes as the same points.
    """
    recorded = source.store.metric_keys(run.id)
    if sum(recorded.values()) <= BATCH or not copy.keys:
        return entry  # sending it again costs less than asking
    there = {key: {kept(one) for one in destination.history(copy.id, key)} for key in copy.keys}
    going = {key: fit.metric(key) for key in recorded if fit.metric(key) in there}
    for one in source.store.points(run.id):
        name = going.get(one.key)
        if name is None:
            continue
        if kept(fit.point(one)) in there[name]:
            entry.points[one.key] = entry.points.get(one.key, 0) + 1
        else:
            del going[one.key]
    return entry
