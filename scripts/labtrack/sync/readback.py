"""Reading back what a server has acknowledged: an answer of 200 does not prove that it was kept."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor

from labtrack.stores.model import Run
from labtrack.sync import limits
from labtrack.sync.rebuild import kept
from labtrack.sync.source import Source
from labtrack.tracking import names
from labtrack.tracking.destination import Destination


def lost(
    source: Source,
    destination: Destination,
    run: Run,
    copy_id: str,
    fit: limits.Fit,
    *,
    tag: str,
    counts: Mapping[str, int],
    count: bool,
    pool: Executor,
) -> list[str]:
    """What is not at the server though it was acknowledged, in words; empty when all is there.

    tag: the state that was sent last.  counts: the acknowledged points of each recorded metric.
    count: whether the server's points are counted too; otherwise each metric only has to be there.
    pool: for calls, of which several are under way at once.
    """
    there = destination.get_run(copy_id)
    if there is None:
        return [f"the run is not at the server any more as {copy_id}"]
    found = []
    if there.tags.get(names.STATE) != tag:
        found.append("the server has acknowledged a batch and has not kept it")
    missing = [key for key in fit.params if key not in there.params]
    if missing:
        found.append(f"{len(missing)} params were acknowledged and are not at the server ({missing[0]} ...)")
    named = {key: fit.metric(key) for key, number in counts.items() if number}
    lacking = [name for name in named.values() if name not in there.keys]
    found += [f"metric {name} was acknowledged and is not at the server" for name in lacking]
    compared = {key: name for key, name in named.items() if count and name in there.keys}
    as_many = pool.map(lambda key: destination.has_points(copy_id, compared[key], counts[key]), compared)
    for key, equal in zip(compared, as_many):
        if not equal and not _all_there(source, destination, run, copy_id, fit, key=key):
            found.append(f"points of metric {compared[key]} were acknowledged and are not at the server")
    return found


def _all_there(source: Source, destination: Destination, run: Run, copy_id: str, fit: limits.Fit, *, key: str) -> bool:
    """By the points themselves: the server keeps exact repeats once, and somebody may have added some."""
    known = {kept(one) for one in destination.history(copy_id, fit.metric(key))}
    return all(kept(fit.point(one)) in known for one in source.store.points(run.id) if one.key == key)
