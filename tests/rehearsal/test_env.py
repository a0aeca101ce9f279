"""Accounts, keys and files against the real Keystone, Swift and MLflow; `openstack` is the witness."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import pytest
import yaml
from admin import KEYSTONE, PERSON, Kit, leave_the_servers_copy_alone
from botocore.config import Config
from botocore.exceptions import ClientError

from labtrack import lab as labs
from labtrack.envfile import EnvFile, lifecycle, read_envfile

if TYPE_CHECKING:
    from conftest import Rehearsal


def store(rehearsal: Rehearsal, env: EnvFile) -> object:
    """The store with the key of a file, as boto3 itself sees it."""
    return boto3.session.Session().client(
        "s3",
        endpoint_url=env.variables["MLFLOW_S3_ENDPOINT_URL"],
        aws_access_key_id=env.access,
        aws_secret_access_key=env.variables["AWS_SECRET_ACCESS_KEY"],
        region_name=env.variables["AWS_DEFAULT_REGION"],
        verify=str(rehearsal.private / "cloud-ca.pem"),
        config=Config(
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            retries={"max_attempts": 1},
        ),
    )


def test_one_command_gives_what_a_researcher_needs(kit: Kit) -> None:
    before = kit.witnessed()
    done = kit.create("--verbose", check=True)
    env = read_envfile(kit.file)
    assert kit.witnessed() - before == {env.access}
    assert kit.registered()[env.access] == PERSON
    assert kit.file.stat().st_mode & 0o777 == 0o600
    for secret in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD"):
        assert env.variables[secret] not in done.stdout + done.stderr
        assert env.variables[secret] not in (kit.rehearsal.private / "keys.json").read_text()
    doctor = kit("doctor", "--write", "--json", "--file", str(kit.file))
    assert doctor.returncode == 0, doctor.stdout

    again = kit.create(check=True)
    assert "unchanged" in again.stdout and read_envfile(kit.file) == env
    listed = json.loads(kit("env", "list", kit.lab, "--json", check=True).stdout)["lines"]
    mine = [line for line in listed if line["owner"] == PERSON]
    assert [(line["access"], line["in_keystone"], line["file"]) for line in mine] == [(env.access, "yes", "ok")]

    kit("env", "revoke", kit.lab, PERSON, check=True)
    assert kit.witnessed() == before and not kit.file.exists()
    refused = kit("env", "rotate", kit.lab, PERSON)
    assert refused.returncode == 2 and "env create" in refused.stderr


class TestWaysToAKey:
    """Password (above), token, a key made elsewhere; and what an application credential is told."""

    def test_login_token(self, kit: Kit) -> None:
        token = kit.token["id"]
        kit.create(check=True, env={"OS_TOKEN": token})
        assert read_envfile(kit.file).access in kit.witnessed()

    def test_v3token_of_the_shell(self, kit: Kit) -> None:
        token = kit.token["id"]
        shell = {
            "OS_AUTH_TYPE": "v3token",
            "OS_AUTH_URL": KEYSTONE,
            "OS_TOKEN": token,
            "OS_PROJECT_NAME": "climate",
            "OS_PROJECT_DOMAIN_NAME": "Default",
            "OS_CACERT": str(kit.rehearsal.private / "cloud-ca.pem"),
        }
        kit.create(check=True, env=shell)
        assert read_envfile(kit.file).access in kit.seen()

    def test_a_key_made_elsewhere(self, kit: Kit) -> None:
        made = kit.openstack("ec2", "credentials", "create", "-f", "json")
        kit.create("--keys", "-", check=True, input=made)
        assert read_envfile(kit.file).access == json.loads(made)["access"]
        assert kit("doctor", "--file", str(kit.file)).returncode == 0

    @pytest.mark.parametrize("cloud", ["climate-appcred", "climate-appcred-unrestricted"])
    def test_an_application_credential(self, kit: Kit, cloud: str) -> None:
        before = kit.seen()
        done = kit.create("--cloud", cloud)
        assert done.returncode == 1 and "application credential (403)" in done.stderr
        for way in ("with a password", "OS_TOKEN", "--keys -"):
            assert way in done.stderr
        assert kit.seen() == before and not kit.file.exists()

    def test_a_wrong_token(self, kit: Kit) -> None:
        done = kit.create(env={"OS_TOKEN": "gAAAAABwrong"})
        assert done.returncode == 1 and "token is wrong or has expired" in done.stderr

    def test_a_project_that_does_not_own_the_bucket(self, kit: Kit) -> None:
        before = kit.seen()
        done = kit.create("--cloud", "climate-backup")
        assert done.returncode == 1 and "The store" in done.stderr and "To fix" in done.stderr
        assert not kit.file.exists() and PERSON not in kit.registered().values()
        assert kit.seen() == before, "the key that the store refused was taken back"


class Uploads(threading.Thread):
    """A job's uploads, one after the other until it ends: with the key that it started with, or with the newest."""

    def __init__(self, kit: Kit, held: EnvFile | None = None) -> None:
        super().__init__()
        self.kit, self.held, self.bucket = kit, held, kit.rehearsal.lab["lab_bucket"]
        self.uploads: list[str] = []
        self.failures: list[str] = []
        self.used: set[str] = set()
        self.stop = threading.Event()

    def run(self) -> None:
        while not self.stop.wait(0.3):
            env = self.held or read_envfile(self.kit.file)
            name = f"rotation-under-load/{self.name}/{len(self.uploads)}"
            try:
                store(self.kit.rehearsal, env).put_object(Bucket=self.bucket, Key=name, Body=b"artifact")
            except ClientError as error:
                self.failures.append(str(error))
            self.uploads.append(name)
            self.used.add(env.access)

    def more(self, number: int) -> None:
        """Waits until that many uploads more were tried."""
        deadline, wanted = time.monotonic() + 60, len(self.uploads) + number
        while len(self.uploads) < wanted:
            assert time.monotonic() < deadline, self.failures
            time.sleep(0.1)


def test_rotation_fails_no_upload_and_a_job_keeps_its_key_for_the_grace(kit: Kit) -> None:
    kit.create(check=True)
    old, bucket = read_envfile(kit.file), kit.rehearsal.lab["lab_bucket"]
    job, fresh = Uploads(kit, held=old), Uploads(kit)
    job.start()
    fresh.start()
    try:
        fresh.more(2)
        said = kit("env", "rotate", kit.lab, PERSON, "--grace", "5s", check=True).stdout
        assert f"old key {old.access} works until" in said
        job.more(5)
        fresh.more(2)
    finally:
        for load in (job, fresh):
            load.stop.set()
            load.join()
    new = read_envfile(kit.file)
    assert job.failures == fresh.failures == []
    assert (job.used, fresh.used) == ({old.access}, {old.access, new.access}), "each saw what it should"
    assert new.variables["MLFLOW_TRACKING_PASSWORD"] == old.variables["MLFLOW_TRACKING_PASSWORD"]
    lines = json.loads(kit("env", "list", kit.lab, "--json", check=True).stdout)["lines"]
    assert [(x["in_keystone"], bool(x["left"])) for x in lines if x["access"] == old.access] == [("yes", True)]
    deadline = time.monotonic() + 60
    while f"old key {old.access} deleted" not in kit.create(check=True).stdout:
        assert time.monotonic() < deadline
    assert old.access not in kit.seen()
    uploads = [*job.uploads, *fresh.uploads]
    with pytest.raises(ClientError, match=r"InvalidAccessKeyId|AccessDenied|SignatureDoesNotMatch"):
        store(kit.rehearsal, old).put_object(Bucket=bucket, Key="x", Body=b"x")
    client = store(kit.rehearsal, new)
    found = client.list_objects_v2(Bucket=bucket, Prefix="rotation-under-load/")["Contents"]
    assert sorted(one["Key"] for one in found) == sorted(uploads)
    for name in uploads:
        client.delete_object(Bucket=bucket, Key=name)


def test_a_leaked_file_is_worthless_at_once(kit: Kit) -> None:
    kit.create(check=True)
    old = kit.rehearsal.private / "leaked.sh"
    old.write_bytes(kit.file.read_bytes())
    old.chmod(0o600)
    try:
        kit("env", "rotate", kit.lab, PERSON, "--leaked", check=True)
        refused = json.loads(kit("doctor", "--json", "--file", str(old)).stdout)["results"]
        assert [row["status"] for row in refused if row["check"] == "store put"] == ["failed"]
        assert kit("doctor", "--file", str(kit.file)).returncode == 0
        # the other MLflow instances remember a password for a minute
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            rows = json.loads(kit("doctor", "--json", "--file", str(old)).stdout)["results"]
            if [row["status"] for row in rows if row["check"] == "login"] == ["failed"]:
                break
            time.sleep(5)
        else:
            pytest.fail("the old password still works after 90 s")
    finally:
        old.unlink()


def dies_at(step: int, lab: labs.Lab, call: Callable[[lifecycle.Context], object]) -> bool:
    """Runs `call` in a child that kills itself at its `step`-th step; False when it ended before."""
    child = os.fork()
    if child == 0:
        left, code = [step], 1

        def kill(_: str) -> None:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            with lifecycle.opened(lab, "a test", step=kill) as context:
                call(context)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


# Against the cloud of the unit tests all three are (test_lifecycle.py), and in `make test-long` here.
@pytest.mark.parametrize(
    "what", ["rotate", *(pytest.param(one, marks=pytest.mark.long) for one in ("create", "revoke"))]
)
def test_killed_between_any_two_steps(kit: Kit, what: str) -> None:
    lab, before = labs.load(kit.rehearsal.lab_dir), kit.seen()
    calls: dict[str, Callable[[lifecycle.Context], object]] = {
        "create": lambda context: lifecycle.create(context, PERSON),
        "rotate": lambda context: lifecycle.rotate(context, PERSON, grace=0),
        "revoke": lambda context: lifecycle.revoke(context, PERSON),
    }
    for step in range(1, 40):
        with lifecycle.opened(lab, "a test") as context:
            calls["revoke" if what == "create" else "create"](context)
        if not dies_at(step, lab, calls[what]):
            break
        with lifecycle.opened(lab, "a test") as context:
            calls[what](context)
        expected = set() if what == "revoke" else {read_envfile(kit.file).access}
        assert kit.seen() - before == expected, f"killed at step {step}"
        assert {access for access, owner in kit.registered().items() if owner == PERSON} == expected
    assert 5 < step < 39
    if what != "revoke":
        assert kit("doctor", "--file", str(kit.file)).returncode == 0


def test_a_full_disk_loses_no_key(kit: Kit, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k,mode=700", "none", tmp_path], check=True)
    try:
        before = kit.seen()
        (tmp_path / "filler").write_bytes(b"x" * 4096)
        done = kit.create("--output", str(tmp_path / "mlflow_env.sh"))
        assert done.returncode == 1 and "The disk is full" in done.stderr
        assert sorted(path.name for path in tmp_path.iterdir()) == ["filler"]
        made = kit.seen() - before
        (tmp_path / "filler").unlink()
        subprocess.run(["mount", "-o", "remount,size=64k", tmp_path], check=True)
        kit.create("--output", str(tmp_path / "mlflow_env.sh"), check=True)
        assert {read_envfile(tmp_path / "mlflow_env.sh").access} == made == kit.seen() - before
        kit("env", "revoke", kit.lab, PERSON, check=True)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_two_calls_at_once_and_one_that_is_interrupted(kit: Kit) -> None:
    kit.create(check=True)
    before = kit.seen() - {read_envfile(kit.file).access}
    command = ["labtrack", "env", "rotate", kit.lab, PERSON, "--grace", "0", "--verbose"]
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    first = subprocess.Popen(
        command, cwd=kit.rehearsal.root, env={**os.environ, **path}, stderr=subprocess.PIPE, text=True
    )
    assert first.stderr is not None
    while "probe the store" not in (line := first.stderr.readline()):
        assert line, "the first call ended early"
    first.send_signal(signal.SIGSTOP)
    second = kit.create()
    first.send_signal(signal.SIGINT)
    first.send_signal(signal.SIGCONT)
    assert first.wait(60) == 130
    assert second.returncode == 75
    assert f"process {first.pid} of" in second.stderr and "labtrack env rotate" in second.stderr
    # the new key was made and is in no file: the next call of any kind deletes it
    assert "old key" in kit.create(check=True).stdout
    assert kit.seen() - before == {read_envfile(kit.file).access}
    assert [access for access, owner in kit.registered().items() if owner == PERSON] == [read_envfile(kit.file).access]


def test_users_playbook_follows_lab_yml(kit: Kit, tmp_path: Path) -> None:
    folder = tmp_path / "inventory" / "rehearsal"
    for copied, place in ((kit.rehearsal.lab_dir, folder), (kit.rehearsal.private, tmp_path / "private" / "rehearsal")):
        place.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-a", copied, place], check=True)
    leave_the_servers_copy_alone(folder)
    file = tmp_path / "private" / "rehearsal" / "mary" / "mlflow_env.sh"
    settings = yaml.safe_load(labs.lab_yml(folder).read_text())
    before = kit.seen()

    def users(**mary: str) -> str:
        listed = [*settings["lab_users"], {"name": "mary", **mary}]
        labs.lab_yml(folder).write_text(yaml.safe_dump({**settings, "lab_users": listed}))
        return kit.rehearsal.playbook("playbooks/users.yml", "-i", str(folder), check=True).stdout

    assert "changed=1" in users()
    env = read_envfile(file)
    assert kit.seen() - before == {env.access}
    assert "changed=0" in users()
    shown = users(state="absent")
    assert "changed=1" in shown
    assert kit.seen() == before and not file.exists()
    assert "changed=0" in users(state="absent")
    assert env.variables["AWS_SECRET_ACCESS_KEY"] not in shown
