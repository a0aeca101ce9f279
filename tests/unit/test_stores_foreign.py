"""The same training recorded by six trackers and by MLflow is read as the same."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from foreign_recorded import expected, foreign, read, times, trainings
from recorded import add_points, make_sqlite

from labtrack.cli import cli
from labtrack.errors import BadInputError
from labtrack.stores import Run, Store, find_stores, open_store
from labtrack.stores.opening import is_portable

PLACES = {
    "tensorboard": "runs",
    "wandb": "wandb",
    "wandb-0.12": "wandb",
    "csvlogger": "runs",
    "dvclive": "runs",
    "sacred": "runs",
    "trackio": "trackio/denoising.db",
}
NO_TIMES = ("csvlogger", "sacred", "trackio", "wandb-0.12")  # none, or others: those of writing, or whole seconds


def runs_of(store: Store) -> dict[str, Run]:
    """The runs of the two trainings by their width, as Sacred has numbers for names."""
    found = {run.params.get("width", ""): run for run in store.runs() if "attempt" not in run.params}
    return {training.name: found[str(training.params["width"])] for training in trainings()}


@pytest.mark.parametrize("tracker", PLACES)
def test_same_training(tracker: str) -> None:
    with open_store(foreign(tracker) / PLACES[tracker]) as store:
        runs = runs_of(store)
        for training in trainings():
            run = runs[training.name]
            points = read(store, run.id)
            assert {key: values for key, values in points.items() if key != "result"} == expected(training)
            params = {key: str(value) for key, value in training.params.items()}
            assert {key: value for key, value in run.params.items() if key != "seed"} == params
            assert run.status == "FINISHED"
            assert len(run.id) == 32 and int(run.id, 16) >= 0
            if tracker not in NO_TIMES:
                recorded: dict[str, list[int]] = {}
                for point in store.points(run.id):
                    recorded.setdefault(point.key, []).append(point.timestamp)
                assert recorded == times(training)


def test_same_as_in_mlflow(tmp_path: Path) -> None:
    ids = make_sqlite(tmp_path / "mlflow.db", runs=2)
    for run_id, training in zip(ids, trainings()):
        points = [(one.key, one.value, round(one.time * 1000), one.step) for one in training.points]
        add_points(tmp_path / "mlflow.db", run_id, [one for one in points if one[1] == one[1]])
    with open_store(tmp_path / "mlflow.db") as mlflow, open_store(foreign("tensorboard") / "runs") as other:
        runs = runs_of(other)
        for run_id, training in zip(ids, trainings()):
            there = [one for one in other.points(runs[training.name].id) if one.value == one.value]
            assert sorted(mlflow.points(run_id)) == sorted(there)


@pytest.mark.parametrize("tracker", PLACES)
def test_moved_copied_and_alone_it_is_the_same(tracker: str, tmp_path: Path) -> None:
    place = foreign(tracker) / PLACES[tracker]
    with open_store(place) as store:
        before = store.identity, {run.id for run in store.runs()}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    copy = elsewhere / place.name
    if place.is_dir():
        for path in sorted(place.rglob("*")):  # without the times of the files, as `scp -r` does
            target = copy / path.relative_to(place)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.mkdir(exist_ok=True) if path.is_dir() else target.write_bytes(path.read_bytes())
    else:
        copy.write_bytes(place.read_bytes())
    with open_store(copy) as store:
        assert (store.identity, {run.id for run in store.runs()}) == before
        statuses = {run.status for run in store.runs()}
        assert statuses <= {"FINISHED", "FAILED"}, "that it was copied does not make it look as if it were running"
    if place.is_dir():
        alone = set()
        for folder in copy.iterdir():
            with open_store(folder) as store:
                alone |= {run.id for run in store.runs()}
        assert alone == before[1]


@pytest.mark.parametrize("tracker", PLACES)
def test_import_and_sync_take_it(tracker: str) -> None:
    place = foreign(tracker) / PLACES[tracker]
    assert is_portable(place) and is_portable(foreign(tracker))
    assert find_stores(place) == [str(place)]
    with open_store(place) as one, open_store(place) as another:
        runs = list(one.runs())
        assert [another.run(run.id) for run in runs] == runs, "each thread opens it for itself"
        with pytest.raises(BadInputError, match="no run"):
            one.run("0" * 32)
        assert all([*one.runs("no such experiment")] == [] for _ in range(2))


def test_two_trackers_in_a_folder_are_told(tmp_path: Path) -> None:
    holds = tmp_path / "both"
    holds.mkdir()
    (holds / "1").mkdir()
    for name in ("run.json", "config.json"):
        (holds / "1" / name).write_bytes((foreign("sacred") / "runs" / "1" / name).read_bytes())
    log = next((foreign("wandb") / "wandb").glob("*/*.wandb"))
    (holds / "wandb").mkdir()
    (holds / "wandb" / log.name).write_bytes(log.read_bytes())
    with pytest.raises(BadInputError, match="more than one kind") as raised:
        open_store(holds)
    assert str(holds / "wandb") in str(raised.value) and str(holds / "1") in str(raised.value)
    done = CliRunner().invoke(cli, ["import", str(holds), "-d", "http://127.0.0.1:1"])
    assert isinstance(done.exception, BadInputError) and "more than one kind" in str(done.exception)
    with open_store(holds / "wandb") as store:
        assert store.kind == "wandb"


def test_mlflow_beside_other_trackers_is_what_is_meant(tmp_path: Path) -> None:
    make_sqlite(tmp_path / "mlflow.db")
    (tmp_path / "1").mkdir()
    for name in ("run.json", "config.json"):
        (tmp_path / "1" / name).write_bytes((foreign("sacred") / "runs" / "1" / name).read_bytes())
    assert not is_portable(tmp_path)
    with open_store(tmp_path) as store:
        assert store.kind == "sqlite"


def test_events_and_csv_of_one_training_are_read_once(tmp_path: Path) -> None:
    for tracker in ("tensorboard", "csvlogger"):
        for path in (foreign(tracker) / "runs" / "small").iterdir():
            if path.is_file():
                (tmp_path / path.name).write_bytes(path.read_bytes())
    with open_store(tmp_path) as store:
        assert store.kind == "tensorboard"
        assert [one.what for one in store.problems() if "metrics.csv" in one.what]
    with open_store(tmp_path / "metrics.csv") as store:
        assert store.kind == "csvlogger"


def test_opening_of_what_mlflow_recorded_does_not_look_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from labtrack.stores.foreign import formats

    make_sqlite(tmp_path / "mlflow.db")
    monkeypatch.setattr(formats, "walk", lambda *_: pytest.fail("it was looked for"))
    for place in (tmp_path, tmp_path / "mlflow.db"):
        with open_store(place) as store:
            assert store.kind == "sqlite"


def test_large_folders_are_looked_through_quickly(tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / f"run{number}" / "checkpoints").mkdir(parents=True)
        (tmp_path / f"run{number}" / "notes.txt").touch()
    before = time.perf_counter()
    with pytest.raises(BadInputError, match="holds no runs"):
        open_store(tmp_path)
    assert time.perf_counter() - before < 5
