"""Facts that people name in one of a few ways: the dataset, the stage, the model of a run."""

from __future__ import annotations

from collections.abc import Mapping

from labtrack.stores.model import Run, Store

# tags come before parameters, earlier names before later ones
NAMES: dict[str, tuple[str, ...]] = {
    "dataset": ("dataset", "dataset_name"),
    "stage": ("stage",),
    "model": ("model", "model_name", "model_arch", "model_type", "arch"),
    "model_size": ("model_size", "scale"),
    "model_arch": ("model_arch", "model_type", "arch"),
    "scenario": ("scenario", "test_scenario"),
    "use_kd": ("use_kd", "has_kd"),
    "seed": ("seed", "random_seed", "random_state"),
    "teacher_run_id": ("teacher_run_id",),
}


def named(run: Run, name: str) -> str | None:
    """A fact of a run: a tag or parameter of one of its names; of the dataset also MLflow's own record."""
    for values in (run.tags, run.params):
        for one in NAMES[name]:
            if one in values:
                return values[one]
    if name == "dataset" and run.inputs:
        return run.inputs[0].name
    return None


class Alike:
    """Whether a run has the facts that are asked for: `wanted` for `collect`."""

    def __init__(self, asked: Mapping[str, str | None]) -> None:
        self._asked = {name: value for name, value in asked.items() if value is not None}

    def __bool__(self) -> bool:
        return bool(self._asked)

    def __call__(self, store: Store, run: Run) -> bool:
        return all(named(run, name) == value for name, value in self._asked.items())
