"""`labtrack.experiment`: MLflow where it is wanted and works, else a folder of reports; the work never ends by it."""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import yaml

import labtrack
from labtrack.local import git
from labtrack.stores import Run, Store, open_store

CONFIG = {"name": "coast", "seed": 42, "model": {"width": 64, "layers": [1, 2]}, "mlflow_experiment_name": "emulators"}


class Figure:
    """As matplotlib's."""

    def savefig(self, file: Path) -> None:
        Path(file).write_bytes(b"picture")


class Fake(types.ModuleType):
    """An MLflow that notes what it is told, and fails from one of the calls on.

    calls: those that came.  fails: the name of the call that raises, and all after it.
    """

    def __init__(self, fails: str = "") -> None:
        super().__init__("mlflow")
        self.calls: list[tuple[str, Any]] = []
        self.entities = types.ModuleType("mlflow.entities")
        self.entities.Metric = lambda *values: values  # type: ignore[attr-defined]
        self.entities.Param = lambda *values: values  # type: ignore[attr-defined]
        self._fails = fails
        self.failing = False

    def MlflowClient(self) -> Any:
        return self

    def active_run(self) -> None:
        return None

    def is_tracking_uri_set(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*values: Any, **more: Any) -> Any:
            key = f"{name} {' '.join(more)}".strip()
            self.failing = self.failing or key == self._fails
            if self.failing:
                raise RuntimeError("the server is away")
            self.calls.append((key, (values, more)))
            if name == "create_run":
                info = types.SimpleNamespace(run_id="a" * 32)
                return types.SimpleNamespace(info=info)
            return None if name == "get_experiment_by_name" else "1"

        return call


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts an MLflow in place."""

    def put(fails: str = "") -> Fake:
        fake = Fake(fails)
        monkeypatch.setitem(sys.modules, "mlflow", fake)
        monkeypatch.setitem(sys.modules, "mlflow.entities", fake.entities)
        return fake

    return put


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def the_run(place: Path) -> tuple[Store, Run]:
    store = open_store(place)
    (run,) = store.runs()
    return store, run


def work(config: Any) -> None:
    with labtrack.experiment(config) as tracking:
        for step in range(3):
            tracking.log_metric("loss", 1 / (step + 1), step)
        tracking.log_metrics({"val": {"f1": 0.5}, "note": "text", "bad": math.nan})
        tracking.log_figure(Figure(), "curves/loss.png")


def check(store: Store, run: Run) -> None:
    """That all of `work` is there."""
    points = {(one.key, one.step): one.value for one in store.points(run.id)}
    assert points.pop(("bad", 0)) != 0
    assert points == {("loss", 0): 1.0, ("loss", 1): 0.5, ("loss", 2): 1 / 3, ("val.f1", 0): 0.5}
    assert (run.name, run.status, run.params["model.width"]) == ("coast", "FINISHED", "64")
    (experiment,) = store.experiments()
    assert experiment.name == "emulators"
    assert "figures/curves/loss.png" in {one.path for one in store.artifacts(run)}


@pytest.mark.parametrize(
    "switch", [{}, {"mlflow_tracking": False}, {"mlflow_tracking": "off"}, {"mlflow_tracking": None}]
)
def test_switched_off_it_writes_reports(here: Path, mlflow: Any, switch: dict[str, Any]) -> None:
    fake = mlflow()
    work({**CONFIG, **switch})
    assert not fake.calls
    assert yaml.safe_load((here / "reports/config.yaml").read_text()) == {**CONFIG, **switch}
    assert (here / "reports/figures/curves/loss.png").read_bytes() == b"picture"
    check(*the_run(here / "reports"))


def test_without_mlflow_it_says_so_once_and_writes_reports(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    work({**CONFIG, "mlflow_tracking": True})
    (said,) = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert "MLflow is not installed" in said.getMessage() and "reports" in said.getMessage()
    check(*the_run(here / "reports"))


def test_where_mlflow_works_there_are_no_reports(here: Path, mlflow: Any) -> None:
    fake = mlflow()
    with labtrack.experiment({**CONFIG, "mlflow_tracking": True}) as tracking:
        assert os.environ["MLFLOW_RUN_ID"] == tracking.run_id == "a" * 32
        assert int(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]) <= 10
        tracking.log_metric("loss", 1)
    names = [name for name, _ in fake.calls]
    assert names.count("log_batch metrics") == 1 and names[-1] == "set_terminated"
    assert dict(fake.calls)["set_terminated"][0][1] == "FINISHED"
    assert dict(fake.calls)["set_tracking_uri"][0] == (f"sqlite:///{here}/mlflow.db",)
    assert not (here / "reports").exists()
    assert not [name for name in os.environ if name.startswith("MLFLOW_")]


@pytest.mark.parametrize(
    "fails", ["get_experiment_by_name", "create_experiment", "create_run start_time tags", "log_batch params",
              "log_text", "log_batch metrics", "log_artifact", "set_terminated"],
)  # fmt: skip
def test_error_of_mlflow_leaves_the_whole_run_in_reports(
    here: Path, mlflow: Any, fails: str, caplog: pytest.LogCaptureFixture
) -> None:
    fake = mlflow(fails)
    work({**CONFIG, "mlflow_tracking": True})
    assert fake.failing
    warnings = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    assert len(warnings) == 1 and "the server is away" in warnings[0]
    check(*the_run(here / "reports"))
    assert not [name for name in os.environ if name.startswith("MLFLOW_")]


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("nan"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (SystemExit(1), "FAILED"),
                          (SystemExit(0), "FINISHED")],
)  # fmt: skip
@pytest.mark.parametrize("on", [True, False])
def test_error_of_the_experiment_goes_through(
    here: Path, mlflow: Any, error: BaseException, status: str, on: bool
) -> None:
    fake = mlflow()
    with pytest.raises(type(error)), labtrack.experiment({**CONFIG, "mlflow_tracking": on}) as tracking:
        tracking.log_metric("loss", 1)
        raise error
    if on:
        assert dict(fake.calls)["set_terminated"][0][1] == status
    else:
        assert the_run(here / "reports")[1].status == status


def test_reports_of_a_killed_experiment_are_those_so_far(here: Path) -> None:
    script = (
        "import labtrack, os\n"
        "with labtrack.experiment({'name': 'a'}) as tracking:\n"
        "    tracking.log_metric('loss', 1)\n"
        "    os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9
    _, run = the_run(here / "reports")
    assert (run.status, run.end_time) == ("RUNNING", None)


def test_folder_that_can_not_be_written_does_not_end_the_experiment(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (here / "reports").write_text("a file")
    work(CONFIG)
    assert any("not recorded" in one.getMessage() for one in caplog.records)


def test_next_run_takes_the_place_of_the_last(here: Path) -> None:
    work(CONFIG)
    first = the_run(here / "reports")[1].id
    with labtrack.experiment(CONFIG):
        pass
    store, run = the_run(here / "reports")
    assert run.id != first and not list(store.points(run.id)) and not (here / "reports/figures").exists()
    with labtrack.experiment({**CONFIG, "reports_dir": "others/1"}):
        pass
    assert (here / "others/1/config.yaml").exists()


def test_git_state_is_recorded(here: Path) -> None:
    assert git.state(here) == git.State()
    for command in (("init", "-q"), ("add", "train.py"), ("commit", "-qm", "first")):
        (here / "train.py").write_text("lr = 1\n")
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *command], check=True)
    assert not git.state(here).dirty
    (here / "train.py").write_text("lr = 2\n")
    work(CONFIG)
    store, run = the_run(here / "reports")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert run.tags["mlflow.source.git.commit"] == commit and run.tags["git.dirty"] == "true"
    with store.open_artifact(run, "git.diff") as file:
        assert b"+lr = 2" in file.read()


@pytest.mark.parametrize(
    ("text", "words"),
    [("mlflow_tracking: ture", "neither on nor off"), ("- a", "no names with values"), ("a: [", "is not YAML"),
     (None, "can't be read")],
)  # fmt: skip
def test_configuration_that_can_not_be_read_is_told_before_the_work(here: Path, text: str | None, words: str) -> None:
    if text is not None:
        (here / "config.yaml").write_text(text)
    with pytest.raises(labtrack.BadInputError, match=words), labtrack.experiment(here / "config.yaml"):
        pytest.fail("the work began")
    with pytest.raises(labtrack.BadInputError, match="is no configuration"), labtrack.experiment(7):  # type: ignore[arg-type]
        pass


def test_base_experiment_logs_what_evaluate_returns(here: Path) -> None:
    class Mine(labtrack.BaseExperiment):
        def __init__(self, config: Any) -> None:
            super().__init__(config, module_dir=here)

        def evaluate(self, model: Any, data: Any) -> dict[str, float]:
            return {"accuracy": 0.95, "loss": 0.15}

    class Finer(Mine):
        def evaluate(self, model: Any, data: Any) -> dict[str, float]:
            return {**super().evaluate(model, data), "f1": 0.9}

    (here / "config.yaml").write_text("name: coast\nmlflow_tracking: false\n")
    assert Finer(here / "config.yaml").evaluate(None, None) == {"accuracy": 0.95, "loss": 0.15, "f1": 0.9}
    measured = json.loads((here / "reports/metrics.json").read_text())
    assert {name: [one["value"] for one in many] for name, many in measured.items()} == {
        "accuracy": [0.95], "loss": [0.15], "f1": [0.9],
    }  # fmt: skip
    with Mine({"name": "two"}) as mine:
        mine.evaluate(None, None)
        mine.evaluate(None, None)
    assert len(json.loads((here / "reports/metrics.json").read_text())["loss"]) == 2


def test_figure_with_a_name_that_leads_out_is_refused(here: Path) -> None:
    with labtrack.experiment(CONFIG) as tracking:
        for name in ("../x.png", "/tmp/x.png", ""):
            with pytest.raises(labtrack.BadInputError):
                tracking.log_figure(Figure(), name)
        tracking.log_figure(object(), "x.png")  # told, and the work goes on
