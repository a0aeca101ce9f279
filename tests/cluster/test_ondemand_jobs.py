"""A session of the portal's app as a real job: who reaches it on its node, and what is left of it."""

from __future__ import annotations

import base64
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from conftest import until

sys.path.append(str(Path(__file__).resolve().parents[1] / "ondemand"))
import ood_app

if TYPE_CHECKING:
    from conftest import Cluster

FOLDER = "/scratch/ada/labtrack-ondemand-tests"
NODE, PORT, PORTAL = "node1", 23457, "https://ondemand.example.org"
RECORD = """
import mlflow
for seed in (1, 2):
    with mlflow.start_run(run_name=f"seed {seed}"):
        mlflow.log_metric("loss", 1 / seed)
"""


@dataclass
class Session:
    """A session that is there: its job, and what its card knows."""

    job: str
    password: str

    @property
    def url(self) -> str:
        return f"http://{NODE}:{PORT}/node/{NODE}/{PORT}"


@pytest.fixture(scope="module")
def session(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """Submitted as the dashboard does it, with what somebody has recorded there."""
    here, python = tmp_path_factory.mktemp("ondemand"), cluster.rehearsal.PYTHON
    cluster.ada(f"rm -rf {FOLDER}; mkdir -p -m 700 {FOLDER}")
    record = f"MLFLOW_TRACKING_URI=labtrack://{FOLDER}/runs {python} -c {shlex.quote(RECORD)}"
    cluster.ada(record, timeout=120)
    etc = ood_app.site(here / "etc", f"portal: {PORTAL}\nclusters: [rehearsal]\nhours: 1\n")
    venv = str(Path(python).parents[1])
    context = ood_app.answered(etc, source_path=f"{FOLDER}/runs", software="venv", software_venv=venv)
    place, submission = ood_app.staged(here / "staged", context)
    script = ood_app.job_script(f"{FOLDER}/staged", submission["batch_connect"], NODE, PORT)
    (place / "job.sh").write_text(script)
    packed = subprocess.run(["tar", "-cz", "-C", here, "staged"], capture_output=True, check=True).stdout
    unpack = f"base64 -d | tar -xz --no-same-owner -C {FOLDER} && chown -R ada: {FOLDER}/staged"
    cluster.root("login", unpack, stdin=base64.b64encode(packed).decode(), check=True)
    options = ["--parsable", f"--nodelist={NODE}", "--mem=1500", "--time=10", "--output=output.log"]
    job = cluster.ada(f"cd {FOLDER}/staged && {shlex.join(['sbatch', *options, 'job.sh'])}")
    try:
        said = until(lambda: cluster.ada(f"cat {FOLDER}/staged/connection.yml", check=False), 240)
        yield Session(job, yaml.safe_load(said)["password"])
    finally:
        print(cluster.ada(f"cat {FOLDER}/staged/output.log {FOLDER}/staged/*.txt", check=False))
        cluster.ada(f"scancel {job}; rm -rf {FOLDER}", check=False)


def curl(cluster: Cluster, user: str, *words: str) -> str:
    """The status, and the body behind it, of a request that somebody makes on the login node."""
    command = shlex.join(["curl", "-s", "-m", "30", "-w", "\n%{http_code}", *words])
    *body, status = cluster.root("login", f"su - {user} -c {shlex.quote(command)}", check=True).stdout.splitlines()
    return "\n".join([status, *body])


def test_only_who_has_the_password_sees_the_runs(cluster: Cluster, session: Session) -> None:
    search = f"{session.url}/ajax-api/2.0/mlflow/runs/search"
    query = ("-H", "Content-Type: application/json", "-H", f"Origin: {PORTAL}", "-d", '{"experiment_ids": ["0"]}')
    for user in ("grace", "ada"):
        assert curl(cluster, user, f"{session.url}/").startswith("403")
        assert curl(cluster, user, *query, search).startswith("403")
    opened = curl(
        cluster, "ada", "-i", "-H", f"Origin: {PORTAL}", "-d", f"password={session.password}", f"{session.url}/open"
    )
    assert opened.startswith("200"), opened
    (cookie,) = (line.split()[1] for line in opened.splitlines() if line.lower().startswith("set-cookie:"))
    found = curl(cluster, "ada", "-H", f"Cookie: {cookie}", *query, search)
    assert found.startswith("200"), found
    names = {one["info"]["run_name"] for one in json.loads(found.partition("\n")[2])["runs"]}
    assert names == {"seed 1", "seed 2"}
    processes = cluster.root(NODE, "ps -u ada -o args", check=True).stdout
    assert "labtrack ui" in processes and session.password not in processes


def test_nothing_is_left_of_it_on_the_node(cluster: Cluster, session: Session) -> None:
    cluster.ada(f"scancel {session.job}")
    assert cluster.ended(session.job, 90) == "CANCELLED"
    left = "pgrep -u ada -fl 'labtrack|mlflow'; find /tmp /dev/shm -user ada"
    until(lambda: not cluster.root(NODE, left).stdout, 60)
