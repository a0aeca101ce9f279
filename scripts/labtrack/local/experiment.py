"""An experiment that is recorded with MLflow where it is wanted and works, and as a folder of reports otherwise.

Tracking never ends an experiment: the first error of MLflow is one warning, and from then on the whole run, with what
was logged before, is in the folder of reports, which `labtrack import` takes.  Where MLflow works to the end there is
no such folder, so that the same run is not in two places.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import yaml

from labtrack.errors import BadInputError, LabtrackError
from labtrack.local import git
from labtrack.local.reports import Reports, dumped
from labtrack.stores.reports import CONFIG, DIFF, FIGURES
from labtrack.stores.values import params as params_of

SWITCH, NAME, FOLDER = "mlflow_tracking", "mlflow_experiment_name", "reports_dir"
# a server that is gone holds one call for half a minute at most, not for four; what the user has set counts
_PATIENCE = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}  # fmt: skip
_PARAMS = 100  # in one call, as MLflow allows
_LONGEST = 6000  # characters of a parameter
_RUN = "MLFLOW_RUN_ID"
_log = logging.getLogger("labtrack")


class Experiment:
    """A run of an experiment; see `experiment`.

    config: as it was given.  run_id: the run's id.  tracked: whether MLflow has it.  folder: of the reports.
    """

    def __init__(self, config: Mapping[str, Any], folder: Path, module_dir: Path) -> None:
        self.config, self.folder = config, folder
        self.run_id = uuid.uuid4().hex
        self._name = str(config.get("name") or module_dir.absolute().name)
        self._born = _now()
        self._code = git.state(module_dir)
        self._points: dict[str, list[dict[str, Any]]] = {}
        self._figures: dict[str, Path] = {}
        self._spool: tempfile.TemporaryDirectory[str] | None = None
        self._client: Any = None
        self._reports: Reports | None = None
        self._set: list[str] = []
        if _is_on(config):
            self._guarded(self._begin)
        else:
            self._report()

    @property
    def tracked(self) -> bool:
        """Whether MLflow has the run, as far as it has come."""
        return self._client is not None

    def log_metric(self, name: str, value: float, step: int | None = None) -> None:
        """Logs one value of a metric."""
        self.log_metrics({name: value}, step)

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Logs values of metrics, which may be nested or of numpy and torch; what is no number is left out.

        step: counted for each metric where it is not given.
        """
        new: dict[str, list[dict[str, Any]]] = {}
        for name, value in _numbers(metrics):
            known = self._points.setdefault(name, [])
            known.append({"value": value, "step": len(known) if step is None else int(step), "timestamp": _now()})
            new[name] = known[-1:]
        if self.tracked:
            self._guarded(lambda: self._send(new))
        elif self._reports:
            self._written(lambda reports: reports.add(new))

    def log_figure(self, figure: Any, name: str) -> None:
        """Logs a figure of matplotlib, of plotly, or an image file, as figures/`name`."""
        path = Path(name)
        if path.is_absolute() or ".." in path.parts or not path.name:
            raise BadInputError(f"{name!r} is no name for a figure.", "for example: loss.png")
        try:
            file = self._drawn(figure, path)
        except (OSError, LabtrackError) as error:
            _log.warning("The figure %s is not recorded: %s", name, error)
            return
        if self.tracked:
            self._guarded(lambda: self._client.log_artifact(self.run_id, str(file), _inside(path)))
        elif self._reports:
            self._written(lambda reports: reports.figure(file, name))

    def end(self, status: str) -> None:
        """Ends the run.  status: FINISHED, FAILED or KILLED."""
        if self.tracked:
            self._guarded(lambda: self._terminate(status))
        if self._reports:
            self._written(lambda reports: reports.end(status, _now()))
            _log.info("The results are in %s; `labtrack import %s` brings them to a server.", self.folder, self.folder)
        if self._spool:
            self._spool.cleanup()
        self._restore()

    def _begin(self) -> None:
        self._set = [name for name in _PATIENCE if name not in os.environ]
        os.environ.update({name: _PATIENCE[name] for name in self._set})
        import mlflow

        if not mlflow.is_tracking_uri_set():
            mlflow.set_tracking_uri(f"sqlite:///{Path.cwd() / 'mlflow.db'}")
        client = mlflow.MlflowClient()
        found = str(self.config.get(NAME) or self._name)
        known = client.get_experiment_by_name(found)
        number = known.experiment_id if known else _created(client, found)
        tags = {"mlflow.runName": self._name, "mlflow.source.name": sys.argv[0] or "?", **self._code.tags()}
        run = client.create_run(number, start_time=self._born, tags=tags)
        self.run_id, self._client = run.info.run_id, client
        # what else the experiment logs through MLflow, autolog too, goes into the same run
        os.environ[_RUN] = self.run_id
        params = [mlflow.entities.Param(key, value[:_LONGEST]) for key, value in params_of(self.config).items()]
        for start in range(0, len(params), _PARAMS):
            client.log_batch(self.run_id, params=params[start : start + _PARAMS])
        client.log_text(self.run_id, dumped(self.config), CONFIG)
        if self._code.diff:
            client.log_text(self.run_id, self._code.diff, DIFF)

    def _send(self, new: Mapping[str, list[dict[str, Any]]]) -> None:
        from mlflow.entities import Metric

        points = [
            Metric(name, one["value"], one["timestamp"], one["step"]) for name, many in new.items() for one in many
        ]
        self._client.log_batch(self.run_id, metrics=points)

    def _terminate(self, status: str) -> None:
        import mlflow

        active = mlflow.active_run()
        if active is not None and active.info.run_id == self.run_id:
            mlflow.end_run(status)
        self._client.set_terminated(self.run_id, status, _now())

    def _guarded(self, call: Callable[[], object]) -> None:
        """Calls MLflow; its first error ends the tracking, and the run is a folder of reports."""
        try:
            call()
        except Exception as error:
            self._client = None
            self._restore()
            said = " ".join(str(error).split())[:300] or type(error).__name__
            if isinstance(error, ModuleNotFoundError) and error.name == "mlflow":
                said = "MLflow is not installed"
            _log.warning("MLflow does not record this run: %s. The results go to %s", said, self.folder)
            self._report()

    def _restore(self) -> None:
        """The environment as it was."""
        for name in self._set:
            os.environ.pop(name, None)
        self._set = []
        if os.environ.get(_RUN) == self.run_id:
            del os.environ[_RUN]

    def _report(self) -> None:
        facts: dict[str, Any] = {"run_id": self.run_id, "status": "RUNNING", "tags": self._code.tags()}
        facts.update(start_time=self._born, end_time=None)
        try:
            self._reports = Reports(self.folder, self.config, facts, self._code.diff)
            for name, file in self._figures.items():
                self._reports.figure(file, name)
            self._reports.add(self._points)
        except (OSError, LabtrackError, yaml.YAMLError) as error:
            self._without(error)

    def _written(self, call: Callable[[Reports], None]) -> None:
        try:
            if self._reports:
                call(self._reports)
        except (OSError, LabtrackError) as error:
            self._without(error)

    def _without(self, error: Exception) -> None:
        self._reports = None
        _log.warning("The results are not recorded: %s can't be written: %s", self.folder, error)

    def _drawn(self, figure: Any, name: Path) -> Path:
        """The figure as a file that is kept until the run has ended."""
        self._spool = self._spool or tempfile.TemporaryDirectory(prefix="labtrack-figures-")
        file = Path(self._spool.name) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(figure, (str, os.PathLike)):
            shutil.copyfile(figure, file)
        elif hasattr(figure, "savefig"):
            figure.savefig(file)
        elif hasattr(figure, "write_html") and file.suffix == ".html":
            figure.write_html(str(file))
        elif hasattr(figure, "write_image"):
            figure.write_image(str(file))
        else:
            raise LabtrackError(f"{type(figure).__name__} is no figure: it has no savefig.")
        self._figures[str(name)] = file
        return file


@contextlib.contextmanager
def experiment(
    config: Mapping[str, Any] | str | os.PathLike[str], module_dir: str | os.PathLike[str] = "."
) -> Iterator[Experiment]:
    """Records what is done in the context as one run.

    config: a configuration, or the path of a YAML file with one.  `mlflow_tracking: true` switches MLflow on,
    `mlflow_experiment_name` names the experiment (else `name` does), `reports_dir` the folder of reports (`reports`).
    module_dir: the folder of the code, whose git state is recorded; the reports are in it.

    An exception in the context goes through, and the run is FAILED; KILLED for KeyboardInterrupt.  MLflow's own errors
    do not go through.  Raises BadInputError where the configuration can't be read.
    """
    read = read_config(config)
    _is_on(read)  # a switch that is neither on nor off is told before the work
    place = Path(module_dir)
    found = Experiment(read, place / str(read.get(FOLDER) or "reports"), place)
    status = "FAILED"
    try:
        yield found
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    except SystemExit as error:
        status = "FAILED" if error.code else "FINISHED"
        raise
    finally:
        found.end(status)


def read_config(config: Mapping[str, Any] | str | os.PathLike[str]) -> dict[str, Any]:
    """A configuration, also from a YAML file.  Raises BadInputError where it can't be read."""
    if isinstance(config, Mapping):
        return dict(config)
    if not isinstance(config, (str, os.PathLike)):
        if hasattr(config, "__dict__"):
            return dict(vars(config))  # of argparse, or a dataclass
        raise BadInputError(f"{type(config).__name__} is no configuration.", "a dict, or the path of a YAML file.")
    path = Path(config)
    try:
        found = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise BadInputError(
            f"{path} can't be read: {error.strerror}.", "name the YAML file of the configuration."
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInputError(
            f"{path} is not YAML: {' '.join(str(error).split())[:200]}.", "look at that line."
        ) from None
    if not isinstance(found, dict):
        raise BadInputError(f"{path} holds no names with values.", "for example: mlflow_tracking: true")
    return found


class BaseExperiment:
    """An experiment as a class: what `evaluate` returns is logged.

    Use it as a context manager around the whole work; without, each call of `evaluate` is a run of its own.
    """

    def __init__(
        self, config: Mapping[str, Any] | str | os.PathLike[str], module_dir: str | os.PathLike[str] = "."
    ) -> None:
        self.config, self.module_dir = read_config(config), Path(module_dir)
        self.tracking: Experiment | None = None
        self._stack = contextlib.ExitStack()

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if "evaluate" in cls.__dict__:
            cls.evaluate = _logged(cls.__dict__["evaluate"])  # type: ignore[method-assign]

    def evaluate(self, model: Any, data: Any) -> Mapping[str, Any]:
        """Gives metrics by their names, which are logged.  To be defined."""
        raise NotImplementedError

    def __enter__(self) -> BaseExperiment:
        self.tracking = self._stack.enter_context(experiment(self.config, self.module_dir))
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            self._stack.__exit__(*error)
        finally:
            self.tracking = None


def _logged(evaluate: Callable[..., Any]) -> Callable[..., Any]:
    """An `evaluate` whose metrics are logged once, also where it calls that of the class above."""

    @wraps(evaluate)
    def logged(self: BaseExperiment, *arguments: Any, **more: Any) -> Any:
        if getattr(self, "_evaluating", False):
            return evaluate(self, *arguments, **more)
        with contextlib.ExitStack() as stack:
            if self.tracking is None:
                stack.enter_context(self)
            self._evaluating = True  # type: ignore[attr-defined]
            try:
                metrics = evaluate(self, *arguments, **more)
            finally:
                self._evaluating = False  # type: ignore[attr-defined]
            if self.tracking is not None and isinstance(metrics, Mapping):
                self.tracking.log_metrics(metrics)
            return metrics

    return logged


def _is_on(config: Mapping[str, Any]) -> bool:
    given = config.get(SWITCH)
    said = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    if given is None:
        return False
    if str(given).lower() not in said:
        raise BadInputError(f"{SWITCH}: {given!r} is neither on nor off.", f"{SWITCH}: true, or {SWITCH}: false")
    return said[str(given).lower()]


def _numbers(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{inner}", number) for inner, number in _numbers(value))
        else:
            with contextlib.suppress(TypeError, ValueError, RuntimeError):  # an array of many, a text
                if not isinstance(value, str):
                    yield str(name), float(value)


def _created(client: Any, name: str) -> Any:
    try:
        return client.create_experiment(name)
    except Exception:  # another job has just made it
        known = client.get_experiment_by_name(name)
        if known is None:
            raise
        return known.experiment_id


def _inside(name: Path) -> str:
    return (Path(FIGURES) / name.parent).as_posix()


def _now() -> int:
    return time.time_ns() // 1_000_000
