"""The native routes give MLflow's answers and leave MLflow's rows: the same calls to both, all of it compared."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from equal_calls import CALLS, DRAWN, HALF_READ, Call, said, send, tables
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from lab_server import ADA, LabServer
from sync_server import mlflow_bin

SEED = int(os.environ.get("LABTRACK_SEED") or random.SystemRandom().randrange(10**6))
SEQUENCES = st.lists(CALLS, min_size=4, max_size=14)
# Without shrinking: that takes minutes, and the calls of a failure are few.
print(f"LABTRACK_SEED={SEED}")  # pytest shows it with what fails
COMMON = {
    "deadline": None,
    "database": None,
    "phases": [Phase.generate],
    "report_multiple_bugs": False,
    "suppress_health_check": list(HealthCheck),
}
numbers = itertools.count()


def compare(pair: tuple[LabServer, LabServer], calls: list[Call]) -> None:
    """Send CALLS to both, about two runs of their own."""
    name = f"{SEED} {next(numbers)}"
    experiments = [server.experiment(name) for server in pair]
    runs = [[server.run(one, "first"), server.run(one, "second")] for server, one in zip(pair, experiments)]
    trail: list[str] = []
    parted = set()  # runs of which MLflow has kept a part of what ours refused
    for call in calls:
        place = call.run % len(runs[0]) if isinstance(call.run, int) else call.run
        if place in parted or (parted and call.body is None and call.twice == "other"):
            continue
        plain, native = map(send, pair, [call] * 2, experiments, runs)
        trail.append(f"{call} -> {plain.status_code} {native.status_code}")
        if native.status_code == 400 and HALF_READ in native.text:
            # it goes by the half: 200, or a complaint of what it has dropped
            assert plain.status_code in (200, 400, 404), "\n".join([*trail, plain.text, native.text])
            parted.add(place)
            continue
        assert said(native, runs[1]) == said(plain, runs[0]), "\n".join(trail)
        if call.path == "runs/create" and native.ok:
            for known, answer in zip(runs, (plain, native)):
                known.append(answer.json()["run"]["info"]["run_id"])
    whole = [[run for place, run in enumerate(own) if place not in parted] for own in runs]
    if whole[0]:
        assert tables(pair[1], whole[1]) == tables(pair[0], whole[0]), "\n".join(trail)


@seed(SEED)
@settings(max_examples=40, **COMMON)
@given(calls=SEQUENCES)
def test_native_routes_answer_and_write_as_mlflow(pair: tuple[LabServer, LabServer], calls: list[Call]) -> None:
    compare(pair, calls)


@pytest.mark.long
@pytest.mark.timeout(7200)
@seed(SEED + 1)
@settings(max_examples=2000, **COMMON)
@given(calls=SEQUENCES)
def test_native_routes_answer_and_write_as_mlflow_for_an_hour(
    pair: tuple[LabServer, LabServer], calls: list[Call]
) -> None:
    compare(pair, calls)


PLAIN = [
    ("runs/log-metric", {"key": "loss", "value": 0.5, "timestamp": 1, "step": 2}, 1),
    ("runs/log-metric", {"key": "loss", "value": "NaN", "timestamp": 1}, 1),
    ("runs/log-parameter", {"key": "lr", "value": "0.1"}, 1),
    ("runs/set-tag", {"key": "why", "value": "a test"}, 1),
    (
        "runs/log-batch",
        {
            "metrics": [{"key": f"m{i % 20}", "value": i, "timestamp": 1, "step": i} for i in range(898)],
            "params": [{"key": f"p{i}", "value": ""} for i in range(50)],
            "tags": [{"key": f"t{i}", "value": "grün"} for i in range(50)],
        },
        998,
    ),
]


@pytest.mark.parametrize(("path", "document", "rows"), PLAIN)
def test_plain_calls_are_answered_natively(
    pair: tuple[LabServer, LabServer], path: str, document: dict, rows: int
) -> None:
    plain, native = pair
    run_id = native.run(native.experiment(f"plain {next(numbers)}"))
    before, elsewhere = native.natively(), plain.natively()
    native.post(path, {"run_id": run_id, **document})
    assert native.natively() - before == rows
    plain.post(path, {"run_id": plain.run(plain.experiment(f"plain {next(numbers)}")), **document})
    assert plain.natively() == elsewhere == 0
    assert "the routes of training loops are MLflow's own: LABTRACK_NATIVE is 0" in plain.log()


def test_points_of_which_some_are_there_already_are_written_natively_too(pair: tuple[LabServer, LabServer]) -> None:
    server = pair[1]
    run_id = server.run(server.experiment(f"some there {next(numbers)}"))
    points = [{"key": f"m{step % 3}", "value": -step, "timestamp": 1, "step": step} for step in range(20)]
    before = server.natively()
    for many in (12, 20, 20):
        metrics, params = points[:many], [{"key": f"p{many}", "value": "v"}]
        server.post("runs/log-batch", {"run_id": run_id, "metrics": metrics, "params": params})
    assert server.natively() - before == 20 + 2
    assert len(tables(server, [run_id])["metrics"]) == 20


def test_a_run_begins_and_ends_natively_and_its_first_write_is_native_too(pair: tuple[LabServer, LabServer]) -> None:
    server = pair[1]
    experiment = server.experiment(f"begun {next(numbers)}")
    server.run(experiment)  # nobody has asked yet, so MLflow is
    tags = [{"key": "why", "value": "a test"}, {"key": "mlflow.user", "value": "ada"}]
    before = server.natively()
    made = server.post("runs/create", {"experiment_id": experiment, "start_time": 5, "user_id": "ada", "tags": tags})
    assert server.natively() - before == 3
    run_id, name = made["run"]["info"]["run_id"], made["run"]["info"]["run_name"]
    assert made["run"]["data"]["tags"] == [*tags, {"key": "mlflow.runName", "value": name}]
    server.post("runs/log-metric", {"run_id": run_id, "key": "loss", "value": 1, "timestamp": 1})
    assert server.natively() - before == 4
    at = server.last_native()
    end = {"run_id": run_id, "run_uuid": run_id, "status": "FINISHED", "end_time": 9, "run_name": "done"}
    info = server.post("runs/update", end)["run_info"]
    assert server.last_native() > at
    assert (info["status"], info["end_time"], info["run_name"]) == ("FINISHED", 9, "done")
    found = server.call("GET", f"runs/get?run_id={run_id}", None)["run"]
    assert found["info"] == info
    assert {"key": "mlflow.runName", "value": "done"} in found["data"]["tags"]


def test_an_instance_has_no_libraries_in_memory_that_models_alone_need(pair: tuple[LabServer, LabServer]) -> None:
    process = pair[1].process
    assert process is not None
    there = Path(f"/proc/{process.pid}/maps").read_text()
    assert {name: f"/{name}/" in there for name in ("pandas", "pyarrow", "scipy")} == {
        "pandas": True,
        "pyarrow": False,
        "scipy": False,
    }


def test_runs_that_begin_at_once_are_as_many_as_asked_for(pair: tuple[LabServer, LabServer]) -> None:
    server = pair[1]
    experiment = server.experiment(f"begun at once {next(numbers)}")
    server.run(experiment)
    with ThreadPoolExecutor(12) as pool:
        made = list(pool.map(server.run, [experiment] * 48))
    assert len(set(made)) == 48
    assert server.sql(f"SELECT count(*) FROM runs WHERE experiment_id = {experiment}") == ["49"]


def test_no_run_begins_in_an_experiment_that_was_deleted_meanwhile(pair: tuple[LabServer, LabServer]) -> None:
    server = pair[1]
    experiment = server.experiment(f"deleted {next(numbers)}")
    for _ in range(2):
        server.run(experiment)
    server.post("experiments/delete", {"experiment_id": experiment})
    refused = server.send("runs/create", json.dumps({"experiment_id": experiment}).encode())
    assert (refused.status_code, "must be in the 'active' state" in refused.text) == (400, True)
    assert server.sql(f"SELECT count(*) FROM runs WHERE experiment_id = {experiment}") == ["2"]


CLIENT = """
import mlflow
client = mlflow.MlflowClient()
for number in range(2):
    made = client.create_run(EXPERIMENT, start_time=5, run_name="one", tags={"a": "b", "mlflow.user": "eve"})
    client.set_terminated(made.info.run_id, "FAILED", end_time=9)
    client.update_run(made.info.run_id, status="RUNNING", name="two")
    print(made.to_dictionary(), client.get_run(made.info.run_id).to_dictionary())
client.log_metric(RUN, "loss", 0.5, timestamp=1, step=1)
client.log_param(RUN, "lr", 0.1)
client.set_tag(RUN, "why", "a test")
with mlflow.start_run(run_id=RUN):
    mlflow.log_metric("loss", float("nan"), step=2, timestamp=1)
    mlflow.log_metrics({"acc": 1.0, "loss": float("inf")}, step=3, timestamp=1)
    mlflow.log_params({"depth": 3, "width": 4})
    mlflow.set_tags({"one": "1", "two": "2"})
"""


def test_what_mlflow_s_own_client_sends_is_answered_natively(pair: tuple[LabServer, LabServer]) -> None:
    made = []
    for server in pair:
        experiment = server.experiment("of a client")
        run_id = server.run(experiment)
        before = server.natively()
        login = {
            "MLFLOW_TRACKING_USERNAME": ADA[0],
            "MLFLOW_TRACKING_PASSWORD": ADA[1],
            "MLFLOW_TRACKING_URI": server.url,
            "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        }
        script = CLIENT.replace("(RUN", f"({run_id!r}").replace("=RUN", f"={run_id!r}")
        command = [mlflow_bin() / "python", "-c", script.replace("EXPERIMENT", repr(experiment))]
        done = subprocess.run(command, env={**os.environ, **login}, check=True, cwd="/", capture_output=True, text=True)
        printed = DRAWN.sub("drawn", done.stdout).replace(f"'{experiment}'", "'E'").replace(f"/{experiment}/", "/E/")
        made.append((server.natively() - before, printed, {**tables(server, [run_id]), "runs": []}))
    assert [rows for rows, *_ in made] == [0, 2 * 3 + 4 + 3 + 3]
    assert made[1][1:] == made[0][1:]


def test_the_latest_point_is_the_same_in_any_order(pair: tuple[LabServer, LabServer]) -> None:
    points = [
        {"key": "m", "value": value, "timestamp": time, "step": step}
        for value, time, step in [
            (0, 1, 1),
            ("NaN", 1, 1),
            (5, 1, 1),
            (9, 2, 0),
            (-0.0, 1, 1),
            (5, 0, 1),
            ("Infinity", 0, 0),
        ]
    ]
    orders = [random.Random(number).sample(points, len(points)) for number in range(4)]  # noqa: S311 - an order
    for points in orders:
        calls = [Call("runs/log-metric", one, 0) for one in points]
        compare(
            pair,
            [*calls, Call("runs/log-batch", {"metrics": points}, 1), Call("runs/log-batch", {"metrics": points}, 1)],
        )


def test_writers_at_once_leave_what_one_writer_leaves(pair: tuple[LabServer, LabServer]) -> None:
    """Batches with the same points, the same new parameters and the same tags from eight sides."""
    batch = {
        "metrics": [{"key": f"m{i % 7}", "value": i, "timestamp": 1, "step": i} for i in range(200)],
        "params": [{"key": f"p{i}", "value": "v"} for i in range(20)],
        "tags": [{"key": f"t{i}", "value": "v"} for i in range(20)],
    }
    made = []
    for server, clients in zip(pair, (1, 8)):
        run_id = server.run(server.experiment(f"at once {next(numbers)}"))
        parts = [
            {"run_id": run_id, **{kind: rows[i:] + rows[:i] for kind, rows in batch.items()}} for i in range(0, 200, 9)
        ]
        with ThreadPoolExecutor(clients) as pool:
            answers = list(
                pool.map(partial(server.send, "runs/log-batch"), [json.dumps(one).encode() for one in parts])
            )
        assert {answer.status_code for answer in answers} == {200}
        made.append(tables(server, [run_id]))
    assert made[1] == made[0]


@pytest.mark.parametrize("field", ["step", "timestamp"])
def test_a_fraction_is_refused_where_mlflow_drops_what_follows(pair: tuple[LabServer, LabServer], field: str) -> None:
    point = {"key": "loss", "value": 1, "timestamp": 1, "step": 1}
    for native in (False, True):
        server = pair[native]
        run_id = server.run(server.experiment(f"fraction {next(numbers)}"))
        batch = {"run_id": run_id, "metrics": [point, {**point, field: 1.5}, {**point, "step": 2}], "tags": []}
        answer = server.send("runs/log-batch", json.dumps(batch).encode())
        kept = len(tables(server, [run_id])["metrics"])
        if native:
            assert answer.status_code == 400
            assert answer.json()["error_code"] == "INVALID_PARAMETER_VALUE"
            assert f"metrics[1].{field}" in answer.json()["message"]
            assert HALF_READ in answer.json()["message"]
            assert kept == 0
        else:
            assert (answer.status_code, kept) == (200, 2)  # the third is gone; if MLflow has mended this, ours may go
