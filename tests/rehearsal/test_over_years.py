"""A lab over years: a newer kit, a lost machine, a time in the past.  What was recorded is there after each."""

from __future__ import annotations

import json
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import away
import pytest
import yaml
from api import Api
from recap import changed
from second_lab import StandIn

from labtrack import lab as labs
from labtrack import secrets

pytestmark = [pytest.mark.timeout(2400), pytest.mark.long]

RECORDED = Path(__file__).parents[1] / "fixtures/stores/3.17.2.tar.xz"
NAME = "lost"


class Lab(StandIn):
    """A lab with backups, one researcher and what she has recorded."""

    @property
    def admin(self) -> Api:
        password = secrets.read(labs.load(self.dir))["secret_mlflow_admin_password"]
        return Api(f"https://mlflow.{self.name}.test", str(self.private / "ca.pem"), ("admin", password))

    def sync(self, recorded: Path) -> dict[str, Any]:
        """What `labtrack sync --verify` says, with the file that she was given."""
        sourced = f". {self.private}/ada/mlflow_env.sh && labtrack sync -s {recorded} --verify --json"
        done = self.rehearsal.run("bash", "-c", sourced, env={"XDG_STATE_HOME": str(recorded.parent / "state")})
        assert done.returncode == 0, done.stdout + done.stderr
        report = json.loads(done.stdout)
        return {key: report[key] for key in ("verified", "differences", "counts")}

    def runs(self) -> set[str]:
        """Names of all runs."""
        experiments = self.admin.done("experiments/search", {"max_results": 100})["experiments"]
        ids = [one["experiment_id"] for one in experiments]
        found = self.admin.done("runs/search", {"experiment_ids": ids, "max_results": 1000}).get("runs", [])
        return {one["info"]["run_name"] for one in found}

    def new_run(self, name: str) -> None:
        body = {"experiment_id": "0", "run_name": name, "start_time": int(time.time() * 1000)}
        self.admin.done("runs/create", body)

    def sql(self, query: str) -> str:
        return self.ssh("sudo runuser -u postgres -- psql -XAt", input=query)

    def archived(self) -> None:
        """Wait until all that was written up to now is in the other project."""
        segment = self.sql("SELECT pg_walfile_name(pg_current_wal_lsn())")
        end = time.monotonic() + 90
        while self.sql("SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver") < segment:
            assert time.monotonic() < end, "was not archived within the minute that the docs promise, and a half"
            time.sleep(1)


@dataclass
class Kept:
    """What has to be there: the names of the runs, and what a sync of the recording says."""

    lab: Lab
    recorded: Path
    backup: str
    runs: set[str] = field(default_factory=set)
    said: dict[str, Any] = field(default_factory=dict)

    def note(self) -> None:
        self.runs, self.said = self.lab.runs(), self.lab.sync(self.recorded)

    def compare(self) -> None:
        assert self.lab.runs() == self.runs
        assert self.lab.sync(self.recorded) == self.said


@pytest.fixture(scope="module")
def kept(rehearsal: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    """A lab of the last release, with data."""
    folder = tmp_path_factory.mktemp(NAME)
    lab = Lab(rehearsal, folder, NAME, lab_users=[{"name": "ada"}])
    with tarfile.open(RECORDED) as packed:
        packed.extractall(folder / "recorded", filter="data")
    tenant = rehearsal.cloud("climate")
    lab.forget()
    lab.remove(tenant)  # what a test that was killed has left
    with away.bucket(rehearsal, labs.load(rehearsal.lab_dir), f"{NAME}-backup") as store:
        try:
            with released(rehearsal, folder / "released") as kit:
                # its own configuration, too: else its playbooks run this kit's roles and plugins
                own = {"PYTHONPATH": str(kit / "scripts"), "ANSIBLE_CONFIG": str(kit / "ansible.cfg")}
                lab.deploy(cwd=kit, env=own)
            found = Kept(lab, folder / "recorded/sqlite", away.settings(store, folder / "variables.yml"))
            lab.sync(found.recorded)
            found.note()
            yield found
        finally:
            lab.forget()
            lab.remove(tenant)


@contextmanager
def released(rehearsal: Any, folder: Path) -> Iterator[Path]:
    """A checkout of the last release."""
    commit = yaml.safe_load((rehearsal.root / "releases.yml").read_text())[-1]["commit"]
    git = ("git", "-C", str(rehearsal.root))
    if rehearsal.run(*git, "cat-file", "-e", f"{commit}^{{commit}}").returncode:
        pytest.skip(f"this clone has not the commit of the last release, {commit}")
    rehearsal.run(*git, "worktree", "add", "--detach", str(folder), commit, check=True)
    try:
        yield folder
    finally:
        rehearsal.run(*git, "worktree", "remove", "--force", str(folder), check=True)


@pytest.fixture(scope="module")
def upgraded(kept: Kept) -> Kept:
    """By this kit, with backups turned on."""
    kept.lab.deploy("site.yml", kept.backup)
    return kept


def test_a_lab_of_the_last_release_has_all_after_the_next(upgraded: Kept) -> None:
    upgraded.compare()
    assert changed(upgraded.lab.deploy("site.yml", upgraded.backup)) == []


def test_the_databases_come_back_after_the_machine(rehearsal: Any, upgraded: Kept) -> None:
    lab = upgraded.lab
    lab.ssh("sudo systemctl start labtrack-backup@run")
    lab.new_run("after the backup")
    lab.archived()
    upgraded.note()
    assert "after the backup" in upgraded.runs and len(upgraded.runs) > 1
    lab.lose(rehearsal.cloud("climate"))
    begun = time.monotonic()
    lab.deploy("site.yml", upgraded.backup, "-e", "restore=latest")
    print(f"restored onto a new machine in {time.monotonic() - begun:.0f} s")
    upgraded.compare()


def test_a_time_comes_back_and_what_is_newer_goes_only_when_that_is_said(upgraded: Kept) -> None:
    lab = upgraded.lab
    lab.ssh("sudo systemctl start labtrack-backup@run")
    upgraded.note()
    to = ("-e", f"restore_to='{lab.ssh('date --iso-8601=ns')}'")
    lab.new_run("too much")
    lab.archived()
    refused = lab.refusal(upgraded.backup, *to, playbook="playbooks/restore.yml")
    assert "restore_discard_newer=true" in refused and "runs" in refused
    assert "too much" in lab.runs()
    lab.deploy("playbooks/restore.yml", upgraded.backup, *to, "-e", "restore_discard_newer=true")
    upgraded.compare()
    lab.ssh("sudo systemctl start labtrack-backup@run labtrack-backup@drill")
