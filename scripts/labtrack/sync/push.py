"""Sending one run: what is missing at the server, in an order that can be cut off anywhere.

The copy is made with its identity in tags; then come files and points, then the tag that says that all
is there, and only then the run's status.  So a copy that somebody sees as finished is whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from typing import Any

from labtrack.stores.model import DELETED, MetricPoint, Run
from labtrack.sync import limits, lineage, names, state
from labtrack.sync.destination import Destination, RemoteRun, point
from labtrack.sync.files import Sender, Sent
from labtrack.sync.journal import Entry, Journal, fingerprint
from labtrack.sync.models import ModelSender
from labtrack.sync.progress import Meter
from labtrack.sync.rebuild import rebuilt
from labtrack.sync.source import Source

_MODELS = "\x00model points"  # a name that no metric can have, in the journal's counts


@dataclass
class Context:
    """What all runs of a sync share.

    copies: recorded run id to the server's, of all that are there.
    jobs: how many calls may be under way at once.
    """

    source: Source
    destination: Destination
    journal: Journal
    files: Sender
    models: ModelSender
    pool: Executor
    meter: Meter
    jobs: int
    resolve: lineage.Resolve
    copies: dict[str, str] = field(default_factory=dict)


@dataclass
class Outcome:
    """What became of one run.  failed: why it is not all there; empty when it is."""

    run_id: str
    copy: str
    created: bool = False
    points: int = 0
    artifacts: int = 0
    bytes: int = 0
    cuts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pending: dict[str, dict[str, str]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    recording: bool = False


def push(context: Context, run: Run, copy: RemoteRun | None, experiment_id: str) -> Outcome:
    """Brings one run's copy up to the recording.

    copy: as it was when the sync began, None where there is none.
    Raises ApiError where the server refuses something, ServerError where it can't be used.
    """
    # the status first: what is written before a run ends is there when its points are read
    run = context.source.store.run(run.id)
    created = copy is None
    if copy is None:
        copy = context.destination.create_run(
            experiment_id, context.source.identity, replace(run, user_id=run.user_id[: limits.NAME]), _name(run)
        )
    context.copies[run.id] = copy.id
    outcome = Outcome(run.id, copy.id, created=created, recording=run.status in state.OPEN)
    if copy.lifecycle_stage == DELETED:
        context.destination.restore_run(copy.id)
    _Push(context, run, copy, outcome).all()
    if run.lifecycle_stage == DELETED:
        context.destination.delete_run(copy.id)
    return outcome


def _name(run: Run) -> str:
    """Its name; MLflow would make one up for a run without."""
    return limits.fit_text(run.name, limits.NAME) or run.id


class _Push:
    """One run on its way."""

    def __init__(self, context: Context, run: Run, copy: RemoteRun, outcome: Outcome) -> None:
        self.context, self.run, self.copy, self.outcome = context, run, copy, outcome
        self.linked = lineage.link(run, copy.id, context.resolve, context.source.kind)
        tags = {key: value for key, value in self.linked.tags.items() if key not in names.OWN}
        self.fit = limits.fit(self.linked.params, tags, run.inputs)
        outcome.notes += self.linked.notes
        outcome.pending = self.linked.pending
        self.entry = self._known()

    def _known(self) -> Entry:
        known = self.copy.tags.get(names.STATE, "")
        entry = self.context.journal.entry(self.run.id, self.copy.id, known)
        if entry is None:
            entry = Entry(self.copy.id, known)
            if not self.outcome.created:
                entry = rebuilt(self.context, self.run, self.copy, self.fit, entry)
            self.context.journal.start(self.run.id, entry)
        return entry

    def all(self) -> None:
        """Sends everything that is missing."""
        context, run, copy = self.context, self.run, self.copy
        params, tags = self._params(), self._tags()
        sending = context.files.start(run, copy.artifact_uri, self.entry.artifacts, fresh=self.outcome.created)
        rest = self._points(params, tags)
        sent = sending.finish()
        self._take(sent)
        self._inputs()
        failed = context.models.send(run, copy, self.outcome.notes)
        self.outcome.failed += failed
        self._model_points()
        for key in self.entry.points.keys() - {_MODELS}:
            self.fit.metric(key)  # the document has the names of earlier syncs, too
        self.fit.files(context.source.renamed(run))
        self.fit.settle(lambda: context.source.store.points(run.id), again=names.OVERFLOW in copy.tags)
        self.outcome.notes += self.fit.notes
        if self.fit.overflow:
            self._take(
                context.files.own(copy.artifact_uri, names.OVERFLOW_FILE, self.fit.document(), self.entry.artifacts)
            )
        self._close(rest, sent)

    def _params(self) -> dict[str, str]:
        there = self.copy.params
        for key, value in self.fit.params.items():
            if there.get(key, value) != value:
                self.outcome.notes.append(f"param {key} is {there[key][:60]!r} at the server and stays so")
        return {key: value for key, value in self.fit.params.items() if key not in there}

    def _tags(self) -> dict[str, str]:
        """Tags that are new in the recording; one that somebody changed at the server since stays as it is."""
        known, there = self.entry.tags, self.copy.tags
        changed = {
            key: value
            for key, value in self.fit.tags.items()
            if (known[key] != fingerprint(value) if key in known else there.get(key) != value)
        }
        if not self.copy.source_id:  # made by somebody else: from now on it is found as ours are
            changed.update(self.context.destination.identity(self.context.source.identity, self.run.id))
        if self.linked.pending:
            changed[names.PENDING] = limits.fit_text(self.linked.pending_tag(), limits.TAG)
        return changed

    def _points(self, params: Mapping[str, str], tags: Mapping[str, str]) -> _Batch:
        """Sends all batches but the last, which waits for everything else."""
        sending = _Batches(self.context, self.run.id, self.copy.id, self.entry)
        stream = self.context.source.store.points(self.run.id, dict(self.entry.points))
        last = _Batch()
        for batch in _batches(stream, limits.portions(params, tags), self.fit):
            if last.size:
                sending.send(last)
            last = batch
        sending.wait()
        self.outcome.points = sending.points + len(last.points)
        return last

    def _take(self, sent: Sent) -> None:
        self.context.journal.add(self.run.id, artifacts=sent.files)
        self.outcome.artifacts += len(sent.files)
        self.outcome.bytes += sent.bytes
        self.outcome.failed += sent.failed

    def _inputs(self) -> None:
        missing = [one for one in self.fit.datasets if (one.name, one.digest) not in self.copy.inputs]
        for first in range(0, len(missing), limits.OTHERS):
            self.context.destination.log_inputs(self.copy.id, missing[first : first + limits.OTHERS])

    def _model_points(self) -> None:
        """Points that also belong to a model are sent once more, with the model's new id."""
        found = self.context.source.models.points(self.run)
        if len(found) == self.entry.points.get(_MODELS, 0):
            return
        ready = [
            point(
                self.fit.point(one.point),
                self.fit.metric(one.point.key),
                model_id=copy,
                **({"dataset_name": one.dataset_name} if one.dataset_name else {}),
                **({"dataset_digest": one.dataset_digest} if one.dataset_digest else {}),
            )
            for model, one in found
            for copy in filter(None, [self.context.models.copy_of(model)])
        ]
        for first in range(0, len(ready), limits.BATCH):
            self.context.destination.log_batch(self.copy.id, ready[first : first + limits.BATCH])
        self.context.journal.add(self.run.id, points={_MODELS: len(found)})

    def _close(self, rest: _Batch, sent: Sent) -> None:
        """The last batch with the tag that says how much is there, then the status."""
        run, copy, context = self.run, self.copy, self.context
        points = {**self.entry.points}
        for key, count in rest.counts.items():
            points[key] = points.get(key, 0) + count
        counted = {key: count for key, count in points.items() if key != _MODELS}
        what = (
            state.INCOMPLETE if self.outcome.failed else state.RECORDING if self.outcome.recording else state.COMPLETE
        )
        now = state.State(
            what,
            sum(counted.values()),
            len(sent.listed),
            sum(one.size for one in sent.listed),
            context.source.digest(run, counted, sent.listed),
        )
        tag = now.tag()
        extra = {names.STATE: tag, **({names.OVERFLOW: self.fit.summary()} if self.fit.overflow else {})}
        context.journal.add(run.id, next=tag)
        context.destination.log_batch(copy.id, rest.points, rest.params, {**rest.tags, **extra})
        tags = {key: fingerprint(value) for key, value in self.fit.tags.items()}
        context.journal.add(run.id, state=tag, points=points, tags=tags)
        context.meter.points(len(rest.points))
        self.outcome.cuts = self.fit.cuts
        if (copy.status, copy.end_time) != (run.status, run.end_time) or copy.lifecycle_stage == DELETED:
            context.destination.update_run(copy.id, run.status, run.end_time)


@dataclass
class _Batch:
    """One call of log-batch.  counts: points of each recorded key."""

    points: list[dict[str, Any]] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return len(self.points) + len(self.params) + len(self.tags)


_ROOM = limits.BATCH - 2  # sync's own tags go into the last one


def _batches(
    stream: Iterator[MetricPoint],
    portions: Iterator[tuple[dict[str, str], dict[str, str]]],
    fit: limits.Fit,
) -> Iterator[_Batch]:
    """Batches as full as the server takes them, params and tags in the first ones."""
    batch = _Batch()
    batch.params, batch.tags = next(portions, ({}, {}))
    room = _ROOM - batch.size
    counts = batch.counts
    for one in stream:
        if not room:
            yield batch
            batch = _Batch()
            batch.params, batch.tags = next(portions, ({}, {}))
            room, counts = _ROOM - batch.size, batch.counts
        batch.points.append(point(fit.point(one), fit.metric(one.key)))
        counts[one.key] = counts.get(one.key, 0) + 1
        room -= 1
    yield batch
    for params, tags in portions:
        yield _Batch(params=params, tags=tags)


class _Batches:
    """Several batches of a run under way at once; the journal takes them in their order."""

    def __init__(self, context: Context, run_id: str, copy: str, entry: Entry) -> None:
        self._context, self._run_id, self._copy, self._entry = context, run_id, copy, entry
        self._under_way: deque[tuple[Future[None], _Batch]] = deque()
        self.points = 0

    def send(self, batch: _Batch) -> None:
        """Sends a batch, after waiting for the oldest where too many are under way or wait for their turn."""
        most = 2 * self._context.jobs  # no worker is idle while the oldest takes its time
        while self._under_way and (len(self._under_way) >= most or self._under_way[0][0].done()):
            self._acknowledge()
        log, copy = self._context.destination.log_batch, self._copy
        future = self._context.pool.submit(log, copy, batch.points, batch.params, batch.tags)
        self._under_way.append((future, batch))

    def wait(self) -> None:
        """Waits for all.  Raises what the first that failed raised, after the others have ended."""
        while self._under_way:
            self._acknowledge()

    def _acknowledge(self) -> None:
        future, batch = self._under_way.popleft()
        try:
            future.result()
        except BaseException:
            for other, _ in self._under_way:
                other.cancel()
            raise
        known = self._entry.points
        self._context.journal.add(
            self._run_id, points={key: known.get(key, 0) + count for key, count in batch.counts.items()}
        )
        self.points += len(batch.points)
        self._context.meter.points(len(batch.points))
