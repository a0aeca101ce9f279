"""What is cut off or changed in a file of TensorBoard or wandb: what is read was recorded, and what is lost is told."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_stores_foreign_tensorboard import began, event
from test_stores_foreign_wandb import EXIT, field, history, item, log, run

from foreign_recorder import T0
from labtrack.stores import MetricPoint, open_store


class Read(NamedTuple):
    points: list[MetricPoint]
    told: list[str]


def read(name: str, data: bytes) -> Read:
    """The points of all runs in a folder with this one file, and all that is told of it."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(data)
        with open_store(Path(folder) / name) as store:
            found = []
            for one in store.runs():
                points = list(store.points(one.id))
                assert sum(store.metric_keys(one.id).values()) == len(points)
                assert list(store.points(one.id, store.metric_keys(one.id))) == []
                found += points
            return Read(found, [problem.what for problem in store.problems()])


@functools.cache
def recording(kind: str) -> tuple[str, bytes, tuple[MetricPoint, ...]]:
    """A file, and the points in it."""
    if kind == "tensorboard":
        events = [event(tag, step / 4, step, T0 + step) for step in range(1, 16) for tag in ("loss", "val/acc")]
        name, data = "events.out.tfevents.1", began(T0) + b"".join(events)
    else:
        long = {"text": "x" * 40_000}
        records = [
            history(step, {"loss": step / 4, "acc": 1 - step, **(long if step == 7 else {})}) for step in range(15)
        ]
        name, data = "run-a.wandb", log(run(), *records, field(3, item(0.75, "best")), EXIT)
    points, told = read(name, data)
    assert len(points) >= 30 and not any("damaged" in one or "cut" in one for one in told)
    return name, data, tuple(points)


def is_subsequence(some: list[MetricPoint], of: tuple[MetricPoint, ...]) -> bool:
    """Whether all of it was recorded, in this order; what is of a summary has the step that is known as the last."""
    left = iter(of)
    return all(one in left for one in some if one.key != "best") and all(
        one.value == 0.75 for one in some if one.key == "best"
    )


@pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
@settings(max_examples=60, deadline=None)
@given(place=st.floats(0, 1))
def test_what_is_left_of_a_cut_file_is_read(kind: str, place: float) -> None:
    name, data, whole = recording(kind)
    size = int(place * len(data))
    points, told = read(name, data[:size])
    history_of = [one for one in points if one.key != "best"]
    assert tuple(history_of) == whole[: len(history_of)]
    assert is_subsequence(points, whole)
    again, _ = read(name, data[: size - 1] if size else b"")
    if [one for one in again if one.key != "best"] == history_of and size and points != list(whole):
        assert told, "it does not end with a record"


@pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4))
def test_changed_bytes_give_no_other_values(kind: str, changes: list[tuple[float, int]]) -> None:
    name, data, whole = recording(kind)
    changed = bytearray(data)
    for place, other in changes:
        changed[int(place * len(data))] ^= other
    points, told = read(name, bytes(changed))
    assert is_subsequence(points, whole)
    if len(points) < len(whole):
        assert told


@pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
@settings(max_examples=40, deadline=None)
@given(
    place=st.floats(0, 1),
    hole=st.integers(1, 3000),
    filled=st.sampled_from([b"\0", b"\xff", b"\n"]),
    cuts=st.booleans(),
)
def test_holes_give_no_other_values(kind: str, place: float, hole: int, filled: bytes, cuts: bool) -> None:
    name, data, whole = recording(kind)
    at = int(place * len(data))
    points, told = read(name, data[:at] + (b"" if cuts else filled * min(hole, len(data) - at)) + data[at + hole :])
    assert is_subsequence(points, whole)
    if len(points) < len(whole) and not cuts:  # whole records that are cut out leave no trace
        assert told


@pytest.mark.parametrize("name", ["events.out.tfevents.1", "run-a.wandb"])
@settings(max_examples=30, deadline=None)
@given(data=st.binary(max_size=300))
@example(data=b"PK\x03\x04")  # of a zip file
@example(data=b"SQLite format 3\x00")
def test_any_bytes_are_told(name: str, data: bytes) -> None:
    points, told = read(name, data)
    assert points == [] and told
