"""`labtrack doctor --cluster`: a folder that jobs record into, and the cluster around it."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from recorded import make_sqlite

from labtrack.cli import cli
from labtrack.doctor import bounded, cluster, folder, locks, mounts, site
from labtrack.doctor.context import Context
from labtrack.doctor.folder import Place
from labtrack.doctor.result import Result, Status, ok, skipped, worst
from labtrack.stores.mounts import Mount, mount_of

NFS = Mount("nas:/scratch", "/scratch", "nfs4", ("rw", "vers=4.2"))


def rows(found: Iterator[Result]) -> dict[str, Result]:
    """The worst row of each check."""
    kept: dict[str, Result] = {}
    for row in found:
        assert row.hint or row.status in (Status.OK, Status.SKIPPED), row
        if row.check not in kept or worst([row, kept[row.check]]) is row.status:
            kept[row.check] = row
    return kept


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str, str], dict[str, str]]:
    """Makes a stand-in for a program; gives an environment that has it on the PATH."""

    def make(name: str, script: str) -> dict[str, str]:
        place = tmp_path / "bin" / name
        place.parent.mkdir(exist_ok=True)
        place.write_text(f"#!/bin/sh\n{script}\n")
        place.chmod(0o755)
        return {"PATH": f"{place.parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}

    return make


@pytest.mark.parametrize(
    ("line", "status", "word"),
    [
        ("nas:/s /scratch nfs4 rw,vers=4.2,local_lock=none 0 0", Status.OK, "vers=4.2"),
        ("nas:/s /scratch nfs rw,nolock,vers=3 0 0", Status.FAILED, "nolock"),
        ("nas:/s /scratch nfs rw,local_lock=all 0 0", Status.FAILED, "local_lock"),
        ("nas:/s /scratch nfs rw,soft 0 0", Status.WARNING, "soft"),
        ("mds@o2ib:/s /scratch lustre rw,flock,lazystatfs 0 0", Status.OK, "flock"),
        ("mds@o2ib:/s /scratch lustre rw,localflock 0 0", Status.FAILED, "localflock"),
        ("mds@o2ib:/s /scratch lustre rw,lazystatfs 0 0", Status.FAILED, "without `flock`"),
        ("/dev/s /scratch gpfs rw,relatime 0 0", Status.OK, "gpfs"),
        ("beegfs_nodev /scratch beegfs rw 0 0", Status.WARNING, "tuneUseGlobalFileLocks"),
        ("tmpfs /scratch tmpfs rw 0 0", Status.WARNING, "memory"),
        ("overlay /scratch overlay rw 0 0", Status.WARNING, "container"),
        ("//nas/s /scratch cifs rw,nobrl 0 0", Status.FAILED, "nobrl"),
        ("host: /scratch fuse.sshfs rw 0 0", Status.FAILED, "no locks"),
        ("/dev/sda1 /scratch ext4 ro 0 0", Status.FAILED, "read-only"),
        ("/dev/sda1 /scratch xfs rw 0 0", Status.OK, "this machine only"),
    ],
)
def test_file_system_is_judged_by_type_and_flags(tmp_path: Path, line: str, status: Status, word: str) -> None:
    table = tmp_path / "mounts"
    table.write_text(
        f"/dev/vda / ext4 rw 0 0\n/dev/x /scratch ext3 rw 0 0\n{line}\nnas:/h /scratchy nfs rw,nolock 0 0\n"
    )
    row = mounts.check(Path("/scratch/ada"), mount_of(Path("/scratch/ada"), table))
    assert (row.status, word in row.seen) == (status, True), row


def test_mount_of_a_path_with_blanks(tmp_path: Path) -> None:
    table = tmp_path / "mounts"
    table.write_text("/dev/vda / ext4 rw 0 0\nnas:/h /my\\040disk nfs rw 0 0\nbroken line\n")
    found = mount_of(Path("/my disk/x"), table)
    assert found is not None
    assert found.network
    assert mount_of(Path("/my disk/x"), tmp_path / "none") is None


def test_locks_of_two_processes_are_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rows(locks.here(tmp_path))["locks on this machine"].status is Status.OK
    monkeypatch.setattr(fcntl, "lockf", lambda *_: None)  # a file system that says yes to everybody
    row = rows(locks.here(tmp_path))["locks on this machine"]
    assert (row.status, "same lock" in row.seen) == (Status.FAILED, True)

    def refuses(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuses)
    assert "No locks available" in rows(locks.here(tmp_path))["locks on this machine"].seen
    assert not list(tmp_path.glob(".labtrack-doctor-*"))


SRUN = (  # says that it is none: both "nodes" are this machine
    'while [ "${1#--}" != "$1" ]; do shift; done\nSLURMD_NODENAME=node1 "$@"\n'
)


def test_locks_between_nodes_are_tried_by_srun(tmp_path: Path, program: Callable[[str, str], dict[str, str]]) -> None:
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURMD_NODENAME": "node1"}
    env = program("srun", SRUN + 'SLURMD_NODENAME=node2 "$@"') | job
    row = rows(locks.between(tmp_path, env))[locks.BETWEEN]
    assert (row.status, row.seen) == (Status.OK, "node2 was kept away from what node1 has locked")
    # node2 sees a file of its own, as with localflock
    copy = 'for last; do :; done; cp "$last" "$last.2"\nset -- "$1" "$2" "$3" "$4" "$5" "$last.2"\n'
    other = copy + 'SLURMD_NODENAME=node2 "$@"'
    env = program("srun", SRUN + other) | job
    assert rows(locks.between(tmp_path, env))[locks.BETWEEN].status is Status.FAILED
    env = program("srun", "echo srun: error: Unable to create step >&2; exit 1") | job
    row = rows(locks.between(tmp_path, env))[locks.BETWEEN]
    assert (row.status, "Unable to create step" in row.seen) == (Status.SKIPPED, True)
    for less in (
        {"SLURM_JOB_ID": ""},
        {"SLURM_JOB_NUM_NODES": "1"},
        {"SLURM_JOB_NUM_NODES": "²"},
        {"PATH": "/nowhere"},
    ):
        assert rows(locks.between(tmp_path, env | less))[locks.BETWEEN].status is Status.SKIPPED


def test_wal_is_a_failure_on_a_network_file_system(tmp_path: Path) -> None:
    make_sqlite(tmp_path / "mlflow.db", 1, wal=True)
    assert rows(folder.check(Place(tmp_path, None, {})))["journal mode"].status is Status.OK
    row = rows(folder.check(Place(tmp_path, NFS, {})))["journal mode"]
    assert (row.status, row.hint.endswith("'PRAGMA journal_mode=DELETE'")) == (Status.FAILED, True)


def test_journal_of_a_job_that_was_killed_is_told(tmp_path: Path) -> None:
    make_sqlite(tmp_path / "mlflow.db", 1)
    (tmp_path / "mlflow.db-journal").write_bytes(b"x" * 512)
    row = rows(folder.check(Place(tmp_path, None, {})))["journal"]
    assert (row.status, "never" in row.hint) == (Status.WARNING, True)


def test_mount_of_a_link_is_that_of_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "scratch").symlink_to("real")
    (tmp_path / "mounts").write_text(f"/dev/vda / ext4 rw 0 0\nmds:/s {tmp_path}/real lustre rw,localflock 0 0\n")
    found = mount_of(tmp_path / "scratch" / "runs", tmp_path / "mounts")
    assert found is not None
    assert found.kind == "lustre"


def test_locked_database_names_who_writes_it(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    make_sqlite(database, 1)
    assert "locked database" not in rows(folder.check(Place(tmp_path, None, {})))
    script = (
        "import sqlite3, sys; made = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "made.execute('BEGIN IMMEDIATE'); print('on', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, database], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        row = rows(folder.check(Place(tmp_path, None, {})))["locked database"]
        assert (row.status, f"process {process.pid}" in row.seen) == (Status.WARNING, True)
        process.kill()


def test_folder_that_cannot_be_used(tmp_path: Path) -> None:
    assert rows(folder.check(Place(tmp_path / "none", None, {})))["folder"].hint == f"mkdir -p {tmp_path}/none"
    (tmp_path / "file").write_text("")
    assert rows(folder.check(Place(tmp_path / "file", None, {})))["folder"].status is Status.FAILED


@pytest.mark.parametrize(
    ("left", "files", "status"), [(50, 50, Status.OK), (2, 1, Status.WARNING), (0, 0, Status.FAILED)]
)
def test_room_and_inodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int, files: int, status: Status
) -> None:
    size = {"f_frsize": 10**9, "f_blocks": 100, "f_bavail": left, "f_files": 10**6, "f_favail": files * 10**4}
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(**size))
    found = rows(folder._room(tmp_path))
    assert (found["space"].status, found["inodes"].status) == (status, status)


def test_oldest_file_against_the_age_at_which_a_site_purges(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "old").write_text("")
    (tmp_path / "new").write_text("")
    then = time.time() - 58 * 86400
    os.utime(tmp_path / "deep" / "old", (then, then))
    row = folder._oldest(Place(tmp_path, None, {}))
    assert (row.status, "deep/old was last used 58 days ago" in row.seen) == (Status.OK, True)
    assert folder._oldest(Place(tmp_path, None, {"LABTRACK_PURGE_DAYS": "90"})).status is Status.OK
    assert folder._oldest(Place(tmp_path, None, {"LABTRACK_PURGE_DAYS": "60"})).status is Status.WARNING
    for odd in ("soon", "²", "0", "-1"):
        assert folder._oldest(Place(tmp_path, None, {"LABTRACK_PURGE_DAYS": odd})).status is Status.OK


@pytest.mark.parametrize(
    ("said", "space", "files"),
    [
        ("/scratch 1048576 0 20971520 0 1000 0 1000000 0", Status.OK, Status.OK),
        ("/scratch 20000000* 18000000 20971520 6d 1000000* 0 1000000 -", Status.WARNING, Status.FAILED),
        ("/scratch 5 0 0 0 5 0 0 0", Status.OK, Status.OK),
    ],
)
def test_quota_of_lustre(
    program: Callable[[str, str], dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    said: str,
    space: Status,
    files: Status,
) -> None:
    monkeypatch.setenv("PATH", program("lfs", f"echo '{said}'")["PATH"])
    place = Place(Path("/scratch/ada"), Mount("mds:/s", "/scratch", "lustre", ("rw", "flock")), {})
    found = [row.status for row in folder.quota(place)]
    assert found == [space, files]


@pytest.mark.parametrize(
    ("env", "status", "word"),
    [
        ({}, Status.OK, "none"),
        ({"https_proxy": "http://ada:s3cret@proxy:3128"}, Status.WARNING, "proxy:3128"),
        ({"https_proxy": "http://proxy:1", "no_proxy": "localhost,127.0.0.1"}, Status.OK, "proxy:1"),
        ({"https_proxy": "http://a:1", "HTTPS_PROXY": "http://b:1", "no_proxy": "*"}, Status.WARNING, "differ"),
    ],
)
def test_proxies(env: dict[str, str], status: Status, word: str) -> None:
    row = rows(site.proxies(env))["proxies"]
    assert (row.status, word in row.seen, "s3cret" in row.seen) == (status, True, False)


@pytest.mark.parametrize(
    ("bind", "status", "word"),
    [
        ("", Status.WARNING, "not seen"),
        ("/scratch", Status.OK, "same path"),
        ("/home/x,/scratch:/scratch:rw", Status.OK, "same path"),
        ("/scratch:/data", Status.WARNING, "/data/ada"),
        ("/scratch:/scratch:ro", Status.FAILED, "read-only"),
        ("/scratchy", Status.WARNING, "not seen"),
    ],
)
def test_container_sees_the_folder(
    program: Callable[[str, str], dict[str, str]], bind: str, status: Status, word: str
) -> None:
    env = program("apptainer", "exit 0") | {"APPTAINER_BIND": bind}
    row = rows(site.container(Path("/scratch/ada"), env))["container"]
    assert (row.status, word in row.seen) == (status, True), row


def test_modules_and_an_environment_of_another_python() -> None:
    assert rows(site.modules({}))["modules"].status is Status.SKIPPED
    env = {"LOADEDMODULES": "StdEnv/2023:python/3.8.1", "EBVERSIONPYTHON": "3.8.1"}
    assert rows(site.modules(env))["modules"].seen == "StdEnv/2023, python/3.8.1"
    row = rows(site.modules(env | {"VIRTUAL_ENV": "/home/ada/env"}))["modules"]
    assert (row.status, "python/3.8.1 is loaded" in row.seen) == (Status.WARNING, True)


def test_temporary_files_on_a_network_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rows(site.temporary({"TMPDIR": str(tmp_path)}))["TMPDIR"].status is Status.OK
    assert rows(site.temporary({"TMPDIR": "/nowhere"}))["TMPDIR"].status is Status.FAILED
    monkeypatch.setattr(site, "mount_of", lambda _: NFS)
    row = rows(site.temporary({"TMPDIR": str(tmp_path), "SLURM_TMPDIR": "/local/7"}))["TMPDIR"]
    assert (row.status, row.hint) == (Status.WARNING, "export TMPDIR=$SLURM_TMPDIR")


@pytest.mark.parametrize(
    ("script", "status", "word"),
    [
        ("exit 0", Status.OK, "lets this account in"),
        ("echo 'ada@gw: Permission denied (publickey).' >&2; exit 255", Status.FAILED, "refuses the login"),
    ],
)
def test_gateway_is_tried_without_asking(
    program: Callable[[str, str], dict[str, str]], script: str, status: Status, word: str
) -> None:
    env = program("ssh", f'case " $* " in *" BatchMode=yes "*) ;; *) exit 9;; esac\n{script}')
    row = rows(site.Gateways(env | {"LABTRACK_GATEWAYS": "ada@gw"}).check("ada@gw"))["gateway"]
    assert (row.status, word in row.seen) == (status, True), row
    assert rows(site.Gateways(env).check("-oProxyCommand=x"))["gateway"].status is Status.FAILED


@pytest.mark.parametrize(("skew", "status"), [(0, Status.OK), (-120, Status.WARNING), (2000, Status.FAILED)])
def test_clock_is_compared_with_the_servers(skew: int, status: Status) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(200)
            self.send_header("Date", formatdate(time.time() + skew, usegmt=True))
            self.send_header("Content-Length", "6")
            self.end_headers()
            self.wfile.write(b"3.17.2")

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_port}"
        env = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_TRACKING_USERNAME": "ada", "MLFLOW_TRACKING_PASSWORD": "x"}
        assert rows(site.clock(Context(env, timeout=10)))["clock"].status is status
        server.shutdown()
    assert rows(site.clock(Context({"MLFLOW_TRACKING_URI": "labtrack:///x"})))["clock"].status is Status.SKIPPED
    gone = rows(site.clock(Context(env, timeout=1)))
    assert (gone["server"].status, gone["clock"].status) == (Status.WARNING, Status.SKIPPED)


def test_a_file_system_that_hangs_is_a_finding_in_time(tmp_path: Path) -> None:
    make_sqlite(tmp_path / "a.db", 1)
    os.mkfifo(tmp_path / "b.db")  # nobody ever answers
    found = rows(cluster.examine(tmp_path, {"PATH": os.environ["PATH"]}, seconds=1))
    assert (found["folder"].status, "(read b.db)" in found["folder"].seen) == (Status.FAILED, True)
    assert found["proxies"].status is Status.OK


def test_examine_keeps_the_order_and_survives_a_check_that_fails() -> None:
    def fails() -> Iterator[Result]:
        yield ok("one", "first")
        raise ZeroDivisionError

    def late(doing: str, seconds: float) -> Result:
        return skipped("late", f"{doing} {seconds}")

    def sleeps() -> Iterator[Result]:
        bounded.doing("sleep")
        time.sleep(60)
        yield ok("never", "")

    groups = [bounded.Group("a", sleeps, late), bounded.Group("b", fails, late)]
    found = list(bounded.examine(groups, 0.5))
    assert [row.check for row in found] == ["late", "one", "b"]
    assert found[0].seen == "sleep 0.5"
    assert "ZeroDivisionError" in found[2].seen


def test_doctor_of_a_cluster_prints_json_and_gives_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cluster, "SECONDS", 30.0)  # a busy machine is not what this test is about
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"labtrack://{tmp_path}/runs")
    done = CliRunner().invoke(cli, ["doctor", "--json", "--cluster"])
    found = json.loads(done.stdout)
    assert done.exit_code == 2
    assert f"mkdir -p {tmp_path}/runs" in [row["hint"] for row in found["results"]]
    (tmp_path / "runs").mkdir()
    done = CliRunner().invoke(cli, ["doctor", "--cluster", str(tmp_path / "runs"), "--json"])
    assert {row["status"] for row in json.loads(done.stdout)["results"]} <= {"ok", "skipped", "warning"}
    assert CliRunner().invoke(cli, ["doctor", "--write", "--cluster", "."], standalone_mode=False).exception is not None


@pytest.mark.parametrize(
    ("uri", "found"),
    [
        ("labtrack:///scratch/ada/runs", "/scratch/ada/runs"), ("sqlite:////scratch/ada/mlflow.db", "/scratch/ada"),
        ("sqlite:///mlflow.db", "."), ("file:///scratch/mlruns", "/scratch/mlruns"), ("./mlruns", "./mlruns"),
        ("https://mlflow.example.org", "."), ("", "."),
    ],
)  # fmt: skip
def test_folder_is_that_of_the_tracking_uri(uri: str, found: str) -> None:
    assert cluster.folder_of({"MLFLOW_TRACKING_URI": uri}) == found
