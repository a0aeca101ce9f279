"""Runs that MLflow wrote into an `mlruns` folder.

    <root>/<experiment>/meta.yaml  <run>/{meta.yaml,params,metrics,tags,inputs,outputs,artifacts}  datasets  models
    <root>/.trash/<experiment>     deleted experiments
    <root>/models/<name>           the model registry

MLflow closed this store in 3.13; folders written by any version are read here.  What is damaged is left
out and named, never guessed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from labtrack.errors import BadInputError
from labtrack.stores import folders, modelfiles, plainfiles, registryfiles, tracefiles, tree
from labtrack.stores.artifacts import LocalArtifacts
from labtrack.stores.copies import Copies
from labtrack.stores.folders import META, NO_EXPERIMENTS, NO_RUNS, TRASH, holds_experiments, is_deleted, is_experiment
from labtrack.stores.model import (
    ACTIVE,
    DELETED,
    RUNNING,
    Artifact,
    DatasetInput,
    Experiment,
    Findings,
    Having,
    LoggedModel,
    MetricPoint,
    ModelLink,
    ModelPoint,
    Owner,
    Problem,
    RegisteredModel,
    Run,
    Trace,
    identity_of,
    unnamed,
)
from labtrack.stores.numbers import Steps, floor
from labtrack.stores.plainfiles import BrokenFileError, MetricFile, keys_in, point, read_meta, read_values, time_in
from labtrack.stores.sqlite import unknown_run
from labtrack.stores.summary import PARTS, Summaries
from labtrack.stores.summing import of_points

_PARTS_OF_A_RUN = ("metrics", "params", "tags", "artifacts")
OPEN = (RUNNING, "SCHEDULED")  # of these more may come
_RUN_ID = re.compile(r"[0-9a-f]{32}")


class FileStore:
    """An `mlruns` folder of MLflow 1.x, 2.x or 3.x."""

    kind = "files"

    def __init__(self, root: Path) -> None:
        """Opens the folder.  Raises BadInputError where there is no experiment in it."""
        self.root = root
        self.found = Findings()
        self._metrics: dict[Path, MetricFile] = {}
        self._places: dict[str, Path] = {}
        self._files = LocalArtifacts(root.absolute(), self.found)
        if not tree.is_folder(root) or not tree.is_readable(root, os.R_OK | os.X_OK):
            raise BadInputError(f"{root} can't be read.", f"look at `ls -ld {root}`.")
        if not holds_experiments(root):
            what = f"{root} has no experiments in it: no folder with a meta.yaml."
            raise BadInputError(what, "is it an mlruns folder?")

    @property
    def location(self) -> str:
        return str(self.root)

    @property
    def identity(self) -> str:
        return identity_of(self.experiments(deleted=True))

    def experiments(self, *, deleted: bool = False) -> list[Experiment]:
        found = [one for folder in self._folders(deleted=deleted) for one in self._experiment(folder)]
        return sorted(found, key=lambda one: (one.creation_time or 0, len(one.id), one.id))

    def runs(self, experiment_id: str | None = None, *, deleted: bool = False, having: Having = ()) -> Iterator[Run]:
        copies = Copies(self.found)
        for folder in self._folders(deleted=deleted):
            if experiment_id in (None, folder.name):
                gone = is_deleted(folder)
                heads = [(meta, run) for run in self._runs_in(folder) for meta in self._head(run)]
                for meta, run in sorted(heads, key=lambda head: (head[0].get("start_time") or 0, head[1].name)):
                    stage = DELETED if gone else meta.get("lifecycle_stage", ACTIVE)
                    if (deleted or stage != DELETED) and copies.is_first(run, self._own_place(meta, run)):
                        yield self._whole({**meta, "lifecycle_stage": stage}, run)

    def heads(self, *, deleted: bool = False) -> Iterator[Run]:
        return self.runs(deleted=deleted)

    def run(self, run_id: str) -> Run:
        folder = self._place(run_id)
        try:
            meta = self._meta_of_run(folder)
        except BrokenFileError as error:
            raise BadInputError(
                f"The run {run_id} in {folder} is damaged: {error}.",
                "copy it again if it is a copy; else leave it out.",
            ) from error
        if is_deleted(folder.parent):
            meta["lifecycle_stage"] = DELETED
        return self._whole(meta, folder)

    def metric_keys(self, run_id: str) -> dict[str, int]:
        counts = {}
        for key, file in self._metric_files(run_id):
            try:
                counts[key] = file.count()
            except FileNotFoundError:
                continue
            except OSError as error:
                self.found.problem(file.path, f"the metric {key} can't be read: {error.strerror}", run_id)
        return {key: count for key, count in counts.items() if count}

    def points(
        self, run_id: str, skip: Mapping[str, int] | None = None, keys: Collection[str] | None = None
    ) -> Iterator[MetricPoint]:
        for key, file in self._metric_files(run_id, keys):
            left = (skip or {}).get(key, 0)
            steps = Steps()
            try:
                for line in file.lines():
                    one = point(key, line, steps)
                    if left:
                        left -= 1
                    else:
                        yield one
            except OSError as error:
                self.found.problem(file.path, f"the metric {key} can't be read: {error.strerror}", run_id)
            if file.broken:
                what = f"{file.broken} damaged line(s) of the metric {key} were left out"
                self.found.problem(file.path, what, run_id, about="lines")

    def summaries(
        self, run_ids: Sequence[str], keys: Collection[str] | None = None, parts: Collection[str] = PARTS
    ) -> Summaries:
        return of_points(self, run_ids, keys, parts)

    def _metric_files(self, run_id: str, keys: Collection[str] | None = None) -> Iterator[tuple[str, MetricFile]]:
        place = self._place(run_id)
        for key, path in keys_in(place / "metrics", self._tells(run_id)):
            if keys is not None and key not in keys:
                continue
            if path not in self._metrics:
                self._metrics[path] = MetricFile(path, lambda: self._has_ended(place))
            yield key, self._metrics[path]

    def _has_ended(self, folder: Path) -> bool:
        try:
            return plainfiles.status_in(read_meta(folder / META)) not in OPEN
        except BrokenFileError:
            return False

    def appends(self, run_id: str) -> bool:
        return True

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
            try:
                here = tree.is_folder(own) and any(own.iterdir())
            except OSError:
                here = True  # and it is told when it is listed
            if here:
                self._files.prefer(owner, own)
        return self._files

    def logged_models(self, *, deleted: bool = False) -> Iterator[LoggedModel]:
        for experiment in self._folders(deleted=deleted):
            for model in modelfiles.read(experiment, self._tells(experiment=experiment.name)):
                if deleted or model.lifecycle_stage != DELETED:
                    yield model

    def model_points(self, model_id: str) -> Iterator[ModelPoint]:
        for experiment in self._folders(deleted=True):
            yield from modelfiles.points(experiment, model_id, self._tells(experiment=experiment.name))

    def registered_models(self) -> list[RegisteredModel]:
        found = []
        for folder in tree.subfolders(self.root / "models", self._tells()):
            try:
                found.append(registryfiles.read(folder, self._tells()))
            except BrokenFileError as error:
                self.found.problem(folder, f"the registered model was left out: {error}")
        return found

    def traces(self, experiment_id: str | None = None) -> Iterator[Trace]:
        for folder in self._folders(deleted=True):
            if experiment_id in (None, folder.name):
                yield from tracefiles.read(folder, self._tells(experiment=folder.name))

    def spans(self, trace: Trace) -> bytes | None:
        path = self.root / trace.experiment_id / "traces" / trace.id / "artifacts" / tracefiles.DATA
        try:
            return path.read_bytes()
        except OSError:
            return self._files.trace_data(trace)

    def unread(self) -> Mapping[str, int]:
        return {}

    def problems(self) -> list[Problem]:
        return self.found.problems()

    def close(self) -> None:
        """Nothing is kept open."""

    def __enter__(self) -> FileStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _tells(self, run_id: str | None = None, experiment: str | None = None) -> tree.Tells:
        return lambda place, what: self.found.problem(place, what, run_id, experiment)

    def _tells_of_experiments(self, place: Path, what: str) -> None:
        self.found.problem(place, what, experiment_id=place.name)

    def _folders(self, *, deleted: bool) -> Iterator[Path]:
        """The folders of experiments."""
        trash = self.root / TRASH
        for root in (self.root, trash) if deleted and tree.is_folder(trash) else (self.root,):
            for folder in tree.subfolders(root, self._tells_of_experiments):
                if folder.name not in NO_EXPERIMENTS and self._may_be_an_experiment(folder):
                    yield folder

    def _may_be_an_experiment(self, folder: Path) -> bool:
        try:
            with os.scandir(folder):
                found = is_experiment(folder)
                if not found and folders.is_lost(folder):
                    self._tells_of_experiments(folder, f"neither it nor a run in it has a {META}: it was left out")
                return found
        except OSError as error:
            self.found.problem(folder, f"can't be read: {error.strerror}", experiment_id=folder.name)
            return False

    def _experiment(self, folder: Path) -> Iterator[Experiment]:
        tells = self._tells(experiment=folder.name)
        try:
            meta = read_meta(folder / META)
        except BrokenFileError as error:
            tells(folder, f"the experiment's name is lost ({error}); its runs are read")
            meta = {}
        name = str(meta.get("name") or "")
        if meta and not name.strip():
            self.found.warning(folder, "the experiment has no name", None, folder.name)
        yield Experiment(
            folder.name,
            name if name.strip() else unnamed(folder.name),
            str(meta.get("artifact_location") or ""),
            DELETED if is_deleted(folder) else ACTIVE,
            time_in(meta, "creation_time", folder, tells),
            time_in(meta, "last_update_time", folder, tells),
            read_values(folder / "tags", tells),
        )

    def _runs_in(self, experiment: Path) -> list[Path]:
        """The folders that are or should be runs."""

        def tells(place: Path, what: str) -> None:
            run = place.name if _RUN_ID.fullmatch(place.name) else None
            self.found.problem(place, what, run, None if run else experiment.name)

        found = tree.subfolders(experiment, tells)
        return [one for one in found if one.name not in NO_RUNS]

    def _head(self, folder: Path) -> Iterator[dict[str, Any]]:
        """The meta.yaml of a run's folder; nothing, and maybe a problem, where it has none that can be read."""
        try:
            meta = self._meta_of_run(folder)
        except BrokenFileError as error:
            try:
                names = {one.name for one in os.scandir(folder)}
            except OSError:
                names = set(_PARTS_OF_A_RUN)
            if names.intersection(_PARTS_OF_A_RUN) or (META in names and "is missing" not in str(error)):
                self.found.problem(folder, f"the run was left out: {error}", folder.name)
            return
        named = str(meta.get("run_id") or meta.get("run_uuid") or folder.name)
        if named != folder.name:
            places = (one / named for one in self._folders(deleted=True))
            place = next((one for one in places if tree.is_file(one / META)), None)
            Copies(self.found).tell(folder, place, named)
            return
        yield meta

    def _meta_of_run(self, folder: Path) -> dict[str, Any]:
        """Raises BrokenFileError where there is none that can be read."""
        meta = read_meta(folder / META)
        for name in ("start_time", "end_time"):
            meta[name] = time_in(meta, name, folder, self._tells(folder.name))
        return meta

    def _whole(self, meta: dict[str, Any], folder: Path) -> Run:
        tells = self._tells(folder.name)
        tags = read_values(folder / "tags", tells)
        inputs, read = self._inputs(folder)
        self._places.setdefault(folder.name, folder)
        return Run(
            folder.name,
            folder.parent.name,
            str(meta.get("run_name") or tags.get("mlflow.runName") or meta.get("name") or ""),
            str(meta.get("user_id") or ""),
            plainfiles.status_in(meta),
            meta["start_time"],
            meta["end_time"],
            str(meta.get("lifecycle_stage") or ACTIVE),
            str(meta.get("artifact_uri") or ""),
            read_values(folder / "params", tells),
            tags,
            inputs,
            read,
            tuple(
                ModelLink(str(link.get("destination_id") or link["source_id"]), floor(link.get("step")) or 0)
                for link in self._links(folder / "outputs", folder.name)
            ),
        )

    def _inputs(self, folder: Path) -> tuple[tuple[DatasetInput, ...], tuple[ModelLink, ...]]:
        datasets, models = [], []
        for link in self._links(folder / "inputs", folder.name):
            source = str(link["source_id"])
            if link.get("source_type") != "DATASET":
                models.append(ModelLink(source))
                continue
            place = folder.parent / "datasets" / source
            try:
                data = read_meta(place / META)
            except BrokenFileError as error:
                self.found.problem(place, f"a dataset of the run was left out: {error}", folder.name)
                continue
            texts = [data.get(name) for name in ("name", "digest", "source_type", "source", "schema", "profile")]
            name, digest, kind, where, schema, profile = (None if text is None else str(text) for text in texts)
            given = link.get("tags")
            tags = {str(key): str(value) for key, value in given.items()} if isinstance(given, dict) else {}
            datasets.append(
                DatasetInput(name or "", digest or "", kind or "", where or "", schema or None, profile or None, tags)
            )
        return tuple(datasets), tuple(models)

    def _links(self, folder: Path, run_id: str) -> Iterator[dict[str, Any]]:
        for one in tree.subfolders(folder, self._tells(run_id)):
            try:
                link = read_meta(one / META)
            except BrokenFileError as error:
                self.found.problem(one, f"a link of the run was left out: {error}", run_id)
                continue
            if "source_id" in link:
                yield link
            else:
                self.found.problem(one, f"a link of the run was left out: {META} has no source_id", run_id)

    def _own_place(self, meta: Mapping[str, Any], folder: Path) -> Path:
        """The folder from which the run that was found in `folder` is read."""
        if str(meta.get("experiment_id")) != folder.parent.name:
            return self._place(folder.name)
        place = self._places.setdefault(folder.name, folder)
        if place != folder and not tree.is_file(place / META):  # moved meanwhile, as to .trash
            place = self._places[folder.name] = folder
        return place

    def _place(self, run_id: str) -> Path:
        """A run's folder: where it is twice, the one in the experiment that it says it belongs to.

        Raises BadInputError when there is no such run.
        """
        if run_id not in self._places:
            usable = run_id not in ("", ".", "..", *NO_RUNS) and "/" not in run_id
            places = list(self._folders(deleted=True)) if usable else []
            found = [place / run_id for place in places if tree.is_file(place / run_id / META)]
            if not found:
                known = (run.name for folder in self._folders(deleted=True) for run in self._runs_in(folder))
                raise unknown_run(run_id, self.location, known)
            own = [one for one in found if len(found) > 1 and folders.belongs(one)]
            self._places[run_id] = (own or found)[0]
        return self._places[run_id]
