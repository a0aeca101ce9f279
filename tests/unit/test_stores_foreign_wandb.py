"""wandb's offline folders."""

from __future__ import annotations

import json
import shutil
import struct
import time
import zlib
from pathlib import Path

import pytest
from foreign_recorded import expected, foreign, read, times, trainings

from foreign_recorder import T0
from labtrack.stores import Run, Store, open_store
from labtrack.stores.foreign.leveldb import HEAD


def field(number: int, value: bytes | int) -> bytes:
    """A field of a protocol buffer message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    found = b""
    while value > 0x7F:
        found += bytes([value & 0x7F | 0x80])
        value >>= 7
    return found + bytes([value])


def item(value: object, *path: str) -> bytes:
    return field(1, b"".join(field(2, name.encode()) for name in path) + field(16, json.dumps(value).encode()))


def history(step: int, values: dict[str, object], moment: float = T0) -> bytes:
    found = b"".join(item(value, key) for key, value in {**values, "_step": step, "_timestamp": moment + step}.items())
    return field(2, found)


def run(name: str = "a", project: str = "p", start: int = int(T0)) -> bytes:
    return field(17, field(1, name.encode()) + field(3, project.encode()) + field(17, field(1, start)))


EXIT = field(18, b"")


def log(*messages: bytes) -> bytes:
    """A file with these records, in blocks of 32 KiB."""
    found = bytearray(HEAD)
    for message in messages:
        left, first = message, True
        while True:
            room = (1 << 15) - len(found) % (1 << 15)
            if room < 7:
                found += bytes(room)
                continue
            piece, left = left[: room - 7], left[room - 7 :]
            kind = {(True, True): 1, (True, False): 2, (False, False): 3, (False, True): 4}[first, not left]
            check = zlib.crc32(bytes([kind]) + piece)
            found += struct.pack("<IHB", check, len(piece), kind) + piece
            first = False
            if not left:
                break
    return bytes(found)


def write(folder: Path, data: bytes, name: str = "a") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"run-{name}.wandb"
    path.write_bytes(data)
    return path


def only(store: Store) -> Run:
    (found,) = store.runs()
    return found


def named(store: Store, name: str) -> Run:
    return next(one for one in store.runs() if one.name == name)


@pytest.mark.parametrize("version", ["wandb", "wandb-0.12"])
def test_runs(version: str) -> None:
    with open_store(foreign(version) / "wandb") as store:
        assert [one.name for one in store.experiments()] == ["denoising"]
        for training in trainings():
            found = named(store, training.name)
            assert read(store, found.id) == expected(training)
            assert found.params == {key: str(value) for key, value in training.params.items()}
            assert (found.status, found.start_time) == ("FINISHED", training.start * 1000)
            if version == "wandb":  # older ones note whole seconds
                recorded: dict[str, list[int]] = {}
                for point in store.points(found.id):
                    recorded.setdefault(point.key, []).append(point.timestamp)
                assert recorded == times(training)


def test_facts_of_a_run() -> None:
    with open_store(foreign("wandb")) as store:
        tags = named(store, "small").tags
        assert tags["mlflow.source.git.commit"] == "c0ffee" * 6 + "c0ff"
        assert tags["mlflow.source.git.repoURL"] == "https://git.example.org/denoising.git"
        assert (tags["wandb.run_id"], tags["wandb.host"]) == ("small01", "node01")
        assert tags["labtrack.recorded_with"] == "wandb 0.31.0"


def test_the_project_the_wandb_folder_and_one_run_have_the_same_runs() -> None:
    with open_store(foreign("wandb")) as store:
        ids = {one.id for one in store.runs()}
        identity = store.identity
    with open_store(foreign("wandb") / "wandb") as store:
        assert {one.id for one in store.runs()} == ids and store.identity == identity
    for folder in (foreign("wandb") / "wandb").iterdir():
        with open_store(folder) as store:
            assert only(store).id in ids
        with open_store(next(folder.glob("*.wandb"))) as store:
            assert only(store).id in ids


def test_resumed_run_is_one_run() -> None:
    training = trainings()[0]
    with open_store(foreign("wandb")) as store:
        found = named(store, "resumed")
        assert read(store, found.id) == expected(training)
        assert found.status == "FINISHED", "the first attempt failed"
        assert found.params["attempt"] == "10" and not store.appends(found.id)
        files = [one.path for one in store.artifacts(found)]
        assert files == ["offline-run-20250615_204140-resumed01/requirements.txt", "requirements.txt"]
        for file in files:
            with store.open_artifact(found, file) as opened:
                assert b"wandb" in opened.read()


def test_summary_nested_values_and_what_is_no_number() -> None:
    with open_store(foreign("wandb")) as store:
        found = named(store, "more")
        assert read(store, found.id) == {
            "acc": [(3, 0.5), (4, 0.25)],
            "loss.train": [(3, 1.0)],
            "loss.val": [(3, 2.0)],
            "done": [(3, 1.0)],
            **{"acc.max": [(5, 0.5)], "best": [(5, 0.75)], "loss.train.summary": [(5, 0.125)]},
        }
        assert found.params == {"model.width": "16", "model.sizes": "[1, 2]", "late": "None"}
        (problem,) = [one for one in store.problems() if one.run_id == found.id]
        assert not problem.damage and "histogram 1 (weights), image-file 1 (sample), text 1 (said)" in problem.what
        assert any(one.path.startswith("media/images/sample_") for one in store.artifacts(found))


def test_values_as_newer_and_older_versions_write_them(tmp_path: Path) -> None:
    items = (
        field(2, b"f") + b"\x31" + struct.pack("<d", 0.5),
        field(2, b"i") + field(5, 7),
        field(2, b"b") + field(4, 1),
    )
    typed = field(2, b"".join(field(1, one) for one in items) + field(2, field(1, 3)))
    old = field(2, field(1, field(1, b"a") + field(16, b'{"b": {"c": 2}, "d": NaN}')) + field(2, field(1, 4)))
    write(tmp_path, log(run(), typed, old, history(5, {"x": "-Infinity", "big": 10**400}), EXIT))
    with open_store(tmp_path) as store:
        assert read(store, only(store).id) == {
            **{"f": [(3, 0.5)], "i": [(3, 7.0)], "b": [(3, 1.0)], "a.b.c": [(4, 2.0)], "a.d": [(4, "nan")]},
            **{"x": [(5, float("-inf"))], "big": [(5, float("inf"))]},
        }


def test_measurements_of_the_machine(tmp_path: Path) -> None:
    stats = field(7, field(2, field(1, int(T0) + 15)) + field(3, field(1, b"cpu") + field(16, b"12.5")))
    write(tmp_path, log(run(), stats, EXIT))
    with open_store(tmp_path) as store:
        (point,) = store.points(only(store).id)
        assert (point.key, point.value, point.step, point.timestamp) == ("system/cpu", 12.5, 15, (T0 + 15) * 1000)


@pytest.mark.parametrize(
    ("ending", "later", "status"),
    [
        (EXIT, 1, "FINISHED"),
        (field(18, field(1, 1)), 1, "FAILED"),
        (b"", 1, "RUNNING"),
        (b"", 4000, "KILLED"),
    ],
)
def test_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: bytes, later: int, status: str) -> None:
    monkeypatch.setattr(time, "time", lambda: T0 + later)
    write(tmp_path, log(run(), history(1, {"loss": 1}), *([ending] if ending else [])))
    with open_store(tmp_path) as store:
        assert only(store).status == status
        assert (only(store).end_time is None) == (status == "RUNNING")


def test_growing_file_gives_the_rest(tmp_path: Path) -> None:
    messages = [run(), *(history(step, {"loss": step, "text": "x" * 9000}) for step in range(20))]
    path = write(tmp_path, log(*messages[:8]))
    with open_store(tmp_path) as store:
        run_id = only(store).id
        assert store.metric_keys(run_id) == {"loss": 7}
        path.write_bytes(log(*messages, EXIT))
        assert [one.step for one in store.points(run_id, {"loss": 7})] == list(range(7, 20))
        assert store.metric_keys(run_id) == {"loss": 20}
        assert only(store).status == "FINISHED"


def test_torn_tail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = log(run(), *(history(step, {"loss": step}) for step in range(3)))
    path = write(tmp_path, data[:-5])
    for later, damage, said in ((10, False, "being written"), (5000, True, "cut after")):
        monkeypatch.setattr(time, "time", lambda later=later: T0 + later)
        with open_store(tmp_path) as store:
            assert [one.step for one in store.points(only(store).id)] == [0, 1]
            (problem,) = store.problems()
            assert problem.damage == damage and said in problem.what and problem.place == str(path)


def test_damage_loses_only_what_it_hits(tmp_path: Path) -> None:
    big = {"text": "x" * 50_000}
    messages = [run(), *(history(step, {"loss": step, **(big if step == 5 else {})}) for step in range(20)), EXIT]
    data = bytearray(log(*messages))
    at = data.index(history(3, {"loss": 3})[:20])
    data[at + 2] ^= 1
    data[40_000] ^= 1  # in the middle of step 5
    write(tmp_path, bytes(data))
    with open_store(tmp_path) as store:
        assert [one.step for one in store.points(only(store).id)] == [0, 1, 2, 4, *range(6, 20)]
        (problem,) = [one for one in store.problems() if one.damage]
        assert "damaged in 2 places" in problem.what


@pytest.mark.parametrize("data", [b"", b":W&", HEAD])
def test_not_begun_yet(tmp_path: Path, data: bytes) -> None:
    write(tmp_path, data)
    with open_store(tmp_path) as store:
        assert list(store.runs()) == []
        assert [one.what for one in store.problems() if not one.damage] == ["nothing is recorded in it yet"]


def test_folder_without_its_log_does_not_hide_the_others(tmp_path: Path) -> None:
    place = Path(shutil.copytree(foreign("wandb") / "wandb", tmp_path / "wandb"))
    (place / "latest-run").symlink_to(next(place.iterdir()))
    (place / "offline-run-20250101_000000-gone").mkdir()
    with open_store(place) as store:
        assert len(list(store.runs())) == 4
