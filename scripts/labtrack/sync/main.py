"""One sync from beginning to end: lock, plan, push, link, verify."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from labtrack.errors import BadInputError, Exit, LabtrackError
from labtrack.files import lock
from labtrack.stores import open_store
from labtrack.stores.model import Run, Store
from labtrack.sync import duplicates, lineage, names, registry
from labtrack.sync import plan as planning
from labtrack.sync.destination import Destination
from labtrack.sync.files import Sender
from labtrack.sync.http import ApiError, Http, ServerError, Stopped
from labtrack.sync.journal import Journal, state_folder
from labtrack.sync.links import Links
from labtrack.sync.models import ModelSender
from labtrack.sync.plan import Item, Plan, Todo
from labtrack.sync.progress import Meter, Quiet, Shows, Totals
from labtrack.sync.push import Context, push
from labtrack.sync.report import Planned, Report
from labtrack.sync.source import Source

JOBS = 4


@dataclass(frozen=True)
class Options:
    """What the user wants.

    run_ids: only these runs; empty for all.  experiment: where new runs go; None for the name they have.
    deleted: also deleted runs.  wanted: a filter.  dry_run: send nothing.  verify: compare afterwards.
    jobs: calls that may be under way at once.
    """

    run_ids: Sequence[str] = ()
    experiment: str | None = None
    deleted: bool = False
    wanted: Callable[[Store, Run], bool] | None = None
    dry_run: bool = False
    verify: bool = False
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
    base = address(destination)
    with ExitStack() as stack:
        found = Source(opens or (lambda: open_store(source)))
        stack.callback(found.close)
        folder = state_folder(options.env)
        doing = f"labtrack sync -s {found.location} -d {base}"
        stack.enter_context(lock(folder / f"{found.identity}.lock", doing, on=f"the recording {found.location}"))
        syncer = Syncer(found, base, options, shows, folder)
        stack.callback(syncer.close)
        yield syncer


def address(destination: str) -> str:
    """The server's address, checked.  Raises BadInputError."""
    parts = urlsplit(destination)
    if parts.scheme not in ("http", "https"):
        plain = destination.rpartition("://")[2]
        hint = f"give the server's address: -d https://{plain}" if "/" not in plain else "give it as https://host."
        raise BadInputError(f"The destination {destination!r} is not the address of a tracking server.", hint)
    if not parts.hostname:
        raise BadInputError(f"The destination {destination!r} names no host.", "give it as https://host.")
    if parts.username or parts.password:
        raise BadInputError(
            "The destination has a login in it, which everybody on this machine can read.",
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, as your mlflow_env.sh does.",
        )
    return destination.rstrip("/")


class Syncer:
    """One recording, one server."""

    def __init__(self, source: Source, base: str, options: Options, shows: Shows, folder: Path) -> None:
        if source.location.rstrip("/") == base:
            raise BadInputError(f"{base} is both source and destination.", "give another -s or -d.")
        self.source, self.options, self._shows = source, options, shows
        self.meter = Meter(shows)
        self.http = Http(base, options.env, self.meter.say)
        self.destination = Destination(self.http, duplicates.maker(folder))
        self.journal = Journal(folder, base, source.identity)
        self._pool = ThreadPoolExecutor(options.jobs, thread_name_prefix="labtrack-call")
        self._runners = ThreadPoolExecutor(options.jobs, thread_name_prefix="labtrack-run")

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
            run_ids=only or self.options.run_ids,
            experiment=self.options.experiment,
            deleted=self.options.deleted,
            wanted=(lambda run: wanted(self.source.store, run)) if wanted else None,
        )

    def once(self, only: Sequence[str] = ()) -> Report:
        """Brings the server up to the recording as it is now; `only` for these runs, if any are given."""
        began = time.monotonic()
        narrowed = bool(self.options.run_ids or self.options.wanted)
        report = Report(self.source.location, self.http.base, dry_run=self.options.dry_run, narrowed=narrowed)
        self.http.stop.clear()
        try:
            plan = self.plan(only)
            report.planned = [self._planned(item) for item in plan.items]
            self._shows.begin(_totals(report.planned))
            if not self.options.dry_run:
                try:
                    self._send(plan, report)
                except ServerError as error:
                    report.stopped = str(error)
            report.notes = plan.notes + report.notes
            if self.options.verify and not report.stopped:
                from labtrack.sync.verify import verify

                verify(self, plan, report)
        except Stopped:
            report.interrupted = True
        except ApiError as error:
            raise LabtrackError(f"{self.http.base} refuses: {error}", "`labtrack doctor` looks closer.") from None
        finally:
            self._shows.end()
        self._unread(report)
        report.notes += [self.journal.trouble] if self.journal.trouble else []
        report.calls, report.seconds = dict(self.http.calls), time.monotonic() - began
        return report

    def _unread(self, report: Report) -> None:
        """Tells what could not be read; a run that is missing for it has failed."""
        known = {one.run_id for one in report.planned}
        for problem in self.source.problems():
            if problem.run_id is None or problem.run_id in known:
                report.notes.append(f"in the recording: {problem}")
            elif not report.narrowed:
                report.failed.setdefault(problem.run_id, []).append(f"can't be read: {problem}")

    def _planned(self, item: Item) -> Planned:
        """With counts where something is to be sent: reading them costs time."""
        planned = Planned(item.run.id, item.run.name, item.experiment, item.todo.value)
        if item.todo in (Todo.CREATE, Todo.UPDATE):
            copy = item.copy
            known = self.journal.entry(item.run.id, copy.id, copy.tags.get(names.STATE, "")) if copy else None
            counts = self.source.store.metric_keys(item.run.id)
            planned.points = sum(counts.values()) - (sum(known.points.values()) if known else 0)
            files = [
                one for one in self.source.store.artifacts(item.run) if not known or one.path not in known.artifacts
            ]
            planned.artifacts, planned.bytes = len(files), sum(one.size for one in files)
        return planned

    def _send(self, plan: Plan, report: Report) -> None:
        duplicates.remove(self.destination, plan.duplicates)
        links = self.links(plan)
        context = self._context(plan, links)
        items = {item.run.id: item for item in plan.to_send}
        for generation in lineage.generations((one.run for one in plan.to_send), self.source.models.makers):
            if report.stopped or report.interrupted:
                break
            self._generation(context, plan, [items[run.id] for run in generation], report)
        done = {one.run_id for one in report.outcomes} | set(report.failed)
        report.left = [run_id for run_id in items if run_id not in done]
        if not report.stopped and not report.interrupted:
            self._remove_duplicates(plan, report)
            context.models.remove_duplicates([one for one, _ in plan.experiments.values()])
            self._mend(plan, links, report)
            self._register(context, links, report)

    def links(self, plan: Plan) -> Links:
        """How the plan's recorded ids become the server's."""
        return Links(self.destination, plan.copies, plan.experiment_ids)

    def _context(self, plan: Plan, links: Links) -> Context:
        files = Sender(self.source, self.http, self.options.env, pool=self._pool, meter=self.meter)
        models = ModelSender(self.source, self.destination, files, plan.experiment_ids)
        return Context(
            source=self.source,
            destination=self.destination,
            journal=self.journal,
            files=files,
            models=models,
            pool=self._pool,
            meter=self.meter,
            jobs=self.options.jobs,
            resolve=links.resolve,
            copies=links.copies,
        )

    def _generation(self, context: Context, plan: Plan, items: list[Item], report: Report) -> None:
        """Sends runs that do not wait for one another."""
        under_way: dict[Future[None], Item] = {}
        for item in items:
            where = planning.experiment_id(self.destination, plan, self.source, item.experiment)
            under_way[self._runners.submit(self._one, context, item, where, report)] = item
        while under_way:
            try:
                done, _ = wait(under_way, return_when=FIRST_COMPLETED)
            except KeyboardInterrupt:
                if report.interrupted:  # twice: a call may hang for minutes, and nothing is lost by leaving now
                    os._exit(Exit.INTERRUPTED)
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

    def _one(self, context: Context, item: Item, where: str, report: Report) -> None:
        """Sends one run; what goes wrong with it is in the report and does not keep others back."""
        try:
            outcome = push(context, item.run, item.copy, where)
        except Stopped:
            return
        except ServerError as error:
            report.stopped = str(error)
            self.http.stop.set()
            return
        except (ApiError, LabtrackError, OSError) as error:
            report.failed[item.run.id] = [str(error)]
        else:
            report.outcomes.append(outcome)
            if outcome.failed:
                report.failed[item.run.id] = outcome.failed
            report.notes += [f"run {item.run.id}: {note}" for note in outcome.notes]
        self.meter.runs(1)

    def _remove_duplicates(self, plan: Plan, report: Report) -> None:
        """Deletes second copies that came since the plan was made, and tells of those that somebody else made."""
        made = {one.run_id: one.copy for one in report.outcomes if one.created}
        ids = [one for one, _ in plan.experiments.values()]
        found, notes = duplicates.late(self.destination, ids, self.source.identity, made) if made else ([], [])
        duplicates.remove(self.destination, found)
        report.notes += notes

    def _register(self, context: Context, links: Links, report: Report) -> None:
        copies, model_copy = links.copies, context.models.copy_of
        report.registered = registry.link(self.source, self.destination, copies, model_copy, report.notes)

    def _mend(self, plan: Plan, links: Links, report: Report) -> None:
        for copy in plan.pending:
            report.linked += links.hint(copy, lineage.pending_of(copy.tags[names.PENDING]))
        for outcome in report.outcomes:
            copied = self.destination.get_run(outcome.copy) if outcome.pending and outcome.created else None
            if copied and any(one in links.copies for part in outcome.pending.values() for one in part.values()):
                report.linked += links.hint(copied, outcome.pending)


def _totals(planned: Sequence[Planned]) -> Totals:
    to_send = [one for one in planned if one.todo in (Todo.CREATE.value, Todo.UPDATE.value)]
    return Totals(len(to_send), sum(one.points for one in to_send), sum(one.bytes for one in to_send))
