"""Folders of recordings are read: whole, growing, torn, damaged, moved."""

from __future__ import annotations

import dataclasses
import os
import re
import uuid
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from journalled import HEADER, OTHER, RUN, T0, experiment, lines, opened, points, row, run, tag, write

from labtrack.errors import BadInputError, LabtrackError
from labtrack.recorder.live import name_the_folder
from labtrack.stores import find_stores, open_store
from labtrack.stores.journals import Table, frame, parse, read


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("labtrack.stores.recordings._EVERY", 0.0)  # each call looks at the journals
    monkeypatch.setattr("labtrack.stores.recordings._SHARE", 0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


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


@pytest.mark.parametrize("line", [b"", b"x", b"00000000 2 []", b"zz 2 []", frame(1, 2, "m", "r", [])[:-3]])
def test_parse_takes_no_damaged_line(line: bytes) -> None:
    assert parse(line) is None


def test_read_gives_places_to_go_on_from(tmp_path: Path) -> None:
    path = tmp_path / "x"
    made = [frame(at, T0, "m", RUN, []) for at in range(3)]
    path.write_bytes(b"".join(made))
    assert [one.end for one in read(path, len(made[0]))] == [len(made[0]) * 2, len(made[0]) * 3]
