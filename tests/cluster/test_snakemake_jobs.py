"""A workflow whose rules are Slurm jobs on nodes without internet, by the real Snakemake and its Slurm executor."""

from __future__ import annotations

import base64
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Cluster

pytestmark = pytest.mark.long  # two minutes, most of which the executor waits

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "plugins" / "snakemake-logger-plugin-labtrack"
LOCK = (ROOT / "requirements" / "snakemake.txt").read_text()
FOLDER = "/scratch/ada/labtrack-snakemake-tests"
# The plugin, and this checkout's labtrack, are found before the researcher's own environment.
INSTALL = r"""
uv venv --quiet --clear --python PYTHON env
PYTHON -c 'import site; print(site.getsitepackages()[0])' > "$(echo env/lib/python3*/site-packages)/researcher.pth"
export UV_SYSTEM_CERTS=1 UV_NATIVE_TLS=1
index=$(sed -n 's,^index-url *= *,,p' /etc/pip.conf)
if [ -n "$index" ]; then export UV_DEFAULT_INDEX=$index; fi
uv pip install --quiet --python env/bin/python PACKAGES
"""
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
READ = """
import json, sys
from labtrack.stores import open_store
with open_store(sys.argv[1]) as store:
    print(json.dumps([
        {"id": one.id, "name": one.name, "status": one.status, "parent": one.parent_id, "tags": dict(one.tags),
         "metrics": list(store.metric_keys(one.id)), "files": [file.path for file in store.artifacts(one)]}
        for one in store.runs()
    ]))
"""


@pytest.fixture(scope="module")
def folder(cluster: Cluster) -> Iterator[str]:
    """A folder that all nodes have, with an environment, a workflow and the plugin in it."""
    cluster.ada(f"rm -rf {FOLDER}; mkdir -p {FOLDER}/source")
    for source, name in ((ROOT / "scripts", "labtrack"), (PLUGIN, PLUGIN.name.replace("-", "_"))):
        pack = ["tar", "--create", "--gzip", "--dereference", "--exclude=__pycache__", "-C", source, name]
        packed = base64.b64encode(subprocess.run(pack, capture_output=True, check=True).stdout).decode()
        unpack = f"base64 -d | tar --extract --gzip --no-same-owner -C {FOLDER}/source && chown -R ada: {FOLDER}/source"
        cluster.root("login", unpack, stdin=packed, check=True)
    for name, text in (("Snakefile", WORKFLOW), ("train.py", TRAIN), ("read.py", READ)):
        cluster.ada(f"printf %s {shlex.quote(text)} >{FOLDER}/{name}")
    packages = re.findall(r"^(snakemake(?:-executor-plugin-slurm)?==[\w.]+)", LOCK, re.MULTILINE)
    assert len(packages) == 2
    install = INSTALL.replace("PYTHON", cluster.rehearsal.PYTHON).replace("PACKAGES", " ".join(packages))
    cluster.ada(f"cd {FOLDER} && set -e\n{install}", timeout=300)
    yield FOLDER
    cluster.ada(f"rm -rf {FOLDER}")


def test_rules_are_slurm_jobs_and_their_trainings_find_them(cluster: Cluster, folder: str) -> None:
    snakemake = (
        f"cd {folder} && . env/bin/activate && export PYTHONPATH=$PWD/source && snakemake --logger labtrack "
        "--logger-labtrack-folder $PWD/runs --executor slurm --jobs 4 --latency-wait 30 --keep-going all broken.txt "
        "2>&1; echo exit code $?"
    )
    said = cluster.ada(snakemake, timeout=420)
    assert said.endswith("exit code 1"), said
    runs: list[dict[str, Any]] = json.loads(
        cluster.ada(f"cd {folder} && PYTHONPATH=source env/bin/python read.py runs", timeout=60)
    )
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
