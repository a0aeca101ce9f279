"""What other trackers' own packages recorded (tests/fixtures/foreign), and what it has to be read as."""

from __future__ import annotations

import functools
import math
import tempfile
from pathlib import Path

from foreign_recorder import Training, trainings
from labtrack.stores import Store
from make_foreign_fixtures import unpack

# where the two trainings are in what each tracker recorded
PLACES = {
    "tensorboard": "runs",
    "wandb": "wandb",
    "wandb-0.12": "wandb",
    "csvlogger": "runs",
    "dvclive": "runs",
    "sacred": "runs",
    "trackio": "trackio/denoising.db",
}

_kept: list[tempfile.TemporaryDirectory[str]] = []


@functools.cache
def foreign(name: str) -> Path:
    """What one tracker recorded, unpacked once for tests that only read."""
    folder = tempfile.TemporaryDirectory(prefix="labtrack-foreign-")
    _kept.append(folder)
    return unpack(name, Path(folder.name).resolve())


Points = dict[str, list[tuple[int, object]]]


def expected(training: Training) -> Points:
    """The points of a training: step and value by key, as they were logged."""
    found: Points = {}
    for point in training.points:
        found.setdefault(point.key, []).append((point.step, _same(point.value)))
    return found


def read(store: Store, run_id: str) -> Points:
    """The points of a run in the same form; that counts and skipping agree with them is checked."""
    points = list(store.points(run_id))
    found: Points = {}
    for point in points:
        found.setdefault(point.key, []).append((point.step, _same(point.value)))
    counts = store.metric_keys(run_id)
    assert counts == {key: len(values) for key, values in found.items()}
    for part in (0, 1, 3):
        skip = {key: count * part // 3 for key, count in counts.items()}
        rest: Points = {key: values[: skip[key]] for key, values in found.items()}
        for point in store.points(run_id, skip):
            rest[point.key].append((point.step, _same(point.value)))
        assert rest == found
    return found


def times(training: Training) -> dict[str, list[int]]:
    """The times of its points in ms, by key."""
    found: dict[str, list[int]] = {}
    for point in training.points:
        found.setdefault(point.key, []).append(round(point.time * 1000))
    return found


def _same(value: float) -> object:
    """nan is not nan."""
    return "nan" if math.isnan(value) else value


__all__ = ["PLACES", "expected", "foreign", "read", "times", "trainings"]
