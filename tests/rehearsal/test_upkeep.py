"""What keeps the machine well over the years: upgrades that can fail, room on the disk, logs and memory."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from api import Api, account

if TYPE_CHECKING:
    from conftest import Rehearsal

# A release like the one in use, whose last migration leaves a table behind, and fails; or which then does not start.
RELEASE = r"""
set -e
old=$(readlink -f /opt/mlflow/current) new=$(readlink -f /opt/mlflow/current)-fails
rm -rf $new; cp --archive --link $old $new
head=$(sed -E 's/.*"tracking": "([^"]+)".*/\1/' $old/.complete)
rm $new/.complete; sed "s/$head/fa11ed/" $old/.complete >$new/.complete
cat >$(echo $new/lib/python3*/site-packages/mlflow/store/db_migrations/versions)/fa11ed_fails.py <<END
from alembic import op
revision, down_revision, branch_labels, depends_on = "fa11ed", "$head", None, None
def upgrade():
    op.execute("CREATE TABLE half_made (x int)")
    if "$1" == "migration":
        op.execute("COMMIT")
        raise RuntimeError("this migration was made to fail")
def downgrade():
    pass
END
server=$(echo $new/lib/python3*/site-packages/mlflow/server/auth/__init__.py)
cp $server $server.new
cat >>$server.new <<END
import sys
if "uvicorn" in sys.orig_argv:
    raise RuntimeError("this release was made not to start")
END
[ "$1" = migration ] || mv $server.new $server
sed "s#$old/#$new/#" /etc/systemd/system/mlflow@.service >/etc/systemd/system/mlflow-trial@.service
systemctl daemon-reload
echo $new
"""
INSTANCES = "systemctl show --property=Id,ActiveState,MainPID,ExecStart 'mlflow@*' | grep -v ^$"

RUNS_WITH = "systemctl show --property=Id,ActiveState,ExecStart 'mlflow@*' | sed 's/ ; start_time=.*//' | grep -v ^$"


@pytest.fixture(params=["migration", "start"])
def failing(rehearsal: Rehearsal, request: pytest.FixtureRequest) -> Iterator[str]:
    """The command that upgrades the databases to a release whose migration fails, or which does not start on them."""
    made = rehearsal.ssh("server", f"set -- {request.param}\n{RELEASE}", check=True)
    release = made.stdout.strip()
    yield f"{release}/bin/python /usr/local/sbin/mlflowctl upgrade"
    rehearsal.ssh("server", f"rm -r {release} /etc/systemd/system/mlflow-trial@.service", check=True)


def ask(rehearsal: Rehearsal, sql: str) -> str:
    command = f"cd / && runuser -u postgres -- psql -XtAc {sql!r} mlflowdb"
    return rehearsal.ssh("server", command, check=True).stdout.strip()


def test_upgrade_that_fails_leaves_databases_and_instances_as_they_were(
    rehearsal: Rehearsal, failing: str, request: pytest.FixtureRequest
) -> None:
    admin = Api(rehearsal.url, str(rehearsal.ca), ("admin", rehearsal.secrets["secret_mlflow_admin_password"]))
    old_dumps = "for n in 1 2 3 4 5 6 7; do touch -d 2020-01-0$n /var/backups/mlflow/mlflowdb-old-$n.dump; done"
    rehearsal.ssh("server", old_dumps, check=True)
    with account(admin) as api:
        run = api.new_run()
        assert api.log(run, 1).status_code == 200
        version = ask(rehearsal, "TABLE alembic_version")
        done = rehearsal.ssh("server", failing)
        assert done.returncode == 1
        if request.node.callspec.params["failing"] == "migration":
            assert "this migration was made to fail" in done.stderr
        else:
            assert "The new release does not run" in done.stderr
            log = rehearsal.ssh("server", "journalctl -u mlflow-trial@trial --since -10min", check=True).stdout
            assert "this release was made not to start" in log
            assert rehearsal.ssh("server", "systemctl is-active mlflow-trial@trial").stdout == "inactive\n"
            assert "trial" not in rehearsal.ssh("server", "ls /run/mlflow", check=True).stdout
        assert "The databases are as they were, and what ran before runs again.\nTo fix: " in done.stderr
        assert ask(rehearsal, "TABLE alembic_version") == version
        assert ask(rehearsal, "SELECT count(*) FROM pg_tables WHERE tablename = $$half_made$$") == "0"
        assert rehearsal.ssh("server", "mlflowctl check").returncode == 0
        assert "-fails" not in rehearsal.ssh("server", INSTANCES, check=True).stdout
        assert api.steps(run) == [1]
        assert api.log(run, 2).status_code == 200
    kept = rehearsal.ssh("server", "ls /var/backups/mlflow", check=True).stdout.split()
    assert len([name for name in kept if name.startswith("mlflowdb-")]) == 5
    assert [name for name in kept if name.endswith(".part")] == []
    rehearsal.ssh("server", "rm -f /var/backups/mlflow/mlflowdb-old-*", check=True)


@pytest.mark.long
@pytest.mark.parametrize("failing", ["start"], indirect=True)
def test_upgrade_that_was_killed_before_its_trial_can_still_go_back(rehearsal: Rehearsal, failing: str) -> None:
    """As when the machine goes down: nobody puts anything back, and the next run finds the schema upgraded."""
    admin = Api(rehearsal.url, str(rehearsal.ca), ("admin", rehearsal.secrets["secret_mlflow_admin_password"]))
    run = admin.new_run()
    assert admin.log(run, 1).status_code == 200
    version, before = ask(rehearsal, "TABLE alembic_version"), rehearsal.ssh("server", RUNS_WITH, check=True).stdout
    killed = (
        f"{failing} & pid=$!; for turn in $(seq 600); do"
        " systemctl show -P ActiveState mlflow-trial@trial | grep -q '^activating' && break; sleep 0.1; done;"
        " kill -9 $pid; wait $pid; echo $?; systemctl stop mlflow-trial@trial"
    )
    said = rehearsal.ssh("server", killed).stdout.split()
    assert said[-1] == "137" and ask(rehearsal, "TABLE alembic_version") == "fa11ed"
    done = rehearsal.ssh("server", failing)
    assert "The databases are as they were, and what ran before runs again.\nTo fix: " in done.stderr
    assert "was upgraded from /var/backups/mlflow/mlflowdb-" in done.stdout
    assert ask(rehearsal, "TABLE alembic_version") == version
    assert ask(rehearsal, "SELECT to_regclass($$labtrack_upgrade$$), to_regclass($$half_made$$)") == "|"
    assert rehearsal.ssh("server", RUNS_WITH, check=True).stdout == before
    assert rehearsal.ssh("server", "mlflowctl check").returncode == 0
    assert admin.steps(run) == [1]
    assert admin.log(run, 2).status_code == 200


def test_upgrade_is_refused_where_the_dumps_do_not_fit(rehearsal: Rehearsal, failing: str) -> None:
    before = rehearsal.ssh("server", INSTANCES, check=True).stdout
    small = "mount -t tmpfs -o size=1m small /var/backups/mlflow"
    done = rehearsal.ssh("server", f"{small} && {{ {failing}; code=$?; umount /var/backups/mlflow; exit $code; }}")
    assert done.returncode == 1
    assert re.search(r"may take \d+ MiB, and /var/backups/mlflow has 1 MiB left.\nTo fix: make room", done.stderr)
    assert rehearsal.ssh("server", INSTANCES, check=True).stdout == before


def test_logs_are_rotated_and_limited(rehearsal: Rehearsal) -> None:
    import requests

    rotated = rehearsal.ssh("server", "logrotate --verbose --force /etc/logrotate.d/nginx 2>&1", check=True).stdout
    assert "/var/log/nginx/access.log" in rotated and "error:" not in rotated
    assert requests.get(f"{rehearsal.url}/health", verify=rehearsal.ca, timeout=10).ok
    wait = "for n in $(seq 50); do grep -q /health /var/log/nginx/access.log && exit; sleep 0.2; done; exit 1"
    rehearsal.ssh("server", wait, check=True)
    assert rehearsal.ssh("server", "systemctl is-active logrotate.timer").stdout == "active\n"
    settings = rehearsal.ssh("server", "systemd-analyze cat-config systemd/journald.conf", check=True).stdout
    assert re.findall(r"^SystemMaxUse=(.*)", settings, re.MULTILINE) == ["1G"]
    # what else grows there has a rule of its own
    unruled = rehearsal.ssh(
        "server",
        "find /var/log -name '*.log' -size +0 ! -path '*/journal/*' | while read log; do"
        ' grep -rqF -e $log -e $(dirname $log)/*.log -e "$(dirname $log)/*" /etc/logrotate.d || echo $log; done',
        check=True,
    ).stdout.split()
    assert [log for log in unruled if "mlflow" in log or "nginx" in log or "postgresql" in log] == []


# In a folder of its own of the server's bucket, by the server's key, and in two days' time.
VERSIONS = """
import json, sys, tempfile, time
from pathlib import Path
sys.path.insert(0, "/usr/local/lib/mlflowctl")
import mlflow_databases, mlflow_garbage
values = mlflow_databases.settings()
mlflow_databases.become()
values["_MLFLOW_SERVER_ARTIFACT_DESTINATION"] = values["_MLFLOW_SERVER_ARTIFACT_ROOT"] = FOLDER
client, root = mlflow_databases.store(values)
bucket, _, prefix = root.removeprefix("s3://").partition("/")
if client.get_bucket_versioning(Bucket=bucket).get("Status") != "Enabled":
    sys.exit("the bucket keeps no versions")
for key in ("kept", "over", "over", "gone", "again"):
    client.put_object(Bucket=bucket, Key=f"{prefix}/{key}", Body=b"12345")
for key in ("gone", "again"):
    client.delete_object(Bucket=bucket, Key=f"{prefix}/{key}")
client.put_object(Bucket=bucket, Key=f"{prefix}/again", Body=b"12345")

class Later:
    strftime, gmtime = time.strftime, time.gmtime
    time = staticmethod(lambda: time.time() + 2 * 86400)

def left():
    found = client.list_object_versions(Bucket=bucket, Prefix=f"{prefix}/")
    return [(one["Key"], one["VersionId"]) for one in found.get("Versions", []) + found.get("DeleteMarkers", [])]

mlflow_garbage.STATE = Path(tempfile.mkdtemp())
gc = lambda *more: mlflow_garbage.main(values, ["--versions", "1", "--json", *more])
gc()
mlflow_garbage.time = Later
gc("--dry-run"), gc(), gc()
print(json.dumps(sorted(key.removeprefix(f"{prefix}/") for key, _ in left())))
for key, version in left():
    client.delete_object(Bucket=bucket, Key=key, VersionId=version)
"""


def test_old_versions_of_objects_go_and_what_is_there_stays(rehearsal: Rehearsal) -> None:
    folder = f"s3://{rehearsal.lab['lab_bucket']}/test-versions-{time.time_ns()}"
    program = VERSIONS.replace("FOLDER", repr(folder))
    done = rehearsal.ssh("server", "/opt/mlflow/current/bin/python -", stdin=program, check=True)
    *calls, left = map(json.loads, done.stdout.splitlines())
    # written over, deleted with its mark, deleted with its mark and written again
    assert [one["versions"] for one in calls] == [0, 5, 5, 0]
    assert [one["bytes_of_versions"] for one in calls] == [0, 15, 15, 0]
    assert [one["failed"] for one in calls] == [[], [], [], []]
    assert left == ["again", "kept", "over"]


@pytest.mark.parametrize("unit", ["mlflow@1", "mlflow@2", "nginx", "postgresql@*-main"])
def test_memory_of_units_is_limited(rehearsal: Rehearsal, unit: str) -> None:
    """That the kernel enforces it can't be seen here: the rehearsal's guests have no memory controller of their own."""
    find = f"systemctl list-units --plain --no-legend '{unit}.service' | cut -d' ' -f1"
    show = f"systemctl show --property=MemoryMax,MemoryHigh $({find})"
    shown = rehearsal.ssh("server", show, check=True).stdout
    limits = dict(line.split("=") for line in shown.split())
    total = int(rehearsal.ssh("server", "awk '/MemTotal/ {print $2 * 1024}' /proc/meminfo", check=True).stdout)
    assert "infinity" not in limits.values()
    assert int(limits["MemoryHigh"]) < int(limits["MemoryMax"]) < total


@pytest.mark.long
def test_a_bundle_of_the_server_has_what_a_helper_needs_and_no_secret(rehearsal: Rehearsal, tmp_path: Path) -> None:
    made = tmp_path / "bundle.tar.gz"
    command = [Path(sys.executable).with_name("labtrack"), "bundle", rehearsal.lab_dir, "--output", made]
    subprocess.run(command, check=True, capture_output=True)
    with tarfile.open(made) as bundle:
        files = {one.name: (bundle.extractfile(one) or io.BytesIO()).read() for one in bundle}
    for name, part in {"journal.txt": b"systemd", "status.json": b"database", "units.txt": b"mlflow@1"}.items():
        assert part in files[f"bundle/server/{name}"]
    written = rehearsal.ssh("server", "cat /etc/mlflow/secrets.env /etc/mlflow/auth.ini", check=True).stdout
    env = (rehearsal.private / "ada" / "mlflow_env.sh").read_text()
    secret = re.findall(r"(?:PASSWORD|SECRET\w*|KEY)=['\"]?([^'\"\s]{8,})", written + env)
    known = {*secret, *map(str, rehearsal.secrets.values())}
    assert len(known) > 6
    assert [name for name, body in files.items() for one in known if len(one) >= 8 and one.encode() in body] == []
