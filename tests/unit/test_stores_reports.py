"""Results without MLflow: config.yaml, metrics.json, figures/."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from labtrack.errors import BadInputError
from labtrack.stores import Store, open_store

CONFIG = """\
name: poisson
seed: 42
mlflow_experiment_name: numerical-optimization
model: {width: 64, layers: [1, 2]}
note: ~
"""


def report(folder: Path, metrics: Any, config: str = CONFIG) -> Path:
    (folder / "figures" / "sub").mkdir(parents=True)
    (folder / "config.yaml").write_text(config)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "figures" / "loss.png").write_bytes(b"png")
    (folder / "figures" / "sub" / "a.svg").write_bytes(b"svg")
    return folder


def points(store: Store) -> list[tuple[str, float, int]]:
    (run,) = store.runs()
    found = [(point.key, point.value, point.step) for point in store.points(run.id)]
    assert sum(store.metric_keys(run.id).values()) == len(found)
    return found


def test_a_report_is_a_run(tmp_path: Path) -> None:
    folder = report(tmp_path / "project" / "reports", {"accuracy": 0.95})
    (folder.parent / "reports" / "big").mkdir()
    (folder / "big" / "data.bin").write_bytes(b"x")
    with open_store(folder) as store:
        (run,) = store.runs()
        assert (run.name, run.status, run.experiment_id) == ("poisson", "FINISHED", "numerical-optimization")
        assert run.params == {
            **{"name": "poisson", "seed": "42", "mlflow_experiment_name": "numerical-optimization"},
            **{"model.width": "64", "model.layers": "[1, 2]", "note": "None"},
        }
        assert [one.name for one in store.experiments()] == ["numerical-optimization"]
        expected = ["config.yaml", "figures/loss.png", "figures/sub/a.svg", "metrics.json"]
        assert [one.path for one in store.artifacts(run)] == expected
        with store.open_artifact(run, "figures/loss.png") as file:
            assert file.read() == b"png"
        assert run.start_time and run.end_time and run.start_time <= run.end_time
        assert store.problems() == []


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({"accuracy": 0.95, "loss": 0}, [("accuracy", 0.95, 0), ("loss", 0.0, 0)]),
        ({"train": {"loss": [3, 2, 1]}}, [("train.loss", 3.0, 0), ("train.loss", 2.0, 1), ("train.loss", 1.0, 2)]),
        (
            [{"epoch": 5, "loss": 0.5, "val": {"acc@5": 1}}, {"epoch": 6, "loss": 0.25, "best": "yes"}],
            [("loss", 0.5, 5), ("val.acc@5", 1.0, 5), ("loss", 0.25, 6)],
        ),
        ({"loss": [{"step": 10, "value": 0.5, "timestamp": 17e8}, {"step": 20, "value": 0.4}]},
         [("loss", 0.5, 10), ("loss", 0.4, 20)]),
        ({"inf": math.inf, "text": "high", "none": None}, [("inf", math.inf, 0)]),
    ],
)  # fmt: skip
def test_shapes_of_metrics(tmp_path: Path, metrics: Any, expected: list[tuple[str, float, int]]) -> None:
    with open_store(report(tmp_path / "reports", metrics)) as store:
        assert points(store) == expected


def test_times_are_kept(tmp_path: Path) -> None:
    given = [{"step": 1, "loss": 0.5, "timestamp": 1_700_000_000}, {"step": 2, "loss": 0.4, "time": 1_700_000_000_500}]
    with open_store(report(tmp_path / "reports", given)) as store:
        (run,) = store.runs()
        assert [point.timestamp for point in store.points(run.id)] == [1_700_000_000_000, 1_700_000_000_500]


def test_the_same_results_elsewhere_are_the_same_run(tmp_path: Path) -> None:
    folder = report(tmp_path / "reports", {"loss": 1})
    shutil.copytree(folder, tmp_path / "copy")
    with open_store(folder) as one, open_store(tmp_path / "copy") as copy:
        assert [run.id for run in one.runs()] == [run.id for run in copy.runs()]
        assert one.identity == copy.identity
        before = one.identity
    (folder / "metrics.json").write_text('{"loss": 2}')
    with open_store(folder) as one, open_store(tmp_path / "copy") as copy:
        assert [run.id for run in one.runs()] != [run.id for run in copy.runs()], "a second training there"
        assert one.identity == before


def test_several_reports(tmp_path: Path) -> None:
    report(tmp_path / "a", {"loss": 1}, "name: a")
    report(tmp_path / "b", {"loss": 2}, "name: b")
    report(tmp_path / "c", {"loss": 3}, "[")
    with open_store(tmp_path) as store:
        assert [run.name for run in store.runs()] == ["a", "b"]
        (problem,) = store.problems()
        assert problem.place == str(tmp_path / "c")


@pytest.mark.parametrize(
    ("config", "metrics", "said"),
    [("- 1", "{}", "config.yaml"), ("", "[1]", "not of records"), ("", "3", "neither names"), ("", "{", "Expecting")],
)
def test_what_can_not_be_read(tmp_path: Path, config: str, metrics: str, said: str) -> None:
    (tmp_path / "config.yaml").write_text(config)
    (tmp_path / "metrics.json").write_text(metrics)
    with pytest.raises(BadInputError, match=said):
        open_store(tmp_path)
