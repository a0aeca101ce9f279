"""What there is to do: the recording's runs beside their copies at the server."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from labtrack.errors import BadInputError, LabtrackError
from labtrack.stores.model import DELETED, Experiment, Run
from labtrack.sync import duplicates, lineage, state
from labtrack.sync.source import Source
from labtrack.tracking import names
from labtrack.tracking.destination import Destination, RemoteRun, has_tag


class Todo(enum.Enum):
    """What a run needs."""

    CREATE = "new"
    UPDATE = "changed"
    NOTHING = "there"
    GONE = "deleted at the server"
    LEFT = "deleted in the recording"


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

    pending: copies with references that wait for another run.  duplicates: second copies that are to go, with
    the ids of those that are kept.  notes: what the user should know.
    """

    items: list[Item] = field(default_factory=list)
    experiments: dict[str, tuple[str, str]] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)
    pending: list[RemoteRun] = field(default_factory=list)
    duplicates: list[tuple[RemoteRun, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def to_send(self) -> list[Item]:
        """The runs that need something."""
        return [item for item in self.items if item.todo in (Todo.CREATE, Todo.UPDATE)]

    @property
    def experiment_ids(self) -> list[str]:
        """All experiments of the server."""
        return [one for one, _ in self.experiments.values()]


def make(
    source: Source,
    destination: Destination,
    *,
    run_ids: Iterable[str] = (),
    experiment: str | None = None,
    deleted: bool = False,
    wanted: Callable[[Run], bool] | None = None,
) -> Plan:
    """Compares the recording with the server.

    run_ids: only these.  experiment: where to put new runs, instead of the experiment of the same name.
    deleted: also runs that were deleted in the recording.  wanted: only runs for which it is true.

    Raises BadInputError for a run id that is not there, LabtrackError where the server can't be used.
    """
    plan = Plan(experiments=destination.experiments())
    of_source = {one.id: one for one in source.store.experiments(deleted=True)}
    runs = _chosen(source, list(run_ids), deleted, plan)
    runs = [run for run in runs if wanted is None or wanted(run)]
    copies = _copies(source, destination, plan, runs)
    for run in runs:
        name = experiment or _name(of_source.get(run.experiment_id), run)
        plan.items.append(_item(source, run, copies.get(run.id), name))
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


def _name(experiment: Experiment | None, run: Run) -> str:
    if experiment is None:
        raise LabtrackError(
            f"Run {run.id} belongs to experiment {run.experiment_id}, which the recording does not have.",
            "say where it should go: -e EXPERIMENT.",
        )
    return experiment.name


def _copies(source: Source, destination: Destination, plan: Plan, runs: list[Run]) -> dict[str, RemoteRun]:
    """The copy of each run of the recording that is kept up to date; others are told, or duplicates."""
    found: dict[str, RemoteRun] = {}
    everywhere = plan.experiment_ids
    all_copies = list(destination.search(everywhere, has_tag(names.SOURCE_STORE, source.identity)))
    all_copies += _under_another_name(destination, everywhere, runs, all_copies)
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
    plan.pending = [copy for copy in found.values() if copy.tags.get(names.PENDING)]
    return found


def _under_another_name(
    destination: Destination, everywhere: list[str], runs: list[Run], found: list[RemoteRun]
) -> list[RemoteRun]:
    """Copies from when the recording had another identity: when its first experiment was another, or a file store.

    Run ids are unique everywhere, so one run that is not there is enough to ask about.
    """
    known = {copy.source_id for copy in found}
    new = next((run.id for run in runs if run.id not in known and lineage.is_unique(run.id)), None)
    if new is None:
        return []
    stores = {
        copy.tags.get(names.SOURCE_STORE) for copy in destination.search(everywhere, has_tag(names.SOURCE_RUN, new))
    }
    return [
        copy
        for store in stores
        if store
        for copy in destination.search(everywhere, has_tag(names.SOURCE_STORE, store))
        if lineage.is_unique(copy.source_id)
    ]


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
                    f"run {own} was put there by Anemoi's sync as {copy.id}: what is missing is added (its start time "
                    "can't be repaired)"
                )


def _item(source: Source, run: Run, copy: RemoteRun | None, experiment: str) -> Item:
    if copy is None:
        return Item(run, Todo.CREATE, experiment)
    if copy.lifecycle_stage == DELETED and run.lifecycle_stage != DELETED:
        return Item(run, Todo.GONE, experiment, copy)
    return Item(run, Todo.NOTHING if is_whole(source, run, copy) else Todo.UPDATE, experiment, copy)


def is_whole(source: Source, run: Run, copy: RemoteRun) -> bool:
    """Whether a copy has all that the recording has now."""
    said = state.parse(copy.tags.get(names.STATE, ""))
    if said is None or said.state == state.INCOMPLETE:
        return False
    same = (copy.status, copy.lifecycle_stage) == (run.status, run.lifecycle_stage)
    same = same and (run.end_time is None or copy.end_time == run.end_time)
    return same and said.digest == source.digest(run)


def experiment_id(destination: Destination, plan: Plan, source: Source, name: str) -> str:
    """The id of an experiment at the server, made where there is none."""
    known = plan.experiments.get(name)
    if known is None:
        of_source = [one for one in source.store.experiments(deleted=True) if one.name == name]
        known = plan.experiments[name] = (
            destination.create_experiment(name, dict(of_source[0].tags) if of_source else {}),
            "active",
        )
    if known[1] == DELETED:
        raise BadInputError(
            f"Experiment {name!r} is deleted at the server, which takes no runs for it.",
            f"restore it there (`mlflow experiments restore --experiment-id {known[0]}`), or choose another: -e NAME.",
        )
    return known[0]
