"""A session's job from its start to each of its ends.  The MLflow in it is not the real one."""

from __future__ import annotations

import base64
import contextlib
import html
import http.server
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import fake_mlflow
import ood_app
import pytest
import recorded
import requests
from ood_app import Job, submitted, until

SITE = "portal: https://ondemand.example.org\nclusters: [one]\nmodules: [labtrack/1]\ncontainers: [{image}]\nhours: 2\n"
# As coreutils' `timeout`, whose time is over when a file is there.
_TIMEOUT = """#!/bin/bash
echo "$1" > "$TIMEOUT_FOLDER/seconds"
shift
"$@" & child=$!
trap 'kill -TERM $child' TERM
while kill -0 $child 2> /dev/null && [ ! -e "$TIMEOUT_FOLDER/over" ]; do sleep 0.05; done
kill -TERM $child 2> /dev/null
wait $child
exit 124
"""
_APPTAINER = """#!/bin/bash
printf '%s\\n' "$@" > "$ARGUMENTS"
[ "$1" = exec ] || exit 1
shift
while [ "$1" = --bind ]; do [ -e "$2" ] || exit 1; shift 2; done
shift
exec "$LABTRACK_BIN/$@"
"""
_MODULE = "() { [ $2 = labtrack/1 ] && PATH=$LABTRACK_BIN:$PATH || echo no such module >&2; }"


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_mlflow.make(tmp_path_factory.mktemp("mlflow"))


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory, environment: Path, mlflow: Path) -> Path:
    """An environment with labtrack and something like MLflow."""
    folder = tmp_path_factory.mktemp("environment")
    (folder / "bin").mkdir()
    (folder / "bin/labtrack").symlink_to((environment / "bin/labtrack").resolve())
    script = folder / "bin/mlflow"
    script.write_text(f"#!{mlflow}/bin/python\n")
    script.chmod(0o755)
    return folder


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str, str], str]:
    """Makes a program in the first folder of a PATH; gives the PATH."""

    def made(name: str, text: str) -> str:
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
        return f"{tmp_path}/bin:{os.environ['PATH']}"

    return made


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory, venv: Path) -> dict[str, str]:
    """What somebody has sent with the form who has chosen an environment of their own."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "image.sif").touch()
    etc = ood_app.site(folder / "etc", SITE.format(image=folder / "image.sif"))
    source = recorded.kept("3.17.2") / recorded.KINDS["sqlite"]
    return ood_app.answered(etc, source_path=str(source), software="venv", software_venv=str(venv))


def refused(job: Job) -> str:
    """What the card says of a job that could not show anything."""
    assert job.process.wait(ood_app.WAITS) != 0, job.log
    until(job.nothing_left, 20)
    assert not (job.staged / "connection.yml").exists() and "Traceback" not in job.log + job.error
    said = job.card("completed.md.erb")
    assert "MLflow was not shown" in said
    return html.unescape(said)


def running(job: Job) -> Job:
    until(lambda: job.running)
    assert requests.get(f"http://127.0.0.1:{job.port}/", timeout=20).status_code == 403
    return job


@pytest.mark.parametrize("how", ["time", "scheduler", "shell", "early"])
def test_nothing_is_left_of_a_session(
    how: str, context: dict[str, str], program: Callable[[str, str], str], tmp_path: Path
) -> None:
    path = program("timeout", _TIMEOUT)
    job = submitted(tmp_path / "job", context, PATH=path, TIMEOUT_FOLDER=str(tmp_path))
    if how == "early":
        until(lambda: list(job.tmp.glob("labtrack-ood-*")))
    else:
        running(job)
        assert (tmp_path / "seconds").read_text() == "7140\n", "a minute before the two hours of the form"
        assert not list(job.tmp.glob("labtrack-ood-*")), "the password is needed only at the start"
    if how == "time":
        (tmp_path / "over").touch()
    elif how == "shell":
        job.process.terminate()
    else:
        os.killpg(job.process.pid, signal.SIGTERM)
    job.process.wait(ood_app.WAITS)
    until(job.nothing_left, 20)
    with socket.socket() as asked:
        assert asked.connect_ex(("127.0.0.1", job.port)) != 0
    if how != "early":
        assert "Nothing of it is left on the node" in job.card("completed.md.erb")


def test_server_that_fails_later_is_told(context: dict[str, str], mlflow: Path, tmp_path: Path) -> None:
    job = running(submitted(tmp_path / "job", context))
    os.kill(int((mlflow / "pid").read_text()), signal.SIGKILL)
    assert "MLflow's server has ended" in html.unescape((job.process.wait(30), job.card("completed.md.erb"))[1])
    until(job.nothing_left, 20)


@pytest.mark.parametrize(("version", "kind"), [("1.30.1", "sqlite"), ("2.9.2", "files")])
def test_old_recordings_are_shown_from_a_copy(version: str, kind: str, context: dict[str, str], tmp_path: Path) -> None:
    source = recorded.unpack(version, tmp_path / "recorded") / recorded.KINDS[kind]
    before = {one: (one.read_bytes(), one.stat().st_mtime_ns) for one in source.parent.rglob("*") if one.is_file()}
    job = running(submitted(tmp_path / "job", {**context, "source_path": f"  {source}\n"}))
    assert f"{len(recorded.witness(version, kind)['runs'])} runs" in job.card("info.md.erb")
    job.end()
    until(job.nothing_left, 20)
    assert {
        one: (one.read_bytes(), one.stat().st_mtime_ns) for one in source.parent.rglob("*") if one.is_file()
    } == before


def test_module_and_container(
    context: dict[str, str], venv: Path, program: Callable[[str, str], str], tmp_path: Path
) -> None:
    ours = {"LABTRACK_BIN": f"{venv}/bin", "BASH_FUNC_module%%": _MODULE, "ARGUMENTS": str(tmp_path / "arguments")}
    job = submitted(tmp_path / "module", {**context, "software": "module"}, **ours)
    path = f"{program('apptainer', _APPTAINER)}:{venv}/bin"
    other = submitted(tmp_path / "container", {**context, "software": "container"}, PATH=path, **ours)
    for one in (running(job), running(other)):
        one.end()
        until(one.nothing_left, 20)
    binds = (tmp_path / "arguments").read_text().splitlines()
    assert f"{Path(context['source_path']).parent}/" in binds and binds[0] == "exec"
    assert other.connection["password"] not in binds
    bad = submitted(tmp_path / "bad", {**context, "software": "module", "software_module": "labtrack/9"}, **ours)
    assert "no such module" in refused(bad)


WRONG = (
    ({"source_path": "/nowhere/it's/mlflow.db"}, "does not exist on"),
    ({"source_path": "/nowhere/$(touch ran)\n`touch ran`"}, "does not exist on"),
    ({"source_path": ""}, "No folder or SQLite file was chosen"),
    ({"source_path": "mlruns"}, "is no whole path"),
    ({"source_path": "-rf"}, "is no whole path"),
    ({"source_path": "https://mlflow.example.org"}, "My lab's server"),
    ({"source_path": "/etc/hostname"}, "To fix:"),
    ({"source_path": "{here}/empty"}, "To fix:"),
    ({"source_path": "{old}", "view_mode": "live"}, 'choose "A snapshot"'),
    ({"software_venv": "/usr"}, "pip install labtrack mlflow"),
    ({"software_venv": "env"}, "is no whole path"),
    ({"software_venv": "/x'$(touch ran)\n"}, "bin/labtrack is missing"),
    ({"software": "module", "software_module": "a; touch ran"}, "is no name of a module"),
    ({"software": "container", "software_container": "/nowhere.sif"}, "There is no container"),
    ({"software": "$(touch ran)"}, "is none of module, venv and container"),
    ({"labtrack_mlflow": "/nowhere/mlflow"}, "There is no /nowhere/mlflow"),
    ({"source_kind": "server", "env_file": "/nowhere"}, "There is no file"),
    ({"source_kind": "server", "env_file": "{here}/plain.sh"}, "names no server"),
    ({"source_kind": "server", "env_file": "{here}/server.sh"}, "not this one, 'ada'"),
    ({"source_kind": "other"}, "is none of path and server"),
)  # fmt: skip


@pytest.fixture(scope="module")
def wrong(context: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Job]]:
    """A job for each of them, side by side: they wait more than they work."""
    here = tmp_path_factory.mktemp("wrong")
    (here / "empty").mkdir()
    (here / "plain.sh").write_text("export X=1\n")
    old = recorded.kept("1.30.1") / recorded.KINDS["sqlite"]
    with refusing_server() as address:
        login = f"MLFLOW_TRACKING_URI={address}\nMLFLOW_TRACKING_USERNAME=ada\nMLFLOW_TRACKING_PASSWORD=s3cr3t-w0rd\n"
        (here / "server.sh").write_text(f"set -a\n{login}set +a\n")
        jobs = []
        for number, (answers, _) in enumerate(WRONG):
            given = {
                name: value.replace("{here}", str(here)).replace("{old}", str(old)) for name, value in answers.items()
            }
            jobs.append(submitted(here / str(number), {**context, **given}))
        yield jobs
    assert not list(here.rglob("ran"))


@contextlib.contextmanager
def refusing_server() -> Iterator[str]:
    """A tracking server that lets nobody in, and says whom not."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _, _, login = self.headers.get("Authorization", "").partition(" ")
            name = base64.b64decode(login).decode().partition(":")[0]
            body = json.dumps({"error_code": "PERMISSION_DENIED", "message": f"not this one, {name!r}"}).encode()
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("number", range(len(WRONG)), ids=[said for _, said in WRONG])
def test_card_says_what_is_wrong(number: int, wrong: list[Job]) -> None:
    said = refused(wrong[number])
    assert WRONG[number][1] in said and "s3cr3t-w0rd" not in said


def test_no_mlflow_is_told(context: dict[str, str], venv: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    (bare / "bin").mkdir(parents=True)
    (bare / "bin/labtrack").symlink_to((venv / "bin/labtrack").resolve())
    job = submitted(tmp_path / "job", {**context, "software_venv": str(bare)}, PATH="/usr/bin:/bin")
    assert "MLflow is not installed in this environment" in refused(job)


def test_port_taken_meanwhile_is_told(context: dict[str, str], tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        job = submitted(tmp_path / "job", context, port=taken.getsockname()[1])
        assert "can't be had" in refused(job)
