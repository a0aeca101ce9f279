"""Comparing the recording with the server, point by point and byte by byte."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from labtrack.stores.model import LoggedModel, Owner, Run
from labtrack.sync import limits, lineage, registry, state
from labtrack.sync.artifacts import digest_of
from labtrack.sync.faults import FAULTS, words
from labtrack.sync.plan import Plan, Todo
from labtrack.sync.push import Context, fit_run, name_of
from labtrack.sync.rebuild import as_kept, kept
from labtrack.sync.report import Report
from labtrack.tracking import names
from labtrack.tracking.http import ServerError
from labtrack.tracking.parsing import plain
from labtrack.tracking.remote import RemoteRun

_SHOWN = 3  # differing points of a metric that are named


def verify(context: Context, plan: Plan, report: Report, experiment: str | None = None) -> None:
    """Compares every planned run, every logged model and every registered version with what is at the server.

    All differences go into the report; what can't be compared is one.  `labtrack sync --repair` sends what is
    missing or different.  experiment: as in `plan.make`.
    """
    copies = {**plan.copies, **{one.run_id: one.copy for one in report.outcomes}}
    report.verified = 0
    for item in plan.items:
        if item.todo in (Todo.LEFT, Todo.GONE):  # left out on purpose
            continue
        copy_id = copies.get(item.run.id)
        _compare(report, item.run.id, lambda run=item.run, copy_id=copy_id: _run(context, run, copy_id))
    everything = [context.source.models.by_id[one.run_id] for one in report.models]
    of_runs = {
        model.id: model for item in plan.items if item.run.id in copies
        for model in context.source.models.made_by(item.run)
    }  # fmt: skip
    for model in {**of_runs, **{one.id: one for one in everything}}.values():
        _compare(report, model.id, lambda model=model: _model(context, model))
    links = registry.links(context, plan, experiment, copies)
    found = registry.link(context.source, context.destination, links, look=True, narrowed=report.narrowed)
    report.differences.update({**found.missing, **{name: [why] for name, why in found.failed.items()}})


def _compare(report: Report, name: str, compare: Any) -> None:
    assert report.verified is not None  # noqa: S101 - set by the caller
    report.verified += 1
    try:
        found = list(compare())
    except ServerError:
        raise
    except FAULTS as error:
        found = [f"can't be compared: {words(error)}"]
    if found:
        report.differences[name] = found


def _run(context: Context, run: Run, copy_id: str | None) -> Iterator[str]:
    copy = context.destination.get_run(copy_id) if copy_id else None
    if copy is None:
        yield "is not at the server"
        return
    run = context.source.store.run(run.id)
    linked = lineage.link(run, copy.id, context.resolve, context.source.kind)
    fit = fit_run(run, linked, copy, context.changes.get(run.experiment_id, {}))
    yield from _facts(run, copy)
    yield from _values("param", fit.params, copy.params)
    yield from _values("tag", fit.tags, copy.tags)
    for one in fit.datasets:
        if (one.name, one.digest) not in copy.inputs:
            yield f"dataset {one.name} ({one.digest}) is missing at the server"
    yield from _links(context, run, copy)
    yield from _points(context, run, copy, fit)
    fit.files(context.source.renamed(run))
    fit.settle()
    yield from _artifacts(context, run, copy.artifact_uri, fit)


def _facts(run: Run, copy: RemoteRun) -> Iterator[str]:
    taken_up = lineage.is_anemois(run)  # Anemoi's own sync may have made it, at another time, and nobody can change it
    facts = [
        ("name", name_of(run), copy.name),
        ("status", run.status, copy.status),
        ("start time", None if taken_up else run.start_time, copy.start_time),
        ("end time", state.end_time(run, copy.start_time), copy.end_time),
        ("lifecycle stage", run.lifecycle_stage, copy.lifecycle_stage),
    ]
    for name, ours, theirs in facts:
        if ours != theirs and ours is not None:
            yield f"{name} is {theirs} at the server, {ours} in the recording"


def _values(kind: str, recorded: Mapping[str, str], there: Mapping[str, str]) -> Iterator[str]:
    for key, value in recorded.items():
        if key not in there:
            yield f"{kind} {key} is missing at the server"
        elif there[key] != value:
            yield f"{kind} {key} is {there[key][:60]!r} at the server, {value[:60]!r} in the recording"


def _links(context: Context, run: Run, copy: RemoteRun) -> Iterator[str]:
    for kind, links, there in (
        ("read", run.model_inputs, copy.model_inputs),
        ("made", run.model_outputs, copy.model_outputs),
    ):
        for one in links:
            new = context.models.copy_of(one.model_id)
            if new is None and one.model_id not in context.source.models.by_id:
                continue  # damage of the recording, which the sync tells
            if new is None:
                yield f"the link to model {one.model_id}, which it {kind}, is missing: the model is not at the server"
            elif new not in there:
                yield f"the link to model {one.model_id}, which it {kind}, is missing at the server"


def _points(context: Context, run: Run, copy: RemoteRun, fit: limits.Fit) -> Iterator[str]:
    """As sets: MLflow keeps exact repeats of a point once.  Counted by hash, as a run may have millions."""
    store = context.source.store
    recorded: dict[str, set[int]] = {}
    for one in store.points(run.id):
        recorded.setdefault(fit.metric(one.key), set()).add(kept(fit.point(one)))
    for key in sorted(copy.keys | set(recorded)):
        ours = recorded.get(key, set())
        extra: list[str] = []
        more = 0
        for one in context.destination.history(copy.id, key) if key in copy.keys else ():
            if kept(one) in ours:
                ours.discard(kept(one))
            else:
                more += 1
                extra += [f"step {one.step}: {one.value}"] if len(extra) < _SHOWN else []
        if ours:
            quiet = limits.Fit({}, {})  # counts no change twice
            points = (quiet.point(one) for one in store.points(run.id) if fit.metric(one.key) == key)
            shown = [f"step {one.step}: {one.value}" for one in points if kept(one) in ours][:_SHOWN]
            yield f"metric {key}: {len(ours):,} points are missing at the server ({'; '.join(shown)})"
        if more:
            yield f"metric {key}: {more:,} points at the server are not in the recording ({'; '.join(extra)})"


def _artifacts(context: Context, owner: Owner, root: str, fit: limits.Fit) -> Iterator[str]:
    store = context.source.store
    listed = {one.path: one for one in store.artifacts(owner)}
    place = context.files.place(root) if listed or fit.overflow or root else None
    there = place.sizes() if place else {}
    for path, one in listed.items():
        if path not in there:
            yield f"artifact {path} is missing at the server"
        elif there[path] != one.size:
            yield f"artifact {path} has {there[path]:,} bytes at the server, {one.size:,} in the recording"
        elif place and place.digest(path) != digest_of(lambda path=path: store.open_artifact(owner, path)):  # type: ignore[misc]
            yield f"artifact {path} has other bytes at the server than in the recording (SHA-256)"
    own = names.OVERFLOW_FILE
    if fit.overflow:
        if own not in there:
            yield f"artifact {own} (what had to be changed, whole) is missing at the server"
        elif place and place.digest(own) != hashlib.sha256(fit.document()).hexdigest():
            yield f"artifact {own} (what had to be changed, whole) has other bytes than it should have"
    for path in sorted(set(there) - set(listed) - ({own} if fit.overflow else set())):
        yield f"artifact {path} is at the server but not in the recording"


def _model(context: Context, model: LoggedModel) -> Iterator[str]:
    copy_id = context.models.copy_of(model.id)
    found = context.destination.get_model(copy_id) if copy_id else None
    if found is None:
        yield f"model {model.name} is not at the server"
        return
    name, fit = limits.fit_model(model)
    info, data = found["info"], found.get("data", {})
    if model.name and info.get("name") != name:
        yield f"name is {info.get('name')} at the server, {name} in the recording"
    status = str(info.get("status", "")).replace("LOGGED_MODEL_", "").replace("UPLOAD_", "")
    if status != model.status and model.status in ("READY", "FAILED"):
        yield f"status is {status} at the server, {model.status} in the recording"
    yield from _values("param", fit.params, plain(data.get("params", ())))
    yield from _values("tag", fit.tags, plain(info.get("tags", ())))
    there = {(one["key"], float(one["value"]), int(one.get("step", 0))) for one in data.get("metrics", ())}
    for one in context.source.store.model_points(model.id):
        point = limits.Fit({}, {}).point(one.point)
        fact = (limits.fit_key(point.key), as_kept(point.value), point.step)
        if one.run_id in context.copies and point.value == point.value and fact not in there:
            yield f"metric {point.key}, step {point.step}, of the model is missing at the server"
    yield from _artifacts(context, model, str(info.get("artifact_uri", "")), fit)
