"""Local mode: projects, what takes the space, clean-up, who holds a database."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import fake_mlflow
import pytest
import recorded
from commandline import labtrack

from labtrack.local import clean, holders, project, prune, usage


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project with two runs that have ended long ago, one with artifacts."""
    place = tmp_path / "project"
    place.mkdir()
    ids = recorded.make_sqlite(place / "mlflow.db", 2)
    with contextlib.closing(sqlite3.connect(place / "mlflow.db")) as made, made:
        made.execute("UPDATE runs SET status = 'FINISHED', end_time = start_time + 1000")
    recorded.add_points(place / "mlflow.db", ids[0], [("loss", 0.5, 1, 0)])
    artifacts = place / "mlruns" / "0" / ids[0] / "artifacts"
    artifacts.mkdir(parents=True)
    (artifacts / "model.bin").write_bytes(b"x" * 5000)
    return place


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", folder, "-c", "user.name=a", "-c", "user.email=a@b", *arguments], check=True)


# project init


def test_project_init_has_git_ignore_what_mlflow_records(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / ".gitignore").write_text("*.pyc\n/data")
    assert labtrack("project", "init", tmp_path).returncode == 0
    first = (tmp_path / ".gitignore").read_text()
    assert first.startswith("*.pyc\n/data\n\n# >>> labtrack")
    names = ["mlflow.db", "a.db-shm", "a.db-wal", "mlruns/x", "mlartifacts/x", ".mlflow/x"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        assert subprocess.run(["git", "-C", tmp_path, "check-ignore", "-q", name], check=False).returncode == 0, name
    assert labtrack("project", "init", tmp_path).returncode == 0
    assert (tmp_path / ".gitignore").read_text() == first


def test_project_init_respects_what_is_there(tmp_path: Path) -> None:
    own = "mlflow.db\n*.db-shm\n*.db-wal\n/mlruns/\nmlartifacts\n.mlflow/\n"
    (tmp_path / ".gitignore").write_text(own)
    assert project.init(tmp_path).ignore is None and (tmp_path / ".gitignore").read_text() == own
    # a block of an older labtrack is brought up to date in its place
    (tmp_path / ".gitignore").write_text(f"a\n{project.BEGIN}\nmlflow.db\n{project.END}\nb\n")
    project.init(tmp_path)
    lines = (tmp_path / ".gitignore").read_text().splitlines()
    assert lines[0] == "a" and lines[-1] == "b" and lines[2:-2] == list(project.IGNORED)


def test_project_init_writes_a_makefile_only_when_asked(tmp_path: Path) -> None:
    said = labtrack("project", "init", tmp_path)
    assert "mlflow-ui:" in said.stdout and not (tmp_path / "Makefile").exists()
    (tmp_path / "Makefile").write_text("all:\n\ttrue\n")
    for _ in range(2):
        assert labtrack("project", "init", tmp_path, "--make").returncode == 0
    text = (tmp_path / "Makefile").read_text()
    assert text.startswith("all:\n\ttrue\n") and text.count("\tlabtrack clean .") == 1
    dry = subprocess.run(["make", "-n", "-C", tmp_path, "mlflow-ui"], capture_output=True, text=True, check=True)
    assert "labtrack ui ." in dry.stdout
    (tmp_path / "Makefile").write_text("clean:\n\trm -rf build\n")
    said = labtrack("project", "init", tmp_path, "--make")
    assert said.returncode == 2 and "target of its own" in said.stderr
    assert (tmp_path / "Makefile").read_text() == "clean:\n\trm -rf build\n"


def test_project_init_names_what_git_has_already(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "mlflow.db").touch()
    git(tmp_path, "add", "mlflow.db")
    said = labtrack("project", "init", tmp_path)
    assert said.returncode == 1 and "git rm -r --cached mlflow.db" in said.stderr
    assert labtrack("project", "init", tmp_path / "nowhere").returncode == 2


# usage


def test_usage_says_what_takes_the_space(folder: Path) -> None:
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as made, made:
        made.execute("UPDATE runs SET lifecycle_stage = 'deleted' WHERE name = 'run 0'")
    found = usage.measure(str(folder / "mlflow.db"))
    runs = {one.name: one for one in found.items if one.kind == "run"}
    assert (runs["run 0"].bytes, runs["run 0"].files, runs["run 0"].points, runs["run 0"].deleted) == (5000, 1, 1, True)
    (database,) = (one for one in found.items if one.kind == "database")
    assert database.bytes == (folder / "mlflow.db").stat().st_size
    assert found.bytes == database.bytes + 5000 and found.deleted == 5000
    assert [one.bytes for one in found.items] == sorted((one.bytes for one in found.items), reverse=True)
    said = labtrack("usage", folder / "mlflow.db")
    assert said.returncode == 0 and "5.0 kB  run 0 (deleted)" in said.stdout and "Default" in said.stdout
    data = json.loads(labtrack("usage", folder / "mlflow.db", "--json").stdout)
    assert data["version"] == 1 and data["bytes"] == found.bytes and data["experiments"][0]["files"] == 1


def test_usage_counts_logs_and_the_files_of_mlruns(tmp_path: Path) -> None:
    recorded.make_sqlite(tmp_path / "mlflow.db", wal=True)
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as made:
        made.execute("UPDATE runs SET name = 'b'")
        made.commit()
        names = {one.name for one in usage.measure(str(tmp_path / "mlflow.db")).items if one.kind == "log"}
    assert names == {"mlflow.db-wal", "mlflow.db-shm"}
    recorded.make_files(tmp_path / "mlruns")
    (records,) = (one for one in usage.measure(str(tmp_path / "mlruns")).items if one.kind == "records")
    assert records.bytes == sum(one.stat().st_size for one in (tmp_path / "mlruns").rglob("*") if one.is_file())


# clean


def test_clean_removes_what_is_listed_and_nothing_else(folder: Path) -> None:
    for name in (
        "mlflow.db-journal",
        "a.db-shm",
        "mlartifacts/x",
        ".mlflow/x",
        "other.db",
        "src/mlflow.db",
        "notes.txt",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    said = labtrack("clean", folder, "--dry-run", "--force")
    assert said.returncode == 0 and "would remove" in said.stdout and (folder / "mlflow.db").exists()
    assert labtrack("clean", folder, "--force", "--yes").returncode == 0
    left = sorted(str(one.relative_to(folder)) for one in folder.rglob("*"))
    assert left == ["notes.txt", "other.db", "src", "src/mlflow.db"]
    assert "nothing to remove" in labtrack("clean", folder).stdout


def test_clean_refuses_what_is_on_no_server(folder: Path) -> None:
    said = labtrack("clean", folder, "--yes")
    assert said.returncode == 1 and "2 of 2 runs in" in said.stderr and (folder / "mlflow.db").exists()
    assert labtrack("clean", folder, "--force", stdin=subprocess.DEVNULL).returncode == 2, "nobody to ask"
    assert (folder / "mlflow.db").exists()


def test_clean_takes_what_a_server_has_acknowledged(folder: Path, tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as made:
        ids = [row[0] for row in made.execute("SELECT run_uuid FROM runs ORDER BY name")]
    state = {"state": "complete", "points": 1, "artifacts": 1, "bytes": 5000, "digest": "d"}
    lines = [
        {
            "run": ids[0],
            "copy": "c",
            "state": json.dumps(state),
            "points": {"loss": 1},
            "artifacts": {"m": [5000, 1, ""]},
        },
        {"run": ids[1], "copy": "d", "state": json.dumps(state)},
    ]
    journal = tmp_path / "home/.local/state/labtrack/sync/x.jsonl"
    journal.parent.mkdir(parents=True)
    journal.write_text("torn{\n" + "".join(json.dumps(one) + "\n" for one in lines))
    assert clean.plan(folder).reasons == ()
    recorded.add_points(folder / "mlflow.db", ids[1], [("loss", 0.5, 1, 0)])
    (reason,) = clean.plan(folder).reasons
    assert "1 of 2 runs" in reason


def test_clean_refuses_while_a_run_is_recorded(folder: Path) -> None:
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as made, made:
        made.execute("UPDATE runs SET status = 'RUNNING' WHERE name = 'run 1'")
    assert any("run 1 is RUNNING" in one for one in clean.plan(folder).reasons)
    old = time.time() - 3600
    os.utime(folder / "mlflow.db", (old, old))
    assert not any("RUNNING" in one for one in clean.plan(folder).reasons)
    script = "import sys; kept = open(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script, folder / "mlflow.db"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdout.readline()
        assert any(f"open in process {other.pid} of" in one for one in clean.plan(folder).reasons)
        assert other.stdin is not None
        other.stdin.close()


def test_clean_removes_links_not_what_they_lead_to(folder: Path, tmp_path: Path) -> None:
    far = tmp_path / "scratch"
    (folder / "mlruns").rename(far)
    (folder / "mlruns").symlink_to(far)
    assert labtrack("clean", folder, "--force", "--yes").returncode == 0
    assert not (folder / "mlruns").is_symlink() and list(far.rglob("model.bin"))


def test_clean_leaves_the_log_of_another_database(tmp_path: Path) -> None:
    (tmp_path / "optuna.db").write_bytes(b"x")
    (tmp_path / "optuna.db-wal").write_bytes(b"x")
    said = labtrack("clean", tmp_path, "--yes")
    assert said.returncode == 1 and "belongs to" in said.stderr and (tmp_path / "optuna.db-wal").exists()


def test_clean_names_what_it_can_not_look_at(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"SQLite format 3\0" + b"broken" * 100)
    said = labtrack("clean", tmp_path, "--yes")
    assert said.returncode == 1 and "can't be looked at" in said.stderr
    assert labtrack("clean", tmp_path / "nowhere").returncode == 2


# who


def test_who_names_the_process_the_user_and_the_job(tmp_path: Path) -> None:
    recorded.make_sqlite(tmp_path / "mlflow.db")
    script = (
        "import sqlite3, sys; db = sqlite3.connect(sys.argv[1], isolation_level=None); db.execute('BEGIN IMMEDIATE');"
        "print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, tmp_path / "mlflow.db"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "SLURM_JOB_ID": "4711"},
    ) as other:  # fmt: skip
        assert other.stdout is not None and other.stdin is not None and other.stdout.readline()
        (found,) = holders.holders(tmp_path / "mlflow.db").holders
        assert (found.pid, found.job, found.writes) == (other.pid, "SLURM_JOB_ID=4711", True)
        assert any("WRITE" in one for one in found.locks) and "BEGIN IMMEDIATE" in found.command
        said = labtrack("who", tmp_path / "mlflow.db")
        assert said.returncode == 1 and str(other.pid) in said.stdout and "4711" in said.stdout
        assert "Other machines can't be seen" in said.stderr
        data = json.loads(labtrack("who", f"sqlite:///{tmp_path}/mlflow.db", "--json").stdout)
        assert data["holders"][0]["pid"] == other.pid
        other.stdin.close()
    said = labtrack("who", tmp_path / "mlflow.db")
    assert said.returncode == 0 and "Nobody on this machine" in said.stdout
    assert labtrack("who", tmp_path / "none.db").returncode == 2


def test_who_counts_what_it_may_not_look_into(tmp_path: Path) -> None:
    (tmp_path / "a.db").touch()
    (tmp_path / "proc/17").mkdir(parents=True)
    assert holders.holders(tmp_path / "a.db", tmp_path / "proc").holders == ()
    assert holders.holders(tmp_path / "a.db", tmp_path / "none").hidden == 0


# prune


@pytest.mark.parametrize(("text", "found"), [("90d", 90 * 86400), ("1.5h", 5400), (" 2W ", 14 * 86400)])
def test_prune_reads_ages(text: str, found: float) -> None:
    assert prune.seconds(text) == found


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((), "Nothing says which runs"), (("--older-than", "90"), "no age"), (("--status", "DONE"), "no status"),
     (("--filter", "x ~ 1"), "can't be read"),
     (("--status", "FAILED", "--mlflow", "/nowhere"), "There is no /nowhere")],
)  # fmt: skip
def test_prune_refuses_what_it_can_not_mean(arguments: tuple[str, ...], words: str, folder: Path) -> None:
    said = labtrack("prune", folder / "mlflow.db", *arguments, "--yes")
    assert said.returncode == 2 and words in said.stderr


def test_prune_shows_first_and_refuses_another_schema(folder: Path, tmp_path: Path) -> None:
    mlflow = fake_mlflow.make(tmp_path / "environment")
    said = labtrack("prune", folder / "mlflow.db", "--older-than", "90d", "--dry-run", "--mlflow", mlflow)
    assert said.returncode == 2 and "use the MLflow that writes it" in said.stderr
    with contextlib.closing(sqlite3.connect(mlflow / "empty.db")) as made:
        (schema,) = made.execute("SELECT * FROM alembic_version").fetchone()
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as made, made:
        made.execute("INSERT INTO alembic_version VALUES (?)", [schema])
        made.execute("UPDATE runs SET status = 'RUNNING' WHERE name = 'run 1'")
    said = labtrack("prune", folder / "mlflow.db", "--older-than", "90d", "--dry-run", "--mlflow", mlflow)
    assert said.returncode == 0 and "run 0" in said.stdout and "run 1" not in said.stdout
    assert "1 runs would be deleted" in said.stdout
    said = labtrack("prune", folder / "mlflow.db", "--older-than", "90d", "--mlflow", mlflow, stdin=subprocess.DEVNULL)
    assert said.returncode == 2 and "--yes" in said.stderr
    said = labtrack("prune", folder / "mlflow.db", "--status", "failed", "--yes", "--mlflow", mlflow)
    assert said.returncode == 0 and "No run is like that" in said.stdout
