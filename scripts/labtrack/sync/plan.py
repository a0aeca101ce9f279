"""What there is to do: the recording's runs beside their copies at the server."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from labtrack.errors import LabtrackError
from labtrack.stores.model import DELETED, Artifact, Run
from labtrack.sync import damage, duplicates, lineage, state
from labtrack.sync.artifacts import digest_of
from labtrack.sync.experiments import Fitted, fitted
from labtrack.sync.faults import FAULTS, words
from labtrack.sync.files import contents, facts, is_known
from labtrack.sync.journal import Entry, Journal
from labtrack.sync.source import SERVER_SOURCE, Source
from labtrack.tracking import names
from labtrack.tracking.destination import Destination, has_tag
from labtrack.tracking.http import ServerError
from labtrack.tracking.remote import RemoteExperiment, RemoteRun


class Todo(enum.Enum):
    """What a run needs."""

    CREATE = "new"
    UPDATE = "changed"
    NOTHING = "there"
    GONE = "deleted at the server"
    LEFT = "deleted in the recording"
    FAILED = "failed"


@dataclass(frozen=True)
class Item:
    """A run and what it needs.  experiment: the one at the server, by name."""

    run: Run
    todo: Todo
    experiment: str
    copy: RemoteRun | None = None


@dataclass
class Plan:
    """items: in the recording's order.  copies: recorded run id to the server's, of the whole recording.

    experiments: those of the server, by name.  fitted: the recording's, by their ids, as the server takes them.
    pending: copies with references that wait for another run.  duplicates: second copies that are to go, with
    the ids of those that are kept.  notes: what the user should know.  failed: runs that can't be planned, and why.
    seen: all runs of the recording that could be read, also those that are not wanted.
    deleted: also what was deleted in the recording is wanted.
    """

    items: list[Item] = field(default_factory=list)
    experiments: dict[str, RemoteExperiment] = field(default_factory=dict)
    fitted: dict[str, Fitted] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)
    pending: list[RemoteRun] = field(default_factory=list)
    duplicates: list[tuple[RemoteRun, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    deleted: bool = False

    @property
    def wanted(self) -> dict[str, Fitted]:
        """The recording's experiments of which everything is sent: deleted ones only if asked for."""
        return {key: one for key, one in self.fitted.items() if self.deleted or not one.deleted}

    @property
    def to_send(self) -> list[Item]:
        """The runs that need something."""
        return [item for item in self.items if item.todo in (Todo.CREATE, Todo.UPDATE)]

    @property
    def experiment_ids(self) -> list[str]:
        """All experiments of the server."""
        return [one.id for one in self.experiments.values()]


def make(
    source: Source,
    destination: Destination,
    journal: Journal,
    *,
    run_ids: Iterable[str] = (),
    experiment: str | None = None,
    deleted: bool = False,
    wanted: Callable[[Run], bool] | None = None,
    known: Mapping[str, str] | None = None,
    repair: bool = False,
) -> Plan:
    """Compares the recording with the server.

    run_ids: only these.  experiment: where to put new runs, instead of the experiment of the same name.
    deleted: also runs that were deleted in the recording.  wanted: only runs for which it is true.
    known: copies that a plan of the same recording has found before; with it the server is asked for those
    of `run_ids` alone.  repair: what looks as if it were there is looked at more closely.

    Raises BadInputError for a run id that is not there, LabtrackError where the server can't be used.
    What is wrong with one run is among `failed`.
    """
    plan = Plan(experiments=destination.experiments(), deleted=deleted)
    for one in source.store.experiments(deleted=True):
        plan.fitted[one.id] = fitted(one)
    runs = []
    for run in _once(_chosen(source, list(run_ids), deleted, plan), plan):
        try:
            if wanted is None or wanted(run):
                runs.append(run)
        except FAULTS as error:
            plan.failed[run.id] = f"can't be compared with --filter: {words(error)}"
    found = _known(source, destination, plan, runs, known) if known else _copies(source, destination, plan, runs)
    elsewhere: dict[str, int] = {}
    for run in runs:
        try:
            item = _item(source, journal, run, found.get(run.id), _experiment(plan, run, experiment), repair=repair)
        except ServerError:
            raise
        except FAULTS as error:
            plan.failed[run.id] = words(error)
            item = Item(run, Todo.FAILED, experiment or "", found.get(run.id))
        if item.copy is not None:
            item = _where_it_is(plan, item, experiment, elsewhere)
        plan.items.append(item)
    for name, count in elsewhere.items():
        plan.notes.append(
            f"{count} runs are at the server already, in experiment {name!r}, and are kept up to date there: nothing "
            f"is moved to {experiment!r}.  To have them there, delete them at the server for good and sync again"
        )
    return plan


def _chosen(source: Source, run_ids: list[str], deleted: bool, plan: Plan) -> list[Run]:
    if not run_ids:
        return list(source.runs(deleted=deleted))
    found = [source.store.run(one) for one in dict.fromkeys(run_ids)]
    for run in [run for run in found if run.lifecycle_stage == DELETED and not deleted]:
        plan.notes.append(f"run {run.id} is deleted in the recording and was left out; -x sends it too")
        plan.items.append(Item(run, Todo.LEFT, ""))
        found.remove(run)
    return found


def _once(runs: Iterable[Run], plan: Plan) -> Iterable[Run]:
    """Each run once: a folder that was copied into a second experiment is the same run, as it is to MLflow."""
    seen: dict[str, str] = {}
    for run in runs:
        if run.id not in seen:
            seen[run.id] = run.experiment_id
            plan.seen.add(run.id)
            yield run
            continue
        first, second = (_called(plan, one) for one in (seen[run.id], run.experiment_id))
        plan.notes.append(
            f"run {run.id} is in the recording twice, in experiment {first} and in {second}: MLflow takes both for one "
            f"run, and what is in {first} is sent"
        )


def _called(plan: Plan, experiment_id: str) -> str:
    found = plan.fitted.get(experiment_id)
    return repr(found.name) if found else experiment_id


def _experiment(plan: Plan, run: Run, named: str | None) -> str:
    if named:
        return named
    found = plan.fitted.get(run.experiment_id)
    if found is None:
        raise LabtrackError(
            f"Run {run.id} belongs to experiment {run.experiment_id}, which the recording does not have.",
            "say where it should go: -e EXPERIMENT.",
        )
    return found.name


def _where_it_is(plan: Plan, item: Item, named: str | None, elsewhere: dict[str, int]) -> Item:
    """The item with the experiment that the copy is in, which need not be the one that was asked for."""
    there = next(
        (name for name, one in plan.experiments.items() if item.copy and one.id == item.copy.experiment_id), ""
    )
    if named and there and there != named:
        elsewhere[there] = elsewhere.get(there, 0) + 1
    return Item(item.run, item.todo, there or item.experiment, item.copy)


def _known(
    source: Source, destination: Destination, plan: Plan, runs: list[Run], known: Mapping[str, str]
) -> dict[str, RemoteRun]:
    """The copies of some runs, by their ids at the server where they are known."""
    found: dict[str, RemoteRun] = {}
    for run in runs:
        if run.id in known:
            copy = destination.get_run(known[run.id])
            copies = [copy] if copy else []
        else:
            copies = destination.copies(plan.experiment_ids, source.identity, run.id)
        if copies:
            found[run.id] = copies[0]
    plan.copies = {**known, **{run_id: copy.id for run_id, copy in found.items()}}
    plan.pending = [copy for copy in found.values() if copy.tags.get(names.PENDING)]
    return found


def _copies(source: Source, destination: Destination, plan: Plan, runs: list[Run]) -> dict[str, RemoteRun]:
    """The copy of each run of the recording that is kept up to date; others are told, or duplicates."""
    found: dict[str, RemoteRun] = {}
    everywhere = plan.experiment_ids
    all_copies = list(destination.search(everywhere, has_tag(names.SOURCE_STORE, source.identity)))
    all_copies += _under_another_name(source, destination, everywhere, runs, all_copies)
    for copy in sorted(all_copies, key=lambda one: (names.DUPLICATE in one.tags, one.rank)):
        if copy.source_id in found and duplicates.is_duplicate(copy, destination.maker):
            plan.duplicates.append((copy, found[copy.source_id].id))
            continue
        if names.DUPLICATE in copy.tags:
            continue
        if copy.source_id in found:
            plan.notes.append(
                f"run {copy.source_id} is at the server twice: {found[copy.source_id].id} is kept up to date, "
                f"{copy.id} is left as it is"
            )
            continue
        found[copy.source_id] = copy
    _add_anemois(destination, everywhere, [run for run in runs if run.id not in found], found, plan)
    plan.copies = {run_id: copy.id for run_id, copy in found.items()}
    plan.pending = [copy for copy in found.values() if copy.tags.get(names.PENDING) and copy.lifecycle_stage != DELETED]
    return found


def _under_another_name(
    source: Source, destination: Destination, everywhere: list[str], runs: list[Run], found: list[RemoteRun]
) -> list[RemoteRun]:
    """Copies that came from a part of the recording, or from when it had another identity or was a file store.

    Run ids are unique everywhere.  A copy starts when its run started, so that all runs that are not known are asked
    for at once, in pages; one without a start is asked for alone.
    """
    known = {copy.source_id for copy in found}
    new = {run.id: run for run in runs if run.id not in known and lineage.is_unique(run.id)}
    starts = [run.start_time for run in new.values() if run.start_time]
    others: list[RemoteRun] = []
    if starts:
        between = f"attributes.start_time >= {min(starts)} AND attributes.start_time <= {max(starts)}"
        others += destination.search(everywhere, f"tags.`{names.SOURCE_RUN}` LIKE '%' AND {between}")
    for run in new.values():
        if not run.start_time:
            others += destination.search(everywhere, has_tag(names.SOURCE_RUN, run.id))
    return [copy for copy in others if copy.source_id in new and copy.tags.get(names.SOURCE_STORE) != source.identity]


def _add_anemois(
    destination: Destination, everywhere: list[str], new: list[Run], found: dict[str, RemoteRun], plan: Plan
) -> None:
    """Takes runs that Anemoi's own sync has put there for what they are.

    It leaves the recorded id in params: a resumed run's in `config.training.offline_self_run_id`, any
    other's in `metadata.offline_run_id` (or `server2server_...`).
    """
    wanted = {run.id for run in new if lineage.is_anemois(run)}
    if not wanted:
        return
    for kind in ("offline", "server2server"):
        where = f"params.`metadata.{kind}_run_id` LIKE '%'"
        for copy in destination.search(everywhere, where):
            own = copy.params.get(f"config.training.{kind}_self_run_id") or copy.params[f"metadata.{kind}_run_id"]
            if own in wanted and own not in found and not copy.source_id:
                found[own] = copy
                plan.notes.append(
                    f"run {own} was put there by Anemoi's sync as {copy.id}: what is missing is added.  It starts when "
                    "that sync was, which nobody can change, so it ends as much later; the recorded times are in "
                    f"{names.OVERFLOW_FILE}"
                )


def _item(source: Source, journal: Journal, run: Run, copy: RemoteRun | None, experiment: str, *, repair: bool) -> Item:
    if copy is None:
        return Item(run, Todo.CREATE, experiment)
    if copy.lifecycle_stage == DELETED and run.lifecycle_stage != DELETED:
        return Item(run, Todo.GONE, experiment, copy)
    whole = not repair and is_whole(source, journal, run, copy)
    return Item(run, Todo.NOTHING if whole else Todo.UPDATE, experiment, copy)


def is_whole(source: Source, journal: Journal, run: Run, copy: RemoteRun) -> bool:
    """Whether a copy has all that the recording has now."""
    tag = copy.tags.get(names.STATE, "")
    said = state.parse(tag)
    if said is None or said.state == state.INCOMPLETE:
        return False
    same = (copy.status, copy.lifecycle_stage) == (run.status, run.lifecycle_stage)
    same = same and (run.end_time is None or copy.end_time == state.end_time(run, copy.start_time))
    if not same:
        return False
    files = list(source.store.artifacts(run))
    if said.digest != source.digest(run, files=files):
        return False
    new = damage.left(source.damage(run.id), damage.accepted(copy.tags.get(names.ACCEPTED, "")))
    return not new and _same_bytes(source, journal, run, copy, files)


def _same_bytes(source: Source, journal: Journal, run: Run, copy: RemoteRun, files: list[Artifact]) -> bool:
    """Whether files of the same sizes have the same bytes: by the journal's times, else by reading them."""
    tag = copy.tags.get(names.STATE, "")
    said = state.parse(tag)
    if not files or said is None or not said.contents or source.kind == SERVER_SOURCE:
        return True
    entry = journal.entry(run.id, copy.id, tag)
    if entry is not None and all(is_known(one, entry.artifacts) for one in files):
        return True
    store = source.store
    try:
        hashes = {one.path: digest_of(lambda one=one: store.open_artifact(run, one.path)) for one in files}  # type: ignore[misc]
    except (OSError, LabtrackError):
        return False  # what can't be read shows when it is sent
    if contents(hashes.items()) != said.contents:
        return False
    if entry is None:  # so that they need not be read again
        journal.start(run.id, Entry(copy.id, tag, points=store.metric_keys(run.id)))
    journal.add(run.id, artifacts={one.path: facts(one, hashes[one.path]) for one in files})
    return True
