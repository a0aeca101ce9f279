"""Folders of recordings, written here by hand, as the recorder writes them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recorded import KINDS, kept

from labtrack.errors import BadInputError, LabtrackError
from labtrack.recorder import amend
from labtrack.recorder.live import Live, job_mark, name_the_folder
from labtrack.recorder.place import root_of
from labtrack.recorder.place import settings as settings_of
from labtrack.recorder.writer import Writer
from labtrack.stores import find_stores, open_store
from labtrack.stores.journals import Header, Table, frame, journals, parse, read
from labtrack.stores.recordings import RecordingsStore

RUN = "f" * 31 + "1"
OTHER = "f" * 31 + "2"
T0 = 1_700_000_000_000


def _header(kind: str = "process") -> Header:
    """That of MLflow 3.17.2."""
    with contextlib.closing(sqlite3.connect(kept("3.17.2") / KINDS["sqlite"])) as database:
        tables = {}
        sql = "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        for name, made in database.execute(sql).fetchall():
            facts = database.execute("SELECT name, pk FROM pragma_table_info(?)", [name]).fetchall()
            key = tuple(one for one, at in sorted(facts, key=lambda one: one[1]) if at)
            columns = tuple(one for one, _ in facts)
            tables[name] = Table(name, made, columns, key or columns)
        ((revision,),) = database.execute("SELECT version_num FROM alembic_version").fetchall()
    return Header("3.17.2", revision, "node1", 7, T0, kind=kind, tables=tables)


HEADER = _header()


def row(table: str, **values: Any) -> list[Any]:
    return [values.get(one) for one in HEADER.tables[table].columns]


def experiment(number: int = 0, name: str = "Default", born: int = T0) -> tuple[Any, ...]:
    return "i", "experiments", row(
        "experiments", experiment_id=number, name=name, artifact_location=f"labtrack:artifacts/{number}",
        lifecycle_stage="active", creation_time=born, last_update_time=born, workspace="default",
    )  # fmt: skip


def run(run_id: str = RUN, kind: str = "i", **more: Any) -> tuple[Any, ...]:
    facts = {
        "run_uuid": run_id, "name": "unet", "user_id": "ada", "status": "RUNNING", "start_time": T0,
        "lifecycle_stage": "active", "artifact_uri": f"labtrack:artifacts/0/{run_id}/artifacts", "experiment_id": 0,
    }  # fmt: skip
    return kind, "runs", row("runs", **{**facts, **more})


def points(run_id: str = RUN, key: str = "loss", steps: Sequence[int] = range(3)) -> tuple[Any, ...]:
    return "m", run_id, [[key, step / 2, T0 + step, step, 0] for step in steps]


def tag(key: str, value: str, run_id: str = RUN) -> tuple[Any, ...]:
    return "u", "tags", row("tags", run_uuid=run_id, key=key, value=value)


def lines(records: Sequence[tuple[Any, ...]], clock: int = T0, header: Header = HEADER) -> list[bytes]:
    first = [("h", header.data()), ("h", header.data())]
    return [frame(at, clock + at, *one) for at, one in enumerate([*first, *records])]


def write(root: Path, name: str, *records: tuple[Any, ...], clock: int = T0, header: Header = HEADER) -> Path:
    path = root / "recordings" / f"{name}.journal"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(lines(records, clock, header)))
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("labtrack.stores.recordings._EVERY", 0.0)  # each call looks at the journals
    monkeypatch.setattr("labtrack.stores.recordings._SHARE", 0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def opened(root: Path) -> RecordingsStore:
    store = open_store(root)
    assert isinstance(store, RecordingsStore)
    return store


def test_recordings_all_ways_to_name_a_folder_open_the_same(root: Path) -> None:
    write(root, "a", experiment(), run(), points())
    for where in (root, f"labtrack://{root}", root / "recordings", f"file://{root}"):
        with open_store(where) as store:
            assert [one.id for one in store.runs()] == [RUN]
    assert find_stores(root) == [str(root)]


@pytest.mark.parametrize("where", ["labtrack://host/x", "labtrack:///nowhere/at/all"])
def test_recordings_that_are_not_there_are_told(where: str) -> None:
    with pytest.raises(BadInputError):
        open_store(where)


def test_recordings_are_read_whole(root: Path) -> None:
    nan = ("m", RUN, [["bad", 0.0, T0, 0, 1]])
    param = ("i", "params", row("params", run_uuid=RUN, key="lr", value="0.1"))
    write(
        root,
        "a",
        experiment(),
        run(),
        param,
        tag("x", "y"),
        points(),
        nan,
        run(kind="u", status="FINISHED", end_time=9),
    )
    artifact = root / "artifacts" / "0" / RUN / "artifacts" / "model" / "a.bin"
    artifact.parent.mkdir(parents=True)
    artifact.write_bytes(b"12345")
    with opened(root) as store:
        (found,) = store.runs()
        assert (found.status, found.end_time, found.params, found.tags["x"]) == ("FINISHED", 9, {"lr": "0.1"}, "y")
        assert store.metric_keys(RUN) == {"loss": 3, "bad": 1}
        assert [point.value for point in store.points(RUN, keys=["loss"])] == [0.0, 0.5, 1.0]
        assert str(next(store.points(RUN, keys=["bad"])).value) == "nan"
        assert [(one.path, one.size) for one in store.artifacts(found)] == [("model/a.bin", 5)]
        assert store.summaries([RUN])[RUN]["loss"].last == 1.0
        assert store.appends(RUN)
        assert store.problems() == []


def test_recordings_that_grow_are_followed(root: Path) -> None:
    path = write(root, "a", experiment(), run(), points())
    with opened(root) as store:
        assert store.metric_keys(RUN) == {"loss": 3}
        whole = lines([experiment(), run(), points(), points(steps=[3, 4])])[-1]
        with path.open("ab") as file:
            file.write(whole[:20])
        assert store.metric_keys(RUN) == {"loss": 3}
        with path.open("ab") as file:
            file.write(whole[20:])
        assert [point.step for point in store.points(RUN, {"loss": 3})] == [3, 4]
        write(root, "b", experiment(), run(OTHER))
        assert {one.id for one in store.runs()} == {RUN, OTHER}
        assert store.problems() == []


def test_recordings_of_one_run_by_two_processes_are_one_run(root: Path) -> None:
    write(root, "a", experiment(born=T0), run(), points(steps=[0, 1]), tag("who", "a"))
    write(root, "b", experiment(born=T0 + 9), run(kind="u", status="FINISHED"), points(steps=[1, 2]), tag("who", "b"),
          clock=T0 + 1000)  # fmt: skip
    with opened(root) as store:
        (found,) = store.runs()
        assert (found.status, found.tags["who"], store.metric_keys(RUN)) == ("FINISHED", "b", {"loss": 3})
        assert not store.appends(RUN)
        assert [one.creation_time for one in store.experiments()] == [T0]


def test_recordings_the_later_clock_wins_whichever_is_read_first(root: Path) -> None:
    write(root, "a", experiment(), run(), tag("who", "late"), ("d", "tags", ["gone", RUN]), clock=T0 + 1000)
    write(root, "b", experiment(), run(kind="u", status="FAILED"), tag("who", "early"), tag("gone", "x"))
    with opened(root) as store:
        (found,) = store.runs()
        assert (found.status, found.tags) == ("RUNNING", {"who": "late"})


def test_recordings_of_a_folder_that_moved_have_their_artifacts(root: Path, tmp_path: Path) -> None:
    write(root, "a", experiment(), run())
    artifact = root / "artifacts" / "0" / RUN / "artifacts" / "a.txt"
    artifact.parent.mkdir(parents=True)
    artifact.write_text("x")
    name_the_folder(root)
    with opened(root) as store:
        identity = store.identity
    moved = tmp_path / "elsewhere"
    root.rename(moved)
    with opened(moved) as store:
        (found,) = store.runs()
        assert [one.path for one in store.artifacts(found)] == ["a.txt"]
        assert store.identity == identity


def test_recordings_a_folder_is_named_once(root: Path) -> None:
    name_the_folder(root)
    first = (root / "labtrack-folder").read_text()
    name_the_folder(root)
    assert (root / "labtrack-folder").read_text() == first
    assert re.fullmatch("[0-9a-f]{32}\n", first)
    assert list((root / "recordings").iterdir()) == []


def test_recordings_that_were_removed_are_gone(root: Path) -> None:
    write(root, "a", experiment(), run())
    path = write(root, "b", experiment(), run(OTHER))
    with opened(root) as store:
        assert len(list(store.runs())) == 2
        path.unlink()
        assert [one.id for one in store.runs()] == [RUN]


def test_recordings_of_several_mlflows_are_read_together(root: Path) -> None:
    without = {name: table for name, table in HEADER.tables.items() if name != "logged_models"}
    runs = HEADER.tables["runs"]
    old = [one for one in runs.columns if one != "deleted_time"]
    sql = re.sub(r"\n\s*deleted_time BIGINT,?", "", runs.sql)
    older = dataclasses.replace(
        HEADER, mlflow="2.9.2", tables={**without, "runs": Table("runs", sql, tuple(old), runs.key)}
    )
    kind, table, values = run(OTHER)
    less = [value for name, value in zip(runs.columns, values) if name != "deleted_time"]
    write(root, "a", experiment(), (kind, table, less), header=older)
    with opened(root) as store:
        assert [one.id for one in store.runs()] == [OTHER]
        write(root, "b", experiment(), run())
        assert {one.id for one in store.runs()} == {RUN, OTHER}
        assert list(store.logged_models()) == []


def test_recordings_from_a_later_labtrack_are_told(root: Path) -> None:
    write(root, "a", experiment(), run())
    path = write(root, "b", experiment(), run(OTHER))
    data = {**HEADER.data(), "format": 2}
    path.write_bytes(frame(0, T0, "h", data) + frame(1, T0, *experiment()))
    with opened(root) as store:
        assert [one.id for one in store.runs()] == [RUN]
        (problem,) = store.problems()
        assert problem.damage
        assert "later labtrack" in problem.what


def test_recordings_without_a_first_record_are_told(root: Path) -> None:
    write(root, "a", experiment(), run())
    path = write(root, "b", experiment(), run(OTHER))
    path.write_bytes(b"".join(lines([experiment(), run(OTHER)])[2:]))
    with opened(root) as store:
        assert [one.id for one in store.runs()] == [RUN]
        assert any(one.damage and "first record" in one.what for one in store.problems())


def test_recordings_the_second_header_stands_in_for_the_first(root: Path) -> None:
    path = write(root, "a", experiment(), run())
    path.write_bytes(b"x" + path.read_bytes()[1:])
    with opened(root) as store:
        assert [one.id for one in store.runs()] == [RUN]
        assert [one.what for one in store.problems() if one.damage]


def test_recordings_missing_records_are_told(root: Path) -> None:
    path = write(root, "a", experiment(), run(), points(), points(steps=[3]), tag("x", "y"))
    made = lines([experiment(), run(), points(), points(steps=[3]), tag("x", "y")])
    path.write_bytes(b"".join(made[:4] + made[5:]))
    with opened(root) as store:
        assert store.metric_keys(RUN) == {"loss": 1}
        assert [one.what for one in store.problems()] == ["1 records before the record 5 are missing"]


def test_recordings_a_torn_end_is_a_warning_once_the_process_is_gone(root: Path) -> None:
    path = write(root, "a", experiment(), run(), points())
    path.write_bytes(path.read_bytes() + b"1234abcd 77 [5,")
    with opened(root) as store:
        assert store.problems() == []
    os.utime(path, (1, 1))
    with opened(root) as store:
        (problem,) = store.problems()
        assert not problem.damage
        assert "15 bytes" in problem.what


def test_recordings_in_a_home_without_room_are_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(root, "a", experiment(), run())
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nothing")
    with opened(root) as store:
        assert [one.id for one in store.runs()] == [RUN]
        path = store.path
    assert not path.exists()


def test_recordings_a_damaged_cache_is_made_anew(root: Path) -> None:
    write(root, "a", experiment(), run())
    with opened(root) as store:
        path = store.path
        assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(b"x" * 10_000)
    with opened(root) as store:
        assert [one.id for one in store.runs()] == [RUN]


def test_recordings_hold_no_statements(root: Path) -> None:
    evil = dict(HEADER.tables)
    evil["runs"] = HEADER.tables["runs"]._replace(sql="ATTACH 'x' AS y")
    write(root, "a", experiment(), run(), header=dataclasses.replace(HEADER, tables=evil))
    with pytest.raises(LabtrackError):
        open_store(root)


RECORDS = [experiment(), run(), points(), tag("x", "y"), points(steps=range(3, 60)), run(kind="u", status="FINISHED")]
WHOLE = b"".join(lines(RECORDS))
STARTS = [sum(map(len, lines(RECORDS)[:at])) for at in range(len(RECORDS) + 3)]


def facts(root: Path) -> tuple[list[str], dict[str, int], bool]:
    try:
        with opened(root) as store:
            runs = [one.status for one in store.runs()]
            counts = store.metric_keys(RUN) if runs else {}
            for point in store.points(RUN) if runs else ():
                assert point.value == point.step / 2
            return runs, counts, any(one.damage for one in store.problems())
    except BadInputError:
        return [], {}, True


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, len(WHOLE)))
def test_recordings_cut_anywhere_give_what_is_before(cut: int, root: Path) -> None:
    path = write(root, uuid.uuid4().hex)
    path.write_bytes(WHOLE[:cut])
    runs, counts, _ = facts(root)
    done = sum(start <= cut for start in STARTS) - 1 - 2  # whole records but the headers
    assert runs == ([] if done < 2 else ["RUNNING"] if done < 6 else ["FINISHED"])
    assert counts == ({} if done < 3 else {"loss": 3} if done < 5 else {"loss": 60})
    path.unlink()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, len(WHOLE) - 1), bit=st.integers(0, 7))
def test_recordings_with_a_flipped_bit_never_give_what_was_not_recorded(at: int, bit: int, root: Path) -> None:
    path = write(root, uuid.uuid4().hex)
    path.write_bytes(WHOLE[:at] + bytes([WHOLE[at] ^ 1 << bit]) + WHOLE[at + 1 :])
    runs, counts, damaged = facts(root)
    assert damaged or at == len(WHOLE) - 1  # of the last line only its end is gone: it may be just being written
    assert runs in ([], ["RUNNING"], ["FINISHED"])
    assert counts in ({}, {"loss": 3}, {"loss": 57}, {"loss": 60})
    hit = max(number for number, start in enumerate(STARTS) if start <= at) - 2  # of the record that is hit
    if hit >= 3:
        assert counts["loss"] >= 3 and runs
    path.unlink()


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


@pytest.mark.parametrize("line", [b"", b"x", b"00000000 2 []", b"zz 2 []", frame(1, 2, "m", "r", [])[:-3]])
def test_parse_takes_no_damaged_line(line: bytes) -> None:
    assert parse(line) is None


def test_read_gives_places_to_go_on_from(tmp_path: Path) -> None:
    path = tmp_path / "x"
    made = [frame(at, T0, "m", RUN, []) for at in range(3)]
    path.write_bytes(b"".join(made))
    assert [one.end for one in read(path, len(made[0]))] == [len(made[0]) * 2, len(made[0]) * 3]
