"""Sweeps by the real submitit and Hydra: their jobs on nodes without internet, as the documentation tells it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from workflows import installed, recorded, within

if TYPE_CHECKING:
    from conftest import Cluster

pytestmark = pytest.mark.long  # two minutes, most of which the programs wait

FOLDER = "/scratch/ada/labtrack-sweep-tests"
SUBMITIT = """
import os, time, submitit

class Train:
    done = 0
    def __call__(self, rate):
        import mlflow
        with mlflow.start_run(run_name=f"rate {rate}"):
            mlflow.log_param("rate", rate)
            for step in range(self.done, 8):
                mlflow.log_metric("loss", rate / (step + 1), step=step)
                self.done = step + 1
                open(f"began-{rate}", "w").close()
                time.sleep(1)
        return rate
    def checkpoint(self, rate):
        return submitit.helpers.DelayedSubmission(self, rate)

run = f"python -m labtrack run --no-sync -f {os.getcwd()}/runs -- python"
executor = submitit.AutoExecutor(folder="logs", slurm_python=run)
executor.update_parameters(timeout_min=5, slurm_additional_parameters={"mem": "800M", "requeue": True})
jobs = executor.map_array(Train(), [0.1, 0.2])
while not os.path.exists("began-0.1"):
    time.sleep(0.3)
jobs[0]._interrupt()  # as Slurm does when somebody else needs the node
print("array", jobs[0].job_id.partition("_")[0], [job.result() for job in jobs])
"""
HYDRA = """
import os, signal, hydra, mlflow

@hydra.main(version_base=None)
def main(config):
    with mlflow.start_run(run_name=f"rate {config.rate}"):
        mlflow.log_params(dict(config))
        mlflow.log_metric("loss", 1 / config.rate)
        if config.rate == 3:
            os.kill(os.getpid(), signal.SIGKILL)

main()
"""


@pytest.fixture(scope="module")
def folder(cluster: Cluster) -> Iterator[str]:
    """A folder that all nodes have, with an environment and both programs in it."""
    packages = {"submitit", "hydra-submitit-launcher"}
    installed(cluster, FOLDER, packages, [], submitit_py=SUBMITIT, hydra_py=HYDRA)
    # under these names they would be imported in place of the packages
    cluster.ada(f"cd {FOLDER} && mv submitit.py by_submitit.py && mv hydra.py by_hydra.py")
    yield FOLDER
    cluster.ada(f"rm -rf {FOLDER}")


def by_name(runs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    assert len({one["name"] for one in runs}) == len(runs)
    return {one["name"]: one for one in runs}


def test_a_job_of_submitits_that_is_requeued_goes_on_with_its_run(cluster: Cluster, folder: str) -> None:
    said = cluster.ada(within(folder, "python by_submitit.py 2>&1; echo exit code $?"), timeout=300)
    assert "[0.1, 0.2]" in said and said.endswith("exit code 0"), said
    array = said.partition("array ")[2].split()[0]
    runs = by_name(recorded(cluster, folder))
    assert {name: (one["status"], one["metrics"], one["params"]) for name, one in runs.items()} == {
        f"rate {rate}": ("FINISHED", {"loss": 8}, {"rate": rate}) for rate in ("0.1", "0.2")
    }
    keys = [runs[f"rate {rate}"]["tags"]["labtrack.job"] for rate in ("0.1", "0.2")]
    assert keys == [f"rehearsal/{array}_{task}/0" for task in (0, 1)]
    attempts = [runs[f"rate {rate}"]["tags"]["labtrack.attempt"] for rate in ("0.1", "0.2")]
    assert attempts == ["1", "0"]


def test_jobs_of_hydras_are_recorded_without_labtrack_run(cluster: Cluster, folder: str) -> None:
    sweep = (
        "MLFLOW_TRACKING_URI=labtrack://$PWD/runs python by_hydra.py --multirun hydra/launcher=submitit_slurm "
        "hydra.launcher.timeout_min=5 +hydra.launcher.additional_parameters.mem=800M +rate=1,2,3"
    )
    cluster.ada(within(folder, f"rm -rf runs && {sweep}"), check=False, timeout=300)
    cluster.ada(within(folder, "python -m labtrack reconcile -s runs"), timeout=60)
    runs = by_name(recorded(cluster, folder))
    ends = {name: (one["status"], one["tags"].get("slurm.end")) for name, one in runs.items()}
    assert ends == {"rate 1": ("FINISHED", None), "rate 2": ("FINISHED", None), "rate 3": ("KILLED", "CANCELLED")}
    (array,) = {one["tags"]["slurm.array_job_id"] for one in runs.values()}
    assert {one["tags"]["labtrack.job"] for one in runs.values()} == {
        f"rehearsal/{array}_{task}/0.0" for task in range(3)
    }
