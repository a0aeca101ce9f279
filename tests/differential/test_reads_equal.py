"""The native reads give MLflow's bytes: each question twice, once with a header that makes it MLflow's."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
from typing import Any

import pytest
import requests
from equal_calls import BATCH, ENDS, LOGINS, STATES, Call, send, to_a_run
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from lab_server import ADA, LabServer
from read_calls import (
    CURVES,
    GET,
    HISTORY,
    MLFLOW_S,
    NUMBER_KEYS,
    OF_A_PAGE,
    QUESTIONS,
    SEARCH,
    TEXT_KEYS,
    Question,
    token,
)
from sync_server import mlflow_bin
from test_native_equal import COMMON, SEED

STEPS = st.lists(
    st.one_of(QUESTIONS, QUESTIONS, QUESTIONS, to_a_run("runs/log-batch", BATCH), STATES, ENDS), min_size=6, max_size=16
)
LISTS = ("metrics", "params", "tags", "dataset_inputs", "model_inputs", "model_outputs")
numbers = itertools.count()


def ask(
    server: LabServer, question: Question, experiments: list[str], runs: list[str], **more: str
) -> requests.Response:
    """The question, about the experiment, another one, or a run."""
    document = question.document
    if isinstance(document, dict):
        text = json.dumps(document).replace('"own"', f'"{experiments[0]}"').replace('"other"', f'"{experiments[1]}"')
        document = json.loads(text.replace("'RUN'", f"'{runs[0]}'"))
    with requests.Session() as session:
        session.trust_env = False
        headers = {"Host": "lab.example.org", **question.headers, **more}
        body = None
        if question.path == SEARCH:
            headers, body = {"Content-Type": "application/json", **headers}, json.dumps(document).encode()
        method = "GET" if body is None else "POST"
        where = server.url + question.address(runs)
        return session.request(method, where, data=body, auth=LOGINS[question.login], headers=headers, timeout=60)


def sorted_lists(value: Any, name: str = "") -> Any:
    """What MLflow lists in the order of its tables, which it does not promise, in one order."""
    if isinstance(value, dict):
        return {key: sorted_lists(inner, key) for key, inner in value.items()}
    if isinstance(value, list):
        inner = [sorted_lists(one) for one in value]
        return sorted(inner, key=str) if name in LISTS else inner
    return value


def same(question: Question, native: requests.Response, mlflow_s: requests.Response) -> bool:
    """The same status, headers and bytes; within a run its metrics, parameters and tags in any order."""
    headers = [[(name.lower(), value) for name, value in one.headers.items()] for one in (native, mlflow_s)]
    headers = [sorted(one for one in own if one[0] not in ("date", "content-length")) for own in headers]
    texts = [re.sub(r"0x[0-9a-f]+", "...", one.text) for one in (native, mlflow_s)]
    if native.status_code != mlflow_s.status_code or headers[0] != headers[1]:
        return False
    if texts[0] == texts[1]:
        return True
    if native.status_code != 200 or question.path in (HISTORY, CURVES):
        return False
    found = [json.loads(text) for text in texts]
    return sorted_lists(found[0]) == sorted_lists(found[1]) and json.dumps(found[0], indent=2) == texts[0]


def compare(server: LabServer, steps: list[Call | Question]) -> None:
    """Write and ask, about three runs."""
    experiments = [server.experiment(f"reads {SEED} {next(numbers)}") for _ in range(2)]
    runs = [server.run(experiments[0], one) for one in ("first", "second", "")]
    trail = []
    for run_id in runs:  # so that much is remembered
        ask(server, Question(GET, run=0), experiments, [run_id])
    for one in experiments:
        ask(server, Question(SEARCH, {"experiment_ids": ["own"]}), [one, one], runs)
    for step in steps:
        if isinstance(step, Call):
            trail.append(f"{step} -> {send(server, step, experiments[0], runs).status_code}")
            continue
        native = ask(server, step, experiments, runs)
        mlflow_s = ask(server, step, experiments, runs, **MLFLOW_S)
        trail.append(f"{step} -> {native.status_code} {mlflow_s.status_code}")
        assert same(step, native, mlflow_s), "\n".join([*trail, native.text, mlflow_s.text, str(native.headers)])


@seed(SEED + 2)
@settings(max_examples=25, **COMMON)
@given(steps=STEPS)
def test_native_reads_answer_as_mlflow(pair: tuple[LabServer, LabServer], steps: list[Call | Question]) -> None:
    compare(pair[1], steps)


@pytest.mark.long
@pytest.mark.timeout(7200)
@seed(SEED + 3)
@settings(max_examples=1500, **COMMON)
@given(steps=STEPS)
def test_native_reads_answer_as_mlflow_for_an_hour(
    pair: tuple[LabServer, LabServer], steps: list[Call | Question]
) -> None:
    compare(pair[1], steps)


def searched(**more: object) -> Question:
    return Question(SEARCH, {"experiment_ids": ["own"], "run_view_type": "ALL", **more})


def test_each_key_compares_and_orders_as_mlflow_s(pair: tuple[LabServer, LabServer]) -> None:
    """What the random sequences come to by chance alone."""
    points = [
        {"key": key, "value": value, "timestamp": 1, "step": 1}
        for key, value in (("loss", "NaN"), ("acc", 1), ("a/b", "Infinity"), ("x y:z", 0.1))
    ]
    pairs = [{"key": key, "value": value} for key, value in (("loss", "v"), ("x y:z", "V"), ("grün", "'"), ("a/b", ""))]
    written = [
        Call("runs/log-batch", {"metrics": points, "params": pairs, "tags": pairs}, 0),
        Call("runs/log-batch", {"metrics": [{**one, "value": -1} for one in points[:2]], "params": pairs[:1]}, 1),
        Call("runs/update", {"status": "FINISHED", "end_time": 0}, 0),
        Call("runs/update", {"status": "KILLED", "end_time": 5, "run_name": "zweiter"}, 1),
        Call("runs/delete", {}, 1),
    ]
    asked = [Question(GET, run=place) for place in range(3)]
    for key in (*TEXT_KEYS, *NUMBER_KEYS):
        value = "0.5" if key in NUMBER_KEYS else "'v'"
        asked += [searched(order_by=[key], filter=f"{key} != {value}"), searched(order_by=[f"{key} DESC"])]
    compare(pair[1], [*written, *asked])


PLAIN = [
    Question(SEARCH, {"experiment_ids": ["own"]}),
    Question(SEARCH, {"experiment_ids": ["own", "other"], "filter": "", "run_view_type": "ALL", "page_token": None}),
    Question(SEARCH, {"experiment_ids": ["own"], "max_results": 1, "order_by": ["metrics.loss DESC", "start_time"]}),
    Question(
        SEARCH,
        {"experiment_ids": ["own"], "filter": "metrics.loss > 0 AND params.lr = '0.1' and tags.made LIKE 'by%'"},
        prefix="/ajax-api/2.0/mlflow/",
        headers={"Origin": "https://lab.example.org", "Sec-Fetch-Mode": "cors", "Accept-Language": "de", **OF_A_PAGE},
    ),
    Question(GET, run=0),
    Question(GET, run=0, prefix="/ajax-api/2.0/mlflow/"),
    Question(HISTORY, query=(("metric_key", "loss"),), run=0),
    Question(HISTORY, query=(("metric_key", "loss"), ("max_results", "2")), run=0),
    Question(
        CURVES, query=(("metric_key", "loss"), ("max_results", "320")), many=(0, 1), prefix="/ajax-api/2.0/mlflow/"
    ),
]


@pytest.mark.parametrize("question", PLAIN)
def test_plain_questions_are_answered_natively(pair: tuple[LabServer, LabServer], question: Question) -> None:
    server = pair[1]
    experiments = [server.experiment(f"plain reads {next(numbers)}") for _ in range(2)]
    runs = [server.run(experiments[0], "grün"), server.run(experiments[1])]
    points = [{"key": "loss", "value": value, "timestamp": 1, "step": 0} for value in (1, 0.5, 1e16, 1e-7, "NaN")]
    batch = {"run_id": runs[0], "metrics": points, "params": [{"key": "lr", "value": "0.1"}]}
    server.post("runs/log-batch", batch)
    mlflow_s = ask(server, question, experiments, runs, **MLFLOW_S)
    before = server.last_native()
    native = ask(server, question, experiments, runs)
    assert server.last_native() > before
    assert native.content == mlflow_s.content
    assert mlflow_s.ok
    assert runs[0] in native.text or question.path == HISTORY


def test_curves_are_thinned_out_as_by_mlflow(pair: tuple[LabServer, LabServer]) -> None:
    server = pair[1]
    experiment = server.experiment(f"curves {next(numbers)}")
    runs = [server.run(experiment) for _ in range(6)]
    for run_id, many in zip(runs, (0, 1, 2, 5, 17, 200)):
        points = [
            {"key": "loss", "value": "NaN" if one % 7 == 3 else one % 5, "timestamp": one // 4, "step": one // 3 - 9}
            for one in range(many)
        ]
        server.post("runs/log-batch", {"run_id": run_id, "metrics": points, "params": [{"key": "p", "value": "v"}]})
    steps = (("start_step", "-5"), ("end_step", "40"))
    for most in (1, 2, 3, 4, 5, 6, 16, 17, 18, 64, 199, 200, 320):
        for more in ((), steps):
            query = (("metric_key", "loss"), ("max_results", str(most)), *more)
            question = Question(CURVES, query=query, many=(5, 0, 1, 2, 3, 4, 5))
            mlflow_s = ask(server, question, [experiment] * 2, runs, **MLFLOW_S)
            before = server.last_native()
            native = ask(server, question, [experiment] * 2, runs)
            assert server.last_native() > before
            assert native.content == mlflow_s.content
            assert len(native.json()["metrics"]) > 2


def test_the_first_runs_by_a_metric_are_mlflow_s_without_sorting_all(pair: tuple[LabServer, LabServer]) -> None:
    """Ties, NaN, no such metric, a deleted run and one of another experiment: in pages of each size."""
    server = pair[1]
    experiments = [server.experiment(f"first {next(numbers)}") for _ in range(2)]
    runs = [server.run(experiments[0]) for _ in range(10)] + [server.run(experiments[1])]
    for run_id, value in zip(runs, (1, 0.5, 0.5, "NaN", 0.5, "Infinity", None, -1, None, 9, 9)):
        metrics = [{"key": "loss", "value": value, "timestamp": 1}] if value is not None else []
        params = [{"key": "p", "value": run_id[0]}]
        server.post("runs/log-batch", {"run_id": run_id, "metrics": metrics, "params": params})
    server.post("runs/delete", {"run_id": runs[9]})
    last = "SELECT query FROM pg_stat_activity WHERE application_name = 'labtrack' ORDER BY query_start DESC LIMIT 1"
    orders = (["metrics.loss"], ["metrics.loss DESC"], ["metrics.loss", "params.p DESC"], ["params.p", "metrics.loss"])
    for order, most, first in itertools.product(orders, (1, 2, 4, 9), (0, 1, 3, 6)):
        asked = {"order_by": order, "max_results": most, "page_token": token({"offset": first}) if first else None}
        question = Question(SEARCH, {"experiment_ids": ["own"], "filter": "tags.made != 'x'", **asked})
        mlflow_s = ask(server, question, experiments, runs, **MLFLOW_S)
        assert ask(server, question, experiments, runs).content == mlflow_s.content, question
        quick = "is_nan = false" in " ".join(server.sql(last))
        assert quick == (order[0] != "params.p" and first + most + 1 <= 6), question


# More runs of an experiment than reads.NEAREST, each with a number of its own, from 1 on.
CROWD = """
INSERT INTO runs (run_uuid, name, source_type, user_id, status, start_time, lifecycle_stage, experiment_id)
SELECT md5('crowd ' || n), 'crowd', 'UNKNOWN', 'ada', 'FINISHED', n, 'active', {experiment}
FROM generate_series(1, {many}) n;
INSERT INTO latest_metrics (key, value, timestamp, step, is_nan, run_uuid)
SELECT 'crowded', n, 1, 0, false, md5('crowd ' || n) FROM generate_series(1, {many}) n;
ANALYZE runs, latest_metrics;
"""


def test_runs_behind_those_of_other_experiments_are_found_without_walking_past_all(
    pair: tuple[LabServer, LabServer],
) -> None:
    """What is not among the nearest 3,000 numbers comes from sorting: also what is as near as the first beyond."""
    server, many = pair[1], 3_050
    experiments = [server.experiment(f"crowded {next(numbers)}") for _ in range(2)]
    server.sql(CROWD.format(many=many, experiment=experiments[1]))
    last = many - 2_996  # in falling order, after four of our own: the 3,001st number
    runs = [server.run(experiments[0]) for _ in range(7)]
    for run_id, value in zip(runs, (many + 1, many + 1, many + 1, last + 1, last, last, 0)):
        server.post("runs/log-metric", {"run_id": run_id, "key": "crowded", "value": value, "timestamp": 1})
    asked = "SELECT query FROM pg_stat_activity WHERE application_name = 'labtrack' ORDER BY query_start DESC LIMIT 1"
    for order, most in itertools.product(("metrics.crowded DESC", "metrics.crowded"), range(1, 8)):
        question = Question(SEARCH, {"experiment_ids": ["own"], "order_by": [order], "max_results": most})
        mlflow_s = ask(server, question, experiments, runs, **MLFLOW_S)
        assert ask(server, question, experiments, runs).content == mlflow_s.content, question
        quick = "is_nan = false" in " ".join(server.sql(asked))
        assert quick == (most < 4), question  # of the next page one, to know that there is one


def test_pages_follow_one_another(pair: tuple[LabServer, LabServer]) -> None:
    server = pair[1]
    experiment = server.experiment(f"pages {next(numbers)}")
    runs = {server.run(experiment) for _ in range(7)}
    answers = []
    for more in (MLFLOW_S, {}):
        token, found = None, []
        while token != "":
            question = Question(SEARCH, {"experiment_ids": ["own"], "max_results": 3, "page_token": token})
            page = ask(server, question, [experiment, experiment], [""], **more).json()
            found.append([run["info"]["run_id"] for run in page["runs"]])
            token = page.get("next_page_token", "")
        answers.append(found)
    assert answers[0] == answers[1]
    assert set(itertools.chain(*answers[1])) == runs
    assert [len(page) for page in answers[1]] == [3, 3, 1]


CLIENT = """
import mlflow
client = mlflow.MlflowClient()
for _ in range(2):
    found = mlflow.search_runs([EXPERIMENT], "metrics.loss < 9", order_by=["metrics.loss"], output_format="list")
    assert [run.data.metrics["loss"] for run in found] == [0.5]
    assert client.get_run(RUN).data.params == {"lr": "0.1"}
    assert [one.step for one in client.get_metric_history(RUN, "loss")] == [1, 2]
    print(client.search_runs([EXPERIMENT], max_results=1)[0].to_dictionary())
"""


def test_what_mlflow_s_own_client_asks_is_answered_natively(pair: tuple[LabServer, LabServer]) -> None:
    said = []
    for server in pair:
        experiment = server.experiment("asked by a client")
        run_id = server.run(experiment)
        points = [{"key": "loss", "value": 1 / step, "timestamp": step, "step": step} for step in (1, 2)]
        batch = {"run_id": run_id, "metrics": points, "params": [{"key": "lr", "value": "0.1"}]}
        server.post("runs/log-batch", batch)
        login = {
            "MLFLOW_TRACKING_USERNAME": ADA[0], "MLFLOW_TRACKING_PASSWORD": ADA[1], "MLFLOW_TRACKING_URI": server.url,
        }  # fmt: skip
        script = CLIENT.replace("RUN", repr(run_id)).replace("EXPERIMENT", repr(experiment))
        command = [mlflow_bin() / "python", "-c", script]
        done = subprocess.run(command, env={**os.environ, **login}, check=True, cwd="/", capture_output=True, text=True)
        said.append(
            done.stdout.replace(run_id, "RUN").replace(f"'{experiment}'", "'E'").replace(f"/{experiment}/", "/E/")
        )
    assert said[0] == said[1]


def test_runs_with_models_are_answered_natively_and_with_datasets_by_mlflow(pair: tuple[LabServer, LabServer]) -> None:
    server = pair[1]
    experiment = server.experiment(f"models {next(numbers)}")
    runs = [server.run(experiment), server.run(experiment)]
    model = server.post("logged-models", {"experiment_id": experiment, "source_run_id": runs[0], "name": "m"})
    model_id = model["model"]["info"]["model_id"]
    server.post("runs/outputs", {"run_id": runs[0], "models": [{"model_id": model_id, "step": 3}]})
    server.post("runs/log-inputs", {"run_id": runs[1], "models": [{"model_id": model_id}]})
    questions = [Question(GET, run=0), Question(GET, run=1), Question(SEARCH, {"experiment_ids": ["own"]})]
    for question in questions:
        mlflow_s = ask(server, question, [experiment] * 2, runs, **MLFLOW_S)
        before = server.last_native()
        native = ask(server, question, [experiment] * 2, runs)
        assert native.content == mlflow_s.content
        assert server.last_native() > before
        assert model_id in native.text
    dataset = {"name": "d", "digest": "1", "source_type": "local", "source": "/x"}
    server.post("runs/log-inputs", {"run_id": runs[1], "datasets": [{"dataset": dataset}]})
    for question in questions[1:]:
        mlflow_s, native = (ask(server, question, [experiment] * 2, runs, **more) for more in (MLFLOW_S, {}))
        assert same(question, native, mlflow_s)
        assert '"digest": "1"' in native.text
