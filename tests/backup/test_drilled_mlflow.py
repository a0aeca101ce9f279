"""The drill starts the lab's MLflow on the restored databases, and compares its answers with the server's."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import pytest
from artifact_copies import Artifacts
from backed_up import PROGRAM, Machine
from drilled_mlflow import Served
from test_backup import meanwhile

DAY = 86_400_000  # milliseconds


@pytest.fixture(scope="module")
def served(machine: Machine) -> Iterator[Served]:
    made = Served(machine)
    with made.running():
        made.post("users/create", {"username": "ada", "password": "another word of the tests"})
        yield made


def drill(
    served: Served, *, fails: bool = False, mlflow: Mapping[str, str] = MappingProxyType({}), **changed: Any
) -> dict[str, Any]:
    """What a drill leaves, of which nothing else is left."""
    said = served.machine("drill", fails=fails, mlflow={**served.settings, **mlflow}, **changed)
    result = served.machine.result("drill")
    assert result["message"] in said
    assert list(served.machine.drills.iterdir()) == list(served.sockets.iterdir()) == []
    assert "labtrack-drill" not in served.accounts()
    served.until(lambda: served.at_work() == [])
    return result


def test_mlflow_on_the_copy_answers_as_the_server_does(served: Served, artifacts: Artifacts) -> None:
    now = int(time.time() * 1000)
    experiment = served.post("experiments/create", {"name": "drilled"})["experiment_id"]
    runs = [served.run(experiment, f"run {number}", now - DAY + number) for number in range(25)]
    for run, name in ((runs[-2], "model.pt"), (runs[-1], "plots/loss.png")):
        artifacts.put(f"{run['artifact_uri'].partition('/artifacts/')[2]}/{name}", b"weights", 30)
    artifacts.night()
    lost = f"{runs[-1]['artifact_uri'].partition('/artifacts/')[2]}/late.txt"
    artifacts.put(lost, b"logged after the listing")
    change = f"UPDATE tags SET value = 'grace' WHERE run_uuid = '{runs[3]['run_id']}'"  # noqa: S608
    file = shutil.copy(artifacts.state / "listing.jsonl.gz", served.folder)
    shutil.chown(file, "postgres")  # which can't enter pytest's folder
    of_artifacts = artifacts.settings | {"state": str(served.folder)}
    changing = meanwhile(served.machine, f"\\c tracking\n{change};")
    result = drill(served, artifacts=of_artifacts, pgbackrest=changing)
    seen = result["mlflow"]
    counted = [seen[what] for what in ("runs", "changed", "histories", "experiments", "accounts")]
    assert counted == [24, 1, 48, 1, 2]
    assert "MLflow started on the copy in" in result["message"]
    assert "answers as the server does: 24 runs" in result["message"]
    assert seen["files"] == 3 and "not in it: late.txt of the run" in result["message"], result
    assert "comes with the next night" in result["warning"]
    assert seen["seed"] >= 0 < seen["start_seconds"]


def test_a_schema_that_the_release_does_not_know(served: Served) -> None:
    (known,) = served.machine.sql("SELECT version_num FROM alembic_version", "tracking")
    served.machine.sql("UPDATE alembic_version SET version_num = '0a0a0a0a0a0a'", "tracking")
    try:
        message = drill(served, fails=True)["message"]
    finally:
        served.machine.sql(f"UPDATE alembic_version SET version_num = '{known}'", "tracking")  # noqa: S608
    assert "MLflow does not start on the restored copy" in message and "0a0a0a0a0a0a" in message
    assert "To fix:" in message and "run playbooks/deploy.yml, then the drill again" in message


def test_a_drill_that_is_killed_while_mlflow_runs_leaves_nothing_at_work(served: Served) -> None:
    env = served.machine.environment({"mlflow": served.settings})
    with subprocess.Popen(["/usr/bin/python3", PROGRAM, "drill"], env=env) as process:
        served.until(lambda: bool(served.at_work()))
        os.kill(process.pid, signal.SIGKILL)
    served.until(lambda: served.at_work() == [])
    assert "labtrack-drill" in served.accounts()
    message = drill(served, fails=True, mlflow={"switch": f"{served.settings['switch']}-gone"})["message"]
    assert "run playbooks/deploy.yml, which starts labtrack-drill.socket" in message


def test_a_server_that_does_not_answer(served: Served) -> None:
    message = drill(served, fails=True, mlflow={"live": str(served.private)})["message"]
    assert "The running server does not answer" in message and "mlflowctl check instances" in message
