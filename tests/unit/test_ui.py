"""`labtrack ui`: the session, and that nothing is left of it.  The MLflow behind it is not the real one."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import fake_mlflow
import pytest
import recorded
from ui_asked import ANSWERS, ask, opened

from labtrack.errors import BadInputError
from labtrack.portable import export
from labtrack.stores import open_store
from labtrack.ui import Settings, View, tunnel, view
from labtrack.ui.program import find_mlflow

LABTRACK = Path(sys.executable).with_name("labtrack")
EVERYWHERE = "0.0.0.0"  # noqa: S104


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_mlflow.make(tmp_path_factory.mktemp("environment"))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where sessions make their folders."""
    folder = tmp_path / "t"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", None)
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A recording that the MLflow here need not upgrade."""
    return recorded.unpack("3.17.2", tmp_path / "recorded") / recorded.KINDS["sqlite"]


def until(holds: Callable[[], object]) -> None:
    end = time.monotonic() + ANSWERS
    while not holds():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.02)


def test_recording_is_not_touched(source: Path, mlflow: Path, place: Path) -> None:
    def look() -> list[tuple[str, bytes, int]]:
        return [
            (str(one), one.read_bytes(), one.stat().st_mtime_ns) for one in source.parent.rglob("*") if one.is_file()
        ]

    before = look()
    with view(str(source), Settings(mlflow=str(mlflow), port=0)) as found:
        assert found.shown is not None and (found.shown.experiments, found.shown.runs) == (3, 7)
    assert look() == before and not list(place.iterdir())


def test_live_shows_the_file_itself(source: Path, mlflow: Path, place: Path) -> None:
    with view(str(source), Settings(mlflow=str(mlflow), port=0, live=True)) as found:
        (folder,) = place.iterdir()
        assert found.shown is None and (folder / "mlflow.db").resolve() == source
        upload = "/ajax-api/2.0/mlflow/upload-artifact"
        assert ask(found, upload, "POST", b"x", Cookie=opened(found))[0] == 200
    assert source.exists()


@pytest.mark.parametrize(("version", "kind"), [("2.9.2", "sqlite"), ("3.17.2", "files")])
def test_live_refuses_what_would_be_upgraded(
    version: str, kind: str, mlflow: Path, place: Path, tmp_path: Path
) -> None:
    where = recorded.unpack(version, tmp_path) / recorded.KINDS[kind]
    with (
        pytest.raises(BadInputError, match="leave --live away"),
        view(str(where), Settings(mlflow=str(mlflow), live=True, port=0)),
    ):
        pass
    assert not list(place.iterdir())


def test_port_is_found_or_refused(source: Path, mlflow: Path, place: Path) -> None:
    with socket.socket() as taken:
        with contextlib.suppress(OSError):
            taken.bind(("127.0.0.1", 5000))
            taken.listen()
        with view(str(source), Settings(mlflow=str(mlflow))) as found:
            assert found.port != 5000
            with pytest.raises(BadInputError, match="leave --port away"):
                view(str(source), Settings(mlflow=str(mlflow), port=found.port)).__enter__()
    for host in (EVERYWHERE, "login1", "10.0.0.1", "::"):
        with pytest.raises(BadInputError, match=r"127\.0\.0\.1"):
            view(str(source), Settings(mlflow=str(mlflow), host=host)).__enter__()
    assert not list(place.iterdir())


@pytest.mark.parametrize("deep", [False, True])
def test_socket_in_the_place_of_a_port(
    source: Path, mlflow: Path, place: Path, deep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if deep:
        folder = place / ("d" * 60) / ("d" * 60)
        folder.mkdir(parents=True)
        monkeypatch.setenv("TMPDIR", str(folder))
    with view(str(source), Settings(mlflow=str(mlflow), socket=True)) as found:
        path = found.socket
        assert path is not None and path.stat().st_mode & 0o177 == 0
        assert path.parent.stat().st_mode & 0o777 == 0o700
        assert f"-L 5000:{path} " in found.ssh
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost:5000\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 403 ")
    assert not path.exists()


def test_ssh_line_goes_through_the_login_node_in_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnel, "host_name", lambda: "node17.cluster.org")
    monkeypatch.setattr(tunnel, "_user", lambda: "ada")
    assert tunnel.ssh_line(5001, "127.0.0.1:5001", {}) == "ssh -N -L 5001:127.0.0.1:5001 ada@node17.cluster.org"
    job = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_HOST": "login3"}
    assert tunnel.ssh_line(5000, "127.0.0.1:5000", job).endswith(" -J ada@login3 ada@node17.cluster.org")
    other = {"SSH_CONNECTION": "10.0.0.1 40000 10.0.0.2 2222"}
    assert tunnel.ssh_line(5000, "/t/a b.sock", other) == "ssh -N -L '5000:/t/a b.sock' -p 2222 ada@node17.cluster.org"


def test_browser_is_opened_only_where_one_can_be_seen() -> None:
    assert tunnel.has_display({"DISPLAY": ":0"}, "linux") and tunnel.has_display({}, "darwin")
    assert not tunnel.has_display({}, "linux")
    assert not tunnel.has_display({"DISPLAY": "localhost:10.0", "SSH_CONNECTION": "a 1 b 22"}, "linux")


def test_find_mlflow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlflow: Path) -> None:
    with pytest.raises(BadInputError, match="There is no MLflow in"):
        find_mlflow(sys.prefix)
    with pytest.raises(BadInputError, match=r"There is no .*nowhere"):
        find_mlflow(tmp_path / "nowhere")
    skinny = fake_mlflow.make(tmp_path / "skinny")
    (skinny / "mlflow/server/js/build/index.html").unlink()
    with pytest.raises(BadInputError, match="mlflow-skinny"):
        find_mlflow(skinny)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BadInputError, match="pip install mlflow"):
        find_mlflow()
    script = mlflow / "bin" / "mlflow"
    script.write_text(f"#!/bin/sh\n'''exec' \"{mlflow}/bin/python\" \"$0\" \"$@\"\n' '''\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent), prepend=os.pathsep)
    for found in (find_mlflow(), find_mlflow(script), find_mlflow(mlflow), find_mlflow(mlflow / "bin/python")):
        assert (found.version, found.python) == ("3.17.2", mlflow / "bin/python")


def shown_by(found: View) -> sqlite3.Connection:
    """The database that MLflow has been given."""
    return sqlite3.connect(f"file:{found.page().with_name('mlflow.db')}?mode=ro", uri=True)


@pytest.mark.parametrize("version", ["1.30.1", "3.17.2"])
def test_runs_that_no_mlflow_here_can_upgrade_are_written_anew(
    version: str, mlflow: Path, place: Path, tmp_path: Path
) -> None:
    kind = {"1.30.1": "sqlite", "3.17.2": "files"}[version]
    folder = recorded.unpack(version, tmp_path / "recorded")
    witness = recorded.witness(version, kind)
    for _ in range(2):  # the second time with the tables that were kept
        with view(str(folder / recorded.KINDS[kind]), Settings(mlflow=str(mlflow), port=0)) as found:
            made = shown_by(found)
            names = dict(made.execute("SELECT name, lifecycle_stage FROM experiments"))
            assert names == {one["name"]: one["lifecycle_stage"] for one in witness["experiments"].values()}
            for run_id, run in witness["runs"].items():
                latest = dict(made.execute("SELECT key, value FROM latest_metrics WHERE run_uuid = ?", [run_id]))
                assert set(latest) == set(run["metrics"])
                points = made.execute("SELECT count(*) FROM metrics WHERE run_uuid = ?", [run_id]).fetchone()[0]
                assert points == sum(map(len, run["metrics"].values()))
                read = "SELECT name FROM datasets JOIN inputs ON source_id = dataset_uuid WHERE destination_id = ?"
                assert sorted(made.execute(read, [run_id])) == [(one["name"],) for one in run["inputs"]]
                (place_of,) = made.execute("SELECT artifact_uri FROM runs WHERE run_uuid = ?", [run_id]).fetchone()
                if run["artifacts"]:
                    assert (Path(place_of) / "readme.txt").read_text() == "hello\n"
            assert made.execute("PRAGMA foreign_key_check").fetchall() == []
            assert made.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            made.close()
    assert [one.name for one in (tmp_path / "cache/labtrack/ui").iterdir()]


def test_exported_file_brings_its_artifacts(source: Path, mlflow: Path, place: Path, tmp_path: Path) -> None:
    run_id = next(
        one for one, run in recorded.witness("3.17.2", "sqlite")["runs"].items() if run["name"] == "parent"
    )  # fmt: skip
    with open_store(source) as store:
        export(store, [run_id], tmp_path / "one.zip")
    with view(str(tmp_path / "one.zip"), Settings(mlflow=str(mlflow), port=0)) as found:
        with contextlib.closing(shown_by(found)) as made:
            ((address,),) = made.execute("SELECT artifact_uri FROM runs").fetchall()
        assert (Path(address) / "plots/fig 1.svg").read_text() == "<svg/>"
        assert place in Path(address).parents


def test_artifacts_of_others_are_not_shown(mlflow: Path, place: Path, tmp_path: Path) -> None:
    (run_id,) = recorded.make_sqlite(tmp_path / "theirs.db")
    with sqlite3.connect(tmp_path / "theirs.db") as made:
        (schema,) = sqlite3.connect(mlflow / "empty.db").execute("SELECT * FROM alembic_version").fetchone()
        made.execute("INSERT INTO alembic_version VALUES (?)", [schema])
        made.execute("UPDATE runs SET artifact_uri = ?", [str(Path.home())])
    made.close()
    with view(str(tmp_path / "theirs.db"), Settings(mlflow=str(mlflow), port=0)) as found:
        with contextlib.closing(shown_by(found)) as copy:
            ((address,),) = copy.execute("SELECT artifact_uri FROM runs").fetchall()
        assert address.endswith(f"/missing/{run_id}")


def start(source: Path, mlflow: Path, *more: str, by: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    command = [*by, str(LABTRACK), "ui", str(source), "--mlflow", str(mlflow), "--port", "0", *more]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # the tests themselves may have been started by nohup, and what ignores a hangup is inherited
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # noqa: PLW1509 - no threads then
    )


def read_until(process: subprocess.Popen[str], words: str) -> str:
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if words in line:
            return said
    raise AssertionError(said)


@pytest.mark.parametrize("how", ["INT", "TERM", "HUP", "KILL"])
def test_nothing_is_left_of_a_session(how: str, source: Path, mlflow: Path, place: Path) -> None:
    process = start(source, mlflow)
    said = read_until(process, "Ctrl-C ends it")
    (folder,) = place.iterdir()
    server = int((mlflow / "pid").read_text())
    assert Path(f"/proc/{server}").exists() and "127.0.0.1:" in said
    number = getattr(signal, f"SIG{how}")
    process.send_signal(number)
    code = process.wait(ANSWERS)
    assert code == {"INT": 130, "TERM": 143, "HUP": 129, "KILL": -9}[how]
    until(lambda: not folder.exists() and not Path(f"/proc/{server}").exists())
    assert "Traceback" not in (process.stdout or sys.stdin).read()


def test_session_that_nohup_started_outlives_a_hangup(source: Path, mlflow: Path, place: Path) -> None:
    process = start(source, mlflow, by=("nohup",))
    read_until(process, "Ctrl-C ends it")
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert process.wait(ANSWERS) == 143  # of the second
    until(lambda: not list(place.iterdir()))


def test_session_ends_with_the_shell_it_was_started_from(source: Path, mlflow: Path, place: Path) -> None:
    shell = start(source, mlflow, by=("sh", "-c", '"$@" & wait', "sh"))
    read_until(shell, "Ctrl-C ends it")
    server = int((mlflow / "pid").read_text())
    shell.kill()
    shell.wait()
    until(lambda: not list(place.iterdir()) and not Path(f"/proc/{server}").exists())


def test_session_that_is_killed_with_its_keeper_is_cleared_by_the_next(source: Path, mlflow: Path, place: Path) -> None:
    process = start(source, mlflow)
    read_until(process, "Ctrl-C ends it")
    (folder,) = place.iterdir()
    server = int((mlflow / "pid").read_text())
    (keeper,) = (
        int(one.parent.name)
        for one in Path("/proc").glob("[0-9]*/cmdline")
        if one.exists() and f"{folder}/keeper.py".encode() in one.read_bytes()
    )
    os.kill(keeper, signal.SIGKILL)
    process.kill()
    process.wait()
    os.kill(server, signal.SIGKILL)
    assert folder.exists()
    with view(str(source), Settings(mlflow=str(mlflow), port=0)):
        assert not folder.exists()


def test_server_that_ends_is_told(source: Path, mlflow: Path, place: Path) -> None:
    process = start(source, mlflow)
    read_until(process, "Ctrl-C ends it")
    os.kill(int((mlflow / "pid").read_text()), signal.SIGKILL)
    said = read_until(process, "Error: MLflow's server has ended")
    assert process.wait(ANSWERS) == 1 and "Traceback" not in said
    assert not list(place.iterdir())


def test_server_that_does_not_start_is_told(source: Path, tmp_path: Path, place: Path) -> None:
    broken = fake_mlflow.make(tmp_path / "broken")
    (broken / "broken").touch()
    done = subprocess.run(
        [LABTRACK, "ui", source, "--mlflow", broken], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1 and "it can't start" in done.stderr and "To fix" in done.stderr
    assert "Traceback" not in done.stderr and not list(place.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["nowhere"], "There is no"), (["--host", EVERYWHERE], "127.0.0.1"), (["--port", "70000"], "--port"),
     (["--mlflow", "/nowhere"], "There is no /nowhere")],
)  # fmt: skip
def test_bad_input_is_told(arguments: list[str], words: str, mlflow: Path, place: Path, source: Path) -> None:
    if arguments[0].startswith("--"):
        arguments = [str(source), *arguments]
    if "--mlflow" not in arguments:
        arguments += ["--mlflow", str(mlflow)]
    done = subprocess.run([LABTRACK, "ui", *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr
    assert not list(place.iterdir())
