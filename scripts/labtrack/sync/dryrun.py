"""What --dry-run asks the server: whether the account may do what would be done.  Nothing is changed there."""

from __future__ import annotations

from labtrack.errors import LabtrackError
from labtrack.stores.model import DELETED
from labtrack.sync import alone, registry, traces
from labtrack.sync.faults import words
from labtrack.sync.plan import Plan, Todo
from labtrack.sync.push import Context
from labtrack.sync.report import Report


def ask(context: Context, plan: Plan, report: Report, experiment: str | None) -> None:
    """What the account may not do is a failure of the run, model, name or experiment that it would be done for.

    experiment: as in `plan.make`.
    """
    asking = _Asking(context, plan, report)
    for item in plan.to_send:
        asking.experiment(item.run.id, item.experiment, new=item.copy is None)
    for model in report.models:
        if model.todo != Todo.NOTHING.value:
            asking.experiment(model.run_id, model.experiment, new=model.todo == Todo.CREATE.value)
    if not report.narrowed:
        for name in traces.plan_traces(context, plan, report, experiment):
            asking.experiment(f"traces of experiment {name}", name, new=True)
    asking.names(registry.links(context, plan, experiment))
    alone.send_experiments(context, plan, report, experiment)
    for name in report.experiments:
        asking.experiment(f"experiment {name}", name, new=False)


class _Asking:
    """Asks once for each experiment."""

    def __init__(self, context: Context, plan: Plan, report: Report) -> None:
        self._context, self._plan, self._report = context, plan, report
        self._answers: dict[str, str] = {}

    def experiment(self, what: str, name: str, *, new: bool) -> None:
        """Whether the account may write to an experiment, or make it.  new: something is to be made in it."""
        known = self._plan.experiments.get(name)
        if name not in self._answers:
            self._answers[name] = self._context.destination.refuses_writing(known.id if known else None)
        why = self._answers[name]
        if not why and new and known and known.stage == DELETED:
            try:
                self._context.experiments.id_of(name)
            except LabtrackError as error:
                why = words(error)
        self.tell(what, why)

    def names(self, links: registry.Links) -> None:
        """Whether the account may make the registered names that are missing, or add what is missing of them."""
        source, destination = self._context.source, self._context.destination
        found = registry.link(source, destination, links, look=True, narrowed=self._report.narrowed)
        self._report.failed.update({name: [why] for name, why in found.failed.items()})
        lacking = [*found.missing, *found.left]
        for called, name in found.seen.items():
            if any(one == called or one.startswith(f"{called} version ") for one in lacking):
                self.tell(called, destination.refuses_registering(name))

    def tell(self, what: str, why: str) -> None:
        """Notes a refusal; nothing where there is none."""
        if why:
            self._report.failed.setdefault(what, []).append(f"would not be sent: {why}")
