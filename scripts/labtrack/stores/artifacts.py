"""Where the artifacts of a recording are now.

MLflow writes down absolute places.  A store that was copied to a login node, unpacked on a laptop or
mounted elsewhere still has them, so what is not where it was recorded is looked for beside the store.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from labtrack.errors import LabtrackError
from labtrack.stores.model import Artifact, LoggedModel, Owner, Problem

_USUAL = ("", "mlruns", "mlartifacts", "artifacts")  # folders beside a database that MLflow and its users keep them in


class LocalArtifacts:
    """Finds and opens the artifacts of the runs and models of one store."""

    def __init__(self, root: Path) -> None:
        """root: the folder that the store is in, or is."""
        self.root = root
        self.problems: list[Problem] = []
        self._named: set[str] = set()
        self._found: dict[str, Path] = {}

    def prefer(self, owner: Owner, folder: Path) -> None:
        """Says where the artifacts of `owner` are, whatever was recorded."""
        self._found[_recorded(owner)] = folder

    def list(self, owner: Owner, only: Sequence[str] = ()) -> Iterator[Artifact]:
        """The files, sorted by path; what leads out of the artifact folder is a problem, not an artifact.

        only: the names in the folder that are looked at; empty for all.
        """
        folder = self.folder(owner)
        if folder is None:
            return
        inside = folder.resolve()
        for path in sorted(_files(folder, only), key=lambda one: one.relative_to(folder).parts):
            name = path.relative_to(folder).as_posix()
            if name != name.encode("utf-8", "replace").decode():
                self._tell(os.fsencode(path).decode("utf-8", "replace"), "its name is not UTF-8; left out", owner)
                continue
            try:
                if path.is_symlink() and not _within(inside, path.resolve()):
                    said = f"the artifact {name} is a link to {path.readlink()}, outside of the run, and was left out"
                    self._tell(str(path), said, owner)
                    continue
                facts = path.stat()
                if stat.S_ISDIR(facts.st_mode):
                    continue  # a link to a folder of the same run, whose files are listed where they are
                if not stat.S_ISREG(facts.st_mode):
                    self._tell(
                        str(path), f"the artifact {name} is not a file (a pipe, a socket) and was left out", owner
                    )
                    continue
            except OSError as error:
                self._tell(str(path), f"the artifact {name} can't be read: {error.strerror}", owner)
                continue
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

    def folder(self, owner: Owner) -> Path | None:
        """The folder of `owner`'s artifacts; None where it has none, or none on this machine (then a problem)."""
        recorded = _recorded(owner)
        if recorded in self._found:
            return self._found[recorded]
        path, scheme = as_path(recorded)
        if scheme not in ("", "file", "mlflow-artifacts"):
            self._tell_once(
                recorded, f"artifacts are in {scheme}://, not beside the runs, and are not read from there", owner
            )
            return None
        if not path:
            return None
        if owner.id not in path.parts:
            what = f"it is recorded as the artifacts of {owner.id}, but is not a folder of that run or model; not read"
            self._tell_once(recorded, what, owner)
            return None
        there = scheme != "mlflow-artifacts" and path.is_absolute() and path.is_dir()
        # with the owner's id in it, it can't be another's, or the reader's own ~/.ssh
        found = path if there else next(self._here(path, owner.id), None)
        if found:
            self._found[recorded] = found
            return found
        # MLflow makes the folder with the first artifact: nothing is missing where the place above it is here
        place = _above(path, owner.id)
        here = scheme == "mlflow-artifacts" or not path.is_absolute() or place.exists() or place.parent.exists()
        here = here or self.root in place.parents
        if not here and not any(self._here(place.parent, place.parent.name)):
            what = f"artifacts were recorded there, and are neither there nor beside {self.root}"
            self._tell_once(str(place), what, owner)
        return None

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
                    if candidate.is_dir():
                        yield candidate

    def _tell_once(self, place: str, what: str, owner: Owner) -> None:
        if place not in self._named:
            self._tell(place, what, owner)

    def _tell(self, place: str, what: str, owner: Owner) -> None:
        problem = Problem(place, what, owner.source_run_id if isinstance(owner, LoggedModel) else owner.id)
        self._named.add(place)
        if problem not in self.problems:
            self.problems.append(problem)


def _recorded(owner: Owner) -> str:
    return owner.artifact_location if isinstance(owner, LoggedModel) else owner.artifact_uri


def as_path(uri: str) -> tuple[Path | None, str]:
    """The path in an artifact address, and the address's scheme (empty for a plain path)."""
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


def _files(folder: Path, only: Sequence[str]) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        here = Path(place)
        if only and here == folder:
            for listed in (folders, names):
                listed[:] = [one for one in listed if one in only]
        yield from (here / name for name in names)
        yield from (here / name for name in folders if (here / name).is_symlink())  # os.walk does not enter them


def _within(folder: Path, path: Path) -> bool:
    return path == folder or folder in path.parents
