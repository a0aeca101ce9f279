"""What belongs to no run: logged models, planned, sent and told like runs, and what was written about experiments."""

from __future__ import annotations

from collections.abc import Iterator

from labtrack.errors import LabtrackError
from labtrack.stores.model import DELETED, LoggedModel
from labtrack.sync import state
from labtrack.sync.experiments import Fitted
from labtrack.sync.faults import FAULTS, words
from labtrack.sync.plan import Plan, Todo
from labtrack.sync.push import Context, Outcome
from labtrack.sync.report import Planned, Report
from labtrack.tracking import names
from labtrack.tracking.http import ServerError
from labtrack.tracking.remote import RemoteExperiment


def plan_models(context: Context, plan: Plan, report: Report, experiment: str | None) -> list[LoggedModel]:
    """The models that are not whole at the server; all of them are planned in the report.

    experiment: where they are to go, None for the experiment of the same name.
    """
    found: list[LoggedModel] = []
    if report.narrowed:
        count = len(context.models.alone())
        report.notes += [f"{count} logged models that belong to no run are not sent with -r or a filter"] * bool(count)
        return found
    for model in context.models.alone():
        if model.experiment_id in plan.fitted.keys() - plan.wanted.keys():
            continue
        where = plan.fitted.get(model.experiment_id)
        planned = Planned(model.id, model.name, experiment or (where.name if where else ""), Todo.CREATE.value)
        report.models.append(planned)
        try:
            there = context.models.there(model)
            if there is not None:
                whole = not context.repair and context.models.is_whole(model, there)
                planned.todo = (Todo.NOTHING if whole else Todo.UPDATE).value
                if whole:
                    changed = names.OVERFLOW in there.tags
                    planned.ending = state.ending_of(there.tags.get(names.STATE, ""), changed=changed)
        except ServerError:
            raise
        except FAULTS as error:
            report.failed[model.id] = [words(error)]
        if planned.todo != Todo.NOTHING.value:
            found.append(model)
    return found


def tell(context: Context, plan: Plan, report: Report) -> None:
    """Tells what is left out: what no sync sends, and what was deleted in the recording, or with its experiment."""
    store, gone = context.source.store, plan.fitted.keys() - plan.wanted.keys()
    try:
        report.unsent = dict(store.unread())
        deleted = {
            "logged models outside runs": sum(one.experiment_id in gone for one in context.models.alone()),
            "traces": sum(1 for one in gone for _ in store.traces(one)),
        }
    except ServerError:
        raise
    except FAULTS as error:
        report.failed["what else was recorded"] = [f"can't be read: {words(error)}"]
        return
    report.notes += [f"{count} {kind} are not sent: no sync sends them" for kind, count in report.unsent.items()]
    report.notes += [
        f"{count} {kind} of experiments that are deleted in the recording are not sent; -x sends them too"
        for kind, count in deleted.items() if count
    ]  # fmt: skip
    count = len(context.source.models.deleted)
    if count and plan.deleted:
        report.notes.append(f"{count} logged models that are deleted in the recording are not sent")


def send_models(context: Context, models: list[LoggedModel], report: Report) -> None:
    """Sends them, one after the other; what goes wrong with one does not keep others back."""
    where = {one.run_id: one.experiment for one in report.models}
    for model in models:
        try:
            if not where[model.id]:
                raise LabtrackError(
                    f"It belongs to experiment {model.experiment_id}, which the recording does not have.",
                    "say where it should go: -e EXPERIMENT.",
                )
            sent = context.models.send_one(model, context.experiments.id_of(where[model.id]), None)
        except ServerError:
            raise
        except FAULTS as error:
            report.failed[model.id] = [words(error)]
            continue
        outcome = Outcome(
            model.id, sent.copy, sent.created, 0, sent.artifacts, sent.bytes, sent.cuts,
            failed=sent.failed, damaged=sent.damaged, accepted=sent.accepted,
        )  # fmt: skip
        report.model_outcomes.append(outcome)
        report.take(outcome)


def send_experiments(context: Context, plan: Plan, report: Report, experiment: str | None) -> None:
    """Makes the experiments that have tags, as a description, and no runs, and adds tags that are missing.

    Tags are added where this recording has made the experiment; those that somebody has changed at the server stay
    so, unless they are to be repaired.  In a dry run nothing is sent.  experiment: as in `plan.make`.
    """
    bare = []
    for one in _experiments(plan, report, experiment):
        there = plan.experiments.get(one.name)
        if there is None and not one.tags:
            bare.append(one.name)
            continue
        own = there is None or there.tags.get(names.SOURCE_STORE) == context.source.identity
        left = one.left(there) if there else dict(one.tags)
        kept = there.tags if there and not context.repair else {}
        missing = {key: value for key, value in left.items() if key not in kept}
        if left and not own:
            report.notes.append(
                f"experiment {one.name} was not made by a sync of this recording: its tags at the server stay as they "
                f"are, and {', '.join(sorted(left))} of the recording are not sent"
            )
        elif left and not missing:
            said = ", ".join(sorted(left))
            report.notes.append(f"experiment {one.name}: {said} are others at the server and stay; --repair sets them")
        if not (own and missing):
            continue
        report.experiments.append(one.name)
        if report.dry_run:
            report.notes.append(f"experiment {one.name} would be {'given tags' if there else 'made with its tags'}")
            continue
        try:
            number = context.experiments.id_of(one.name)
            for key, value in missing.items() if there else ():
                context.destination.set_experiment_tag(number, key, value)
        except ServerError:
            raise
        except FAULTS as error:
            report.failed[f"experiment {one.name}"] = [words(error)]
            continue
        if one.changed and there is None:
            said = ", ".join(sorted(one.changed))
            report.notes.append(f"experiment {one.name} has no run to keep what was cut or changed of it: {said}")
    if bare:
        report.notes.append(f"{len(bare)} experiments without runs and tags are not made: {', '.join(bare)}")


def verify_experiments(context: Context, plan: Plan, report: Report, experiment: str | None) -> None:
    """Compares the tags of the experiments that this recording has made, or should have."""
    server = context.destination.experiments()
    for one in _experiments(plan, report, experiment):
        there = server.get(one.name)
        found = ["is not at the server"] if one.tags and there is None else []
        if there and there.tags.get(names.SOURCE_STORE) == context.source.identity:
            found = [
                f"tag {key} is {there.tags.get(key)!r:.60} at the server, {value!r:.60} in the recording"
                for key, value in one.left(there).items()
            ]
        if found:
            report.differences[f"experiment {one.name}"] = found


def _experiments(plan: Plan, report: Report, experiment: str | None) -> Iterator[Fitted]:
    """The experiments of which the tags are sent, each name once; where the runs of one failed, they tell why."""
    used = {one.experiment for one in (*report.planned, *report.models)} | set(report.traces)
    named = {one.name: one for one in reversed(plan.wanted.values())}
    found = [
        one for name, one in named.items()
        if (name in plan.experiments or name not in used)
        and plan.experiments.get(name, RemoteExperiment("")).stage != DELETED
    ]  # fmt: skip
    if not (report.narrowed or experiment):
        yield from found
        return
    count = sum(bool(one.tags) and one.name not in plan.experiments for one in found)
    if count and report.verified is None:
        report.notes.append(f"{count} experiments with tags are not made with -e, -r or a filter")
