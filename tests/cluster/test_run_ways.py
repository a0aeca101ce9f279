"""How recordings of real jobs reach the server: through a gateway while the job runs, or by a job after the job."""

from __future__ import annotations

import json
import shlex
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from conftest import until

if TYPE_CHECKING:
    from conftest import Cluster

FOLDER = "/scratch/ada/labtrack-ways-tests"
TRAINING = """
import os, sys, time
import mlflow
mlflow.set_experiment("ada/" + sys.argv[1])
with mlflow.start_run(run_name=sys.argv[1]):
    for step in range(240):
        mlflow.log_metric("loss", 1 / (step + 1), step=step)
        time.sleep(0.5)
        if os.path.exists(sys.argv[1]) and step > 3:
            break
"""
ASK = """
import json, sys
import mlflow
found = mlflow.search_runs(experiment_names=["ada/" + sys.argv[1]], output_format="list")
print(json.dumps([[run.info.status, run.data.metrics.get("loss"), run.data.tags.get("labtrack.job")] for run in found]))
"""


@pytest.fixture(scope="module")
def place(cluster: Cluster, rehearsal: Any) -> str:
    """A folder with the training."""
    if hasattr(rehearsal, "hand_file"):
        rehearsal.hand_file("ada")
    # who has logged in there once has its key
    cluster.ada("ssh -o StrictHostKeyChecking=accept-new -o BatchMode=yes login true", node="login", check=False)
    cluster.ada(f"rm -rf {FOLDER}; mkdir -p {FOLDER}")
    for name, text in (("train.py", TRAINING), ("ask.py", ASK)):
        cluster.ada(f"printf %s {shlex.quote(text)} >{FOLDER}/{name}")
    return FOLDER


def submit(cluster: Cluster, name: str, *lines: str) -> str:
    """Submit a job of these lines on a node that has no internet."""
    text = "\n".join(["#!/bin/sh", ". ~/mlflow_env.sh", *lines, ""])
    cluster.ada(f"printf %s {shlex.quote(text)} >{FOLDER}/{name}.sh")
    options = ["--parsable", "--output=%x.log", f"--job-name={name}", "--mem=600", "--time=10", "-p", "main"]
    return cluster.ada(f"cd {FOLDER} && {shlex.join(['sbatch', *options, f'{name}.sh'])}")


def at_server(cluster: Cluster, name: str) -> list[list[Any]]:
    """Status, last loss and job of the runs at the server."""
    said = cluster.ada(
        f". ~/mlflow_env.sh; {cluster.rehearsal.PYTHON} {FOLDER}/ask.py {name}", check=False, timeout=120
    )
    return json.loads(said or "[]")


def test_a_run_is_seen_live_through_the_gateway(cluster: Cluster, place: str) -> None:
    python, name = cluster.rehearsal.PYTHON, f"live-{uuid.uuid4().hex[:6]}"
    run = f"{python} -m labtrack run --gateway login -f {place}/live -- {python} train.py {name}"
    job = submit(cluster, name, f"exec {run}")
    try:
        (found,) = until(lambda: [one for one in at_server(cluster, name) if one[1] is not None], 300)
        assert found[0] == "RUNNING" and found[2] == f"rehearsal/{job}/batch"
        cluster.ada(f"touch {place}/{name}")
        assert cluster.ended(job, 200) == "COMPLETED"
        assert [one[0] for one in at_server(cluster, name)] == ["FINISHED"], "nothing was left to send"
        log = cluster.ada(f"cat {place}/live/jobs/rehearsal-{job}-batch/companion.log")
        assert "the server is reached through login" in log
    finally:
        cluster.ada(f"scancel {job}", check=False)


def test_a_job_after_the_job_sends_what_was_recorded(cluster: Cluster, place: str) -> None:
    python, name = cluster.rehearsal.PYTHON, f"after-{uuid.uuid4().hex[:6]}"
    cluster.ada(f"touch {place}/{name}")
    follow = f"{python} -m labtrack follow -f {place}/after"
    run = f"{python} -m labtrack run --no-sync -f {place}/after -- {python} train.py {name}"
    job = submit(cluster, name, follow, follow, f"exec {run}")
    try:
        assert cluster.ended(job, 300) == "COMPLETED"
        said = cluster.ada(f"cat {place}/{name}.log")
        assert said.count("submitted job") == 1 and f"follows job {job} already" in said
        assert until(lambda: at_server(cluster, name), 200)[0][0] == "FINISHED"
    finally:
        cluster.ada(f"scancel {job}; {python} -m labtrack follow -f {place}/after --stop", check=False)


def test_a_job_that_comes_again_is_one_until_it_is_stopped(cluster: Cluster, place: str) -> None:
    follow = f". ~/mlflow_env.sh; {cluster.rehearsal.PYTHON} -m labtrack follow -f {place}/again"
    assert "submitted job" in cluster.ada(follow)
    assert "already" in cluster.ada(follow)
    said = cluster.ada(f"{follow} --stop")
    assert said.startswith("cancelled job")
    assert "nothing follows" in cluster.ada(f"{follow} --stop")
