"""Where the artifacts of a recording are now.

MLflow writes down absolute places.  A store that was copied to a login node, unpacked on a laptop or
mounted elsewhere still has them, so what is not where it was recorded is looked for beside the store.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from labtrack.errors import LabtrackError
from labtrack.stores import tree
from labtrack.stores.model import Artifact, Findings, LoggedModel, Owner, Run, Trace, shown
from labtrack.stores.tracefiles import DATA, LOCATION

_WINDOWS = re.compile(r"(file:/*)?[A-Za-z]:[\\/]|\\\\")
_HISTORY = "mlflow.log-model.history"
_LOCAL = ("", "file", "mlflow-artifacts", "windows")  # kinds of addresses whose files may be here
_USUAL = ("", "mlruns", "mlartifacts", "artifacts")  # folders beside a database that MLflow and its users keep them in


class LocalArtifacts:
    """Finds and opens the artifacts of the runs and models of one store."""

    def __init__(self, root: Path, found: Findings) -> None:
        """root: the folder that the store is in, or is.  found: where problems are told."""
        self.root = root
        self._findings = found
        self._found: dict[str, Path] = {}

    def prefer(self, owner: Owner, folder: Path) -> None:
        """Says where the artifacts of `owner` are, whatever was recorded."""
        self._found[_recorded(owner)] = folder

    def list(self, owner: Owner, only: Sequence[str] = ()) -> Iterator[Artifact]:
        """The files, sorted by path; what leads out of the artifact folder is a problem, not an artifact.

        only: the names in the folder that are looked at; empty for all.
        """
        folder = self.folder(owner)
        if isinstance(owner, Run):
            self._look_for_models(owner, folder)
        if folder is None:
            return
        inside = folder.resolve()

        def unread(place: Path, why: str) -> None:
            self._tell(place, f"the artifacts in it {why}", owner)

        for path in sorted(_files(folder, only, unread), key=lambda one: one.relative_to(folder).parts):
            name = path.relative_to(folder).as_posix()
            if name != name.encode("utf-8", "replace").decode():
                self._tell(path, "its name is not UTF-8; left out", owner)
            elif not tree.is_deleted(path.name):
                facts = _facts(path, inside)
                if isinstance(facts, str):
                    self._tell(path, f"the artifact {name} {facts}", owner)
                elif stat.S_ISREG(facts.st_mode):
                    yield Artifact(name, facts.st_size, facts.st_mtime_ns // 1_000_000)

    def path(self, owner: Owner, name: str) -> Path | None:
        """Where one artifact is; None where it is not in the artifact folder of `owner`."""
        folder = self.folder(owner)
        relative = PurePosixPath(name)
        if folder is None or relative.is_absolute() or ".." in relative.parts:
            return None
        path = folder / relative
        return path if _within(folder.resolve(), path.resolve()) else None

    def open(self, owner: Owner, name: str) -> BinaryIO:
        """One artifact's bytes.  Raises LabtrackError when it is not there (any more)."""
        path = self.path(owner, name)
        try:
            if path is not None:
                return path.open("rb")
            reason = "it is not in the run's artifact folder"
        except OSError as error:
            reason = error.strerror or str(error)
        raise LabtrackError(f"The artifact {name} of {owner.id} can't be read: {reason}.", "was it deleted or moved?")

    def trace_data(self, trace: Trace) -> bytes | None:
        """The traces.json of a trace; None, and a problem, where it can't be found or read."""
        place = LoggedModel(trace.id, trace.experiment_id, "", trace.tags.get(LOCATION, ""))
        try:
            with self.open(place, DATA) as file:
                return file.read()
        except (LabtrackError, OSError) as error:
            what = f"the spans of the trace can't be read: {str(error).splitlines()[0]}"
            self._findings.problem(trace.id, what, trace.run_id, None if trace.run_id else trace.experiment_id)
            return None

    def folder(self, owner: Owner) -> Path | None:
        """The folder of `owner`'s artifacts; None where it has none, or none on this machine (then a problem)."""
        recorded = _recorded(owner)
        if recorded in self._found:
            return self._found[recorded]
        path, scheme = as_path(recorded)
        if not path:
            return None
        if scheme not in _LOCAL:
            what = f"artifacts are in {scheme}://, not beside the runs, and are not read from there"
        elif owner.id not in path.parts:
            what = f"it is recorded as the artifacts of {owner.id}, but is not a folder of that run or model; not read"
        else:
            found = self._look(path, scheme, owner)
            if found:
                self._found[recorded] = found
            return found
        self._tell(recorded, what, owner)
        return None

    def _look(self, path: Path, scheme: str, owner: Owner) -> Path | None:
        if scheme in ("", "file") and path.is_absolute():
            if not self._can_be_seen(path, owner):
                return None
            if tree.is_folder(path):  # with the owner's id in it, it can't be another's, or the reader's own ~/.ssh
                return path
        found = next(self._here(path, owner.id), None)
        if found:
            return found
        # MLflow makes the folder with the first artifact: nothing is missing where the place above it is here
        place = _above(path, owner.id)
        if scheme == "mlflow-artifacts":
            if not any(tree.is_folder(self.root / name) for name in _USUAL if name):
                what = f"artifacts were sent to a server, and none of its folders ({', '.join(_USUAL[1:])}) is here"
                self._findings.warning(self.root, what)
            return None
        here = scheme != "windows" and not path.is_absolute()
        # the folder of an experiment, that of all experiments, and the job's, which may have only its database
        above = (place, place.parent, *list(place.parents)[1:-1][:1])  # no slices of parents before Python 3.10
        here = here or any(map(tree.is_folder, above)) or self.root in place.parents
        if not here and not any(self._here(place.parent, place.parent.name)):
            what = f"artifacts were recorded there, and are neither there nor beside {self.root}"
            self._tell(place, what, owner)
        return None

    def _look_for_models(self, run: Run, folder: Path | None) -> None:
        """MLflow before 3.0 notes in a tag which folders of a run hold models, so that it shows when one is gone."""
        try:
            noted = json.loads(run.tags.get(_HISTORY, "[]"))
            paths = [one["artifact_path"] for one in noted if "model_id" not in one]
        except (ValueError, TypeError, KeyError):
            return
        local = as_path(run.artifact_uri)[1] in _LOCAL
        for path in paths if local else ():
            if not isinstance(path, str) or (folder and os.path.lexists(folder / path)):
                continue
            self._tell(run.artifact_uri, f"the model {path}, which the run says it logged, is gone", run)

    def _can_be_seen(self, path: Path, owner: Owner) -> bool:
        """False, and a problem, where it can't be told whether there is something."""
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            if path.is_symlink():
                self._tell(
                    path, f"the artifacts are behind a link to {shown(path.readlink())}, which is not there", owner
                )
                return False
        except (OSError, RuntimeError) as error:
            self._tell(path, f"the artifacts can't be read: {getattr(error, 'strerror', None) or error}", owner)
            return False
        return True

    def _here(self, recorded: Path, name: str) -> Iterator[Path]:
        """Folders beside the store that end as `recorded` does, down to the part `name`; the longest end first."""
        parts = [part for part in recorded.parts if part not in ("/", "..")]
        if name not in parts:
            return
        at = len(parts) - 1 - parts[::-1].index(name)
        for base in (self.root, self.root.parent):
            for usual in _USUAL:
                for start in range(at + 1):
                    candidate = base.joinpath(usual, *parts[start:])
                    if tree.is_folder(candidate):
                        yield candidate

    def _tell(self, place: object, what: str, owner: Owner) -> None:
        if isinstance(owner, LoggedModel) and not owner.source_run_id:
            self._findings.problem(place, what, experiment_id=owner.experiment_id)
        else:
            self._findings.problem(place, what, owner.source_run_id if isinstance(owner, LoggedModel) else owner.id)


def _recorded(owner: Owner) -> str:
    return owner.artifact_location if isinstance(owner, LoggedModel) else owner.artifact_uri


def as_path(uri: str) -> tuple[Path | None, str]:
    """The path in an artifact address, and the address's scheme (empty for a plain path)."""
    if _WINDOWS.match(uri):  # of another machine: looked for beside the store by its last parts
        return Path(PureWindowsPath(unquote(re.sub("^file:/*", "", uri))).as_posix().replace(":", "", 1)), "windows"
    parts = urlsplit(uri)
    if not parts.scheme:
        return (Path(uri) if uri else None), ""
    return Path(unquote(parts.path)), parts.scheme


def _above(path: Path, owner_id: str) -> Path:
    """The experiment's folder of a run's artifact folder."""
    for folder in path.parents:
        if folder.name == owner_id:
            return folder.parent
    return path.parent


def _facts(path: Path, inside: Path) -> os.stat_result | str:
    """Of a file of the run, or of a link to a folder whose files are listed where they are; else why it is none."""
    try:
        if path.is_symlink() and not _within(inside, path.resolve()):
            return f"is a link to {shown(path.readlink())}, outside of the run, and was left out"
        facts = path.stat()
        if not (stat.S_ISREG(facts.st_mode) or stat.S_ISDIR(facts.st_mode)):
            return "is not a file (a pipe, a socket) and was left out"
        if not tree.is_readable(path):
            return f"can't be read: {os.strerror(errno.EACCES)}"
    except (OSError, RuntimeError) as error:  # RuntimeError: a ring of links, in Python < 3.13
        return f"can't be read: {getattr(error, 'strerror', None) or error}"
    return facts


def _files(folder: Path, only: Sequence[str], tells: tree.Tells) -> Iterator[Path]:
    if not only:
        yield from tree.files(folder, tells)
    for name in only:
        place = folder / name
        if tree.is_folder(place) and not place.is_symlink():
            yield from tree.files(place, tells)
        elif place.exists() or place.is_symlink():
            yield place


def _within(folder: Path, path: Path) -> bool:
    return path == folder or folder in path.parents
