"""Sending one run: what is missing at the server, in an order that can be cut off anywhere.

The copy is made with its identity in tags; then come files and points, then the tag that says that all
is there, and only then, when the server has given it back, the run's status.  So a copy that somebody
sees as finished is whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Any

from labtrack.stores.model import DELETED, MetricPoint, Run
from labtrack.sync import damage, limits, lineage, readback, state
from labtrack.sync.batches import ROOM, Batch, Batches, batches, log
from labtrack.sync.experiments import Experiments
from labtrack.sync.files import Sender, Sent, contents, is_known
from labtrack.sync.journal import Entry, Journal, fingerprint
from labtrack.sync.models import ModelSender
from labtrack.sync.progress import Meter
from labtrack.sync.rebuild import kept, rebuilt
from labtrack.sync.source import Source
from labtrack.tracking import names
from labtrack.tracking.destination import BATCH, COLUMNS, Destination, point
from labtrack.tracking.remote import RemoteRun

_MODELS = "\x00model points"  # a name that no metric can have, in the journal's counts


@dataclass
class Context:
    """What all runs of a sync share.

    copies: recorded run id to the server's, of all that are there.
    changes: what had to be changed of a recorded experiment, by its id.
    jobs: how many calls may be under way at once.
    repair: what is known to be there may be wrong, so everything is compared.
    accept: damage of the recording is accepted.
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
    experiments: Experiments
    copies: dict[str, str] = field(default_factory=dict)
    changes: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    repair: bool = False
    accept: bool = False


@dataclass
class Outcome:
    """What became of one run, or of one logged model outside a run.

    failed: why it is not all there.  damaged: what of it could not be read in the recording, and is not accepted.
    accepted: what could not be read and the user has accepted.  All empty when the run is whole.
    """

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
    damaged: list[str] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    recording: bool = False

    @property
    def ending(self) -> str:
        """Whole, changed, incomplete or accepted (what is missing is known), or recording."""
        if self.failed or self.damaged:
            return state.INCOMPLETE
        if self.recording:
            return state.RECORDING
        return state.ACCEPTED if self.accepted else state.CHANGED if self.cuts else state.WHOLE


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
            experiment_id, context.source.identity, replace(run, user_id=run.user_id[: limits.NAME]), name_of(run)
        )
    context.copies[run.id] = copy.id
    outcome = Outcome(run.id, copy.id, created=created, recording=run.status in state.OPEN)
    if copy.lifecycle_stage == DELETED:
        context.destination.restore_run(copy.id)
    _Push(context, run, copy, outcome).all()
    if run.lifecycle_stage == DELETED:
        context.destination.delete_run(copy.id)
    return outcome


def name_of(run: Run) -> str:
    """A run's name at the server; MLflow would make one up for a run without."""
    return limits.fit_text(run.name, limits.NAME) or run.id


def fit_run(run: Run, linked: lineage.Linked, copy: RemoteRun, changes: Mapping[str, Mapping[str, Any]]) -> limits.Fit:
    """What of a run is sent, in the server's limits; changes: those of its experiment."""
    tags = {key: value for key, value in linked.tags.items() if key not in names.OWN}
    fit = limits.fit(linked.params, tags, run.inputs)
    for sent, original in changes.items():
        fit.note("experiments", sent, original["key"], original["value"], "name or value changed")
    if state.end_time(run, copy.start_time) != run.end_time:
        times = {"start_time": run.start_time, "end_time": run.end_time}
        fit.note("run_times", "end_time", "end_time", times, "moved with the start, which MLflow lets nobody change")
    return fit


class _Push:
    """One run on its way."""

    def __init__(self, context: Context, run: Run, copy: RemoteRun, outcome: Outcome) -> None:
        self.context, self.run, self.copy, self.outcome = context, run, copy, outcome
        self.linked = lineage.link(run, copy.id, context.resolve, context.source.kind)
        self.fit = fit_run(run, self.linked, copy, context.changes.get(run.experiment_id, {}))
        outcome.notes += self.linked.notes
        outcome.pending = self.linked.pending
        self._full: dict[str, int] = {}  # counts of metrics of which what is there was looked at
        self._several = False  # whether points went in more than one call
        self.entry = self._known()

    def _known(self) -> Entry:
        context, known = self.context, self.copy.tags.get(names.STATE, "")
        entry = None if context.repair else context.journal.entry(self.run.id, self.copy.id, known)
        if entry is None:
            entry = Entry(self.copy.id, known)
            if not self.outcome.created:
                entry = rebuilt(context.source, context.destination, self.run, self.copy, self.fit, entry=entry)
            context.journal.start(self.run.id, entry)
        return entry

    def all(self) -> None:
        """Sends everything that is missing."""
        context, run, copy = self.context, self.run, self.copy
        compare = context.repair
        params, tags = self._params(), self._tags()
        sending = context.files.start(
            run, copy.artifact_uri, self.entry.artifacts, fresh=self.outcome.created, compare=compare
        )
        rest = self._points(params, tags)
        sent = sending.finish()
        self._take(sent)
        self._inputs()
        models = context.models.send(run, copy, self.outcome.notes)
        self.outcome.failed += models.failed
        self.outcome.damaged += models.damaged
        self._model_points()
        for key in self.entry.points.keys() - {_MODELS}:
            self.fit.metric(key)  # the document has the names of earlier syncs, too
        self.fit.files(context.source.renamed(run))
        self.fit.settle(lambda: context.source.store.points(run.id), again=names.OVERFLOW in copy.tags)
        self.outcome.notes += self.fit.notes
        if self.fit.overflow:
            document = self.fit.document()
            known = self.entry.artifacts
            self._take(context.files.own(copy.artifact_uri, names.OVERFLOW_FILE, document, known, compare=compare))
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

    def _points(self, params: Mapping[str, str], tags: Mapping[str, str]) -> Batch:
        """Sends all batches but the last, which waits for everything else."""
        context = self.context
        sending = Batches(
            context.destination, context.journal, context.pool, context.meter,
            most=2 * context.jobs,  # no worker is idle while the oldest takes its time
            run_id=self.run.id, copy=self.copy.id, entry=self.entry,
        )  # fmt: skip
        last = Batch()
        # the kit's server, which keeps ids, takes more at once
        most = COLUMNS if self.copy.id == self.run.id else ROOM
        for batch in batches(self._stream(), limits.portions(params, tags), self.fit, most):
            if last.size:
                sending.send(last)
                self._several = True
            last = batch
        if last.size > ROOM:
            sending.send(last)
            self._several, last = True, Batch()
        sending.wait()
        self.outcome.points += sending.points + len(last.points)
        return last

    def _stream(self) -> Iterator[MetricPoint]:
        """The points that the server has not: those that came behind what it has acknowledged.

        Of a run whose new points may come anywhere, what is missing is looked up.
        """
        store, run, known = self.context.source.store, self.run, dict(self.entry.points)
        if store.appends(run.id) or not self.copy.keys:
            yield from store.points(run.id, known)
            return
        counts = store.metric_keys(run.id)
        grown = {key for key, count in counts.items() if known.get(key, 0) != count}
        self._full = {key: counts[key] for key in grown}
        there = {
            key: {kept(one) for one in self.context.destination.history(self.copy.id, self.fit.metric(key))}
            for key in grown
            if self.fit.metric(key) in self.copy.keys
        }
        for one in store.points(run.id, {key: count for key, count in counts.items() if key not in grown}):
            if one.key in grown and kept(self.fit.point(one)) not in there.get(one.key, ()):
                yield one

    def _take(self, sent: Sent) -> None:
        self.context.journal.add(self.run.id, artifacts=sent.files)
        self.outcome.artifacts += sent.count
        self.outcome.bytes += sent.bytes
        self.outcome.failed += sent.failed
        self.outcome.damaged += sent.damaged

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
        for first in range(0, len(ready), BATCH):
            self.context.destination.log_batch(self.copy.id, ready[first : first + BATCH])
        self.context.journal.add(self.run.id, points={_MODELS: len(found)})

    def _close(self, rest: Batch, sent: Sent) -> None:
        """The last batch with the tag that says how much is there; when it has been read back, the status."""
        run, copy, context = self.run, self.copy, self.context
        self._judge()
        tag = self._log_rest(rest, sent)
        lost = self._lost(tag)
        if lost:  # once more, as if nothing had been acknowledged
            entry = Entry(copy.id, tag, artifacts=self.entry.artifacts)
            self.entry = rebuilt(context.source, context.destination, run, copy, self.fit, entry=entry)
            context.journal.start(run.id, self.entry)
            tag = self._log_rest(self._points(self.fit.params, {**self.fit.tags, **self._tags()}), sent)
            lost = self._lost(tag)
        if lost:
            self.outcome.failed += lost
            self._log_rest(Batch(), sent)
        self.outcome.cuts = self.fit.cuts
        end = state.end_time(run, copy.start_time)
        if (copy.status, copy.end_time) != (run.status, end) or copy.lifecycle_stage == DELETED:
            context.destination.update_run(copy.id, run.status, end)

    def _judge(self) -> None:
        """What of the damage of the recording has been accepted, and what is new."""
        outcome, source = self.outcome, self.context.source
        outcome.damaged = list(dict.fromkeys([*outcome.damaged, *source.damage(self.run.id)]))
        known = damage.accepted(self.copy.tags.get(names.ACCEPTED, ""))
        new = [] if self.context.accept else damage.left(outcome.damaged, known)
        outcome.accepted = [one for one in outcome.damaged if one not in new]
        outcome.damaged = new

    def _log_rest(self, rest: Batch, sent: Sent) -> str:
        """Sends the last batch with the state; gives the state's tag."""
        run, context, outcome = self.run, self.context, self.outcome
        points = {**self.entry.points}
        for key, count in rest.counts.items():
            points[key] = points.get(key, 0) + count
        points.update(self._full)
        counted = {key: count for key, count in points.items() if key != _MODELS}
        ending = outcome.ending
        now = state.State(
            state.COMPLETE if ending in (state.WHOLE, state.CHANGED) else ending,
            sum(counted.values()),
            len(sent.listed),
            sum(one.size for one in sent.listed),
            context.source.digest(run, counted, sent.listed),
            self._contents(sent),
        )
        tag = now.tag()
        extra = {names.STATE: tag, **({names.OVERFLOW: self.fit.summary()} if self.fit.overflow else {})}
        if outcome.accepted:
            extra[names.ACCEPTED] = damage.tag(outcome.accepted)
        if len(rest.tags) + len(extra) > limits.OTHERS:
            log(context.destination, self.copy.id, rest)
            rest = Batch(counts=rest.counts)
        context.journal.add(run.id, next=tag)
        log(context.destination, self.copy.id, rest, extra)
        tags = {key: fingerprint(value) for key, value in self.fit.tags.items()}
        context.journal.add(run.id, state=tag, points=points, tags=tags)
        context.meter.points(len(rest.points))
        return tag

    def _contents(self, sent: Sent) -> str:
        known = self.entry.artifacts
        digests = [(one.path, known[one.path][2]) for one in sent.listed if is_known(one, known)]
        return contents(digests) if all(digest for _, digest in digests) else ""

    def _lost(self, tag: str) -> list[str]:
        """What was acknowledged and is not there.  Points are counted once a run is over: that costs reading them."""
        counted = {key: count for key, count in self.entry.points.items() if key != _MODELS}
        over = self.run.status not in state.OPEN and (self._several or bool(self._full))
        was = state.parse(self.copy.tags.get(names.STATE, ""))
        grown = was is not None and was.state == state.RECORDING and sum(counted.values()) > BATCH
        return readback.lost(
            self.context.source,
            self.context.destination,
            self.run,
            self.copy.id,
            self.fit,
            tag=tag,
            counts=counted,
            pool=self.context.pool,
            count=over or (grown and self.run.status not in state.OPEN),
        )
