"""The lab's databases in another project's bucket, the server that sends them there, and what its admins are told."""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import away
import botocore.exceptions
import pytest
from api import Api
from recap import changed
from receivers import Hook, Relay, serving

from labtrack import lab as labs
from labtrack import secrets as kept
from labtrack.lab import Lab
from labtrack.labcopy import archive
from labtrack.objectstore import Store

DEPLOY = "playbooks/deploy.yml"
OF_BACKUPS = (DEPLOY, "--tags", "base,postgresql,backup,monitoring")  # what lab_backup and lab_alerts are for
HOST = "10.99.0.1"  # where the lab's server finds this one


@pytest.fixture(scope="module")
def lab(rehearsal: Any) -> Lab:
    return labs.load(rehearsal.lab_dir)


@pytest.fixture(scope="module")
def other(rehearsal: Any, lab: Lab) -> Iterator[Store]:
    with away.bucket(rehearsal, lab) as store:
        yield store


@dataclass
class Told:
    """The receivers of the lab's alarms, and what they got since the last time that they were asked."""

    rehearsal: Any
    hook: Hook = field(default_factory=lambda: Hook(HOST))
    relay: Relay = field(default_factory=lambda: Relay(address=HOST))

    def settings(self) -> dict[str, Any]:
        mail = {"relay": HOST, "port": self.relay.port, "encryption": "none"}
        return {
            "mail": {**mail, "from": "mlflow@example.org", "to": ["ada@example.org"]},
            "webhook": {"url": self.hook.url("/hook"), "template": "json"},
            "heartbeat": self.hook.url("/beat"),
        }

    def look(self) -> set[str]:
        """Have the server looked at, as its timer does; what was told then."""
        done = self.rehearsal.ssh("server", "systemctl start labtrack-alarm")
        assert done.returncode == 0, self.rehearsal.ssh("server", "journalctl -u labtrack-alarm -n 20").stdout
        return self.news()

    def forget(self) -> None:
        """Have the alarm begin anew: what was over a moment ago would be told as coming and going, for an hour."""
        states = " ".join(f"/{folder}/labtrack-alarm/state.json" for folder in ("var/lib", "run"))
        self.rehearsal.ssh("server", f"rm -f {states}", check=True)

    def news(self) -> set[str]:
        messages, end = [one.json for one in self.hook.on("/hook")], time.monotonic() + 30
        subjects = [one["subject"] for one in messages]
        while (mails := [str(one["Subject"]) for one in self.relay.mails][: len(subjects)]) != subjects:
            assert time.monotonic() < end, f"the mails say something else: {mails}, not {subjects}"
            time.sleep(0.1)  # the timer has it looked at too, and the one may have come before the other
        self.hook.got[:] = [one for one in self.hook.got if one.path != "/hook" or one.json not in messages]
        del self.relay.mails[: len(mails)]
        return {f"{event['kind']} {event['check']} {event['status']}" for one in messages for event in one["events"]}

    def beats(self) -> int:
        got = self.hook.on("/beat")
        self.hook.got[:] = [one for one in self.hook.got if one not in got]
        return len(got)


@pytest.fixture(scope="module")
def told(rehearsal: Any) -> Iterator[Told]:
    found = Told(rehearsal)
    with serving(found.hook), serving(found.relay):
        yield found


@pytest.fixture(scope="module")
def settings(other: Store, told: Told, tmp_path_factory: pytest.TempPathFactory) -> str:
    """lab.yml's and secrets.yml's lines."""
    return away.settings(other, tmp_path_factory.mktemp("backup") / "variables.yml", lab_alerts=told.settings())


def of_backups(rehearsal: Any) -> list[str]:
    """What the roles have put on the server for backups and alarms."""
    found = rehearsal.ssh("server", "ls -d /etc/systemd/system/labtrack-{backup,drill}* /usr/local/*/labtrack-backup*"
                          " /etc/pgbackrest.conf /etc/labtrack-backup* /var/lib/labtrack-backup*"
                          " /var/lib/labtrack-drill /run/labtrack-drill* /etc/labtrack-alarm* 2>/dev/null")  # fmt: skip
    return found.stdout.split()


@pytest.fixture(scope="module")
def only_whole_models(rehearsal: Any) -> None:
    """Without the models of other tests that never had files: the drill warns of them, rightly."""
    admin = Api(rehearsal.url, str(rehearsal.ca), ("admin", rehearsal.secrets["secret_mlflow_admin_password"]))
    found = admin.get("registered-models/search", params={"max_results": 1000})
    for name in [one["name"] for one in found.json().get("registered_models", [])]:
        if name.startswith("test-"):
            admin.done("registered-models/delete", {"name": name}, "DELETE")


@pytest.fixture(scope="module")
def backed_up(rehearsal: Any, settings: str, only_whole_models: None) -> Iterator[str]:
    """The server with its backups turned on, and off again at the end."""
    assert of_backups(rehearsal) == []
    try:
        rehearsal.playbook(*OF_BACKUPS, settings, check=True)
        for what in ("run", "check", "artifacts"):  # as the timers start them, in their sandbox
            started = rehearsal.ssh("server", f"systemctl start labtrack-backup@{what}")
            log = f"journalctl -u labtrack-backup@{what} -n 40"
            assert started.returncode == 0, rehearsal.ssh("server", log).stdout
        yield settings
    finally:
        off = rehearsal.playbook(*OF_BACKUPS, check=True)
        # that another changes nothing then, test_machine.py sees
        assert of_backups(rehearsal) == [], off.stdout


@pytest.mark.long  # test_newer_debian.py has one, too
def test_a_second_deploy_with_backups_changes_nothing(rehearsal: Any, backed_up: str) -> None:
    assert changed(rehearsal.playbook(DEPLOY, backed_up, check=True).stdout) == []


def test_the_drill_restores_what_the_server_answers(rehearsal: Any, backed_up: str) -> None:
    said = rehearsal.playbook("playbooks/drill.yml", backed_up, check=True).stdout  # it starts the timer's service
    assert "MLflow started on the copy in" in said and "can be restored, in" in said
    assert "failed=0" in said and changed(said) == []
    status = rehearsal.ssh("server", "labtrack-backup status")
    assert status.returncode == 0, status.stdout
    drill = json.loads(rehearsal.ssh("server", "cat /var/lib/labtrack-backup/drill.json", check=True).stdout)
    assert drill["ok"] and drill["runs"] > 0, drill
    assert drill["mlflow"]["runs"] > 0 < drill["mlflow"]["accounts"], drill
    cat = "cat /var/lib/labtrack-backup-artifacts/artifacts.json"
    artifacts = json.loads(rehearsal.ssh("server", cat, check=True).stdout)
    assert artifacts["objects"] == artifacts["copied"] > 0 == artifacts["missing"], artifacts
    left = rehearsal.ssh("server", "ls -la /var/lib/labtrack-backup-artifacts").stdout
    assert drill.get("artifacts", {}).get("listing") == artifacts["listing"], f"the drill reads it: {drill}\n{left}"
    checked = rehearsal.ssh("server", "labtrack-backup artifacts-check")
    assert "models and versions are there" in checked.stdout + checked.stderr, checked
    archiver = "runuser -u postgres -- psql -XAtc 'SELECT archived_count > 0, failed_count FROM pg_stat_archiver'"
    assert rehearsal.ssh("server", archiver, check=True).stdout.strip() == "t|0"


def test_a_drill_leaves_nothing_at_work(rehearsal: Any, backed_up: str) -> None:
    left = rehearsal.ssh("server", "ls -A /var/lib/labtrack-drill; pgrep -u labtrack-drill -a")
    assert left.stdout == "", left.stdout
    names = rehearsal.ssh("server", "runuser -u postgres -- psql -XAtc 'SELECT username FROM users' mlflow_auth")
    assert "admin" in names.stdout and "labtrack-drill" not in names.stdout


@pytest.mark.long  # in tests/backup without systemd's part
def test_mlflow_on_the_copy_ends_with_a_drill_that_is_killed(rehearsal: Any, backed_up: str) -> None:
    """Without a network and the lab's keys meanwhile."""
    script = """
        systemctl start --no-block labtrack-backup@drill
        until pid=$(pgrep -o -u labtrack-drill -f labtrack_serve); do sleep 0.2; done
        nsenter -t $pid -n ip -o addr; tr '\\0' '\\n' < /proc/$pid/environ | grep -c AWS_.*KEY
        systemctl kill --signal=KILL labtrack-backup@drill
        until ! pgrep -u labtrack-drill; do sleep 0.2; done; echo ended
        systemctl reset-failed labtrack-backup@drill
        """
    done = rehearsal.ssh("server", script, check=True).stdout.splitlines()
    assert done[-1] == "ended" and "0" in done and not [line for line in done if "inet" in line and " lo " not in line]
    again = rehearsal.ssh("server", "systemctl start labtrack-backup@drill && labtrack-backup status")
    assert again.returncode == 0, again.stdout


def test_the_backup_has_the_labs_files_as_the_server_keeps_them(
    rehearsal: Any, lab: Lab, other: Store, backed_up: str
) -> None:
    found = other.client().list_objects_v2(Bucket=other.bucket, Prefix=f"{lab.name}/lab/")["Contents"]
    newest = max(one["Key"] for one in found)
    body = other.client().get_object(Bucket=other.bucket, Key=newest)["Body"].read()
    number = newest.rpartition("-")[2]
    kept_there = rehearsal.ssh("server", f"sha256sum /var/lib/labtrack/lab/{number}", check=True).stdout.split()[0]
    assert hashlib.sha256(body).hexdigest() == kept_there
    assert "private/keys.json" in archive.unpack(lab, body, newest).content.files


def test_no_key_of_the_lab_reads_or_deletes_a_backup(lab: Lab, other: Store, backed_up: str) -> None:
    own = other.client()
    pages = own.get_paginator("list_objects_v2").paginate(Bucket=other.bucket)
    found = {one["Key"]: one["ETag"] for page in pages for one in page["Contents"]}
    copies = [key for key in found if "/artifacts/" in key or "/lab/" in key]
    tags = {key: etag for key, etag in found.items() if key not in copies}
    keys = [*tags, *copies[:1]]
    stored = {key: own.get_object(Bucket=other.bucket, Key=key)["Body"].read(8) for key in tags}
    assert tags and set(stored.values()) == {b"Salted__"}, "not encrypted"
    held = [[kept.get(lab, kept.S3_ACCESS), kept.get(lab, kept.S3_SECRET)]]
    for env in sorted(lab.private.glob("*/mlflow_env.sh")):
        show = '. "$1" >/dev/null 2>&1; printf "%s %s" "$AWS_ACCESS_KEY_ID" "$AWS_SECRET_ACCESS_KEY"'
        held.append(subprocess.check_output(["sh", "-c", show, "sh", env], text=True, env={"HOME": "/"}).split())
    assert len(held) > 1
    for access, secret in held:
        mine = Store(lab.s3_endpoint, lab.s3_region, other.bucket, access, secret, lab.s3_ca_file).client()
        for call in (
            lambda mine=mine: mine.list_objects_v2(Bucket=other.bucket),
            lambda mine=mine: mine.get_object(Bucket=other.bucket, Key=keys[0]),
            lambda mine=mine: mine.get_object(Bucket=other.bucket, Key=keys[-1]),
            lambda mine=mine: mine.put_object(Bucket=other.bucket, Key=keys[0], Body=b""),
            lambda mine=mine: mine.delete_object(Bucket=other.bucket, Key=keys[0]),
            lambda mine=mine: mine.delete_bucket(Bucket=other.bucket),
        ):
            with pytest.raises(botocore.exceptions.ClientError) as refused:
                call()
            assert refused.value.response["Error"]["Code"] in ("AccessDenied", "NoSuchBucket"), refused.value
    # the server goes on archiving meanwhile: there may be more, and nothing less or other
    still = {key: own.get_object(Bucket=other.bucket, Key=key)["ETag"] for key in tags}
    assert still == tags


def test_a_message_by_hand_reaches_each(rehearsal: Any, backed_up: str, told: Told) -> None:
    sent = rehearsal.ssh("server", "labtrack-alarm --test")
    assert (sent.returncode, sent.stdout.splitlines()) == (0, ["mail: taken", "webhook: taken"])
    assert told.news() >= {"test test test"}


CUT = """
nft -f - <<'END'
table inet cut {
    chain out {
        type filter hook output priority -5
        meta skuid mlflow tcp dport PORT reject
    }
}
END
"""
OLD = """
cd /etc/ssl/labtrack && cp -a server.pem /run/good.pem && umask 077 &&
openssl x509 -in server.pem -x509toreq -copy_extensions copy -signkey server.key -out /run/asked.csr &&
openssl x509 -req -in /run/asked.csr -CA ca.pem -CAkey ca.key -copy_extensions copy -out /run/old.pem \
    -not_before "$(date -u -d -300days +%Y%m%d%H%M%SZ)" -not_after "$(date -u -d +60days +%Y%m%d%H%M%SZ)" &&
cat /run/old.pem > server.pem
"""
YOUNG = "cat /run/good.pem > /etc/ssl/labtrack/server.pem; rm -f /run/good.pem /run/old.pem /run/asked.csr"
# Of this unit alone: PostgreSQL goes on archiving, and the hourly check may come at any moment.
FAILING = """
cp -p /etc/pgbackrest.conf /run/gone.conf && sed -i 's/^repo1-s3-bucket=.*/&-gone/' /run/gone.conf
mkdir -p /run/systemd/system/labtrack-backup@run.service.d
printf '[Service]\\nBindReadOnlyPaths=/run/gone.conf:/etc/pgbackrest.conf\\n' \\
    > /run/systemd/system/labtrack-backup@run.service.d/gone.conf
systemctl daemon-reload; ! systemctl start labtrack-backup@run
"""
WORKING = """
rm -rf /run/systemd/system/labtrack-backup@run.service.d /run/gone.conf
systemctl daemon-reload; systemctl start labtrack-backup@run
"""
# what happens, how it ends, and what is told: of the mend the same rows
CASES = {
    "a disk is full": (
        "mkdir -p /boot; mount -t tmpfs -o size=16m full /boot && head -c 15500000 /dev/zero > /boot/full",
        "umount /boot",
        {"disk failed"},
    ),
    "an instance stands still": (
        "systemctl stop mlflow@2",
        "systemctl start mlflow@2",
        {"instances warning", "units failed"},
    ),
    "the store is cut": (CUT, "nft delete table inet cut", {"store failed"}),
    "a certificate is old": (OLD, YOUNG, {"certificate warning"}),
    "a backup fails": (FAILING, WORKING, {"backup failed", "units failed"}),
}


def test_all_is_well_at_first(backed_up: str, told: Told) -> None:
    told.look()
    told.beats()
    assert told.look() == set()
    assert told.beats() > 0


# each takes most of a minute, so that `make test` has all at once
@pytest.mark.parametrize(
    "cases",
    [pytest.param([case], marks=pytest.mark.long, id=case) for case in CASES] + [pytest.param(list(CASES), id="all")],
)
def test_the_admins_are_told_once_and_when_it_is_over(
    rehearsal: Any, lab: Lab, backed_up: str, told: Told, cases: list[str]
) -> None:
    rows = set().union(*(CASES[case][2] for case in cases))
    told.forget()
    told.look()  # what a case before has left, where it failed
    told.beats()
    try:
        for case in cases:
            wrong = CASES[case][0].replace("PORT", str(urlsplit(lab.s3_endpoint).port))
            rehearsal.ssh("server", wrong, check=True)
        assert told.look() == {f"new {row}" for row in rows}
        assert told.look() == set()
        assert told.beats() == 0
    finally:
        mended = [rehearsal.ssh("server", CASES[case][1]) for case in cases]
    assert {done.returncode for done in mended} == {0}, mended
    assert told.look() == {f"over {row}" for row in rows}
    assert told.beats() > 0
