"""Numbers as recorders really write them: floats, fractions, BLOBs, dates, texts, cut lines."""

from __future__ import annotations

import sqlite3
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recorded import add_points, make_sqlite

from labtrack.stores import MetricPoint, Store, open_store
from labtrack.stores.numbers import Steps, floor, metric_value, number, whole


def metric(root: Path, run: str, content: str, key: str = "loss") -> Path:
    path = root / "0" / run / "metrics" / key
    path.write_text(content)
    return path


def status(root: Path, run: str, number: int) -> None:
    path = root / "0" / run / "meta.yaml"
    path.write_text(path.read_text().replace("status: 1", f"status: {number}"))


def steps(store: Store, run: str) -> list[tuple[int, object]]:
    found = list(store.points(run))
    assert sum(store.metric_keys(run).values()) == len(found)
    return [(point.step, point.recorded and point.recorded[1]) for point in found]


class TestNumbers:
    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            (50.0, 50),
            ("50.0", 50),
            ("50", 50),
            (True, 1),
            (struct.pack("<q", -7), -7),
            (struct.pack("<i", 7), 7),
            (0.5, None),
            (float("nan"), None),
            (float("inf"), None),
            (2.0**63, None),
            ("abc", None),
            (b"abc", None),
            (None, None),
        ],
    )
    def test_whole(self, given: object, expected: int | None) -> None:
        assert whole(given) == expected

    def test_dates_are_times(self) -> None:
        assert number("2024-05-01 12:00:00") == number("2024-05-01T12:00:00Z") == 1_714_564_800_000
        assert floor("2024-05-01T14:00:00+02:00") == 1_714_564_800_000

    def test_values(self) -> None:
        assert metric_value(struct.pack("<f", 0.25)) == 0.25
        assert metric_value(struct.pack("<e", 0.25)) == 0.25
        assert metric_value(struct.pack("<q", 12)) == metric_value(struct.pack("<i", 12)) == 12.0
        assert metric_value("0.5") == 0.5 and metric_value("none") is None and metric_value(b"abc") is None

    def test_fractional_steps_of_half_epochs(self) -> None:
        found = Steps()
        assert [found.of("loss", one / 2) for one in range(6)] == [0, 1, 2, 3, 4, 5]
        found = Steps()
        assert [found.of("loss", one) for one in (5, 6, 6.5, 7, 100, 7.5)] == [5, 6, 7, 8, 100, 101]
        assert [found.of("other", one) for one in (3, 2, 2)] == [3, 2, 2], "whole ones stay, whatever their order"

    @given(st.lists(st.one_of(st.integers(-50, 50), st.floats(-50, 50)), max_size=30), st.integers(0, 30))
    def test_no_two_points_fall_on_one_from_the_first_fraction_on(self, given: list[float], at: int) -> None:
        found = Steps()
        before = [found.of("m", one) for one in given[:at]]
        other = found.copy()
        rest = [found.of("m", one) for one in given[at:]]
        assert rest == [other.of("m", one) for one in given[at:]], "what comes later changes nothing"
        first = next((place for place, one in enumerate(given) if one != int(one)), len(given))
        assert (before + rest)[:first] == given[:first]
        late = (before + rest)[first:]
        assert sorted(set(late)) == late, "each greater than the last"


class TestOddNumbersInFiles:
    def test_float_steps(self, root: Path, run: str) -> None:
        metric(root, run, "".join(f"17000000000{i:02d} 0.5 {i * 10}.0\n" for i in range(20)))
        with open_store(root) as store:
            assert steps(store, run) == [(i * 10, None) for i in range(20)]
            assert store.problems() == []

    def test_fractional_steps(self, root: Path, run: str) -> None:
        metric(root, run, "".join(f"170000000000{i} 0.5 {i / 2}\n" for i in range(4)))
        with open_store(root) as store:
            assert steps(store, run) == [(0, None), (1, 0.5), (2, 1), (3, 1.5)]
            assert [one.step for one in store.points(run, {"loss": 2})] == [2, 3]
            assert store.problems() == []

    def test_times_in_seconds_and_steps_in_nanoseconds(self, root: Path, run: str) -> None:
        metric(root, run, "1650542345.25 0.5 1\n1650542346.5 0.4 2\n", "seconds")
        metric(root, run, "1700000000000 0.5 1700000000000000000\n", "ns")
        metric(root, run, "1700000000000000000 0.5 1\n1700000000000000001 0.4 2\n", "ns_time")
        with open_store(root) as store:
            found = list(store.points(run))
            assert store.problems() == []
        assert found == [
            MetricPoint("ns", 0.5, 1_700_000_000_000, 1_700_000_000_000_000_000),
            MetricPoint("ns_time", 0.5, 1_700_000_000_000_000_000, 1),
            MetricPoint("ns_time", 0.4, 1_700_000_000_000_000_001, 2),
            MetricPoint("seconds", 0.5, 1_650_542_345, 1, (1650542345.25, 1)),
            MetricPoint("seconds", 0.4, 1_650_542_346, 2, (1650542346.5, 2)),
        ]

    @pytest.mark.parametrize("number", [3, 4, 5])
    def test_the_last_line_of_a_run_that_is_over(self, root: Path, run: str, number: int) -> None:
        metric(root, run, "1700000000000 0.5 0\n1700000000001 0.93 1")
        with open_store(root) as store:
            assert steps(store, run) == [(0, None)], "it may be half written"
            status(root, run, number)
            assert steps(store, run) == [(0, None), (1, None)]
            assert store.problems() == []

    @pytest.mark.parametrize("cut", ["1700000000001 0.9", "1700000000001 ", "17"])
    def test_the_last_line_of_a_run_that_is_over_and_cut(self, root: Path, run: str, cut: str) -> None:
        status(root, run, 3)
        for content in ("1700000000000 0.5 0\n" + cut, cut):
            metric(root, run, content)
            with open_store(root) as store:
                assert len(steps(store, run)) == content.count("\n")
                (problem,) = store.problems()
            assert problem.run_id == run and "1 damaged line" in problem.what


class TestOddNumbersInSqlite:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "mlflow.db"

    def test_numpy_steps_are_blobs(self, path: Path) -> None:
        (run,) = make_sqlite(path)
        blobs = [("loss", 0.5 * i, 1_700_000_000_000 + i, struct.pack("<q", i)) for i in range(20)]
        add_points(path, run, blobs)  # type: ignore[arg-type]
        with open_store(path) as store:
            assert steps(store, run) == [(i, None) for i in range(20)]
            assert list(store.points(run))[3] == MetricPoint("loss", 1.5, 1_700_000_000_003, 3)

    def test_fractional_steps(self, path: Path) -> None:
        (run,) = make_sqlite(path)
        add_points(path, run, [("loss", 1.0 / (i + 1), 5, i / 2) for i in range(10)])  # type: ignore[arg-type, misc]
        with open_store(path) as store:
            found = steps(store, run)
            assert [step for step, _ in found] == list(range(10))
            assert [recorded for _, recorded in found[1:]] == [i / 2 for i in range(1, 10)]
            add_points(path, run, [("loss", 0.5, 6, 5)])
            assert [one.step for one in store.points(run, {"loss": 10})] == [10], "it goes on from what was read"

    def test_what_is_no_number_loses_only_its_point(self, path: Path) -> None:
        run, other = make_sqlite(path, runs=2)
        add_points(path, run, [("a", 1.0, 5, 0), ("a", "abc", 6, 1), ("a", 2.0, "abc", 2), ("a", 3.0, 7, "abc")])  # type: ignore[list-item]
        with open_store(path) as store:
            assert list(store.points(run)) == [
                MetricPoint("a", 1.0, 5, 0),
                MetricPoint("a", 2.0, 0, 2, ("abc", 2)),
                MetricPoint("a", 3.0, 7, 3, (7, "abc")),
            ]
            (problem,) = store.problems()
            assert problem.run_id == run and "1 point(s)" in problem.what and "'abc' at step 1" in problem.what
            assert [one.step for one in store.points(run, {"a": 2})] == [3], "what was left out is not counted"
            assert {one.id for one in store.runs()} == {run, other}

    def test_dates_texts_and_blobs_in_runs_and_experiments(self, path: Path) -> None:
        run, other = make_sqlite(path, runs=2)
        with sqlite3.connect(path) as db:
            db.execute("UPDATE experiments SET creation_time = '2024-05-01 12:00:00', last_update_time = x'00ff00'")
            db.execute("UPDATE runs SET start_time = x'0100000000000000', end_time = 'soon' WHERE run_uuid = ?", [run])
            db.execute("INSERT INTO params (key, value, run_uuid) VALUES ('p', x'6162', ?)", [run])
            db.execute("INSERT INTO tags (key, value, run_uuid) VALUES ('t', x'00ff', ?)", [run])
            db.execute("INSERT INTO experiment_tags (key, value, experiment_id) VALUES ('t', x'61', 0)")
        db.close()
        with open_store(path) as store:
            (experiment,) = store.experiments()
            assert (experiment.creation_time, experiment.last_update_time) == (1_714_564_800_000, None)
            assert experiment.tags == {"t": "a"}
            assert len(store.identity) == 32
            found = store.run(run)
            assert (found.start_time, found.end_time) == (1, None)
            assert (found.params, found.tags) == ({"p": "ab"}, {"t": "\0\ufffd"})
            assert store.run(other).start_time == 1_700_000_000_001
            assert {(one.run_id, one.experiment_id) for one in store.problems()} == {(run, None), (None, "0")}

    def test_an_experiment_without_its_row(self, path: Path) -> None:
        run, other = make_sqlite(path, runs=2)
        with sqlite3.connect(path) as db:
            db.execute("UPDATE runs SET experiment_id = 7 WHERE run_uuid = ?", [run])
        db.close()
        with open_store(path) as store:
            identity = store.identity
            assert [(one.id, one.name) for one in store.experiments()] == [
                ("0", "Default"),
                ("7", "unnamed experiment 7"),
            ]
            assert {one.id: one.experiment_id for one in store.runs()} == {run: "7", other: "0"}
            (problem,) = store.problems()
            assert problem.experiment_id == "7" and "its name is lost" in problem.what
        with sqlite3.connect(path) as db:
            db.execute("UPDATE runs SET experiment_id = 0")
        db.close()
        with open_store(path) as store:
            assert store.identity == identity

    def test_runs_of_a_deleted_experiment_are_deleted(self, path: Path) -> None:
        (run,) = make_sqlite(path)
        with sqlite3.connect(path) as db:
            db.execute("UPDATE experiments SET lifecycle_stage = 'deleted'")
        db.close()
        with open_store(path) as store:
            assert list(store.runs()) == []
            assert [(one.id, one.lifecycle_stage) for one in store.runs(deleted=True)] == [(run, "deleted")]
            assert store.run(run).lifecycle_stage == "deleted"

    @pytest.mark.parametrize("name", ["", "  ", None])
    def test_an_experiment_without_a_name(self, path: Path, name: str | None) -> None:
        make_sqlite(path)
        with sqlite3.connect(path) as db:
            db.execute("UPDATE experiments SET name = ?", [name or ""])
        db.close()
        with open_store(path) as store:
            assert [one.name for one in store.experiments()] == ["unnamed experiment 0"]
            (problem,) = store.problems()
            assert "has no name" in problem.what and not problem.damage


ODD = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=9),
    st.none(),
    st.sampled_from(["50.0", "2024-05-01 12:00:00", "nan", struct.pack("<q", 7), struct.pack("<f", 0.5)]),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(ODD, ODD, ODD, ODD), max_size=12), at=st.integers(0, 12), times=st.tuples(ODD, ODD, ODD))
def test_whatever_stands_in_the_tables_is_a_point_or_told(
    tmp_path: Path, rows: list[tuple[object, ...]], at: int, times: tuple[object, ...]
) -> None:
    path = tmp_path / "mlflow.db"
    path.unlink(missing_ok=True)
    run, other = make_sqlite(path, runs=2)
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE metrics")
        db.execute("CREATE TABLE metrics (key, value FLOAT, timestamp BIGINT, step BIGINT, run_uuid, is_nan BOOLEAN)")
        insert = "INSERT INTO metrics (key, value, timestamp, step, run_uuid, is_nan) VALUES (?, ?, ?, ?, ?, 0)"
        db.executemany(insert, [(*row, run) for row in rows])
        db.execute("UPDATE experiments SET creation_time = ?, last_update_time = ?", times[:2])
        db.execute("UPDATE runs SET start_time = ?, end_time = ? WHERE run_uuid = ?", [*times[1:], run])
    db.close()
    with open_store(path) as store:
        found = list(store.points(run))
        lost = [one for one in store.problems() if one.run_id == run and "were left out" in one.what]
        assert len(found) + sum(int(one.what.split()[0]) for one in lost) == len(rows)
        for point in found:
            assert type(point.step) is type(point.timestamp) is int and type(point.value) is float
            assert type(point.key) is str
        assert {one.id for one in store.runs()} == {run, other}
        assert [one.id for one in store.experiments()] == ["0"] and len(store.identity) == 32
    counts: dict[str, int] = {}
    for point in found[:at]:
        counts[point.key] = counts.get(point.key, 0) + 1
    with open_store(path) as store:
        rest = list(store.points(run, counts))
    assert repr(sorted(map(repr, found[:at] + rest))) == repr(sorted(map(repr, found))), "it goes on where it stopped"
