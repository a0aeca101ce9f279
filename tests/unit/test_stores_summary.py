"""Summaries of metrics: what SQLite adds up is what the points give, whatever was recorded."""

from __future__ import annotations

import math
import sqlite3
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recorded import KINDS, VERSIONS, add_points, kept, make_files, make_sqlite

from labtrack.stores import MetricPoint, open_store
from labtrack.stores.filters import parse
from labtrack.stores.summary import LAST, PARTS, RANGE, Summary
from labtrack.stores.summing import of_points, summarise

_INDEX = "index_metrics_run_uuid_key_step"
steps = st.one_of(
    st.integers(-2, 3),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([0.5, 2.0, "7", "x", struct.pack("<q", 3), struct.pack("<i", 2), None]),
)
values = st.one_of(
    st.floats(allow_nan=False),
    st.integers(-2, 2),
    st.sampled_from([0.0, -0.0, "0.25", "nan", "none", struct.pack("<f", 0.5), 1.7976931348623157e308, None]),
)
times = st.one_of(st.integers(0, 3), st.sampled_from([1.5, "2", None, "2026-01-01"]))
plain = st.tuples(st.sampled_from("ab"), st.integers(-1, 2), st.integers(0, 2), st.integers(-1, 2), st.booleans())
odd = st.tuples(st.sampled_from(["a", "b", b"a", "c c"]), values, times, steps, st.booleans())


def written(path: Path, rows: list[tuple[int, Any, Any, Any, Any, Any]], *, indexed: bool) -> list[str]:
    """Two runs with rows as some recorder may have written them: without MLflow's constraints."""
    ids = make_sqlite(path, runs=2)
    with sqlite3.connect(path) as made:
        made.execute("DROP TABLE metrics")
        made.execute(
            "CREATE TABLE metrics (key VARCHAR(250), value FLOAT, timestamp BIGINT, run_uuid VARCHAR(32), step BIGINT, "
            "is_nan BOOLEAN)"
        )
        made.execute("CREATE INDEX index_metrics_run_uuid ON metrics (run_uuid)")
        if indexed:
            made.execute(f"CREATE INDEX {_INDEX} ON metrics (run_uuid, key, step)")
        made.executemany(
            "INSERT INTO metrics (key, value, timestamp, step, is_nan, run_uuid) VALUES (?, ?, ?, ?, ?, ?)",
            [(key, value, time, step, is_nan, ids[run]) for run, key, value, time, step, is_nan in rows],
        )
    made.close()
    return ids


def same(found: Any, expected: Any) -> bool:
    """Equality in which nan is nan and 0 is not -0."""
    return repr(found) == repr(expected)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 1), st.one_of(plain, odd)), max_size=12),
    keys=st.one_of(st.none(), st.sets(st.sampled_from(["a", "b", "c c", "none"]))),
    indexed=st.booleans(),
)
def test_sqlite_adds_up_what_the_points_give(
    tmp_path: Path, rows: list[Any], keys: set[str] | None, indexed: bool
) -> None:
    path = tmp_path / "mlflow.db"
    path.unlink(missing_ok=True)
    ids = written(path, [(run, *row) for run, row in rows], indexed=indexed)
    with open_store(path) as store:
        found = store.summaries(ids, keys)
        expected = {
            run: summarise([one for one in store.points(run) if keys is None or one.key in keys]) for run in ids
        }
    assert {run: dict(sorted(some.items())) for run, some in found.items()}.keys() == expected.keys()
    for run in ids:
        assert found[run].keys() == expected[run].keys()
        for key, summary in expected[run].items():
            assert same(_without_zeros(found[run][key]), _without_zeros(summary)), key


def _without_zeros(summary: Summary) -> Summary:
    """0 and -0 are equal: which of them is the smallest is nobody's."""
    return Summary(*(one + 0.0 if isinstance(one, float) and one == 0 else one for one in summary))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_version_and_kind_gives_what_its_points_give(version: str, kind: str) -> None:
    with open_store(kept(version) / KINDS[kind]) as store:
        ids = [run.id for run in store.runs()]
        found = store.summaries(ids)
        assert repr(sorted_(found)) == repr(sorted_(of_points(store, ids)))
        assert any(found.values())
        assert all(set(some) <= {"loss"} for some in store.summaries(ids, ["loss"]).values())


def sorted_(found: Any) -> Any:
    return {run: dict(sorted(some.items())) for run, some in sorted(found.items())}


def test_the_last_is_mlflows_by_step_time_and_value() -> None:
    points = [(5, 1.0, 10), (9, 2.0, 10), (9, 3.0, 10), (9, 2.5, 10), (99, 9.0, 2)]
    (found,) = summarise([MetricPoint("loss", value, time, step) for time, value, step in points]).values()
    assert (found.last, found.last_step, found.first, found.first_step) == (3.0, 10, 9.0, 2)
    assert (found.max, found.max_step, found.min, found.min_step, found.points) == (9.0, 2, 1.0, 10, 5)


def test_nan_never_wins_and_a_mean_with_nan_is_nan() -> None:
    found = summarise(MetricPoint("loss", value, 0, step) for step, value in enumerate([math.nan, 2.0, 1.0, math.nan]))
    one = found["loss"]
    assert (one.min, one.min_step, one.max, one.max_step) == (1.0, 2, 2.0, 1)
    assert math.isnan(one.last or 0) and math.isnan(one.mean or 0)
    (alone,) = summarise([MetricPoint("loss", math.nan, 0, 0)]).values()
    assert math.isnan(alone.min or 0) and alone.min_step is None


def test_only_the_metrics_that_are_asked_for_are_read(tmp_path: Path) -> None:
    (run,) = make_files(tmp_path / "mlruns")
    folder = tmp_path / "mlruns" / "0" / run / "metrics"
    (folder / "loss").write_text("1 0.5 0\n")
    (folder / "big").mkdir()
    (folder / "big" / "one").symlink_to("nowhere")
    with open_store(tmp_path / "mlruns") as store:
        assert list(store.summaries([run], ["loss"])[run]) == ["loss"]
        assert [one.key for one in store.points(run, keys=["loss"])] == ["loss"]


def test_points_of_some_metrics_leave_the_marks_alone(tmp_path: Path) -> None:
    (run,) = make_sqlite(tmp_path / "mlflow.db")
    add_points(tmp_path / "mlflow.db", run, [(key, 1.0, step, step) for step in range(3) for key in ("a", "b")])
    with open_store(tmp_path / "mlflow.db") as store:
        assert [one.step for one in store.points(run, keys=["b"])] == [0, 1, 2]
        assert len(list(store.points(run, {"a": 3, "b": 1}))) == 2
        assert [one.step for one in store.points(run, {"a": 3, "b": 1}, ["b"])] == [1, 2]
        assert list(store.points(run, keys=[])) == []


def test_a_damaged_page_costs_its_own_runs_and_is_told(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    ids = make_sqlite(path, runs=2)
    for run in ids:
        add_points(path, run, [("loss", float(step), step, step) for step in range(2000)])
    with sqlite3.connect(path) as made:
        (root,) = made.execute("SELECT rootpage FROM sqlite_master WHERE name = 'metrics'").fetchone()
        (size,) = made.execute("PRAGMA page_size").fetchone()
    made.close()
    data = bytearray(path.read_bytes())
    leaf = int.from_bytes(data[(root - 1) * size + 8 :][:4], "big")  # the right-most child: the last rows
    data[(leaf - 1) * size : leaf * size] = b"\xff" * size
    path.write_bytes(data)
    with open_store(path) as store:
        found = store.summaries(ids, ["loss"], {LAST, RANGE})
        assert found[ids[0]]["loss"].points == 2000
        assert any(one.run_id == ids[1] for one in store.problems())


def test_a_filter_by_a_metric_reads_it_by_the_same_rule(tmp_path: Path) -> None:
    (run_id,) = make_sqlite(tmp_path / "mlflow.db")
    add_points(tmp_path / "mlflow.db", run_id, [("f1", 0.9, 5, 1), ("f1", 0.4, 1, 2)])
    with open_store(tmp_path / "mlflow.db") as store:
        assert parse("metrics.f1 < 0.5")(store, store.run(run_id))
        assert not parse("metrics.none < 0.5")(store, store.run(run_id))
    assert {LAST, RANGE} < PARTS
