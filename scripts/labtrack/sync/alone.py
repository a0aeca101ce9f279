"""Logged models that belong to no run: planned, sent and told like runs."""

from __future__ import annotations

from labtrack.errors import LabtrackError
from labtrack.stores.model import LoggedModel
from labtrack.sync import state
from labtrack.sync.faults import FAULTS, words
from labtrack.sync.plan import Plan, Todo
from labtrack.sync.push import Context, Outcome
from labtrack.sync.report import Planned, Report
from labtrack.tracking import names
from labtrack.tracking.http import ServerError


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
