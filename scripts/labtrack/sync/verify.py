"""Comparing the recording with the server, point by point and byte by byte."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from labtrack.stores.model import Run
from labtrack.sync import limits, lineage
from labtrack.sync.artifacts import digest_of, target
from labtrack.sync.rebuild import kept
from labtrack.tracking import names
from labtrack.tracking.destination import RemoteRun

if TYPE_CHECKING:
    from labtrack.sync.main import Syncer
    from labtrack.sync.plan import Plan
    from labtrack.sync.report import Report

_SHOWN = 3  # differing points of a metric that are named


def verify(syncer: Syncer, plan: Plan, report: Report) -> None:
    """Compares every planned run with its copy; all differences go into the report."""
    copies = {**plan.copies, **{one.run_id: one.copy for one in report.outcomes}}
    resolve = syncer.links(plan).resolve
    report.verified = 0
    for item in plan.items:
        copy = syncer.destination.get_run(copies[item.run.id]) if item.run.id in copies else None
        if copy is None:
            if item.experiment:  # left out on purpose otherwise
                report.differences[item.run.id] = ["is not at the server"]
            continue
        found = list(_differences(syncer, item.run, copy, resolve))
        report.verified += 1
        if found:
            report.differences[item.run.id] = found


def _differences(syncer: Syncer, run: Run, copy: RemoteRun, resolve: lineage.Resolve) -> Iterator[str]:
    run = syncer.source.store.run(run.id)
    linked = lineage.link(run, copy.id, resolve, syncer.source.kind)
    fit = limits.fit(linked.params, {k: v for k, v in linked.tags.items() if k not in names.OWN}, run.inputs)
    yield from _facts(run, copy)
    yield from _values("param", fit.params, copy.params)
    yield from _values("tag", fit.tags, copy.tags)
    for one in fit.datasets:
        if (one.name, one.digest) not in copy.inputs:
            yield f"dataset {one.name} ({one.digest}) is missing at the server"
    yield from _points(syncer, run, copy, fit)
    yield from _artifacts(syncer, run, copy, fit)


def _facts(run: Run, copy: RemoteRun) -> Iterator[str]:
    recorded = (run.status, run.start_time, run.end_time, run.lifecycle_stage)
    there = (copy.status, copy.start_time, copy.end_time, copy.lifecycle_stage)
    for name, ours, theirs in zip(("status", "start time", "end time", "lifecycle stage"), recorded, there):
        if ours != theirs and ours is not None:
            yield f"{name} is {theirs} at the server, {ours} in the recording"


def _values(kind: str, recorded: dict[str, str], there: object) -> Iterator[str]:
    found = dict(there)  # type: ignore[call-overload]
    for key, value in recorded.items():
        if key not in found:
            yield f"{kind} {key} is missing at the server"
        elif found[key] != value:
            yield f"{kind} {key} is {found[key][:60]!r} at the server, {value[:60]!r} in the recording"


def _points(syncer: Syncer, run: Run, copy: RemoteRun, fit: limits.Fit) -> Iterator[str]:
    """As sets: MLflow keeps exact repeats of a point once.  Counted by hash, as a run may have millions."""
    recorded: dict[str, set[int]] = {}
    for one in syncer.source.store.points(run.id):
        recorded.setdefault(fit.metric(one.key), set()).add(kept(one))
    for key in sorted(copy.keys | set(recorded)):
        ours = recorded.get(key, set())
        extra: list[str] = []
        more = 0
        for one in syncer.destination.history(copy.id, key) if key in copy.keys else ():
            if kept(one) in ours:
                ours.discard(kept(one))
            else:
                more += 1
                extra += [f"step {one.step}: {one.value}"] if len(extra) < _SHOWN else []
        if ours:
            steps = [one for one in syncer.source.store.points(run.id) if fit.metric(one.key) == key]
            shown = [f"step {one.step}: {one.value}" for one in steps if kept(one) in ours][:_SHOWN]
            yield f"metric {key}: {len(ours):,} points are missing at the server ({'; '.join(shown)})"
        if more:
            yield f"metric {key}: {more:,} points at the server are not in the recording ({'; '.join(extra)})"


def _artifacts(syncer: Syncer, run: Run, copy: RemoteRun, fit: limits.Fit) -> Iterator[str]:
    store = syncer.source.store
    place = target(syncer.http, syncer.options.env, copy.artifact_uri)
    there = place.sizes()
    listed = {one.path: one for one in store.artifacts(run)}
    for path, one in listed.items():
        if path not in there:
            yield f"artifact {path} is missing at the server"
        elif there[path] != one.size:
            yield f"artifact {path} has {there[path]:,} bytes at the server, {one.size:,} in the recording"
        elif place.digest(path) != digest_of(lambda path=path: store.open_artifact(run, path)):  # type: ignore[misc]
            yield f"artifact {path} has other bytes at the server than in the recording (SHA-256)"
    own = {names.OVERFLOW_FILE} if fit.overflow else set()
    for path in sorted(set(there) - set(listed) - own):
        yield f"artifact {path} is at the server but not in the recording"
