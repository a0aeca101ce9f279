"""The lab's databases in another project's bucket, and the server that sends them there."""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Iterator
from typing import Any

import botocore.exceptions
import pytest
import yaml
from recap import changed

from labtrack import lab as labs
from labtrack import secrets as kept
from labtrack.lab import Lab
from labtrack.objectstore import Store

DEPLOY = "playbooks/deploy.yml"
BUCKET = OTHER = "climate-backup"


@pytest.fixture(scope="module")
def lab(rehearsal: Any) -> Lab:
    return labs.load(rehearsal.lab_dir)


@pytest.fixture(scope="module")
def other(rehearsal: Any, lab: Lab) -> Iterator[Store]:
    """A bucket of the other project, by a key of that project's; both gone at the end."""
    connection = rehearsal.cloud(OTHER)
    connection.object_store.create_container(BUCKET)
    of = f"/users/{connection.current_user_id}/credentials/OS-EC2"
    made = connection.identity.post(of, json={"tenant_id": connection.current_project_id}).json()["credential"]
    store = Store(lab.s3_endpoint, lab.s3_region, BUCKET, made["access"], made["secret"], lab.s3_ca_file)
    try:
        yield store
    finally:
        for one in connection.object_store.objects(BUCKET):
            connection.object_store.delete_object(one, container=BUCKET)
        connection.object_store.delete_container(BUCKET)
        connection.identity.delete(f"{of}/{made['access']}")


@pytest.fixture(scope="module")
def settings(lab: Lab, other: Store, tmp_path_factory: pytest.TempPathFactory) -> str:
    """lab.yml's and secrets.yml's lines, by a file that nobody else reads."""
    file = tmp_path_factory.mktemp("backup") / "variables.yml"
    file.touch(0o600)
    values = {
        "lab_backup": {
            "endpoint": other.endpoint,
            "bucket": BUCKET,
            "region": other.region,
            "ca_file": str(lab.s3_ca_file),
        },
        "secret_backup_access_key_id": other.access,
        "secret_backup_secret_access_key": other.secret,
        "secret_backup_cipher_pass": secrets.token_urlsafe(24),
    }
    file.write_text(yaml.safe_dump(values))
    return f"--extra-vars=@{file}"


def of_backups(rehearsal: Any) -> list[str]:
    """What the role has put on the server."""
    found = rehearsal.ssh("server", "ls -d /etc/systemd/system/labtrack-backup* /usr/local/*/labtrack-backup*"
                          " /etc/pgbackrest.conf /etc/labtrack-backup* 2>/dev/null")  # fmt: skip
    return found.stdout.split()


@pytest.fixture(scope="module")
def backed_up(rehearsal: Any, settings: str) -> Iterator[str]:
    """The server with its backups turned on, and off again at the end."""
    assert of_backups(rehearsal) == []
    rehearsal.playbook(DEPLOY, settings, check=True)
    try:
        yield settings
    finally:
        off = rehearsal.playbook(DEPLOY, check=True)
        assert of_backups(rehearsal) == [], off.stdout
        assert changed(rehearsal.playbook(DEPLOY, check=True).stdout) == []


def test_a_second_deploy_with_backups_changes_nothing(rehearsal: Any, backed_up: str) -> None:
    assert changed(rehearsal.playbook(DEPLOY, backed_up, check=True).stdout) == []


def test_the_drill_restores_what_the_server_answers(rehearsal: Any, backed_up: str) -> None:
    for what in ("run", "check", "drill"):  # as the timers start them, in their sandbox
        started = rehearsal.ssh("server", f"systemctl start labtrack-backup@{what}")
        assert started.returncode == 0, rehearsal.ssh("server", f"journalctl -u labtrack-backup@{what} -n 40").stdout
    status = rehearsal.ssh("server", "labtrack-backup status")
    assert status.returncode == 0, status.stdout
    drill = json.loads(rehearsal.ssh("server", "cat /var/lib/labtrack-backup/drill.json", check=True).stdout)
    assert drill["ok"] and drill["runs"] > 0, drill
    archiver = "runuser -u postgres -- psql -XAtc 'SELECT archived_count > 0, failed_count FROM pg_stat_archiver'"
    assert rehearsal.ssh("server", archiver, check=True).stdout.strip() == "t|0"


def test_no_key_of_the_lab_reads_or_deletes_a_backup(lab: Lab, other: Store, backed_up: str) -> None:
    own = other.client()
    tags = {one["Key"]: one["ETag"] for one in own.list_objects_v2(Bucket=BUCKET)["Contents"]}
    keys = list(tags)
    stored = {key: own.get_object(Bucket=BUCKET, Key=key)["Body"].read(8) for key in keys}
    assert keys and set(stored.values()) == {b"Salted__"}, "not encrypted"
    held = [[kept.get(lab, kept.S3_ACCESS), kept.get(lab, kept.S3_SECRET)]]
    for env in sorted(lab.private.glob("*/mlflow_env.sh")):
        show = '. "$1" >/dev/null 2>&1; printf "%s %s" "$AWS_ACCESS_KEY_ID" "$AWS_SECRET_ACCESS_KEY"'
        held.append(subprocess.check_output(["sh", "-c", show, "sh", env], text=True, env={"HOME": "/"}).split())
    assert len(held) > 1
    for access, secret in held:
        mine = Store(lab.s3_endpoint, lab.s3_region, BUCKET, access, secret, lab.s3_ca_file).client()
        for call in (
            lambda mine=mine: mine.list_objects_v2(Bucket=BUCKET),
            lambda mine=mine: mine.get_object(Bucket=BUCKET, Key=keys[0]),
            lambda mine=mine: mine.put_object(Bucket=BUCKET, Key=keys[0], Body=b""),
            lambda mine=mine: mine.delete_object(Bucket=BUCKET, Key=keys[0]),
            lambda mine=mine: mine.delete_bucket(Bucket=BUCKET),
        ):
            with pytest.raises(botocore.exceptions.ClientError) as refused:
                call()
            assert refused.value.response["Error"]["Code"] in ("AccessDenied", "NoSuchBucket"), refused.value
    # the server goes on archiving meanwhile: there may be more, and nothing less or other
    still = {key: own.get_object(Bucket=BUCKET, Key=key)["ETag"] for key in keys}
    assert still == tags
