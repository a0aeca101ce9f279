"""What happens to real jobs when a node, the scratch or the server fails under them: their own result is the same."""

from __future__ import annotations

import json
import shlex
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from conftest import until

if TYPE_CHECKING:
    from conftest import Cluster

pytestmark = pytest.mark.long

HOME = "/home/ada/labtrack-fault-tests"
SCRATCH = "/scratch/ada/labtrack-fault-tests"
# Prints its own result: how many steps it did, and the longest time that one of its calls took.
TRAINING = """
import os, sys, time
import mlflow
name, steps, pause = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
longest = 0.0
with mlflow.start_run(run_name=name) as run:
    open(f"{name}-began", "w").close()
    for step in range(steps):
        before = time.perf_counter()
        mlflow.log_metric("loss", 1 / (step + 1))
        mlflow.log_metric("step", step, step=step)
        longest = max(longest, time.perf_counter() - before)
        time.sleep(pause)
        again = "again" in name and int(os.environ.get("SLURM_RESTART_COUNT", "0")) < 2
        if again and step == steps - 1:
            os.system("scontrol requeue " + os.environ["SLURM_JOB_ID"])
            time.sleep(60)
print(f"result: {steps} steps, longest {longest:.3f} s")
"""
READ = """
import json, sys
from labtrack.stores import open_store
with open_store("labtrack://" + sys.argv[1]) as store:
    print(json.dumps([
        {"name": one.name, "status": one.status, "tags": dict(one.tags), "points": store.metric_keys(one.id),
         "steps": sorted(point.step for point in store.points(one.id) if point.key == "step")}
        for one in store.runs()
    ]))
"""


@pytest.fixture(scope="module", autouse=True)
def place(cluster: Cluster, rehearsal: Any) -> Iterator[None]:
    """The programs at home; what they record is on the scratch."""
    rehearsal.hand_file("ada")
    cluster.ada("ssh -o StrictHostKeyChecking=accept-new -o BatchMode=yes login true", check=False)
    cluster.ada(f"rm -rf {HOME} {SCRATCH}; mkdir -p {HOME} {SCRATCH}")
    for name, text in (("train.py", TRAINING), ("read.py", READ)):
        cluster.ada(f"printf %s {shlex.quote(text)} >{HOME}/{name}")
    yield
    cluster.ada(f"rm -rf {HOME} {SCRATCH}", timeout=120)


def submit(cluster: Cluster, name: str, command: str, *options: str) -> str:
    """Submit a job of one command that has ada's file; gives its id."""
    script = f"#!/bin/sh\n. ~/mlflow_env.sh\nexec {command}\n"
    cluster.ada(f"printf %s {shlex.quote(script)} >{HOME}/{name}.sh")
    usual = ["--parsable", f"--job-name={name}", "--output=%x.log", "--open-mode=append", "--mem=600", "--time=15"]
    return cluster.ada(f"cd {HOME} && {shlex.join(['sbatch', *usual, *options, f'{name}.sh'])}")


def tracked(cluster: Cluster, name: str, steps: int, pause: float, *options: str) -> str:
    """A training by `labtrack run`."""
    python = cluster.rehearsal.PYTHON
    run = [python, "-m", "labtrack", "run", "-f", f"{SCRATCH}/runs", *options, "--"]
    return shlex.join([*run, python, "train.py", name, str(steps), str(pause)])


def runs(cluster: Cluster, name: str, folder: str = f"{SCRATCH}/runs") -> list[dict[str, Any]]:
    """The runs of that name, after what Slurm says has been written down."""
    python = cluster.rehearsal.PYTHON
    cluster.ada(f"{python} -m labtrack reconcile -s {folder}", timeout=120)
    found = json.loads(cluster.ada(f"{python} {HOME}/read.py {folder}", timeout=120))
    return [one for one in found if one["name"] == name]


def began(cluster: Cluster, name: str) -> None:
    until(lambda: cluster.ada(f"ls {HOME}/{name}-began", check=False), 240)


def result(cluster: Cluster, name: str) -> tuple[int, float]:
    """What the training itself printed: its steps, and the seconds of its longest call."""
    (line,) = [one for one in cluster.ada(f"cat {HOME}/{name}.log").splitlines() if one.startswith("result: ")]
    words = line.split()
    return int(words[1]), float(words[4])


def test_twenty_four_processes_on_two_nodes_at_once_are_twenty_four_whole_runs(cluster: Cluster) -> None:
    python, folder = cluster.rehearsal.PYTHON, f"{SCRATCH}/fresh"
    train = f"MLFLOW_TRACKING_URI=labtrack://{folder} exec {python} train.py many 20 0.1"
    job = submit(cluster, "many", f"srun -N2 -n24 sh -c '{train}'", "-N2", "-n24", "--mem=7000")
    assert cluster.ended(job, 600) == "COMPLETED", cluster.ada(f"tail -n 20 {HOME}/many.log")
    found = runs(cluster, "many", folder)
    assert [(one["status"], one["steps"]) for one in found] == [("FINISHED", list(range(20)))] * 24
    files = cluster.ada(f"ls {folder}/recordings").splitlines()
    assert {one.split("-")[1] for one in files if "-node" in one} == {"node1", "node2"}


def test_a_job_that_is_requeued_twice_is_one_run(cluster: Cluster) -> None:
    job = submit(cluster, "again", tracked(cluster, "again", 4, 0.2, "--no-sync"), "--requeue")
    assert cluster.ended(job, 600) == "COMPLETED"
    (run,) = runs(cluster, "again")
    assert (run["status"], run["tags"]["labtrack.attempt"]) == ("FINISHED", "2")
    assert run["steps"] == sorted([0, 1, 2, 3] * 3)  # of all three attempts


def test_a_training_whose_node_loses_its_power_has_failed_for_it(cluster: Cluster) -> None:
    job = submit(cluster, "dark", tracked(cluster, "dark", 600, 0.5, "--no-sync"), "--nodelist=node2", "--no-requeue")
    began(cluster, "dark")
    until(lambda: runs(cluster, "dark")[0]["points"].get("step", 0) > 3, 120)
    cluster.cut_power("node2")
    try:
        assert cluster.ended(job, 90) == "NODE_FAIL"
        (run,) = runs(cluster, "dark")
        ended = (run["status"], run["tags"]["slurm.end"], run["tags"]["slurm.failed_node"])
        assert ended == ("FAILED", "NODE_FAIL", "node2")
        assert run["steps"] == list(range(len(run["steps"]))) and len(run["steps"]) > 3
    finally:
        cluster.power_on("node2")


def test_a_scratch_that_stands_still_for_a_minute_costs_the_training_nothing(cluster: Cluster) -> None:
    job = submit(cluster, "still", tracked(cluster, "still", 200, 0.5, "--no-sync"))
    began(cluster, "still")
    server = "shared-folder-server@scratch.service"
    cluster.root("login", f"systemctl kill --signal=STOP {server}; sleep 60; systemctl kill --signal=CONT {server}")
    assert cluster.ended(job, 300) == "COMPLETED"
    steps, longest = result(cluster, "still")
    assert steps == 200
    assert longest < 5, "a call waited for the scratch"
    (run,) = runs(cluster, "still")
    assert (run["status"], run["steps"]) == ("FINISHED", list(range(200))), run["tags"].get("labtrack.lost")


def test_a_server_that_hangs_all_the_time_costs_the_training_nothing(cluster: Cluster) -> None:
    name = f"hung-{uuid.uuid4().hex[:6]}"
    python = cluster.rehearsal.PYTHON
    cluster.root("server", "systemctl kill --signal=STOP nginx")
    try:
        way = ("--gateway", "login", "--sync-timeout", "5")
        job = submit(cluster, name, tracked(cluster, name, 60, 0.5, *way))
        assert cluster.ended(job, 300) == "COMPLETED"
    finally:
        cluster.root("server", "systemctl kill --signal=CONT nginx")
    steps, longest = result(cluster, name)
    assert (steps, longest < 5) == (60, True)
    assert "not everything is sent: " in cluster.ada(f"cat {HOME}/{name}.log")
    said = cluster.ada(f". ~/mlflow_env.sh; {python} -m labtrack sync -s {SCRATCH}/runs --verify", timeout=300)
    assert ": 0 differ" in said, said


def test_name_servers_that_give_no_answer_cost_the_training_nothing(cluster: Cluster) -> None:
    name = f"nameless-{uuid.uuid4().hex[:6]}"
    kept = "/etc/resolv.conf.before-the-test"
    # an address of the nodes' own network that nobody has
    cluster.root("node1", f"cp -L /etc/resolv.conf {kept}; echo nameserver 10.99.0.250 >/etc/resolv.conf", check=True)
    try:
        way = ("-d", "https://mlflow.elsewhere.example", "--sync-timeout", "5")
        job = submit(cluster, name, tracked(cluster, name, 60, 0.5, *way), "--nodelist=node1")
        assert cluster.ended(job, 300) == "COMPLETED"
    finally:
        cluster.root("node1", f"cat {kept} >/etc/resolv.conf; rm {kept}", check=True)
    steps, longest = result(cluster, name)
    assert (steps, longest < 5) == (60, True)
    assert "not everything is sent: " in cluster.ada(f"cat {HOME}/{name}.log")
    (run,) = runs(cluster, name)
    assert (run["status"], run["steps"]) == ("FINISHED", list(range(60)))
