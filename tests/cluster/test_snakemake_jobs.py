"""A workflow whose rules are Slurm jobs on nodes without internet, by the real Snakemake and its Slurm executor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from workflows import ROOT, installed, recorded, within

if TYPE_CHECKING:
    from conftest import Cluster

pytestmark = pytest.mark.long  # two minutes, most of which the executor waits

PLUGIN = ROOT / "plugins" / "snakemake-logger-plugin-labtrack" / "snakemake_logger_plugin_labtrack"
FOLDER = "/scratch/ada/labtrack-snakemake-tests"
WORKFLOW = """
rule all:
    input: expand("out/{seed}.txt", seed=[1, 2])
rule train:
    output: "out/{seed}.txt"
    log: "logs/{seed}.log"
    benchmark: "bench/{seed}.tsv"
    resources: mem_mb=900, runtime=5
    shell: "python train.py {wildcards.seed} > {log} 2>&1 && touch {output}"
rule broken:
    output: "broken.txt"
    resources: mem_mb=500, runtime=5
    shell: "echo it broke; exit 3"
"""
TRAIN = """
import mlflow, socket, sys
with mlflow.start_run(run_name=f"seed {sys.argv[1]}"):
    mlflow.log_metric("loss", 1 / int(sys.argv[1]))
    mlflow.set_tag("host", socket.gethostname())
print("trained")
"""


@pytest.fixture(scope="module")
def folder(cluster: Cluster) -> Iterator[str]:
    """A folder that all nodes have, with an environment, a workflow and the plugin in it."""
    packages = {"snakemake", "snakemake-executor-plugin-slurm"}
    installed(cluster, FOLDER, packages, [PLUGIN], Snakefile=WORKFLOW, train_py=TRAIN)
    yield FOLDER
    cluster.ada(f"rm -rf {FOLDER}")


def test_rules_are_slurm_jobs_and_their_trainings_find_them(cluster: Cluster, folder: str) -> None:
    snakemake = (
        "snakemake --logger labtrack --logger-labtrack-folder $PWD/runs --executor slurm --jobs 4 --latency-wait 30 "
        "--keep-going all broken.txt 2>&1; echo exit code $?"
    )
    said = cluster.ada(within(folder, snakemake), timeout=420)
    assert said.endswith("exit code 1"), said
    runs = recorded(cluster, folder)
    by_name = {one["name"]: one for one in runs}
    ids = {one["id"]: one["name"] for one in runs}
    workflow = folder.rpartition("/")[2]
    assert {name: (one["status"], ids.get(one["parent"])) for name, one in by_name.items()} == {
        workflow: ("FAILED", None),
        "broken": ("FAILED", workflow),
        "train/seed=1": ("FINISHED", workflow),
        "train/seed=2": ("FINISHED", workflow),
        "seed 1": ("FINISHED", "train/seed=1"),
        "seed 2": ("FINISHED", "train/seed=2"),
    }
    for seed in ("1", "2"):
        job = by_name[f"train/seed={seed}"]
        assert cluster.ended(job["tags"]["slurm.job_id"]) == "COMPLETED"
        assert by_name[f"seed {seed}"]["tags"]["host"].startswith("node")
        assert job["files"] == [f"log/{seed}.log"]
        assert "benchmark.s" in job["metrics"]
    broken = by_name["broken"]
    assert cluster.ended(broken["tags"]["slurm.job_id"]) == "FAILED"
    assert broken["files"] == [f"log/{broken['tags']['slurm.job_id']}.log"]  # what Slurm kept of it
