"""Searches by the value of a parameter or tag: MLflow's answers, by a plan that is made for the value."""

from __future__ import annotations

import itertools
import time

import pytest
from lab_server import LabServer
from read_calls import MLFLOW_S, SEARCH, Question
from test_reads_equal import ask

INDEX, IN_ORDER = "labtrack_values_of_{}", "labtrack_runs_of_client"
BEGINNING = 100  # characters of a value that are in the index
# Most runs have one value, few have another: of these two start with the same characters, and end otherwise.
MANY, RARE = 2_000, {"rare": 7, "l" * BEGINNING + "1": 2, "l" * BEGINNING + "2": 3, "l" * BEGINNING: 4}
CROWD = """
INSERT INTO runs (run_uuid, name, source_type, user_id, status, start_time, lifecycle_stage, experiment_id)
SELECT md5('valued ' || n), 'valued', 'UNKNOWN', 'ada', 'FINISHED', n, 'active', {experiment}
FROM generate_series(1, {many}) n;
INSERT INTO params (key, value, run_uuid) SELECT 'valued', coalesce((ARRAY{rare})[n / 3], 'common'), md5('valued ' || n)
FROM generate_series(1, {many}) n;
INSERT INTO tags (key, value, run_uuid) SELECT key, value, run_uuid FROM params WHERE key = 'valued';
ANALYZE runs, params, tags;
"""
SCANS = "SELECT coalesce(sum(idx_scan), 0) FROM pg_stat_user_indexes WHERE indexrelname = '{}'"
PATIENCE = 30.0  # seconds; a connection tells what it has scanned each second


@pytest.fixture(scope="module")
def crowded(pair: tuple[LabServer, LabServer]) -> tuple[LabServer, str]:
    """A server, and its experiment with many runs."""
    server = pair[1]
    experiment = server.experiment("of values")
    rare = list(itertools.chain.from_iterable([value] * many for value, many in RARE.items()))
    server.sql(CROWD.format(experiment=experiment, many=MANY, rare=rare))
    return server, experiment


def scanned(server: LabServer, experiment: str, question: Question, index: str) -> None:
    """Asks until the INDEX is known to have been scanned once more."""
    before, end = server.sql(SCANS.format(index)), time.monotonic() + PATIENCE
    while server.sql(SCANS.format(index)) == before:
        assert time.monotonic() < end, f"{index} is not used for {question}"
        ask(server, question, [experiment] * 2, [""])


def by(kind: str, value: str, most: int) -> Question:
    return Question(SEARCH, {"experiment_ids": ["own"], "filter": f"{kind}.valued = '{value}'", "max_results": most})


@pytest.mark.parametrize("kind", ["params", "tags"])
def test_runs_with_a_value_are_those_that_mlflow_finds(crowded: tuple[LabServer, str], kind: str) -> None:
    server, experiment = crowded
    for value in (*RARE, "common", "none"):
        question = by(kind, value, 3)
        mlflow_s = ask(server, question, [experiment] * 2, [""], **MLFLOW_S)
        before = server.last_native()
        native = ask(server, question, [experiment] * 2, [""])
        assert server.last_native() > before
        assert native.content == mlflow_s.content, value
        assert len(native.json().get("runs", [])) == (0 if value == "none" else 3)
    scanned(server, experiment, by(kind, "rare", 5), INDEX.format(kind.removesuffix("s")))


def test_the_plan_is_one_for_the_value(crowded: tuple[LabServer, str]) -> None:
    """An index gives the runs with a rare value, and the runs in their order those with a common one."""
    server, experiment = crowded
    index = INDEX.format("param")
    for _ in range(8):  # after five PostgreSQL would plan it for any value, where it may
        ask(server, by("params", "rare", 5), [experiment] * 2, [""])
    scanned(server, experiment, by("params", "rare", 5), index)
    scanned(server, experiment, by("params", "common", 5), IN_ORDER)
    by_value = server.sql(SCANS.format(index))
    scanned(server, experiment, by("params", "common", 5), IN_ORDER)
    assert server.sql(SCANS.format(index)) == by_value


def test_indexes_and_statistics_are_made_once(pair: tuple[LabServer, LabServer]) -> None:
    server, name = pair[1], INDEX.format("tag")
    server.sql(f"DROP INDEX {name}; DROP STATISTICS {name}")
    assert server.indexes() == [f"made {name}", f"made the statistics {name}"]
    assert server.indexes() == []
