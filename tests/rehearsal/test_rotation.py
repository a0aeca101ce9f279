"""The server's secrets are renewed under load: a researcher's program goes on, and the old ones stop working."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from admin import copied_lab

from labtrack import lab as labs
from labtrack import secrets
from labtrack.envfile import register
from labtrack.lab import ADMIN_USER, SERVER_OWNER, VERIFY_USER
from labtrack.tracking.server import Server

if TYPE_CHECKING:
    from conftest import Rehearsal

# As training does it: metrics, parameters and files, one after the other; the store's own answers for the page's view
# of a file, which the server fetches with its key.  It ends when the file "stop" is there.
LOAD = """
import json, os, pathlib, time, mlflow
failures, done, stop = [], 0, pathlib.Path("rotation.stop")
def tried(what, call, *arguments):
    try:
        return call(*arguments)
    except Exception as error:
        failures.append(f"{time.strftime('%X')} {what}: {str(error)[:300]}")
mlflow.set_experiment(f"rotation {time.time_ns()}")
with mlflow.start_run() as run:
    pathlib.Path("rotation.started").touch()
    while not stop.exists():
        tried("metric", mlflow.log_metric, "loss", 1 / (done + 1), done)
        tried("upload", mlflow.log_text, "x" * 1000, f"rotation/{done}.txt")
        done += 1
        time.sleep(0.2)
points = len(mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss"))
files = len(mlflow.artifacts.list_artifacts(run_id=run.info.run_id, artifact_path="rotation"))
print(json.dumps({"done": done, "points": points, "files": files, "failures": failures}))
"""
APPLY = ("playbooks/deploy.yml", "--tags", "secrets,mlflow")
# Not PostgreSQL's: from its new password to MLflow's restart, new connections fail longer than MLflow's client repeats.
RENEWED = (secrets.S3_ACCESS, "secret_mlflow_admin_password", "secret_mlflow_flask_key", "secret_verify_password")


class Load:
    """A researcher's program on the login node, running."""

    def __init__(self, rehearsal: Rehearsal) -> None:
        self.rehearsal = rehearsal
        rehearsal.hand_file("ada")
        rehearsal.ssh("login", "rm -f /home/ada/rotation.*; cat > /home/ada/rotation.py", stdin=LOAD, check=True)
        start = f"cd && . ./mlflow_env.sh && {rehearsal.PYTHON} rotation.py > rotation.json 2> rotation.log"
        rehearsal.ssh("login", f"su - ada -c 'setsid sh -c \"{start}\" > /dev/null 2>&1 &'", check=True)
        self.wait_for("rotation.started", 60)

    def wait_for(self, name: str, seconds: float) -> str:
        """What a file of Ada's says, once it is there and not empty or a mark."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = self.rehearsal.ssh("login", f"cd /home/ada && test -e {name} && cat {name}")
            if found.returncode == 0 and (found.stdout or name.endswith("started")):
                return found.stdout
            time.sleep(1)
        pytest.fail(f"no {name}: {self.rehearsal.ssh('login', 'tail -n 20 /home/ada/rotation.log').stdout}")

    def end(self) -> dict[str, object]:
        """Stops the program, and gives what it found."""
        self.rehearsal.ssh("login", "touch /home/ada/rotation.stop", check=True)
        return json.loads(self.wait_for("rotation.json", 120).splitlines()[-1])  # MLflow says where the run is, before


@pytest.fixture(scope="module")
def copied(rehearsal: Rehearsal, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the lab for other secrets on the same server; in the end the server has the lab's own again."""
    root = tmp_path_factory.mktemp("rotation")
    folder = copied_lab(rehearsal, root)
    lab = labs.load(rehearsal.lab_dir)
    own = rehearsal.secrets
    # the lab's own key of the server is not the copy's to end
    register.load(root / "private" / "rehearsal" / "keys.json").drop(own[secrets.S3_ACCESS])
    try:
        yield folder
    finally:
        rehearsal.ssh("login", "touch /home/ada/rotation.stop")
        try:
            rehearsal.playbook(*APPLY, check=True)
            admin = Server(lab.url, ADMIN_USER, own["secret_mlflow_admin_password"], lab.ca_file)
            admin.set_password(VERIFY_USER, own["secret_verify_password"])
            works(lab, VERIFY_USER, own["secret_verify_password"])
        finally:  # the copy's last key of the server is nobody's now
            last = secrets.read(labs.load(folder))[secrets.S3_ACCESS]
            if last != own[secrets.S3_ACCESS]:
                clouds = {"OS_CLIENT_CONFIG_FILE": str(rehearsal.private / "clouds.yaml")}
                rehearsal.run("openstack", "--os-cloud", "climate", "ec2", "credentials", "delete", last, env=clouds)


def works(lab: labs.Lab, user: str, password: str, *, wanted: bool = True) -> None:
    """Waits until a login works, or does no more: the instances remember a checked password for a minute."""
    deadline = time.monotonic() + 90
    while Server(lab.url, user, password, lab.ca_file).login_works() != wanted:
        assert time.monotonic() < deadline, f"{user}: 90 s after the change the login still is not {wanted}"
        time.sleep(2)


def test_secrets_of_the_server_are_renewed_without_a_failed_upload(rehearsal: Rehearsal, copied: Path) -> None:
    lab = labs.load(copied)
    old = secrets.read(lab)
    rehearsal.run("labtrack", "secrets", "rotate", str(copied), secrets.S3_ACCESS, check=True)
    between = secrets.read(lab)[secrets.S3_ACCESS]
    load = Load(rehearsal)
    rotated = rehearsal.run("labtrack", "secrets", "rotate", str(copied), *RENEWED, "--leaked", check=True)
    new = secrets.read(lab)
    assert {name for name in old if new[name] != old[name]} == {*RENEWED, secrets.S3_SECRET}
    assert not [value for value in (*old.values(), *new.values()) if value in rotated.stdout + rotated.stderr]
    # until the server has the new ones, the old ones work
    assert Server(lab.url, ADMIN_USER, old["secret_mlflow_admin_password"], lab.ca_file).login_works()
    assert between in {entry.access for entry in register.load(lab.private / "keys.json").of(SERVER_OWNER)}

    rehearsal.playbook(*APPLY, "-i", str(copied), check=True)
    rehearsal.run("labtrack", "users", "sync", str(copied), check=True)
    found = load.end()
    assert found["failures"] == [], found
    assert found["points"] == found["done"] == found["files"] > 20

    # the deploy has ended the server's older key, and the other old ones have stopped working
    known = register.load(lab.private / "keys.json")
    assert [entry.access for entry in known.of(SERVER_OWNER)] == [new[secrets.S3_ACCESS]] != [between]
    secret_env = rehearsal.server.file("/etc/mlflow/secrets.env").content_string
    assert new[secrets.S3_ACCESS] in secret_env and new["secret_mlflow_flask_key"] in secret_env
    for user, name in ((ADMIN_USER, "secret_mlflow_admin_password"), (VERIFY_USER, "secret_verify_password")):
        works(lab, user, new[name])
        works(lab, user, old[name], wanted=False)
