"""Points in columns: the rows that MLflow makes of the same points in batches, natively and by its store."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lab_server import ADA, ADMIN, BOB, LabServer
from sync_recording import Recording

PATH = "/api/2.0/labtrack/runs/log-points"
ROWS = "SELECT key, value + 0, timestamp, step, is_nan FROM {} WHERE run_uuid = '{}' ORDER BY 1, 3, 4, 2, 5"
PACKED = {"Content-Encoding": "gzip"}
Point = tuple[str, Any, int, int]
GOOD: list[Point] = [("loss", 0.5, 7, 1), ("loss", "NaN", 8, 2), ("a/b c", 3, 7, -1)]


def columns(run_id: str, points: list[Point]) -> dict[str, Any]:
    keys = list(dict.fromkeys(key for key, *_ in points))
    document: dict[str, Any] = {"run_id": run_id, "keys": keys, "key": [keys.index(key) for key, *_ in points]}
    for name, place in (("value", 1), ("timestamp", 2), ("step", 3)):
        document[name] = [one[place] for one in points]
    return document


def send(server: LabServer, document: Any, login: tuple[str, str] | None = ADA, **headers: str) -> tuple[int, str]:
    body = json.dumps(document).encode()
    answer = server.send(PATH, gzip.compress(body) if headers else body, login, **headers)
    return answer.status_code, answer.text


def rows(server: LabServer, run_id: str) -> list[list[str]]:
    return [server.sql(ROWS.format(table, run_id)) for table in ("metrics", "latest_metrics")]


def by_batches(server: LabServer, run_id: str, points: list[Point]) -> None:
    names = ("key", "value", "timestamp", "step")
    for first in range(0, len(points), 1000):
        metrics = [dict(zip(names, one)) for one in points[first : first + 1000]]
        server.post("runs/log-batch", {"run_id": run_id, "metrics": metrics})


@pytest.fixture(scope="module")
def runs(pair: tuple[LabServer, LabServer]) -> list[tuple[LabServer, str]]:
    """The two servers, each with an experiment."""
    return [(server, server.experiment("points")) for server in pair]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["loss", "acc/top 1", "lr"]),
            st.sampled_from(["NaN", "Infinity", "-Infinity", 0, -3]) | st.floats(allow_nan=False, allow_infinity=False),
            st.integers(0, 3) | st.integers(0, 2**62),
            st.integers(-2, 3) | st.integers(-(2**62), 2**62),
        ),
        min_size=1,
        max_size=40,
    ),
    st.booleans(),
)
def test_the_rows_are_those_of_batches(runs: list[tuple[LabServer, str]], points: list[Point], packed: bool) -> None:
    (plain, _), (native, _) = runs
    reference = plain.run(runs[0][1])
    by_batches(plain, reference, points)
    expected = rows(plain, reference)
    for server, experiment in runs:
        run_id, before = server.run(experiment), native.natively()
        for _ in range(2):  # what is there already stays
            assert send(server, columns(run_id, points), **PACKED if packed else {}) == (200, "{}")
            assert rows(server, run_id) == expected
        written = len(expected[0]) if server is native else 0
        assert native.natively() - before == written, "new points come natively, once"


def test_thousands_of_points_of_which_some_are_there(runs: list[tuple[LabServer, str]]) -> None:
    points: list[Point] = [(f"m{step % 7}", step / 3, step, step) for step in range(10_000)]
    (plain, experiment), _ = runs
    reference = plain.run(experiment)
    by_batches(plain, reference, points[::20])
    for first in range(0, 10_000, 500):
        by_batches(plain, reference, points[first : first + 500])
    for server, experiment in runs:
        run_id = server.run(experiment)
        by_batches(server, run_id, points[::20])
        assert send(server, columns(run_id, points), **PACKED) == (200, "{}")
        assert rows(server, run_id) == rows(plain, reference)


def test_an_account_that_is_not_known_yet_writes_natively(pair: tuple[LabServer, LabServer]) -> None:
    server = pair[1]
    made = server.post("runs/create", {"experiment_id": server.experiment("not known"), "run_name": "one"})
    before = server.natively()
    assert send(server, columns(made["run"]["info"]["run_id"], GOOD)) == (200, "{}")
    assert server.natively() - before == len(GOOD)


def broken(run_id: str) -> dict[str, Any]:
    good = columns(run_id, GOOD)
    many = columns(run_id, [("m", 0.5, 1, step) for step in range(10_001)])
    return {
        "no object": [good], "nothing": {}, "no run": {**good, "run_id": None},
        "a run that nobody made": {**good, "run_id": "f" * 32},
        "another field": {**good, "model_id": "m-1"}, "no points": columns(run_id, []), "too many": many,
        "a column less": {key: value for key, value in good.items() if key != "step"},
        "a short column": {**good, "step": [1, 2]}, "a column that is none": {**good, "value": "0.5"},
        "a key beyond": {**good, "key": [0, 1, 2]}, "a key before": {**good, "key": [0, -1, 1]},
        "a key of no kind": {**good, "key": [0, True, 1]}, "a name of no kind": {**good, "keys": ["loss", 7]},
        "a name that MLflow refuses": {**good, "keys": ["loss", "a;b"]},
        "a long name": {**good, "keys": ["loss", "k" * 251]},
        "a name with NUL": {**good, "keys": ["loss", "a\x00b"]}, "half a pair": {**good, "keys": ["loss", "a\ud800"]},
        "a value in quotes": {**good, "value": [1, "2", 3]}, "no value": {**good, "value": [1, None, 3]},
        "a value beyond": {**good, "value": [1, 10**400, 3]}, "a step in part": {**good, "step": [1, 2.5, 3]},
        "a step beyond": {**good, "step": [1, 2**63, 3]}, "a time beyond": {**good, "timestamp": [1, 2**64, 3]},
        "a time before 1970": {**good, "timestamp": [1, -2, 3]},
    }  # fmt: skip


@pytest.mark.parametrize("wrong", list(broken("")))
def test_what_is_not_understood_is_refused_by_both_in_the_same_words(
    runs: list[tuple[LabServer, str]], wrong: str
) -> None:
    said = []
    for server, experiment in runs:
        run_id = server.run(experiment)
        for headers in ({}, PACKED):
            status, text = send(server, broken(run_id)[wrong], **headers)
            # MLflow's own words, of the second portion or of the whole, name the place
            said.append((status, json.loads(text)["message"].replace(run_id, "RUN")))
            assert 400 <= status < 500, text
        assert rows(server, run_id) == [[], []]
    assert len(set(said)) == 1, said


def test_what_is_packed_badly_or_is_a_bomb_is_no_request(runs: list[tuple[LabServer, str]]) -> None:
    for server, experiment in runs:
        run_id = server.run(experiment)
        body = json.dumps(columns(run_id, GOOD)).encode()
        whole = gzip.compress(body)
        bomb = gzip.compress(body + b" " * 2**26)
        for bad in (whole[:-3], whole + b"more", b"", body, bomb, whole[:5] + b"\x00" * 30):
            assert server.send(PATH, bad, ADA, **PACKED).status_code == 400, bad[:20]
            assert server.send(PATH, bad, None, **PACKED).status_code == 401
        assert rows(server, run_id) == [[], []]


def test_who_may_not_log_to_the_run_may_not_in_columns(runs: list[tuple[LabServer, str]]) -> None:
    for server, experiment in runs:
        run_id = server.run(experiment)
        document = columns(run_id, GOOD)
        assert send(server, document, None)[0] == send(server, document, ("ada", "a wrong word"))[0] == 401
        for _ in range(2):
            assert send(server, document, BOB)[0] == 403
        assert rows(server, run_id) == [[], []]
        assert send(server, document, ADMIN)[0] == 200, "whom MLflow asks nothing"
        assert len(rows(server, run_id)[0]) == len(GOOD)
        server.post("runs/delete", {"run_id": run_id})
        status, text = send(server, {**document, "step": [7, 8, 9]})
        assert status == 400 and "active" in text and len(rows(server, run_id)[0]) == len(GOOD)


@pytest.mark.parametrize("kept", [True, False])
def test_a_sync_sends_a_long_run_in_columns_where_its_id_is_kept(
    pair: tuple[LabServer, LabServer], tmp_path: Path, kept: bool
) -> None:
    server = pair[1]
    recording = Recording(tmp_path / "recorded", f"long {kept}")
    values = [step / 7 for step in range(12_000)]
    values[100:103] = [float("nan"), float("inf"), float("-inf")]
    params = {f"p{one}": "v" for one in range(150)}
    run_id = recording.run(params=params, metrics={"loss": values, "acc": values[:50]})
    if not kept:  # somebody has that id
        tags = {"labtrack.source_run_id": run_id, "labtrack.source_store": "another", "labtrack.created": "1-me"}
        body = {"experiment_id": server.experiment("theirs"), "tags": [{"key": k, "value": v} for k, v in tags.items()]}
        server.post("runs/create", body)
    login = {"MLFLOW_TRACKING_USERNAME": ADA[0], "MLFLOW_TRACKING_PASSWORD": ADA[1]}
    environment = {**os.environ, **login, "XDG_STATE_HOME": str(tmp_path / "state"), "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "labtrack", "sync", "-s", str(recording.path), "-d", server.url, "-x", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert (report["failed"], report["counts"]["points"]) == ({}, 12_050), report
    calls = report["calls"]
    assert ("POST runs/log-points" in calls) is kept, calls
    assert calls["POST runs/search"] == (2 if kept else 3), "second copies are looked for where there can be some"
    assert calls["POST runs/log-batch"] <= 4 if kept else calls["POST runs/log-batch"] >= 12, calls
    (copy,) = server.sql(f"SELECT run_uuid FROM tags WHERE key = 'labtrack.source_run_id' AND value = '{run_id}' AND "
                         "run_uuid IN (SELECT run_uuid FROM metrics)")  # fmt: skip
    counted = server.sql(
        f"SELECT count(*), sum(step), count(*) FILTER (WHERE is_nan) FROM metrics WHERE run_uuid = '{copy}'"
    )
    assert counted == [f"12050|{sum(range(12_000)) + sum(range(50))}|1"]
