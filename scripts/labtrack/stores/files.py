"""Runs that MLflow wrote into an `mlruns` folder.

    <root>/<experiment>/meta.yaml  <run>/{meta.yaml,params,metrics,tags,inputs,outputs,artifacts}  datasets  models
    <root>/.trash/<experiment>     deleted experiments
    <root>/models/<name>           the model registry

MLflow closed this store in 3.13; folders written by any version are read here.  What is damaged is left
out and named, never guessed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from labtrack.errors import BadInputError
from labtrack.stores import registryfiles
from labtrack.stores.artifacts import LocalArtifacts
from labtrack.stores.model import (
    ACTIVE,
    DELETED,
    Artifact,
    DatasetInput,
    Experiment,
    LoggedModel,
    MetricPoint,
    ModelLink,
    ModelPoint,
    Owner,
    Problem,
    RegisteredModel,
    Run,
    identity_of,
)
from labtrack.stores.plainfiles import BrokenFileError, MetricFile, keys_in, read_meta, read_values
from labtrack.stores.sqlite import MODEL_STATUS, unknown_run

META = "meta.yaml"
_TRASH = ".trash"
_NO_RUNS = ("datasets", "models", "tags", "traces")  # folders of an experiment that are no runs
_NO_EXPERIMENTS = ("models", _TRASH)
_PARTS_OF_A_RUN = ("metrics", "params", "tags", "artifacts")
_STATUS = {1: "RUNNING", 2: "SCHEDULED", 3: "FINISHED", 4: "FAILED", 5: "KILLED"}


class FileStore:
    """An `mlruns` folder of MLflow 1.x, 2.x or 3.x."""

    kind = "files"

    def __init__(self, root: Path) -> None:
        """Opens the folder.  Raises BadInputError where there is no experiment in it."""
        self.root = root
        self._problems: dict[str, Problem] = {}
        self._metrics: dict[Path, MetricFile] = {}
        self._places: dict[str, Path] = {}
        self._files = LocalArtifacts(root.absolute())
        if not holds_experiments(root):
            raise BadInputError(
                f"{root} has no experiments in it: no folder with a meta.yaml.", "is it an mlruns folder?"
            )

    @property
    def location(self) -> str:
        return str(self.root)

    @property
    def identity(self) -> str:
        return identity_of(self.experiments(deleted=True))

    def experiments(self, *, deleted: bool = False) -> list[Experiment]:
        found = [one for folder in self._folders(deleted=deleted) for one in self._experiment(folder)]
        return sorted(found, key=lambda one: (one.creation_time or 0, len(one.id), one.id))

    def runs(self, experiment_id: str | None = None, *, deleted: bool = False) -> Iterator[Run]:
        for folder in self._folders(deleted=deleted):
            if experiment_id in (None, folder.name):
                heads = [(meta, run) for run in _subfolders(folder) for meta in self._head(run)]
                for meta, run in sorted(heads, key=lambda head: (head[0].get("start_time") or 0, head[1].name)):
                    if deleted or meta.get("lifecycle_stage", ACTIVE) == ACTIVE:
                        yield from self._run(meta, run)

    def run(self, run_id: str) -> Run:
        folder = self._place(run_id)
        try:
            return self._whole(_meta_of_run(folder), folder)
        except (BrokenFileError, ValueError, TypeError) as error:
            raise BadInputError(
                f"The run {run_id} in {folder} is damaged: {error}.",
                "copy it again if it is a copy; else leave it out.",
            ) from error

    def metric_keys(self, run_id: str) -> dict[str, int]:
        counts = {key: file.count() for key, file in self._metric_files(run_id)}
        return {key: count for key, count in counts.items() if count}

    def points(self, run_id: str, skip: Mapping[str, int] | None = None) -> Iterator[MetricPoint]:
        for key, file in self._metric_files(run_id):
            left = (skip or {}).get(key, 0)
            for line in file.lines():
                if left:
                    left -= 1
                else:
                    yield MetricPoint(key, line.value, line.timestamp, line.step)
            if file.broken:
                what = f"{file.broken} damaged line(s) of the metric {key} were left out"
                self._tell(Problem(str(file.path), what, run_id))

    def _metric_files(self, run_id: str) -> Iterator[tuple[str, MetricFile]]:
        for key, path in keys_in(self._place(run_id) / "metrics"):
            yield key, self._metrics.setdefault(path, MetricFile(path))

    def artifacts(self, owner: Owner) -> Iterator[Artifact]:
        return self._beside(owner).list(owner)

    def local_path(self, owner: Owner, path: str) -> Path | None:
        return self._beside(owner).path(owner, path)

    def open_artifact(self, owner: Owner, path: str) -> BinaryIO:
        return self._beside(owner).open(owner, path)

    def _beside(self, owner: Owner) -> LocalArtifacts:
        """A run's own folder comes before the recorded one, which may be the place that the store was copied from."""
        if isinstance(owner, Run):
            own = self._place(owner.id) / "artifacts"
            if own.is_dir() and any(own.iterdir()):
                self._files.prefer(owner, own)
        return self._files

    def logged_models(self, *, deleted: bool = False) -> Iterator[LoggedModel]:
        for experiment in self._folders(deleted=deleted):
            for folder in _subfolders(experiment / "models"):
                try:
                    model = _model(read_meta(folder / META), folder, experiment.name)
                except (BrokenFileError, KeyError, ValueError) as error:
                    self._tell(Problem(str(folder), f"the logged model was left out: {error}"))
                    continue
                if deleted or model.lifecycle_stage == ACTIVE:
                    yield model

    def model_points(self, model_id: str) -> Iterator[ModelPoint]:
        for experiment in self._folders(deleted=True):
            for key, path in keys_in(experiment / "models" / model_id / "metrics"):
                for line in MetricFile(path).lines():
                    run_id, name, digest = (*line.rest, "", "", "")[:3]
                    point = MetricPoint(key, line.value, line.timestamp, line.step)
                    yield ModelPoint(point, run_id, name or None, digest or None)

    def registered_models(self) -> list[RegisteredModel]:
        found = []
        for folder in _subfolders(self.root / "models"):
            try:
                found.append(registryfiles.read(folder))
            except (BrokenFileError, KeyError, ValueError) as error:
                self._tell(Problem(str(folder), f"the registered model was left out: {error}"))
        return found

    def problems(self) -> list[Problem]:
        return [*self._problems.values(), *self._files.problems]

    def close(self) -> None:
        """Nothing is kept open."""

    def __enter__(self) -> FileStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _tell(self, problem: Problem) -> None:
        self._problems[problem.place] = problem

    def _folders(self, *, deleted: bool) -> Iterator[Path]:
        """The folders of experiments."""
        for folder in _subfolders(self.root):
            if folder.name not in _NO_EXPERIMENTS and _is_experiment(folder):
                yield folder
        if deleted:
            yield from filter(_is_experiment, _subfolders(self.root / _TRASH))

    def _experiment(self, folder: Path) -> Iterator[Experiment]:
        trashed = folder.parent.name == _TRASH
        try:
            meta = read_meta(folder / META)
            tags = read_values(folder / "tags")
        except BrokenFileError as error:
            self._tell(Problem(str(folder), f"the experiment's name is lost ({error}); its runs are read"))
            meta, tags = {}, {}
        yield Experiment(
            folder.name,
            str(meta.get("name", folder.name)),
            str(meta.get("artifact_location") or ""),
            DELETED if trashed else meta.get("lifecycle_stage", ACTIVE),
            _time(meta.get("creation_time")),
            _time(meta.get("last_update_time")),
            tags,
        )

    def _head(self, folder: Path) -> Iterator[dict[str, Any]]:
        """The meta.yaml of a run's folder; nothing, and maybe a problem, where it has none that can be read."""
        if folder.name in _NO_RUNS:
            return
        try:
            meta = _meta_of_run(folder)
        except (BrokenFileError, ValueError, TypeError) as error:
            if any((folder / part).is_dir() for part in _PARTS_OF_A_RUN):
                self._tell(Problem(str(folder), f"the run was left out: {error}", folder.name))
            return
        named = str(meta.get("run_id") or meta.get("run_uuid") or folder.name)
        if named != folder.name:
            self._tell(Problem(str(folder), f"left out: it is a copy of the run {named} in a folder of another name"))
            return
        yield meta

    def _run(self, meta: dict[str, Any], folder: Path) -> Iterator[Run]:
        try:
            yield self._whole(meta, folder)
        except BrokenFileError as error:
            self._tell(Problem(str(folder), f"the run was left out: {error}", folder.name))

    def _whole(self, meta: dict[str, Any], folder: Path) -> Run:
        tags = read_values(folder / "tags")
        status = meta.get("status")
        inputs, read = self._inputs(folder)
        self._places.setdefault(folder.name, folder)  # of a run that is there twice the first, as MLflow finds it
        return Run(
            folder.name,
            folder.parent.name,
            str(meta.get("run_name") or tags.get("mlflow.runName") or meta.get("name") or ""),
            str(meta.get("user_id") or ""),
            _STATUS.get(status, "RUNNING") if isinstance(status, int) else str(status or "RUNNING"),
            meta["start_time"],
            meta["end_time"],
            meta.get("lifecycle_stage", ACTIVE),
            str(meta.get("artifact_uri") or ""),
            read_values(folder / "params"),
            tags,
            inputs,
            read,
            tuple(
                ModelLink(str(link.get("destination_id") or link["source_id"]), int(link.get("step") or 0))
                for link in self._links(folder / "outputs")
            ),
        )

    def _inputs(self, folder: Path) -> tuple[tuple[DatasetInput, ...], tuple[ModelLink, ...]]:
        datasets, models = [], []
        for link in self._links(folder / "inputs"):
            source = str(link["source_id"])
            if link.get("source_type") != "DATASET":
                models.append(ModelLink(source))
                continue
            data = read_meta(folder.parent / "datasets" / source / META)
            texts = [data.get(name) for name in ("name", "digest", "source_type", "source", "schema", "profile")]
            name, digest, kind, where, schema, profile = (None if text is None else str(text) for text in texts)
            tags = {str(key): str(value) for key, value in (link.get("tags") or {}).items()}
            datasets.append(
                DatasetInput(name or "", digest or "", kind or "", where or "", schema or None, profile or None, tags)
            )
        return tuple(datasets), tuple(models)

    def _links(self, folder: Path) -> Iterator[dict[str, Any]]:
        for one in _subfolders(folder):
            link = read_meta(one / META)
            if "source_id" not in link:
                raise BrokenFileError(f"{folder.name}/{one.name}/{META} has no source_id")
            yield link

    def _place(self, run_id: str) -> Path:
        """A run's folder.  Raises BadInputError when there is no such run."""
        if run_id not in self._places:
            usable = run_id not in ("", ".", "..", *_NO_RUNS) and "/" not in run_id
            for experiment in self._folders(deleted=True) if usable else ():
                if (experiment / run_id / META).is_file():
                    self._places[run_id] = experiment / run_id
                    break
            else:
                known = (run.name for folder in self._folders(deleted=True) for run in _subfolders(folder))
                raise unknown_run(run_id, self.location, (name for name in known if name not in _NO_RUNS))
        return self._places[run_id]


def holds_experiments(folder: Path) -> bool:
    """Whether a folder is an mlruns folder."""
    return any(_is_experiment(one) for one in _subfolders(folder) if one.name not in _NO_EXPERIMENTS) or any(
        _is_experiment(one) for one in _subfolders(folder / _TRASH)
    )


def holds_runs(folder: Path) -> bool:
    """Whether an mlruns folder has a run, deleted or not."""
    active = [one for one in _subfolders(folder) if one.name not in _NO_EXPERIMENTS]
    experiments = (*active, *_subfolders(folder / _TRASH))
    return any((run / META).is_file() for one in experiments for run in _subfolders(one) if run.name not in _NO_RUNS)


def _is_experiment(folder: Path) -> bool:
    """With its meta.yaml, or at least with runs that have theirs."""
    try:
        meta = (folder / META).read_bytes()
    except OSError:
        return any((one / META).is_file() and (one / "metrics").is_dir() for one in _subfolders(folder))
    return b"run_id:" not in meta and b"run_uuid:" not in meta  # else it is a run, and `folder` too low a place


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(one for one in folder.iterdir() if one.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise BadInputError(f"{folder} can't be read: {error.strerror}.", f"look at `ls -ld {folder}`.") from error


def _meta_of_run(folder: Path) -> dict[str, Any]:
    """Raises BrokenFileError, ValueError or TypeError where it is damaged."""
    meta = read_meta(folder / META)
    for name in ("start_time", "end_time"):
        meta[name] = _time(meta.get(name))
    return meta


def _time(value: Any) -> int | None:
    return None if value is None else int(value)


def _model(meta: dict[str, Any], folder: Path, experiment: str) -> LoggedModel:
    status = meta.get("status")
    return LoggedModel(
        str(meta["model_id"]),
        experiment,
        str(meta.get("name") or ""),
        str(meta.get("artifact_location") or ""),
        MODEL_STATUS.get(status, str(status)) if isinstance(status, int) else str(status or "READY"),
        str(meta.get("status_message") or ""),
        str(meta.get("model_type") or ""),
        meta.get("source_run_id") or None,
        meta.get("lifecycle_stage") or ACTIVE,
        _time(meta.get("creation_timestamp")),
        _time(meta.get("last_updated_timestamp")),
        read_values(folder / "params"),
        read_values(folder / "tags"),
    )
