"""What the recorder is made of: amend, its settings, its writer, what it captures."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from journalled import HEADER, OTHER, RUN, T0, experiment, opened, run, tag, write

from labtrack.errors import BadInputError, LabtrackError
from labtrack.recorder import amend
from labtrack.recorder.live import Live, job_mark
from labtrack.recorder.place import root_of
from labtrack.recorder.place import settings as settings_of
from labtrack.recorder.writer import Writer
from labtrack.stores.journals import journals


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("labtrack.stores.recordings._EVERY", 0.0)  # each call looks at the journals
    monkeypatch.setattr("labtrack.stores.recordings._SHARE", 0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def test_amend_changes_a_run_of_another_process(root: Path, tmp_path: Path) -> None:
    write(
        root, "a", experiment(), run(), tag("x", "y"), clock=int(time.time() * 1000) + 60_000
    )  # a clock that is ahead
    log = tmp_path / "slurm.out"
    log.write_text("killed")
    amend(root, RUN, status="FAILED", end_time=T0 + 5, tags={"slurm.end": "OUT_OF_MEMORY"}, artifacts=[(log, "logs")])
    with opened(root) as store:
        (found,) = store.runs()
        assert (found.status, found.end_time, found.name) == ("FAILED", T0 + 5, "unet")
        assert found.tags == {"x": "y", "slurm.end": "OUT_OF_MEMORY"}
        assert [one.path for one in store.artifacts(found)] == ["logs/slurm.out"]
        assert store.problems() == []
    amend(f"labtrack://{root}", RUN, status="KILLED")
    with opened(root) as store:
        assert store.run(RUN).status == "KILLED"


def test_amend_is_kept_where_its_recording_is_read_first(root: Path) -> None:
    write(root, "b", experiment(), run())
    amend(root, RUN, status="KILLED")
    (made,) = [one for one in journals(root) if one.name != "b.journal"]
    made.rename(made.with_name("a.journal"))
    with opened(root) as store:
        assert store.run(RUN).status == "KILLED"


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ({"run_id": OTHER, "status": "FAILED"}, "There is no run"),
        ({"status": "DEAD"}, "no status"),
        ({"artifacts": [("/etc/hostname", "../x")]}, "no folder among"),
        ({"artifacts": ["/nowhere/x"]}, "can't be copied"),
    ],
)
def test_amend_says_what_can_not_be_used(root: Path, given_: dict[str, Any], said: str) -> None:
    write(root, "a", experiment(), run())
    with pytest.raises(LabtrackError, match=said):
        amend(root, **{"run_id": RUN, **given_})
    assert len(journals(root)) == 1


@pytest.mark.parametrize(
    "address", ["labtrack:runs", "labtrack://runs/x", "labtrack:///scratch/$USER/x", "labtrack:///", "labtrack:///a#b"]
)
def test_root_of_says_what_is_no_address(address: str) -> None:
    with pytest.raises(BadInputError):
        root_of(address)


def test_root_of_takes_spaces() -> None:
    assert root_of("labtrack:///a/b%20c/") == Path("/a/b c")


def test_settings_of_a_job(tmp_path: Path) -> None:
    tags = tmp_path / "tags.json"
    tags.write_text('{"slurm.partition": "gpu"}')
    env = {"LABTRACK_JOB": "narval/7", "LABTRACK_ATTEMPT": "2", "LABTRACK_JOB_TAGS": str(tags)}
    found = settings_of({**env, "SLURM_PROCID": "0"})
    assert (found.job, found.attempt, found.resume, found.silent) == ("narval/7", 2, "same", False)
    assert found.tags == {"slurm.partition": "gpu"}
    assert settings_of({**env, "SLURM_PROCID": "0", "RANK": "3"}).silent
    assert not settings_of({"SLURM_PROCID": "3"}).silent  # without a job each process is one of its own
    wrong = settings_of({**env, "LABTRACK_ATTEMPT": "x", "LABTRACK_RESUME": "maybe", "LABTRACK_JOB_TAGS": "/nowhere"})
    assert (wrong.attempt, wrong.resume, len(wrong.notes)) == (0, "same", 3)


@pytest.fixture
def writer(root: Path) -> Iterator[Callable[..., Writer]]:
    made: list[Writer] = []

    def make(begin: Callable[[], tuple[Path, list[tuple[Any, ...]]]] | None = None) -> Writer:
        path = root / "recordings" / f"w{len(made)}.journal"
        first = [("h", HEADER.data()), ("h", HEADER.data()), experiment()]
        lost = lambda told: [tag("labtrack.lost", what, run_id) for run_id, what in told.items()]  # noqa: E731
        made.append(Writer(begin or (lambda: (path, first)), lost, 0.0))
        return made[-1]

    yield make
    for one in made:
        one.end()


@pytest.mark.parametrize(
    ("job", "slurm", "counts"),
    [
        ("narval/7/batch", {"SLURM_JOB_ID": "7"}, True),
        ("narval/7_3/0.1", {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7"}, True),
        ("narval/7+1/batch", {"SLURM_JOB_ID": "8", "SLURM_JOB_ID_HET_GROUP_0": "7"}, True),
        ("narval/7/batch", {"SLURM_JOB_ID": "8"}, False),  # submitted from job 7, whose environment it has
        ("narval/7/batch", {"SLURM_JOB_ID": "77", "SLURM_ARRAY_JOB_ID": "70"}, False),
        ("narval/7/batch", {}, True),
        ("narval/7", {"SLURM_JOB_ID": "8"}, True),  # written by hand
        ("local/0123456789abcdef", {"SLURM_JOB_ID": "8"}, True),  # `labtrack run -- srun ...` on a login node
        ("pbs/7/batch", {"SLURM_JOB_ID": "8"}, True),
    ],
)
def test_a_job_that_a_tracked_one_has_submitted_is_not_that_one(job: str, slurm: dict[str, str], counts: bool) -> None:
    assert settings_of({"LABTRACK_JOB": job, **slurm}).job == (job if counts else "")


def test_a_job_of_slurms_that_nobody_named_can_be_asked_about() -> None:
    slurm = {"SLURM_JOB_ID": "8", "SLURM_CLUSTER_NAME": "narval", "SLURM_RESTART_COUNT": "1", "SLURM_PROCID": "3"}
    for around in ({}, {"LABTRACK_JOB": "narval/7/batch", "LABTRACK_ATTEMPT": "4", "LABTRACK_JOB_TAGS": "/nowhere"}):
        found = settings_of({**slurm, **around})
        assert not found.job and not found.silent and not found.notes
        assert found.tags == {
            "labtrack.job": "narval/8/batch.0", "labtrack.attempt": "1", "slurm.job_id": "8",
            "slurm.cluster": "narval", "slurm.restart_count": "1",
        }  # fmt: skip
    assert not settings_of({"PBS_JOBID": "8"}).tags  # nobody could be asked
    assert all(len(value) <= 5000 for value in settings_of({**slurm, "SLURM_JOB_NODELIST": "n" * 9000}).tags.values())


def test_writer_writes_what_a_reader_reads(root: Path, writer: Callable[..., Writer]) -> None:
    one = writer()
    one.rows([run()])
    for step in range(250):
        one.point((RUN, "loss", step / 2, T0 + step, step, 0))
    assert one.written(10)
    with opened(root) as store:
        assert store.metric_keys(RUN) == {"loss": 250}
        assert store.problems() == []
        assert [point.step for point in store.points(RUN)] == list(range(250))


def test_writer_that_fails_at_first_writes_later_and_warns_once(
    root: Path, writer: Callable[..., Writer], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labtrack.recorder.writer._RETRY", 0.0)
    full = [True]

    def begin() -> tuple[Path, list[tuple[Any, ...]]]:
        if full[0]:
            raise OSError(28, "No space left on device")
        return root / "recordings" / "w.journal", [("h", HEADER.data()), experiment()]

    one = writer(begin)
    one.rows([run()])
    one.point((RUN, "loss", 0.0, T0, 0, 0))
    assert not one.written(0.7)
    full[0] = False
    one.point((RUN, "loss", 0.5, T0, 1, 0))
    one._failed = 0.0
    assert one.written(10)
    with opened(root) as store:
        assert store.metric_keys(RUN) == {"loss": 2}
        assert store.problems() == []
    assert len([line for line in caplog.messages if "No space left" in line]) == 1


def test_writer_tells_what_it_lost(root: Path, writer: Callable[..., Writer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labtrack.recorder.writer.MOST_POINTS", 10)
    one = writer()
    one.runs.add(RUN)
    one.rows([run()])
    with one._starting:  # no thread takes anything meanwhile
        one._thread = one._thread or None
    for step in range(30):
        one._points.append((RUN, "loss", step / 2, T0, step, 0)) if step < 10 else one.point(
            (RUN, "loss", step / 2, T0, step, 0)
        )
    one.lose(RUN, "the artifact a.txt", "No space left on device")
    assert one.written(10)
    assert one.written(10)
    with opened(root) as store:
        said = store.run(RUN).tags["labtrack.lost"]
        assert "the artifact a.txt" in said
        assert "No space left on device" in said


def test_writer_at_a_full_disk_leaves_whole_records(tmp_path: Path, root: Path) -> None:
    """By RLIMIT_FSIZE, in a process of its own."""
    code = f"""
import resource, signal, sys, time
sys.path[:0] = {sys.path!r}
import test_recordings as made
from labtrack.recorder import writer
writer._RETRY = 0.0
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from pathlib import Path
root = Path({str(root)!r})
first = [("h", made.HEADER.data()), ("h", made.HEADER.data()), made.experiment(), made.run()]
one = writer.Writer(lambda: (root / "recordings" / "w.journal", first), lambda told: [], 0.0)
one.rows([made.tag("first", "x")])
assert one.written(10)
size = one.path.stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 1000, resource.RLIM_INFINITY))
for step in range(500):
    one.point((made.RUN, "loss", step / 2, made.T0, step, 0))
assert not one.written(1.5)
assert one.path.stat().st_size == size, (one.path.stat().st_size, size)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
end = time.monotonic() + 20
while not one.written(1):
    assert time.monotonic() < end
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "File too large" in done.stderr
    with opened(root) as store:
        assert store.metric_keys(RUN) == {"loss": 500}
        assert store.problems() == []


def test_live_captures_rows_whoever_changes_them(root: Path) -> None:
    live = Live(root, settings_of({}))
    live.database.executescript(
        "CREATE TABLE alembic_version (version_num TEXT);"  # noqa: S608
        + ";".join(
            HEADER.tables[name].sql for name in ("experiments", "runs", "metrics", "latest_metrics", "params", "tags")
        )
        + ";INSERT INTO experiments (experiment_id, name, workspace) VALUES (0, 'Default', 'default')"
    )
    live.capture_from_now("3.17.2", HEADER.revision)
    where = f"{live.base}artifacts/0/{RUN}/artifacts"
    with live.call():
        live.database.execute(
            "INSERT INTO runs (run_uuid, experiment_id, status, lifecycle_stage, artifact_uri) "
            "VALUES (?, 0, 'RUNNING', 'active', ?)",
            [RUN, where],
        )
        live.database.execute("INSERT INTO tags VALUES ('a', '1', ?)", [RUN])
    with live.call():
        live.database.execute("UPDATE runs SET status = 'FINISHED'")
        live.database.execute("DELETE FROM tags")
    live.point((RUN, "loss", 0.5, T0, 1, 0))
    with live.call():
        assert live.database.execute("SELECT value FROM latest_metrics").fetchall() == [(0.5,)]
    live.writer.end()
    with opened(root) as store:
        (found,) = store.runs()
        assert (found.status, found.tags, store.metric_keys(RUN)) == ("FINISHED", {}, {"loss": 1})
        assert found.artifact_uri == str(root / "artifacts" / "0" / RUN / "artifacts")
        assert store.problems() == []
    (path,) = journals(root)
    assert not any(str(root).encode() in line for line in path.read_bytes().splitlines())


def test_job_mark_is_in_the_names_of_a_jobs_journals() -> None:
    assert job_mark("narval/7") == job_mark("narval/7") != job_mark("narval/8")
