"""The server's secrets are renewed under load: a researcher's program goes on, and the old ones stop working."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from labtrack import lab as labs
from labtrack import secrets
from labtrack.envfile import register
from labtrack.lab import ADMIN_USER, SERVER_OWNER, VERIFY_USER
from labtrack.objectstore import Refusal, Store, probe
from labtrack.server import Server

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
APPLY = ("playbooks/deploy.yml", "--tags", "secrets,postgresql,mlflow")


class Load:
    """A researcher's program on the login node, running."""

    def __init__(self, rehearsal: Rehearsal) -> None:
        self.rehearsal = rehearsal
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
        return json.loads(self.wait_for("rotation.json", 120))


@pytest.fixture(scope="module")
def copied(rehearsal: Rehearsal, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the lab for other secrets on the same server; in the end the server has the lab's own again."""
    root = tmp_path_factory.mktemp("rotation")
    folder = root / "inventory" / "rehearsal"
    shutil.copytree(rehearsal.lab_dir, folder)
    shutil.copytree(rehearsal.private, root / "private" / "rehearsal")
    lab = labs.load(rehearsal.lab_dir)
    verify = rehearsal.secrets["secret_verify_password"]
    try:
        yield folder
    finally:
        rehearsal.ssh("login", "touch /home/ada/rotation.stop")
        try:
            rehearsal.playbook(*APPLY, check=True)
            admin = Server(lab.url, ADMIN_USER, secrets.get(lab, "secret_mlflow_admin_password"), lab.ca_file)
            admin.set_password(VERIFY_USER, verify)
        finally:  # the copy's last key of the server is nobody's now
            last = labs.load(folder)
            own = secrets.read(lab)[secrets.S3_ACCESS]
            for access in {secrets.read(last)[secrets.S3_ACCESS]} - {own}:
                clouds = {"OS_CLIENT_CONFIG_FILE": str(rehearsal.private / "clouds.yaml")}
                rehearsal.run("openstack", "--os-cloud", "climate", "ec2", "credentials", "delete", access, env=clouds)


def test_every_secret_of_the_server_is_renewed_without_a_failed_upload(rehearsal: Rehearsal, copied: Path) -> None:
    lab = labs.load(copied)
    old = secrets.read(lab)
    load = Load(rehearsal)
    rotated = rehearsal.run("labtrack", "secrets", "rotate", str(copied), "--leaked", check=True)
    new = secrets.read(lab)
    every = {*secrets.PASSWORDS, secrets.S3_ACCESS, secrets.S3_SECRET}
    assert {name for name in old if new[name] != old[name]} == every
    assert not [value for value in (*old.values(), *new.values()) if value in rotated.stdout + rotated.stderr]
    # until the server has the new ones, the old ones work
    assert Server(lab.url, ADMIN_USER, old["secret_mlflow_admin_password"], lab.ca_file).login_works()
    probe(store(lab, old))

    said = rehearsal.playbook(*APPLY, "-i", str(copied), check=True).stdout
    assert "old key" in said or "changed=" in said
    rehearsal.run("labtrack", "users", "sync", str(copied), check=True)
    found = load.end()
    assert found["failures"] == [], found
    assert found["points"] == found["done"] == found["files"] > 50

    # all of the old ones have stopped working
    with pytest.raises(Refusal, match=r"InvalidAccessKeyId|AccessDenied|SignatureDoesNotMatch"):
        probe(store(lab, old))
    known = register.load(lab.private / "keys.json")
    assert [entry.access for entry in known.of(SERVER_OWNER)] == [new[secrets.S3_ACCESS]]
    for user, name in ((ADMIN_USER, "secret_mlflow_admin_password"), (VERIFY_USER, "secret_verify_password")):
        assert Server(lab.url, user, new[name], lab.ca_file).login_works()
        deadline = time.monotonic() + 90  # the instances remember a checked password for a minute
        while Server(lab.url, user, old[name], lab.ca_file).login_works():
            assert time.monotonic() < deadline, f"{name} still works after 90 s"
            time.sleep(2)
    for role, name, database in (
        ("mlflow", "secret_postgresql_mlflow_password", rehearsal.lab.get("lab_database_name", "mlflowdb")),
        ("mlflow_auth", "secret_postgresql_auth_password", "mlflow_auth"),
    ):
        for value, works in ((old[name], False), (new[name], True)):
            ask = f"read -r PGPASSWORD; export PGPASSWORD; psql -h /run/postgresql -U {role} {database} -c 'SELECT 1'"
            said = rehearsal.ssh("server", ask, stdin=f"{value}\n")
            assert (said.returncode == 0) == works, said.stderr
    assert new["secret_mlflow_flask_key"] in rehearsal.server.file("/etc/mlflow/secrets.env").content_string
    again = rehearsal.playbook(*APPLY, "-i", str(copied), check=True).stdout
    assert "changed=0" in again.split("localhost")[-1] and not [
        line for line in again.splitlines() if "changed=" in line and "changed=0" not in line
    ]


def store(lab: labs.Lab, known: dict[str, str]) -> Store:
    """The store with the server's key."""
    access, secret = known[secrets.S3_ACCESS], known[secrets.S3_SECRET]
    return Store(lab.s3_endpoint, lab.s3_region, lab.bucket, access, secret, lab.s3_ca_file)
