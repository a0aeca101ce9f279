"""`labtrack run` in real jobs: what is recorded, what the exit code is, and how the runs end.

All jobs are submitted at once; then each test waits for its own.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from conftest import until

if TYPE_CHECKING:
    from conftest import Cluster

FOLDER = "/scratch/ada/labtrack-run-tests"
RUNS = f"{FOLDER}/runs"
TRAINING = """
import os, signal, sys, time
told = []
signal.signal(signal.SIGUSR1, lambda *_: told.append(1))
import mlflow
what, steps = sys.argv[1], int(sys.argv[2])
if what == "ignores":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
with mlflow.start_run(run_name=what):
    open(f"{what}-{os.environ.get('SLURM_ARRAY_TASK_ID', '')}-began", "w").close()
    for step in range(steps):
        mlflow.log_metric("loss", 1 / (step + 1), step=step)
        time.sleep(0.5)
        if told:
            mlflow.log_metric("saved", 1)
            sys.exit(3)
        if what == "greedy" and step == 1:
            eaten = bytearray(900 * 2**20)
        if what in ("fails", "vanishes") and step == 1:
            os._exit(9)
        if what == "again" and step == 1 and os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
            os.system("scontrol requeue " + os.environ["SLURM_JOB_ID"])
            time.sleep(60)
"""
READ = """
import json, sys
from labtrack.stores import open_store
with open_store("labtrack://" + sys.argv[1]) as store:
    print(json.dumps([
        {"name": one.name, "status": one.status, "tags": dict(one.tags),
         "points": store.metric_keys(one.id).get("loss", 0)}
        for one in store.runs()
    ]))
"""


@pytest.fixture(scope="module")
def jobs(cluster: Cluster) -> Iterator[dict[str, str]]:
    """Name and id of each job."""
    cluster.ada(f"rm -rf {FOLDER}; mkdir -p {FOLDER}")
    for name, text in (("train.py", TRAINING), ("read.py", READ)):
        cluster.ada(f"printf %s {shlex.quote(text)} >{FOLDER}/{name}")
    python = cluster.rehearsal.PYTHON
    submitted: dict[str, str] = {}

    def submit(
        name: str, steps: int, *options: str, srun: bool = True, command: str = "", watched: bool = True
    ) -> None:
        train = f"{python} train.py {name} {steps}"
        tracked = command or f"{'srun ' * srun}{train}"
        script = f"#!/bin/sh\nexec {python} -m labtrack run --no-sync -f {RUNS} -- {tracked}\n"
        if not watched:
            script = f"#!/bin/sh\nexport MLFLOW_TRACKING_URI=labtrack://{RUNS}\n{tracked}\necho went on\n"
        cluster.ada(f"printf %s {shlex.quote(script)} >{FOLDER}/{name}.sh")
        usual = ["--parsable", f"--job-name={name}", "--output=%x.log", "--open-mode=append", "--mem=400", "--time=5"]
        words = ["sbatch", *usual, *options, f"{name}.sh"]
        submitted[name] = cluster.ada(f"cd {FOLDER} && {shlex.join(words)}")

    both = f"sh -c '{python} train.py one 3 & {python} train.py two 3 & wait'".replace(
        python, f"srun -n1 --exact --mem=350 {python}"
    )
    submit("good", 4)
    submit("fails", 600, srun=False)
    submit("greedy", 600)
    submit("again", 4, "--requeue", srun=False)
    submit("told", 600, "--time=2", "--signal=B:USR1@60")
    submit("limited", 600, "--time=1")
    submit("ignores", 600, srun=False)
    submit("cancelled", 600)
    submit("steps", 0, "--ntasks=2", "--mem=800", command=both)
    submit("array", 2, "--array=0-1")
    submit("vanishes", 600, srun=False, watched=False)
    submit("unwatched", 600, srun=False, watched=False)
    yield submitted
    cluster.ada(f"scancel {' '.join(submitted.values())}; rm -rf {FOLDER}")


def read(cluster: Cluster, name: str) -> list[dict[str, Any]]:
    """The runs of that name, after what Slurm says has been written down."""
    python = cluster.rehearsal.PYTHON
    cluster.ada(f"{python} -m labtrack reconcile -s {RUNS}", timeout=120)
    found = json.loads(cluster.ada(f"{python} {FOLDER}/read.py {RUNS}", timeout=120))
    return [one for one in found if one["name"] == name]


def one(cluster: Cluster, name: str, job: str, seconds: float = 300) -> tuple[str, dict[str, Any]]:
    """How a job ended, and its one run."""
    state = cluster.ended(job, seconds)
    (run,) = read(cluster, name)
    return state, run


def began(cluster: Cluster, name: str) -> None:
    """Wait until a training has a run."""
    until(lambda: cluster.ada(f"ls {FOLDER}/{name}--began", check=False), 240)


def test_a_training_that_does_its_work_is_finished(cluster: Cluster, jobs: dict[str, str]) -> None:
    state, run = one(cluster, "good", jobs["good"])
    assert (state, run["status"], run["points"]) == ("COMPLETED", "FINISHED", 4)
    tags = run["tags"]
    assert tags["labtrack.job"] == f"rehearsal/{jobs['good']}/batch" and tags["labtrack.attempt"] == "0"
    assert (tags["slurm.job_name"], tags["slurm.partition"]) == ("good", "main")
    assert tags["labtrack.command"].startswith("srun ") and tags["slurm.submit_dir"] == FOLDER


def test_a_training_that_crashes_has_failed_with_its_code(cluster: Cluster, jobs: dict[str, str]) -> None:
    state, run = one(cluster, "fails", jobs["fails"])
    assert (state, run["status"], run["tags"]["labtrack.end"]) == ("FAILED", "FAILED", "exit code 9")
    assert run["tags"]["slurm.exit_code"] == "9"


def test_a_training_over_its_memory_has_failed_for_it(cluster: Cluster, jobs: dict[str, str]) -> None:
    _, run = one(cluster, "greedy", jobs["greedy"])
    assert (run["status"], run["tags"]["slurm.end"], run["points"]) == ("FAILED", "OUT_OF_MEMORY", 2)


def test_a_training_that_requeues_its_job_goes_on_with_its_run(cluster: Cluster, jobs: dict[str, str]) -> None:
    state, run = one(cluster, "again", jobs["again"])
    assert (state, run["status"]) == ("COMPLETED", "FINISHED")
    assert run["tags"]["labtrack.attempt"] == "1" and run["tags"]["labtrack.requeued"].startswith("attempt 0: ")
    assert run["points"] >= 6  # of both attempts


def test_a_signal_to_the_batch_script_reaches_the_training(cluster: Cluster, jobs: dict[str, str]) -> None:
    state, run = one(cluster, "told", jobs["told"])
    assert (state, run["status"]) == ("FAILED", "FAILED") and run["tags"]["labtrack.exit_code"] == "3"


def test_a_training_at_its_time_limit_is_killed_for_it(cluster: Cluster, jobs: dict[str, str]) -> None:
    state = cluster.ended(jobs["limited"], 300)
    runs = read(cluster, "limited")
    # on a busy machine the minute, Slurm's shortest limit, may be over before the training has begun
    started = bool(cluster.ada(f"ls {FOLDER}/limited--began", check=False))
    ends = [(run["status"], run["tags"]["slurm.end"]) for run in runs]
    assert (state, ends) == ("TIMEOUT", [("KILLED", "TIMEOUT")] * started)


@pytest.mark.parametrize("name", ["cancelled", "ignores"])
def test_a_cancelled_training_is_killed_by_whom(cluster: Cluster, jobs: dict[str, str], name: str) -> None:
    began(cluster, name)
    cluster.ada(f"scancel {jobs[name]}")
    state, run = one(cluster, name, jobs[name])
    assert (state, run["status"], run["tags"]["slurm.end"]) == ("CANCELLED", "KILLED", "CANCELLED")
    assert run["tags"]["slurm.cancelled_by"] == "ada"


def test_a_run_of_a_job_without_labtrack_run_is_ended_too(cluster: Cluster, jobs: dict[str, str]) -> None:
    state, run = one(cluster, "vanishes", jobs["vanishes"])
    assert (state, run["status"]) == ("COMPLETED", "FAILED")  # its script went on after it
    assert run["tags"]["labtrack.end"] == "its process ended before its job's script did"
    assert run["tags"]["labtrack.job"] == f"rehearsal/{jobs['vanishes']}/batch.0"
    began(cluster, "unwatched")
    (run,) = read(cluster, "unwatched")
    assert run["status"] == "RUNNING"
    cluster.ada(f"scancel {jobs['unwatched']}")
    state, run = one(cluster, "unwatched", jobs["unwatched"])
    assert (state, run["status"], run["tags"]["slurm.cancelled_by"]) == ("CANCELLED", "KILLED", "ada")


def test_two_steps_at_once_are_two_runs(cluster: Cluster, jobs: dict[str, str]) -> None:
    assert cluster.ended(jobs["steps"], 300) == "COMPLETED"
    runs = [*read(cluster, "one"), *read(cluster, "two")]
    assert [(run["name"], run["status"], run["points"]) for run in runs] == [
        ("one", "FINISHED", 3),
        ("two", "FINISHED", 3),
    ]


def test_tasks_of_an_array_have_keys_of_their_own(cluster: Cluster, jobs: dict[str, str]) -> None:
    cluster.ended(f"{jobs['array']}_0", 300)
    cluster.ended(f"{jobs['array']}_1", 300)
    keys = {run["tags"]["labtrack.job"] for run in read(cluster, "array")}
    assert keys == {f"rehearsal/{jobs['array']}_{task}/batch" for task in range(2)}
