"""One sync from beginning to end: lock, plan, push, link, verify."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from labtrack.errors import BadInputError, LabtrackError
from labtrack.files import lock
from labtrack.stores import open_store
from labtrack.stores.model import DELETED, LoggedModel, Run, Store
from labtrack.stores.opening import pulled
from labtrack.sync import alone, damage, dryrun, duplicates, lineage, registry, state, traces
from labtrack.sync import plan as planning
from labtrack.sync.experiments import Experiments
from labtrack.sync.faults import FAULTS, words
from labtrack.sync.files import Sender
from labtrack.sync.journal import Journal, state_folder
from labtrack.sync.links import Links
from labtrack.sync.models import ModelSender
from labtrack.sync.plan import Item, Plan, Todo
from labtrack.sync.progress import Meter, Quiet, Shows, Totals
from labtrack.sync.push import Context, push
from labtrack.sync.report import Planned, Report
from labtrack.sync.source import Source
from labtrack.sync.verify import verify
from labtrack.tracking import address, names
from labtrack.tracking.destination import Destination
from labtrack.tracking.http import ApiError, Http, ServerError, Stopped

JOBS = 4


@dataclass(frozen=True)
class Options:
    """What the user wants.

    run_ids: only these runs; empty for all.  experiment: where new runs go; None for the name they have.
    deleted: also deleted runs.  wanted: a filter.  dry_run: send nothing.  verify: compare afterwards.
    repair: compare everything with what is at the server, and send what is missing or different there.
    accept_damage: what can't be read in the recording is known, and noted in a tag.
    jobs: calls that may be under way at once.
    """

    run_ids: Sequence[str] = ()
    experiment: str | None = None
    deleted: bool = False
    wanted: Callable[[Store, Run], bool] | None = None
    dry_run: bool = False
    verify: bool = False
    repair: bool = False
    accept_damage: bool = False
    jobs: int = JOBS
    env: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))


def sync(source: str | Path, destination: str, options: Options | None = None, shows: Shows | None = None) -> Report:
    """Sends what a recording has and the server has not.

    source: anything that `labtrack.stores.open_store` takes.  destination: the server's address.
    Raises BadInputError for what can't be used, LabtrackError with Exit.LOCKED when another sync of the
    same recording is at work; everything that happens later is in the report.
    """
    with opened(source, destination, options or Options(), shows or Quiet()) as syncer:
        return syncer.once()


@contextmanager
def opened(
    source: str | Path, destination: str, options: Options, shows: Shows, opens: Callable[[], Store] | None = None
) -> Iterator[Syncer]:
    """A recording and a server, ready for one sync or many; nobody else syncs the recording meanwhile.

    opens: opens the recording, where it is not `open_store(source)` that does.
    """
    base = address.parse(destination)
    place = source if opens else pulled(os.fspath(source))
    with ExitStack() as stack:
        found = Source(opens or (lambda: open_store(place)))
        stack.callback(found.close)
        folder = state_folder(options.env)
        doing = f"labtrack sync -s {found.location} -d {base}"
        file, on = folder / f"{found.identity}.lock", f"the recording {found.location}"
        unlocked = stack.enter_context(lock(file, doing, on, needed=False))
        syncer = Syncer(found, base, options, shows, folder, unlocked=unlocked)
        stack.callback(syncer.close)
        yield syncer


class Syncer:
    """One recording, one server.

    unlocked: why another sync of the recording could be at work beside this one; empty where none can.
    """

    def __init__(
        self, source: Source, base: str, options: Options, shows: Shows, folder: Path, *, unlocked: str = ""
    ) -> None:
        if source.location.rstrip("/") == base:
            raise BadInputError(f"{base} is both source and destination.", "give another -s or -d.")
        self.source, self.options, self._shows = source, options, shows
        self.meter = Meter(shows)
        self.http = Http(base, options.env, self.meter.say)
        self.destination = Destination(self.http, duplicates.maker(folder, locked=not unlocked))
        self._unlocked = unlocked
        self.journal = Journal(folder, base, source.identity)
        self._pool = ThreadPoolExecutor(options.jobs, thread_name_prefix="labtrack-call")
        self._runners = ThreadPoolExecutor(options.jobs, thread_name_prefix="labtrack-run")
        self._copies: dict[str, str] = {}  # of the last sync that looked at all runs

    def close(self) -> None:
        """Ends what is still under way."""
        self.http.stop.set()
        self._runners.shutdown(wait=True)
        self._pool.shutdown(wait=True)
        self.journal.close()

    def plan(self, only: Sequence[str] = ()) -> Plan:
        """Compares the recording, or `only` these runs of it, with the server."""
        wanted = self.options.wanted
        return planning.make(
            self.source,
            self.destination,
            self.journal,
            run_ids=only or self.options.run_ids,
            experiment=self.options.experiment,
            deleted=self.options.deleted,
            wanted=(lambda run: wanted(self.source.store, run)) if wanted else None,
            known=self._copies if only else None,
            repair=self.options.repair,
        )

    def once(self, only: Sequence[str] = ()) -> Report:
        """Brings the server up to the recording as it is now; `only` for these runs, if any are given."""
        began = time.monotonic()
        narrowed = bool(self.options.run_ids or self.options.wanted)
        report = Report(self.source.location, self.http.base, dry_run=self.options.dry_run, narrowed=narrowed)
        self.http.stop.clear()
        try:
            plan = self.plan(only)
            context = self._context(plan, self.links(plan))
            report.planned = [self._planned(item) for item in plan.items]
            report.failed = {run_id: [why] for run_id, why in plan.failed.items()}
            models = [] if only else alone.plan_models(context, plan, report, self.options.experiment)
            if not (only or narrowed):
                alone.tell(context, plan, report)
            self._shows.begin(_totals(report.planned))
            if self.options.dry_run:
                dryrun.ask(context, plan, report, self.options.experiment)
            else:
                try:
                    self._send(plan, context, models, report, whole=not only)
                except ServerError as error:
                    report.stopped = str(error)
            self._copies = {**plan.copies, **context.copies}
            report.notes = plan.notes + report.notes
            self._unread(plan, report, partly=bool(only))
            if self.options.verify and not report.stopped:
                verify(context, plan, report, self.options.experiment)
                if not report.narrowed:
                    traces.verify(context, plan, report, self.options.experiment)
                    alone.verify_experiments(context, plan, report, self.options.experiment)
        except Stopped:
            report.interrupted = True
        except ApiError as error:
            raise LabtrackError(f"{self.http.base} refuses: {error}", "`labtrack doctor` looks closer.") from None
        finally:
            self._shows.end()
        report.settle()
        report.notes += [self.journal.trouble] if self.journal.trouble else []
        if self._unlocked:
            report.notes.append(f"no lock is held, so let no other sync of this recording run: {self._unlocked}")
        report.calls, report.seconds = dict(self.http.calls), time.monotonic() - began
        return report

    def _unread(self, plan: Plan, report: Report, *, partly: bool) -> None:
        """Tells what could not be read; a run that is missing for it is incomplete.

        partly: only some runs were looked at.  Of these, push tells what is missing.
        """
        planned = {one.run_id for one in report.planned}
        left_out: dict[str | None, list[str]] = {None: report.unreadable} if report.unreadable else {}
        report.unreadable = []
        for problem in self.source.problems():
            said = " ".join(str(problem).split())
            if not problem.damage or (problem.run_id is None and self.options.run_ids):
                report.notes.append(f"in the recording: {said}")
            elif problem.run_id in planned:
                if report.dry_run:
                    report.damaged.setdefault(problem.run_id or "", []).append(said)
            elif problem.run_id not in plan.seen and not partly and not self.options.run_ids:
                left_out.setdefault(problem.run_id, []).append(said)
        accepted = damage.accepted(*(one.accepted for one in plan.experiments.values()))
        everything = [line for lines in left_out.values() for line in lines]
        new = damage.left(everything, accepted)
        if new and self.options.accept_damage and not report.dry_run:
            with _noted(report, "the accepted damage"):
                self._accept(plan, everything, report)
                new = []
        for run_id, lines in left_out.items():
            told = [line for line in lines if line in new]
            if run_id is None:
                report.unreadable += told
            elif told:
                report.damaged.setdefault(run_id, []).extend(f"can't be read: {line}" for line in told)

    def _accept(self, plan: Plan, lines: list[str], report: Report) -> None:
        """Notes in the experiments that the recording goes to what of it can't be read, and belongs to no run there."""
        report.accepted[self.source.location] = lines
        used = {one.experiment for one in report.planned} or {one.name for one in plan.fitted.values()}
        for name in sorted(used & plan.experiments.keys()):
            one = plan.experiments[name]
            if one.stage != DELETED:
                self.destination.set_experiment_tag(one.id, names.ACCEPTED, damage.tag(lines))

    def _planned(self, item: Item) -> Planned:
        """With counts where something is to be sent: reading them costs time."""
        planned = Planned(item.run.id, item.run.name, item.experiment, item.todo.value)
        if item.todo is Todo.NOTHING and item.copy:
            planned.ending = state.ending_of(
                item.copy.tags.get(names.STATE, ""), changed=names.OVERFLOW in item.copy.tags
            )
        if item.todo in (Todo.CREATE, Todo.UPDATE):
            copy = item.copy
            known = self.journal.entry(item.run.id, copy.id, copy.tags.get(names.STATE, "")) if copy else None
            try:
                counts = self.source.store.metric_keys(item.run.id)
                files = [
                    one for one in self.source.store.artifacts(item.run) if not known or one.path not in known.artifacts
                ]
            except FAULTS:
                return planned  # what is wrong shows when it is sent
            planned.points = sum(counts.values()) - (sum(known.points.values()) if known else 0)
            planned.artifacts, planned.bytes = len(files), sum(one.size for one in files)
        return planned

    def _send(self, plan: Plan, context: Context, models: list[LoggedModel], report: Report, *, whole: bool) -> None:
        with _noted(report, "second copies"):
            duplicates.remove(self.destination, plan.duplicates)
        links = self.links(plan)
        items = {item.run.id: item for item in plan.to_send}
        alone.send_models(context, models, report)  # runs may have read them
        for generation in lineage.generations((one.run for one in plan.to_send), self.source.models.makers):
            if report.stopped or report.interrupted:
                break
            self._generation(context, [items[run.id] for run in generation], report)
        done = {one.run_id for one in report.outcomes} | set(report.failed)
        report.left = [run_id for run_id in items if run_id not in done]
        if report.stopped or report.interrupted:
            return
        with _noted(report, "second copies"):
            self._remove_duplicates(plan, report)
        self._complete_references(plan, links, report)
        if whole:  # these need no look every few seconds
            with _noted(report, "second copies of models"):
                context.models.remove_duplicates(plan.experiment_ids)
            self._register(context, plan, report)
            if not report.narrowed:
                context.files.abandon(unless=bool(report.failed))
                traces.send(context, plan, report, self.options.experiment)
            alone.send_experiments(context, plan, report, self.options.experiment)

    def links(self, plan: Plan) -> Links:
        """How the plan's recorded ids become the server's."""
        return Links(self.destination, plan.copies, plan.experiment_ids)

    def _context(self, plan: Plan, links: Links) -> Context:
        env, uploads = self.options.env, self.journal.uploads
        files = Sender(self.source, self.http, env, uploads, pool=self._pool, meter=self.meter)
        repair, accept = self.options.repair, self.options.accept_damage
        experiments = Experiments(self.destination, plan.experiments, self.source.identity)
        for one in plan.fitted.values():
            experiments.expect(one)
        return Context(
            source=self.source,
            destination=self.destination,
            journal=self.journal,
            files=files,
            models=ModelSender(
                self.source, self.destination, files, self.journal, lambda: plan.experiment_ids,
                repair=repair, accept=accept,
            ),
            pool=self._pool,
            meter=self.meter,
            jobs=self.options.jobs,
            resolve=links.resolve,
            experiments=experiments,
            copies=links.copies,
            changes={} if self.options.experiment else {key: one.changed for key, one in plan.fitted.items()},
            repair=repair,
            accept=accept,
        )  # fmt: skip

    def _generation(self, context: Context, items: list[Item], report: Report) -> None:
        """Sends runs that do not wait for one another."""
        under_way: dict[Future[None], Item] = {
            self._runners.submit(self._one, context, item, report): item for item in items
        }
        while under_way:
            try:
                done, _ = wait(under_way, return_when=FIRST_COMPLETED)
            except KeyboardInterrupt:
                report.interrupted = True
                self.http.stop.set()
                continue
            for future in done:
                under_way.pop(future)
                if not future.cancelled():
                    future.result()
            if report.stopped or report.interrupted:
                self.http.stop.set()
                for future in under_way:
                    future.cancel()

    def _one(self, context: Context, item: Item, report: Report) -> None:
        """Sends one run; what goes wrong with it is in the report and does not keep others back."""
        try:
            where = item.copy.experiment_id if item.copy else context.experiments.id_of(item.experiment)
            outcome = push(context, item.run, item.copy, where)
        except Stopped:
            return
        except ServerError as error:
            report.stopped = str(error)
            self.http.stop.set()
            return
        except FAULTS as error:
            report.failed[item.run.id] = [words(error)]
        else:
            report.outcomes.append(outcome)
            report.take(outcome)
        self.meter.runs(1)

    def _remove_duplicates(self, plan: Plan, report: Report) -> None:
        """Deletes second copies that came since the plan was made, and tells of those that somebody else made."""
        # a copy that has the recorded id is the only one that can have been made (docs/decisions/0026-ids-that-stay.md)
        made = {one.run_id: one.copy for one in report.outcomes if one.created and one.copy != one.run_id}
        ids = plan.experiment_ids
        found, notes = duplicates.late(self.destination, ids, self.source.identity, made) if made else ([], [])
        duplicates.remove(self.destination, found)
        report.notes += notes

    def _register(self, context: Context, plan: Plan, report: Report) -> None:
        to, repair = registry.links(context, plan, self.options.experiment), self.options.repair
        found = registry.link(self.source, self.destination, to, narrowed=report.narrowed, repair=repair)
        report.registered, report.versions, report.unregistered = found.made, found.made + found.there, found.left
        report.names = found.names
        report.unreadable += found.lost
        report.failed.update({name: [why] for name, why in found.failed.items()})
        report.notes += found.notes

    def _complete_references(self, plan: Plan, links: Links, report: Report) -> None:
        """Puts in the references that runs waited for."""
        waiting = [(copy, lineage.pending_of(copy.tags[names.PENDING])) for copy in plan.pending]
        for outcome in report.outcomes:
            if outcome.pending and outcome.created:
                known = any(one in links.copies for part in outcome.pending.values() for one in part.values())
                copied = self.destination.get_run(outcome.copy) if known else None
                waiting += [(copied, outcome.pending)] if copied else []
        for copy, pending in waiting:
            try:
                report.linked += links.hint(copy, pending)
            except ServerError:
                raise
            except FAULTS as error:
                run_id = copy.source_id or copy.id
                report.failed.setdefault(run_id, []).append(f"is not linked to the runs it names: {words(error)}")


@contextmanager
def _noted(report: Report, what: str) -> Iterator[None]:
    """What goes wrong with a step that concerns no single run is in the report, and what was done is not lost."""
    try:
        yield
    except ServerError:
        raise
    except FAULTS as error:
        report.failed.setdefault(what, []).append(words(error))


def _totals(planned: Sequence[Planned]) -> Totals:
    to_send = [one for one in planned if one.todo in (Todo.CREATE.value, Todo.UPDATE.value)]
    return Totals(len(to_send), sum(one.points for one in to_send), sum(one.bytes for one in to_send))
