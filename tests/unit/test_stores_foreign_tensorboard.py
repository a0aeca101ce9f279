"""Event files of TensorBoard."""

from __future__ import annotations

import shutil
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from foreign_recorded import expected, foreign, read, times, trainings

from foreign_recorder import T0
from labtrack.errors import BadInputError
from labtrack.stores import Store, open_store
from labtrack.stores.foreign import tensorboard
from labtrack.stores.foreign.crc32c import crc32c, masked


def event(tag: str, value: float, step: int, moment: float) -> bytes:
    """A record with one scalar."""
    name = tag.encode()
    summary = (
        b"\x0a" + bytes([len(name) + 7]) + b"\x0a" + bytes([len(name)]) + name + b"\x15" + struct.pack("<f", value)
    )
    data = b"\x09" + struct.pack("<d", moment) + b"\x10" + bytes([step]) + b"\x2a" + bytes([len(summary)]) + summary
    return record(data)


def record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked(length)) + data + struct.pack("<I", masked(data))


def began(moment: float) -> bytes:
    return record(b"\x09" + struct.pack("<d", moment) + b"\x1a\x0dbrain.Event:2")


def copied(name: str, place: Path) -> Path:
    return Path(shutil.copytree(foreign("tensorboard") / name, place / name))


def told(store: Store) -> list[tuple[bool, str]]:
    return [(one.damage, one.what) for one in store.problems()]


def test_checksum() -> None:
    assert crc32c(b"123456789") == 0xE3069283, "the check value of CRC-32C"
    assert crc32c(b"") == 0
    assert crc32c(bytes(32)) == 0x8A9136AA, "RFC 3720, B.4"


def test_runs_of_torch() -> None:
    with open_store(foreign("tensorboard") / "runs") as store:
        runs = list(store.runs())
        assert [run.name for run in runs] == ["small", "large"]
        for run, training in zip(runs, trainings()):
            assert read(store, run.id) == expected(training)
            found: dict[str, list[int]] = {}
            for point in store.points(run.id):
                found.setdefault(point.key, []).append(point.timestamp)
            assert found == times(training)
            assert run.params == {key: str(value) for key, value in training.params.items()}
            assert (run.experiment_id, run.status) == ("runs", "FINISHED")
            assert (run.start_time, run.end_time) == (training.start * 1000, training.start * 1000 + 190_125)
        assert [one.name for one in store.experiments()] == ["runs"]
        assert told(store) == []


def test_one_folder_of_many_is_the_same_run() -> None:
    with open_store(foreign("tensorboard") / "runs") as store:
        ids = {run.name: run.id for run in store.runs()}
    for name in ("small", "large"):
        with open_store(foreign("tensorboard") / "runs" / name) as store:
            (run,) = store.runs()
            assert (run.id, run.name, run.experiment_id) == (ids[name], name, "runs")


def test_moved_and_grown_it_is_the_same_store(tmp_path: Path) -> None:
    place = copied("runs", tmp_path)
    with open_store(foreign("tensorboard") / "runs") as store:
        before = store.identity, [run.id for run in store.runs()]
    shutil.copytree(foreign("tensorboard") / "keras", place / "another")
    with open_store(place) as store:
        assert (store.identity, [run.id for run in store.runs()][:2]) == before


def test_resumed_run_is_joined_in_the_order_of_time() -> None:
    with open_store(foreign("tensorboard") / "resumed") as store:
        (run,) = store.runs()
        loss = read(store, run.id)["train/loss"]
        assert [step for step, _ in loss] == [*range(11), *range(10, 20)], "what was logged twice is there twice"
        assert not store.appends(run.id)


def test_tensors_of_tensorflow_2_and_its_hparams() -> None:
    with open_store(foreign("tensorboard") / "keras") as store:
        (run,) = store.runs()
        assert read(store, run.id) == expected(trainings()[0])
        assert run.params == {key: str(value) for key, value in trainings()[0].params.items()}
        assert (run.status, run.end_time) == ("FAILED", (T0 + 30500) * 1000)


def test_what_is_no_number_is_told_with_counts() -> None:
    with open_store(foreign("tensorboard") / "media") as store:
        (run,) = store.runs()
        assert read(store, run.id) == {"loss": [(1, 0.5), (2, 0.25)]}
        ((damage, what),) = told(store)
        assert not damage
        assert "PR curve 1 (pr), histogram 1 (weights), image 1 (sample), text 1 (note/text_summary)" in what


def test_each_trial_of_one_writer_is_a_run() -> None:
    with open_store(foreign("tensorboard") / "sweep") as store:
        found = {run.params["trial"]: read(store, run.id) for run in store.runs()}
        assert found == {str(trial): {"hparam/accuracy": [(0, trial / 4)]} for trial in range(3)}


def test_growing_file_gives_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "run" / "events.out.tfevents.1"
    path.parent.mkdir()
    path.write_bytes(began(T0) + event("loss", 0.5, 1, T0 + 1) + event("loss", 0.25, 2, T0 + 2))
    with open_store(path.parent) as store:
        (run,) = store.runs()
        assert store.metric_keys(run.id) == {"loss": 2} and store.appends(run.id)
        with path.open("ab") as file:
            file.write(event("loss", 0.125, 3, T0 + 3) + event("acc", 1.0, 3, T0 + 3))
        assert [(one.key, one.step) for one in store.points(run.id, {"loss": 2})] == [("loss", 3), ("acc", 3)]
        assert read(store, run.id) == {"loss": [(1, 0.5), (2, 0.25), (3, 0.125)], "acc": [(3, 1.0)]}
        assert store.run(run.id).end_time == (T0 + 3) * 1000


def test_running_until_it_is_quiet_for_an_hour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "events.out.tfevents.1"
    path.write_bytes(began(T0) + event("loss", 0.5, 1, T0 + 1) + event("loss", 0.25, 2, T0 + 2)[:-7])
    for now, status, said in ((T0 + 3000, "RUNNING", "being written"), (T0 + 3700, "FINISHED", "cut after 35 bytes")):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        with open_store(tmp_path) as store:
            (run,) = store.runs()
            assert run.status == status
            assert (run.end_time is None) == (status == "RUNNING")
            ((damage, what),) = told(store)
            assert said in what and damage == (status == "FINISHED")


@pytest.mark.parametrize("hole", [0, 1, 200_000])
def test_damage_in_the_middle_is_told_and_passed_over(tmp_path: Path, hole: int) -> None:
    parts = [began(T0), *(event("loss", step / 4, step, T0 + step) for step in range(1, 10))]
    length = len(parts[1])
    parts[3] = bytes(hole) if hole else parts[3][:20] + b"\xff" + parts[3][21:]  # a byte of the data, or all of it
    parts[6] = b"\x01" + parts[6][1:]  # the length
    path = tmp_path / "events.out.tfevents.1"
    path.write_bytes(b"".join(parts))
    with open_store(tmp_path) as store:
        (run,) = store.runs()
        assert [step for step, _ in read(store, run.id)["loss"]] == [1, 2, 4, 5, 7, 8, 9]
        ((damage, what),) = told(store)
        assert damage and "damaged in 2 places" in what
    assert length < 60


def test_not_begun_yet(tmp_path: Path) -> None:
    (tmp_path / "events.out.tfevents.1").touch()
    with open_store(tmp_path) as store:
        assert list(store.runs()) == [] and store.experiments() == []
        assert told(store) == [(False, "there is no event in it yet")]
        (tmp_path / "events.out.tfevents.1").write_bytes(began(T0) + event("loss", 0.5, 1, T0 + 1))
        (run,) = store.runs()
        assert read(store, run.id) == {"loss": [(1, 0.5)]}


def test_copy_beside_the_run_is_read_once(tmp_path: Path) -> None:
    place = copied("runs", tmp_path)
    shutil.copytree(place / "small", place / "backup")
    with (place / "small" / "events.out.tfevents.1750000000.node01").open("ab") as file:
        file.write(event("late", 1.0, 1, T0 + 1))
    with open_store(place) as store:
        assert sorted(run.name for run in store.runs()) == ["large", "small"]
        ((damage, what),) = told(store)
        assert not damage and f"copy of the run in {place / 'small'}" in what


def test_hparams_of_lightning_beside_the_events(tmp_path: Path) -> None:
    place = copied("keras", tmp_path) / "train"
    (place / "hparams.yaml").write_text(
        "lr: 1.0\nmodel:\n  width: 16\nopt: !!python/object:torch.optim.Adam {beta: 0.5}\n"
        "sizes: !!python/tuple [1, 2]\n"
    )
    (place / "checkpoints").mkdir()
    (place / "checkpoints" / "last.ckpt").write_bytes(b"x")
    with open_store(place) as store:
        (run,) = store.runs()
        assert run.params["lr"] == "1.0" and run.params["model.width"] == "16" and run.params["optimizer"] == "adam"
        assert (run.params["opt.beta"], run.params["sizes"]) == ("0.5", "[1, 2]")
        assert [one.path for one in store.artifacts(run)] == ["checkpoints/last.ckpt", "hparams.yaml"]
        with store.open_artifact(run, "checkpoints/last.ckpt") as file:
            assert file.read() == b"x"


def test_two_kinds_in_a_folder_are_told(tmp_path: Path) -> None:
    copied("runs", tmp_path)
    (tmp_path / "out" / "mlruns" / "0").mkdir(parents=True)
    (tmp_path / "out" / "mlruns" / "0" / "meta.yaml").write_text("name: Default\n")
    with pytest.raises(BadInputError, match=r"event files of TensorBoard \(.*runs/large.* and|runs of MLflow"):
        open_store(tmp_path)


def test_artifacts_of_mlflow_are_not_taken_for_runs(tmp_path: Path) -> None:
    run = tmp_path / "mlruns" / "0" / ("a" * 32)
    for place, text in ((run.parent, "name: Default\n"), (run, "run_id: x\n")):
        place.mkdir(parents=True, exist_ok=True)
        (place / "meta.yaml").write_text(text)
    shutil.copytree(foreign("tensorboard") / "runs", run / "artifacts" / "tensorboard_logs")
    for place in (tmp_path, tmp_path / "mlruns"):
        with open_store(place) as store:
            assert store.kind == "files"
    for part in (run.parent, run, run / "artifacts"):
        with pytest.raises(BadInputError, match="part of a store of MLflow"):
            open_store(part)
    with open_store(run / "artifacts" / "tensorboard_logs") as store:
        assert store.kind == tensorboard.KIND, "named in so many words"


def test_links_out_of_the_folder_are_followed_once(tmp_path: Path) -> None:
    """To runs on another file system; one to a run that is there, as `latest`, is that run, and a ring has an end."""
    elsewhere = Path(shutil.copytree(foreign("tensorboard") / "keras", tmp_path / "scratch"))
    place = copied("runs", tmp_path)
    (place / "linked").symlink_to(elsewhere)
    (place / "latest").symlink_to(place / "small")
    (place / "up").symlink_to(tmp_path)
    (elsewhere / "ring").symlink_to(elsewhere)
    with open_store(place) as store:
        assert sorted(run.name for run in store.runs()) == ["large", "linked/train", "small"]
        assert told(store) == []


def test_file_that_can_not_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = copied("runs", tmp_path)
    refused = next((place / "small").glob("events*"))
    opens = Path.open

    def refuses(self: Path, *how: Any, **more: Any) -> Any:
        if self == refused:
            raise PermissionError(13, "Permission denied")
        return opens(self, *how, **more)

    monkeypatch.setattr(Path, "open", refuses)
    with open_store(place) as store:
        assert [run.name for run in store.runs()] == ["large"], "hparams of a run are no run without it"
        assert (True, "it can't be read: Permission denied") in told(store)
