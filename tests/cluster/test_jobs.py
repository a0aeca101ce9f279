"""How jobs end, as Slurm's accounting tells it.

All jobs of this file are submitted at once, because some take a minute: Slurm knows no shorter time limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from conftest import until

if TYPE_CHECKING:
    from conftest import Cluster

SLEEP = "exec sleep 300"
EAT = "python3 -c 'bytearray(400 * 2**20)'"
TRAP = "trap 'echo told >>/scratch/ada/told; exit 9' USR1; while :; do sleep 1; done"


@pytest.fixture(scope="module")
def jobs(cluster: Cluster) -> Iterator[dict[str, str]]:
    """Name and id of each job."""
    cluster.ada("rm -f /scratch/ada/told")
    found = {
        "limited": cluster.submit(SLEEP, "--time=1", "--nodelist=node1"),
        "good": cluster.submit("hostname"),
        "bad": cluster.submit("exit 3"),
        "greedy": cluster.submit(EAT, "--nodelist=node1"),
        "cancelled": cluster.submit(SLEEP, "--nodelist=node1"),
        "requeued": cluster.submit(SLEEP, "--nodelist=node1", "--requeue"),
        "told": cluster.submit(TRAP, "--nodelist=node1", "--time=1", "--signal=B:USR1@50"),
        "lost": cluster.submit(SLEEP, "--nodelist=node2", "--no-requeue"),
        "moved": cluster.submit(SLEEP, "--nodelist=node2", "--requeue"),
    }
    cluster.running(found["requeued"])
    cluster.ada(f"scontrol requeue {found['requeued']}")
    yield found
    cluster.ada(f"scancel {' '.join(found.values())}")


def test_a_job_that_does_its_work_is_completed(cluster: Cluster, jobs: dict[str, str]) -> None:
    assert cluster.ended(jobs["good"]) == "COMPLETED"


def test_a_job_that_exits_with_an_error_has_failed_with_that_code(cluster: Cluster, jobs: dict[str, str]) -> None:
    assert cluster.ended(jobs["bad"]) == "FAILED"
    assert cluster.ada(f"sacct -nXP --format=exitcode -j {jobs['bad']}") == "3:0"


def test_a_job_over_its_memory_is_killed_for_it(cluster: Cluster, jobs: dict[str, str]) -> None:
    assert cluster.ended(jobs["greedy"]) == "OUT_OF_MEMORY"


def test_a_cancelled_job_says_by_whom(cluster: Cluster, jobs: dict[str, str]) -> None:
    cluster.running(jobs["cancelled"])
    cluster.ada(f"scancel {jobs['cancelled']}")
    assert cluster.ended(jobs["cancelled"]) == "CANCELLED"
    assert cluster.ada(f"sacct -nXP --format=state -j {jobs['cancelled']}") == "CANCELLED by 2001"


def test_a_node_without_power_is_told_and_comes_back(cluster: Cluster, jobs: dict[str, str]) -> None:
    cluster.running(jobs["lost"])
    cluster.running(jobs["moved"])
    cluster.cut_power("node2")
    assert cluster.ended(jobs["lost"], 60) == "NODE_FAIL"
    # while its node is off it waits for it; it ran there before
    assert cluster.states(jobs["moved"], "-D")[0] in ("NODE_FAIL", "REQUEUED")
    cluster.power_on("node2")
    until(lambda: cluster.state(jobs["moved"]) == "RUNNING", 45)


def test_a_requeued_job_runs_again_under_its_id(cluster: Cluster, jobs: dict[str, str]) -> None:
    until(lambda: cluster.states(jobs["requeued"], "-D") == ["REQUEUED", "RUNNING"], 45)
    assert cluster.ada(f"scontrol show job {jobs['requeued']} | grep -o 'Restarts=[0-9]*'") == "Restarts=1"


def test_a_job_is_told_before_its_time_is_over(cluster: Cluster, jobs: dict[str, str]) -> None:
    assert cluster.ended(jobs["told"], 80) == "FAILED"
    assert cluster.ada("cat /scratch/ada/told") == "told"


def test_a_job_over_its_time_is_ended(cluster: Cluster, jobs: dict[str, str]) -> None:
    assert cluster.ended(jobs["limited"], 120) == "TIMEOUT"
