"""The process beside the training: what it does while servers and folders fail, and what it tells."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest
from job_recorded import record

from labtrack.recorder.scheduler import find_job
from labtrack.run import attaching, lending, prepare, recording
from labtrack.run.console import portions
from labtrack.run.prepare import Options

JOB = {"SLURM_JOB_ID": "5", "SLURM_CLUSTER_NAME": "c"}
KEY = "c/5/batch"


def tracked(folder: Path, server: str, code: int, *more: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """A command that leaves a run open, beside a server."""
    record(folder, tags={"labtrack.job": KEY, "labtrack.attempt": "0"})
    command = [
        sys.executable, "-m", "labtrack", "run", "-f", folder, "-d", server, "--sync-timeout", "2", *more,
        "--", "sh", "-c", f"echo trained; exit {code}",
    ]  # fmt: skip
    before = time.monotonic()
    done = subprocess.run(command, env={**os.environ, **JOB}, capture_output=True, text=True, check=False, timeout=100)
    return done, time.monotonic() - before


def test_a_server_that_hangs_costs_no_more_than_was_allowed(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server = f"http://127.0.0.1:{silent.getsockname()[1]}"
        done, seconds = tracked(tmp_path / "runs", server, 7)
    assert (done.returncode, done.stdout) == (7, "trained\n")
    assert "not everything is sent: " in done.stderr and "no answer" in done.stderr
    assert f"To send it: labtrack sync -s labtrack://{tmp_path / 'runs'} -d {server}\n" in done.stderr
    assert seconds < 60 and "Traceback" not in done.stderr
    with recording.opened(tmp_path / "runs") as store:
        (run,) = store.runs()
    assert (run.status, run.tags["labtrack.end"]) == ("FAILED", "exit code 7")


def test_what_belongs_to_the_job_is_attached_to_its_first_run(tmp_path: Path) -> None:
    run_id = record(tmp_path, tags={"labtrack.job": KEY, "labtrack.attempt": "0"})
    place = recording.job_folder(tmp_path, KEY)
    (place / "console").mkdir(parents=True)
    (place / "git.diff").write_text("+x")
    (place / "console" / "00001.log").write_text("one")
    (place / "console" / "00002.log.part").write_text("tw")
    attacher = attaching.Attacher(tmp_path, KEY, 0)
    attacher.attach()
    with recording.opened(tmp_path) as store:
        assert [one.path for one in store.artifacts(store.run(run_id))] == ["console/00001.log", "git.diff"]
    attacher.attach(last=True)
    with recording.opened(tmp_path) as store:
        run = store.run(run_id)
        assert [one.path for one in store.artifacts(run)][1] == "console/00002.log.part"


def test_portions_are_in_order_and_whole(tmp_path: Path) -> None:
    for name in ("00002.log", "00001.log", "00003.log.part"):
        (tmp_path / name).write_text("")
    assert [one.name for one in portions(tmp_path)] == ["00001.log", "00002.log"]
    assert portions(tmp_path / "none") == []


def test_recorder_is_lent_as_one_file_that_python_finds(tmp_path: Path) -> None:
    lent = lending.lend(tmp_path / "lib")
    assert lent == lending.lend(tmp_path / "lib") and list((tmp_path / "lib").iterdir()) == [lent]
    names = zipfile.ZipFile(lent).namelist()
    assert "labtrack/recorder/plugin.py" in names and not any("/cli/" in one or "/cloud/" in one for one in names)
    script = (
        "from importlib.metadata import entry_points as e\n"
        "groups = {g: [p.load() for p in e(group=g) if p.name == 'labtrack'] for g in ('mlflow.tracking_store', )}\n"
        "import labtrack.recorder; print({g: len(p) for g, p in groups.items()}, labtrack.recorder.__file__)"
    )
    env = lending.with_path({"PATH": os.environ["PATH"]}, lent)
    done = subprocess.run(
        ["/usr/bin/env", Path(sys.executable).resolve(), "-S", "-c", script],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "'mlflow.tracking_store': 1" in done.stdout and str(lent) in done.stdout


@pytest.mark.parametrize(
    ("command", "found"), [(["srun", "python3", "t.py"], "python3"), (["sh", "x.sh"], "python"), ([], "python")]
)
def test_python_of_a_command(tmp_path: Path, command: list[str], found: str) -> None:
    for name in ("python", "python3"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    assert lending.python_of(command, {"PATH": str(tmp_path)}) == str(tmp_path / found)
    assert lending.python_of(["train"], {"PATH": "/nowhere"}) == ""


def test_python_that_says_nonsense_is_no_reason_to_fail(tmp_path: Path) -> None:
    (tmp_path / "python").write_text("#!/bin/sh\necho what\n")
    (tmp_path / "python").chmod(0o755)
    found = lending.look_at([str(tmp_path / "python")], {})
    assert not found.asked and "could not be asked" in found.why
    assert "no python" in lending.look_at([], {}).why


@pytest.mark.parametrize(
    ("given", "env", "folder"),
    [
        ("/a/b", {}, "/a/b"),
        ("labtrack:///a/b%20c", {}, "/a/b c"),
        (None, {"LABTRACK_FOLDER": "/a"}, "/a"),
        (None, {"MLFLOW_TRACKING_URI": "labtrack:///a"}, "/a"),
        (None, {"SLURM_SUBMIT_DIR": "/home/ada"}, "/home/ada/labtrack-runs"),
        (None, {"SCRATCH": "/nowhere", "SLURM_SUBMIT_DIR": "/h"}, "/h/labtrack-runs"),
        (None, {"SCRATCH": "/tmp"}, "/tmp/labtrack"),
    ],
)
def test_folder(given: str | None, env: dict[str, str], folder: str) -> None:
    assert recording.folder_of(given, env) == Path(folder)


def test_server_is_found_in_the_file_that_was_sourced(tmp_path: Path) -> None:
    file = tmp_path / "mlflow_env.sh"
    file.write_text("export MLFLOW_TRACKING_URI='https://mlflow.test'\nexport MLFLOW_TRACKING_USERNAME='ada'\n")
    env = {"LABTRACK_ENV_FILE": str(file), "MLFLOW_TRACKING_URI": "labtrack:///x", "PATH": "/nowhere"}
    plan = prepare.prepare(["true"], Options(folder=str(tmp_path / "runs")), env, tmp_path)
    assert plan.destination == "https://mlflow.test" and plan.server_env["MLFLOW_TRACKING_USERNAME"] == "ada"
    assert "MLFLOW_TRACKING_USERNAME" not in plan.env


def test_another_place_to_record_is_told(tmp_path: Path) -> None:
    env = {"MLFLOW_TRACKING_URI": "sqlite:////x/mlflow.db", "PATH": "/nowhere"}
    plan = prepare.prepare(["true"], Options(folder=str(tmp_path / "runs")), env, tmp_path)
    assert any("MLFLOW_TRACKING_URI=sqlite:////x/mlflow.db is not used" in one for one in plan.notes)
    assert plan.destination == ""


def test_tags_are_there_for_the_recorder(tmp_path: Path) -> None:
    env = {**JOB, "PATH": "/nowhere", "SLURM_JOB_PARTITION": "gpu"}
    plan = prepare.prepare(
        ["python", "t.py", "--token", "hidden-value"], Options(folder=str(tmp_path / "r")), env, tmp_path
    )
    tags = json.loads(Path(plan.env["LABTRACK_JOB_TAGS"]).read_text())
    assert tags["slurm.partition"] == "gpu" and tags["labtrack.job"] == find_job(env).key
    assert "hidden-value" not in json.dumps(tags)


def test_job_submitted_from_a_tracked_job_is_another_job(tmp_path: Path) -> None:
    outer = {"LABTRACK_JOB": "c/4/batch", "MLFLOW_TRACKING_URI": f"labtrack://{tmp_path}", "PATH": "/nowhere"}
    plan = prepare.prepare(["true"], Options(), {**outer, **JOB}, tmp_path)
    assert plan.records and plan.env["LABTRACK_JOB"] == KEY
    inside = prepare.prepare(["true"], Options(), {**outer, **JOB, "LABTRACK_JOB": KEY}, tmp_path)
    assert not inside.records and inside.env["LABTRACK_JOB"] == KEY


def test_a_file_system_that_hangs_does_not_keep_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stands = threading.Event()
    monkeypatch.setattr(prepare, "_make_folder", lambda *_: stands.wait(30))
    monkeypatch.setattr(prepare, "_PATIENCE", 0.1)
    plan = prepare.prepare(["true"], Options(folder=str(tmp_path)), {"PATH": "/nowhere", **JOB}, tmp_path)
    stands.set()
    assert plan.env["LABTRACK_JOB"] == KEY and "did not answer" in plan.notes[0]


def test_a_gateway_needs_tls(tmp_path: Path) -> None:
    options = Options(folder=str(tmp_path), destination="http://mlflow.test", gateways=("gate",))
    plan = prepare.prepare(["true"], options, {"PATH": "/nowhere"}, tmp_path)
    assert plan.gateways == [] and "no gateway is used for http://mlflow.test" in plan.notes[0]
