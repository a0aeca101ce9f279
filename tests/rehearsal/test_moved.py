"""A lab goes from one of the rehearsal's projects to the other, with all that was recorded; and almost back."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from api import Api
from second_lab import PROVISION, YES
from sync_server import mlflow_bin
from test_cloud import until
from test_over_years import RECORDED, Kept, Lab

from labtrack import lab as labs
from labtrack import secrets
from rehearsal import ansible_environment

pytestmark = [pytest.mark.timeout(2400), pytest.mark.long]

OLD, NEW = "parted", "moved"
NAME = f"mlflow.{OLD}.test"
LEFT = """\
import mlflow
with mlflow.start_run(run_name="{0}"):
    mlflow.log_text("{0}", "note.txt")
"""


class Moving(Lab):
    """One of the two, in a folder that both share."""

    def __init__(self, rehearsal: Any, root: Path, name: str, cloud: str) -> None:
        super().__init__(rehearsal, root, name, lab_fqdn=NAME, lab_cloud=cloud, lab_users=[{"name": "ada"}])
        self.root = root

    @property
    def admin(self) -> Api:
        password = secrets.read(labs.load(self.dir))["secret_mlflow_admin_password"]
        return Api(f"https://{NAME}", str(self.private / "ca.pem"), ("admin", password))

    def move(self, *arguments: str, fails: bool = False) -> str:
        """`labtrack lab move`; what it says."""
        both = [str(self.root / "inventory" / name) for name in (OLD, NEW)]
        done = self.rehearsal.run("labtrack", "lab", "move", *both, *arguments)
        said = done.stdout + done.stderr
        print(said)
        assert (done.returncode != 0) is fails, said
        assert not [secret for secret in secrets.read(labs.load(self.dir)).values() if secret in said]
        return said

    def killed(self, task: str) -> None:
        """`labtrack lab move`, killed with all that it has started while that task is at work."""
        said = self.root / "killed.log"
        both = [str(self.root / "inventory" / name) for name in (OLD, NEW)]
        program = Path(sys.executable).with_name("labtrack")
        with said.open("w") as log:
            move = subprocess.Popen(
                [program, "lab", "move", *both],
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=ansible_environment(),
            )
            until(lambda: f"TASK [{task}]" in said.read_text() or move.poll() is not None)
            os.killpg(move.pid, signal.SIGKILL)
            move.wait()
        assert move.returncode == -signal.SIGKILL, said.read_text()

    def name_it(self) -> None:
        """The DNS leads to this one, and no more to the other."""
        for name in (OLD, NEW):
            block = f"# {{}} labtrack {name} server\n"
            hosts = Path("/etc/hosts").read_text()
            begin, _, rest = hosts.partition(block.format("BEGIN"))
            if rest:
                Path("/etc/hosts").write_text(begin + rest.partition(block.format("END"))[2])
        line = f"{self.server['ansible_host']} {NAME}"
        with Path("/etc/hosts").open("a") as hosts_file:
            hosts_file.write(f"# BEGIN labtrack {self.name} server\n{line}\n# END labtrack {self.name} server\n")

    def as_ada(self, command: str) -> tuple[int, str]:
        """A command with the file that this lab's admin has for her."""
        done = self.rehearsal.run("bash", "-c", f". {self.private}/ada/mlflow_env.sh && {command}")
        return done.returncode, done.stdout + done.stderr

    def is_closed(self, hint: str) -> bool:
        """Whether the lab's admin is told that it is closed, and what to do."""
        said = json.loads(self.rehearsal.run("labtrack", "status", str(self.dir), "--json").stdout)
        (row,) = (one for one in said["results"] if one["check"] == "closed")
        return row["status"] == "warning" and hint in row["hint"]

    def record(self, name: str) -> None:
        """A run with a file, by MLflow itself."""
        code, said = self.as_ada(f"{mlflow_bin()}/python - <<'END'\n{LEFT.format(name)}END")
        assert code == 0, said


class Training:
    """A loop that logs a metric each few milliseconds, whatever is answered."""

    def __init__(self, lab: Moving) -> None:
        self.run, self.acknowledged = lab.admin.new_run(), []
        self._stop, self._thread = threading.Event(), threading.Thread(target=self._work, args=(lab.admin,))

    def __enter__(self) -> Training:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _work(self, api: Api) -> None:
        for step in itertools.count(1):
            if self._stop.is_set():
                return
            with contextlib.suppress(requests.RequestException):
                if api.log(self.run, step).status_code == 200:
                    self.acknowledged.append(step)
            self._stop.wait(0.005)


class Both:
    """The lab in both places, and what was recorded."""

    def __init__(self, rehearsal: Any, folder: Path) -> None:
        self.old = Moving(rehearsal, folder, OLD, "climate")
        self.new = Moving(rehearsal, folder, NEW, "climate-backup")
        self.tenants = {one.name: rehearsal.cloud(one.settings["lab_cloud"]) for one in (self.old, self.new)}
        with tarfile.open(RECORDED) as packed:
            packed.extractall(folder / "recorded", filter="data")
        self.kept = Kept(self.old, folder / "recorded/sqlite", "")

    def remove(self) -> None:
        for one in (self.old, self.new):
            one.forget()
            one.remove(self.tenants[one.name])


@pytest.fixture(scope="module")
def both(rehearsal: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """The old lab with what was recorded, and the new one, made and empty."""
    found = Both(rehearsal, tmp_path_factory.mktemp(OLD))
    found.remove()  # what a test that was killed has left
    try:
        found.old.deploy()
        found.kept.lab.sync(found.kept.recorded)
        found.old.move("--step", "files")
        found.new.deploy(PROVISION)
        found.new.deploy("playbooks/deploy.yml")
        found.old.name_it()
        yield found
    finally:
        found.remove()


def closed(lab: Moving) -> str:
    """What the server says to a write; it has to be a refusal that clients come back after."""
    answer = lab.admin.call("runs/create", {"experiment_id": "0", "run_name": "too late"})
    assert answer.status_code == 503 and int(answer.headers["Retry-After"]) > 0, answer.text
    return str(answer.json()["message"])


def test_a_lab_is_in_another_project_with_all_that_was_recorded(both: Both) -> None:
    old, new, kept = both.old, both.new, both.kept
    assert "of which 0 " not in old.move("--step", "copy")
    old.record("after the first copy")
    kept.note()
    assert not kept.said["differences"] and "after the first copy" in kept.runs

    said = old.move()
    assert "artifact_uri" in said and new.server["ansible_host"] in said
    assert "takes no requests at the moment" in closed(old)
    new.name_it()
    closed(new)
    assert old.is_closed("--step back") and new.is_closed("--step open")

    old.name_it()
    old.move("--step", "back")
    old.record("after going back")
    with Training(old) as training:
        kept.note()
        old.killed("Dump both databases")
        closed(old)
        old.killed("Fill both databases, and write the new addresses")
        assert new.is_closed("goes on with the move")
        assert "A move into this lab was not finished" in new.refusal(playbook="playbooks/open.yml")
        old.move()
    assert len(training.acknowledged) > 100
    assert "too late" not in old.sql("\\c mlflowdb\nSELECT name FROM runs")

    new.name_it()
    new.move("--step", "open")
    kept.lab = new
    assert new.runs() == kept.runs
    assert set(training.acknowledged) <= set(new.admin.steps(training.run))
    code, told = old.as_ada("labtrack doctor")
    assert code != 0 and f"s3://{NEW}-mlflow" in told and "newest mlflow_env.sh" in told
    new.deploy()
    kept.compare()
    code, told = new.as_ada("labtrack doctor --write")
    assert code == 0, told
    left = "\\c mlflowdb\nSELECT count(*) FROM runs WHERE artifact_uri LIKE 's3://parted-%'"
    assert new.sql(left).splitlines()[-1] == "0"
    new.record("in the new place")
    assert new.move("--step", "copy").count("0 (0.0 MiB) were copied now") == 1

    assert "which would be lost" in old.move(fails=True)
    assert "what was recorded there since" in old.move("--step", "back", fails=True)
    assert "only one of the two may be open" in old.refusal(playbook="playbooks/open.yml")
    stays_closed(old, new)


def stays_closed(old: Moving, new: Moving) -> None:
    """The old lab is deployed again, by whoever does not think of it, on the machine and after all was taken away."""
    there = f"it is {NEW} now"
    refused = old.playbook("site.yml", *YES)  # by preflight, which has more to tell: the name leads elsewhere
    assert refused.returncode != 0 and there in " ".join(refused.stdout.split())
    assert there in old.refusal(playbook="playbooks/users.yml")
    assert there in old.rehearsal.run("labtrack", "verify", str(old.dir)).stdout
    old.playbook("playbooks/close.yml", "-e", json.dumps({"close_why": "a new disk"}), check=True)
    assert "only one of the two may be open" in old.refusal(playbook="playbooks/open.yml")
    for data in ((), ("-e", f"remove_data={OLD}")):
        old.playbook("playbooks/remove.yml", "-e", "remove=all", *data, check=True)
        old.refusal(*YES, playbook="site.yml")
        old.deploy("playbooks/deploy.yml")
        assert old.is_closed("--step back")
        old.name_it()
        closed(old)
        assert "only one of the two may be open" in old.refusal(playbook="playbooks/open.yml")
        new.name_it()
    assert new.runs() >= {"in the new place"}
