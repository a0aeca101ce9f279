"""What MLflow records through the recorder is what is read."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import pytest
from recorder_env import Training

from labtrack.recorder import amend
from labtrack.stores import open_store

EVERYTHING = r"""
import json, os, mlflow
from mlflow import MlflowClient
client = MlflowClient()
mlflow.set_experiment("images")
with mlflow.start_run(run_name="parent", tags={"team": "vision"}, description="a note") as parent:
    mlflow.log_params({"lr": 0.1, "depth": 4})
    for step in range(100):
        mlflow.log_metric("loss", 1 / (step + 1), step=step)
    mlflow.log_metrics({"a": 1.0, "b": float("nan"), "c": float("-inf")}, step=-3)
    assert len(client.get_metric_history(parent.info.run_id, "loss")) == 100
    assert mlflow.get_run(parent.info.run_id).data.metrics["loss"] == 0.01
    mlflow.log_text("hello", "notes/a.txt")
    mlflow.log_dict({"a": 1}, "b.json")
    assert mlflow.artifacts.load_text(parent.info.artifact_uri + "/notes/a.txt") == "hello"
    assert [one.path for one in client.list_artifacts(parent.info.run_id)] == ["b.json", "notes"]
    with mlflow.start_run(nested=True, run_name="child") as child:
        mlflow.set_tag("fold", "1")
        mlflow.log_metric("acc", 0.5)
    refused = []
    for call in (
        lambda: mlflow.log_metric("bad/na me!*", 1),
        lambda: mlflow.log_param("lr", 0.2),
        lambda: client.log_metric("f" * 32, "a", 1),
        lambda: mlflow.log_artifact("/nowhere/at/all"),
        lambda: client.log_batch(parent.info.run_id, metrics=[mlflow.entities.Metric("x", "no number", 1, 0)]),
    ):
        try:
            call()
        except Exception as error:
            refused.append(type(error).__name__)
    class Model(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input):
            return model_input
    name = "name" if mlflow.__version__.startswith("3") else "artifact_path"
    given = {name: "net", "registered_model_name": "net", "pip_requirements": []}
    mlflow.pyfunc.log_model(python_model=Model(), **given)
    client.set_registered_model_alias("net", "best", 1)
    client.set_model_version_tag("net", "1", "checked", "yes")
    assert mlflow.pyfunc.load_model("models:/net/1").predict([1]) == [1]
    import pandas
    mlflow.log_input(mlflow.data.from_pandas(pandas.DataFrame({"a": [1.0]}), name="few"), context="training")
    if hasattr(mlflow, "trace"):
        mlflow.trace(lambda x: x + 1)(2)
        mlflow.flush_trace_async_logging()
assert len(mlflow.search_runs(experiment_names=["images"])) == 2
assert len(mlflow.search_runs(experiment_names=["images"], filter_string="metrics.loss < 0.5")) == 1
gone = client.create_run(parent.info.experiment_id)
client.delete_run(gone.info.run_id)
print(json.dumps([parent.info.run_id, child.info.run_id, refused]))
"""


@pytest.mark.parametrize("training", ["newest", "oldest"], indirect=True)
def test_recorder_takes_what_mlflow_gives(training: Training) -> None:
    parent_id, child_id, refused = json.loads(training.run(EVERYTHING).splitlines()[-1])
    assert refused == ["MlflowException"] * 3 + ["FileNotFoundError", "MlflowException"]
    with open_store(training.env["MLFLOW_TRACKING_URI"]) as store:
        parent, child = store.run(parent_id), store.run(child_id)
        assert (parent.name, parent.status, child.parent_id) == ("parent", "FINISHED", parent_id)
        assert parent.params == {"lr": "0.1", "depth": "4"}
        assert (parent.tags["team"], parent.tags["mlflow.note.content"]) == ("vision", "a note")
        assert store.metric_keys(parent_id) == {"loss": 100, "a": 1, "b": 1, "c": 1}
        assert [point.value for point in store.points(parent_id, keys=["loss"])] == [1 / (at + 1) for at in range(100)]
        assert store.summaries([parent_id])[parent_id]["loss"].last == 0.01
        files = {one.path for one in store.artifacts(parent)}
        assert {"notes/a.txt", "b.json"} <= files
        (model,) = store.registered_models()
        assert (model.name, model.versions[0].aliases, model.versions[0].tags["checked"]) == ("net", ("best",), "yes")
        (dataset,) = parent.inputs
        assert (dataset.name, dataset.tags["mlflow.data.context"]) == ("few", "training")
        if training.version == "newest":
            (logged,) = store.logged_models()
            assert logged.source_run_id == parent_id
            assert "MLmodel" in {one.path for one in store.artifacts(logged)}
            (trace,) = store.traces()
            assert b'"name": "<lambda>"' in (store.spans(trace) or b"")
        else:
            assert "net/MLmodel" in files
        assert [one.lifecycle_stage for one in store.runs(deleted=True)].count("deleted") == 1
        assert store.problems() == []


def test_recorder_experiments_have_the_same_id_in_each_process(training: Training) -> None:
    code = "import mlflow; print(mlflow.set_experiment('same').experiment_id); mlflow.start_run()"
    first, second = training.run(code), training.run(code)
    assert first == second != "0\n"
    with open_store(training.root) as store:
        assert sorted(one.name for one in store.experiments()) == ["Default", "same"]
        assert len(list(store.runs())) == 2


def test_recorder_a_run_without_an_end_ends_with_the_process(training: Training) -> None:
    training.run("import mlflow; mlflow.start_run(); mlflow.log_metric('a', 1)")
    with open_store(training.root) as store:
        (run,) = store.runs()
        assert (run.status, store.metric_keys(run.id)) == ("FINISHED", {"a": 1})


def test_recorder_a_child_process_goes_on_with_the_run_it_is_given(training: Training) -> None:
    code = """
import mlflow, os, subprocess, sys
with mlflow.start_run() as run:
    mlflow.log_metric("a", 1)
    child = "import mlflow as m; m.log_metric('b', 2); print(m.get_run(m.active_run().info.run_id).data.metrics)"
    env = dict(os.environ, MLFLOW_RUN_ID=run.info.run_id)
    print(subprocess.run([sys.executable, "-c", child], env=env, check=True, capture_output=True, text=True).stdout)
"""
    assert "'a': 1.0" in training.run(code)
    with open_store(training.root) as store:
        (run,) = store.runs()
        assert store.metric_keys(run.id) == {"a": 1, "b": 1}


def test_recorder_a_forked_child_records_for_itself(training: Training) -> None:
    code = """
import mlflow, os, multiprocessing
def work(run_id):
    client = mlflow.MlflowClient()
    for step in range(10):
        client.log_metric(run_id, f"of the child", step, step=step)
run = mlflow.start_run()
mlflow.log_metric("of the parent", 0)
context = multiprocessing.get_context("fork")
processes = [context.Process(target=work, args=(run.info.run_id,)) for _ in range(2)]
for one in processes: one.start()
for step in range(1, 10): mlflow.log_metric("of the parent", step, step=step)
for one in processes: one.join()
assert [one.exitcode for one in processes] == [0, 0]
"""
    training.run(code)
    with open_store(training.root) as store:
        (run,) = store.runs()
        counts = store.metric_keys(run.id)
        assert counts["of the parent"] == 10
        assert 10 <= counts["of the child"] <= 20  # the same value of the same millisecond is one point
        assert store.problems() == []


JOB = """
import mlflow, os, signal, sys, time
run = mlflow.start_run(run_name="train")
client = mlflow.MlflowClient()
had = len(client.get_metric_history(run.info.run_id, "loss"))
mlflow.log_param("attempt", os.environ["LABTRACK_ATTEMPT"])
for step in range(had, had + 5): mlflow.log_metric("loss", step, step=step)
print(run.info.run_id, had, flush=True)
if os.environ.get("KILLED"):
    time.sleep(1.5)
    os.kill(os.getpid(), signal.SIGKILL)
mlflow.end_run()
with mlflow.start_run(run_name="test"): mlflow.log_metric("acc", 1)
"""


def test_recorder_a_requeued_job_goes_on_with_its_run(training: Training, tmp_path: Path) -> None:
    tags = tmp_path / "tags.json"
    tags.write_text('{"slurm.partition": "gpu"}')
    job = {"LABTRACK_JOB": "narval/7", "LABTRACK_JOB_TAGS": tags}
    first = training.run(JOB, fails=True, **job, LABTRACK_ATTEMPT=0, KILLED=1).split()
    # Slurm could not say in time that the job would come again
    amend(
        training.root, first[0], status="KILLED", tags={"labtrack.end": "signal SIGTERM", "labtrack.exit_code": "143"}
    )
    second = training.run(JOB, fails=True, **job, LABTRACK_ATTEMPT=1, KILLED=1).split()
    with open_store(training.root) as store:
        assert store.run(second[0]).tags["labtrack.requeued"] == "attempt 0: signal SIGTERM"
    third = training.run(JOB, **job, LABTRACK_ATTEMPT=2).split()
    assert (first[0], first[0]) == (second[0], third[0])
    assert (first[1], second[1], third[1]) == ("0", "5", "10")
    training.run(JOB, **job, LABTRACK_ATTEMPT=2, SLURM_PROCID=1)
    training.run(JOB, LABTRACK_JOB="narval/8", LABTRACK_ATTEMPT=0)
    with open_store(training.root) as store:
        runs = list(store.runs())
        assert [(one.name, one.status, one.tags["labtrack.job"]) for one in runs] == [
            ("train", "FINISHED", "narval/7"), ("test", "FINISHED", "narval/7"),
            ("train", "FINISHED", "narval/8"), ("test", "FINISHED", "narval/8"),
        ]  # fmt: skip
        assert [one.tags["labtrack.job_run"] for one in runs[:2]] == ["1", "2"]
        assert (runs[0].tags["labtrack.attempt"], runs[0].tags["slurm.partition"]) == ("2", "gpu")
        assert [point.step for point in store.points(runs[0].id)] == list(range(15))
        assert not {"labtrack.end", "labtrack.exit_code"} & set(runs[0].tags)
        assert runs[0].tags["labtrack.requeued"] == "attempt 1: ended without a word"
        assert runs[0].params == {"attempt": "0"}  # MLflow would have refused to change it


def test_recorder_a_job_that_nobody_named_is_noted(training: Training) -> None:
    for task in (0, 1):  # each task of a farm has a run of its own
        training.run(
            JOB, SLURM_JOB_ID=9, SLURM_CLUSTER_NAME="narval", SLURM_STEP_ID=2, SLURM_PROCID=task, LABTRACK_ATTEMPT=0
        )
    with open_store(training.root) as store:
        runs = list(store.runs())
    assert [one.tags["labtrack.job"] for one in runs] == ["narval/9/2.0"] * 4
    assert all(one.tags["slurm.step_id"] == "2" and "labtrack.job_run" not in one.tags for one in runs)


HEALTH = """
import os, threading, http.server
import mlflow, requests
class Other(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(404); self.end_headers(); self.wfile.write(b"another")
    def log_message(self, *_): pass
server = http.server.HTTPServer(("127.0.0.1", 0), Other)
threading.Thread(target=server.serve_forever, daemon=True).start()
address = os.environ["MLFLOW_TRACKING_URI"]
answers = [requests.get(f"{one}/{path}", headers={"Authorization": "Bearer x"}, timeout=5)
           for one in (address, f"http://127.0.0.1:{server.server_port}") for path in ("health", "version")]
print([(one.status_code, one.text[:7]) for one in answers])
"""


def test_recorder_address_is_healthy_to_loggers_that_ask_by_requests(training: Training) -> None:
    said = training.run(HEALTH).splitlines()[-1]
    assert said == "[(200, 'OK'), (404, 'labtrac'), (404, 'another'), (404, 'another')]"


def test_recorder_a_requeued_job_makes_a_child_where_asked(newest: Training) -> None:
    job = {"LABTRACK_JOB": "narval/7", "LABTRACK_RESUME": "child"}
    first = newest.run(JOB, fails=True, **job, LABTRACK_ATTEMPT=0, KILLED=1).split()[0]
    second = newest.run(JOB, **job, LABTRACK_ATTEMPT=1).split()[0]
    with open_store(newest.root) as store:
        child = store.run(second)
        assert (child.parent_id, child.tags["resumedRun"]) == (first, "True")


def test_recorder_steps_of_a_requeued_job_go_on_with_their_own_runs(newest: Training) -> None:
    job = {"LABTRACK_JOB": "narval/7/batch"}

    def attempt(number: int, step: int, **more: object) -> str:
        return newest.run(JOB, fails=bool(more), **job, LABTRACK_ATTEMPT=number, SLURM_STEP_ID=step, **more).split()[0]

    first = [attempt(0, step, KILLED=1) for step in (0, 1)]
    second = [attempt(1, step) for step in (1, 0)]  # steps begin in any order
    assert first[0] != first[1] and second == first[::-1]
    with open_store(newest.root) as store:
        tags = [store.run(one).tags for one in first]
    assert [one["labtrack.job_run"] for one in tags] == ["0.1", "1.1"]
    assert [one["slurm.step_id"] for one in tags] == ["0", "1"]


@pytest.mark.parametrize("number", [6, pytest.param(24, marks=pytest.mark.long)])
def test_recorder_processes_at_once_on_a_fresh_path(newest: Training, number: int) -> None:
    # With the lowest priority: 24 processes that import MLflow would keep the machines of the tests beside this one
    # from answering in time.
    code = """
import os
os.nice(19)
import mlflow
mlflow.set_experiment("many")
with mlflow.start_run():
    for step in range(50): mlflow.log_metric("loss", step, step=step)
    mlflow.log_text("x", "a.txt")
"""
    processes = [newest.start(code) for _ in range(number)]
    said = [one.communicate(timeout=600) for one in processes]
    assert [one.returncode for one in processes] == [0] * number, said
    with open_store(newest.root) as store:
        runs = list(store.runs())
        assert [one.status for one in runs] == ["FINISHED"] * number
        assert {one.experiment_id for one in runs} == {runs[0].experiment_id}
        assert all(store.metric_keys(one.id) == {"loss": 50} for one in runs)
        assert all([file.path for file in store.artifacts(one)] == ["a.txt"] for one in runs)
        assert store.problems() == []


def test_recorder_a_killed_process_has_lost_no_run_and_little_else(newest: Training) -> None:
    code = """
import mlflow, time
run = mlflow.start_run(run_name="killed")
step = 0
while True:
    mlflow.log_metric("loss", step, step=step, timestamp=int(time.time() * 1000))
    print(int(time.time() * 1000), flush=True)
    step += 1
    time.sleep(0.002)
"""
    process = newest.start(code)
    assert process.stdout is not None
    times: list[int] = []
    reader = threading.Thread(target=lambda: times.extend(int(one) for one in process.stdout or ()))
    reader.start()
    deadline = threading.Event()
    while len(times) < 700 and not deadline.wait(0.05):
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    reader.join()
    with open_store(newest.root) as store:
        (run,) = store.runs()
        assert (run.name, run.status) == ("killed", "RUNNING")
        points = list(store.points(run.id))
        assert [point.step for point in points] == list(range(len(points)))
        assert times[-1] - points[-1].timestamp <= 2000
        assert not [one for one in store.problems() if one.damage]


def test_recorder_says_what_is_wrong_with_an_address(newest: Training) -> None:
    newest.run("import mlflow; mlflow.start_run()", fails=True, MLFLOW_TRACKING_URI="labtrack:runs")
    assert "is not absolute" in newest.warned
