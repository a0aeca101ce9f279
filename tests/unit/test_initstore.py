"""What `labtrack init-store` and `prune --synced` say to what can't be used; MLflow's part is in tests/recorder."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from test_recordings import RUN, experiment, points, run, write

from labtrack.cli import cli
from labtrack.errors import BadInputError
from labtrack.local import recordings
from labtrack.local.initstore import init_store
from labtrack.stores import open_store
from labtrack.sync import state
from labtrack.sync.journal import Entry, Journal, state_folder


@pytest.mark.parametrize(
    ("file", "more", "said"),
    [
        (None, {}, "No file was named"),
        ("sqlite:///scratch/a.db", {}, "has 3 slashes"),
        ("sqlite://scratch/a.db", {}, "has 2 slashes"),
        ("sqlite://///scratch/a.db", {}, "has 5 slashes"),
        ("postgresql://x/y", {}, "no SQLite file"),
        ("/scratch/$USER/a.db", {}, "no shell has replaced"),
        ("/tmp", {}, "is a folder"),
        ("/tmp/new/", {}, "is a folder"),
        ("/tmp/a.db", {"artifacts": "artifacts"}, "is not absolute"),
        ("/tmp/a.db", {"artifacts": "file://scratch/x"}, "names a host"),
        ("/tmp/a.db", {"artifacts": "s3:/bucket/x"}, "too few slashes"),
        ("/tmp/a.db", {"artifacts": "/tmp/a.db"}, "the database itself"),
        ("/tmp/a.db", {"group": "no such group"}, "There is no group"),
        ("/tmp/a.db", {"mlflow": "/nowhere"}, "There is no /nowhere"),
    ],
)
def test_init_store_says_what_can_not_be_used(file: str | None, more: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInputError, match=said):
        init_store(file, **more, env={})


def test_init_store_takes_the_variables_of_the_seed() -> None:
    env = {"MLFLOW_SQLITE_DB_PATH": "sqlite:///a.db"}
    with pytest.raises(BadInputError, match="slashes"):
        init_store(None, env=env)
    env = {"MLFLOW_SQLITE_DB_PATH": "/tmp/a.db", "MLFLOW_ARTIFACTS_PATH": "artifacts"}
    with pytest.raises(BadInputError, match="artifacts is not absolute"):
        init_store(None, env=env)


@pytest.fixture
def sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run that ended long ago, and that a server has."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    root = tmp_path / "runs"
    ended = int(time.time() * 1000) - 40 * 86_400_000
    path = write(root, "a", experiment(), run(), points(), run(kind="u", status="FINISHED", end_time=ended))
    os.utime(path, (1, 1))
    artifact = root / "artifacts" / "0" / RUN / "artifacts" / "a.txt"
    artifact.parent.mkdir(parents=True)
    artifact.write_text("12345")
    with open_store(root) as store:
        journal = Journal(state_folder({"XDG_STATE_HOME": str(tmp_path / "state")}), "https://x", store.identity)
    said = state.State(state.COMPLETE, 3, 1, 5, "digest").tag()
    journal.start(RUN, Entry("copy", said, "", {"loss": 3}, {"a.txt": (5, 1, "")}, {}))
    journal.close()
    return root


def test_prune_of_recordings_removes_what_a_server_has(sent: Path) -> None:
    assert recordings.plan(str(sent), older_than=41 * 86_400).kept == {"not old enough": 1}
    dry = CliRunner().invoke(cli, ["prune", str(sent), "--synced", "--older-than", "30d", "--dry-run"])
    assert "1 recordings with 1 runs" in dry.output
    assert ", 4 of 5 files and folders would be removed." in dry.output
    assert (sent / "recordings" / "a.journal").exists()
    asked = CliRunner().invoke(cli, ["prune", str(sent), "--synced"])
    assert isinstance(asked.exception, BadInputError)
    done = CliRunner().invoke(cli, ["prune", str(sent), "--synced", "--yes"])
    assert (done.exit_code, "Removed 1 recordings" in done.output) == (0, True)
    assert [path for path in sent.rglob("*") if path.is_file()] == []


def test_prune_of_recordings_keeps_what_has_grown_since(sent: Path) -> None:
    (sent / "artifacts" / "0" / RUN / "artifacts" / "new.txt").write_text("more")
    assert recordings.plan(str(sent)).kept == {"not sent, or not all of it": 1}


def test_prune_without_synced_says_how_recordings_are_removed(sent: Path) -> None:
    told = CliRunner().invoke(cli, ["prune", str(sent), "--older-than", "1d"])
    assert isinstance(told.exception, BadInputError)
    assert "--synced" in told.exception.hint


def test_prune_of_recordings_needs_what_was_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    root = tmp_path / "runs"
    path = write(root, "a", experiment(), run(kind="u", status="FINISHED", end_time=1000))
    other = write(root, "b", experiment(), run("e" * 32))
    assert recordings.plan(str(root)).kept == {"written within the last hour": 2}
    os.utime(path, (1, 1))
    os.utime(other, (1, 1))
    plan = recordings.plan(str(root))
    assert plan.kept == {"not sent, or not all of it": 1, "with a run that has not ended": 1}
    assert plan.journals == ()
    told = CliRunner().invoke(cli, ["prune", str(root), "--synced"])
    assert (told.exit_code, "No recording is like that." in told.output) == (0, True)
    assert path.exists()


@pytest.mark.parametrize("words", [["--gc"], ["--status", "FAILED"], ["--filter", "params.a = '1'"]])
def test_prune_synced_takes_no_choice_of_runs(words: list[str]) -> None:
    told = CliRunner().invoke(cli, ["prune", "x", "--synced", *words])
    assert isinstance(told.exception, BadInputError)
