"""Which tracker recorded what is in a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from labtrack.errors import BadInputError
from labtrack.stores.foreign import csvlogger, dvclive, sacred, tensorboard, trackio, wandb
from labtrack.stores.foreign.walk import META, walk
from labtrack.stores.gathered import GatheredStore

_MOST = 20_000  # folders that are looked into
_MLFLOW = ("mlflow.db", "mlruns.db")
_NAMED = 3


class Format(NamedTuple):
    """A tracker's way to record.

    words: what its files are called.  claims: whether a folder with these files and folders in it is a run.
    file: whether a file of this name stands for the folder that it is in.  alone: whether no runs are below a run.
    """

    kind: str
    words: str
    claims: Callable[[Path, list[str], list[str]], bool]
    file: Callable[[str], bool]
    opens: Callable[[Path], GatheredStore]
    alone: bool = True


def _never(_: str) -> bool:
    return False


FORMATS = (
    Format(
        tensorboard.KIND,
        "event files of TensorBoard",
        tensorboard.claims,
        tensorboard.is_event_file,
        tensorboard.TensorBoardStore,
        alone=False,
    ),
    Format(
        csvlogger.KIND,
        "folders of Lightning's CSVLogger",
        csvlogger.claims,
        csvlogger.is_file,
        csvlogger.CsvLoggerStore,
        alone=False,
    ),
    Format(wandb.KIND, "folders of wandb", wandb.claims, wandb.is_log, wandb.WandbStore),
    Format(dvclive.KIND, "folders of DVCLive", dvclive.claims, _never, dvclive.DvcLiveStore),
    Format(trackio.KIND, "projects of Trackio", trackio.claims, _never, trackio.TrackioStore),
    Format(sacred.KIND, "runs of Sacred", sacred.claims, sacred.is_file, sacred.SacredStore),
)


def find(root: Path) -> dict[str, list[Path]]:
    """The folders of runs below a folder, or the folder itself, by what recorded them: see `Format.kind`.

    Stores of MLflow among them are found, as `mlflow`, and not looked into.
    """
    found: dict[str, list[Path]] = {}
    for folder, names, folders in islice(walk(root, lambda *_: None), _MOST):
        if folder != root and META in names:
            found.setdefault("mlflow", []).append(folder.parent)
        elif any(name in names for name in _MLFLOW):
            found.setdefault("mlflow", []).append(folder)
        for one in FORMATS:
            if one.claims(folder, names, folders):
                found.setdefault(one.kind, []).append(folder)
                folders[:] = [] if one.alone else folders
    return found


def open_folder(root: Path) -> GatheredStore | None:
    """The store that a folder is; None where no known tracker recorded in it.

    Raises BadInputError where there are several kinds, with words on what to name instead.
    """
    found = find(root)
    both = found.get(csvlogger.KIND, [])
    twice = bool(both) and set(both) <= set(found.get(tensorboard.KIND, ()))
    if twice:  # Lightning wrote both, and only the events have times
        del found[csvlogger.KIND]
    here = [one for one in FORMATS if one.kind in found]
    if not here:
        return None
    if len(found) > 1:
        said = [f"{one.words} ({_some(found[one.kind])})" for one in here]
        said += [f"runs of MLflow ({_some(found['mlflow'])})"] if "mlflow" in found else []
        raise BadInputError(
            f"{root} holds more than one kind of recording: {', '.join(said)}.",
            "name the folder, or one of the files, of the kind that is meant; then the other, if its runs are others.",
        )
    store = here[0].opens(root)
    if twice:
        what = f"the {csvlogger.METRICS} beside the event files are taken for records of the same runs and left out"
        store.found.warning(root, what)
    return store


def open_file(path: Path) -> GatheredStore | None:
    """The store of the folder that a file stands for; None where the file is none of a known tracker's."""
    one = of_file(path)
    return one.opens(path.parent) if one else None


def of_file(path: Path) -> Format | None:
    """Which tracker names its files so."""
    return next((one for one in FORMATS if one.file(path.name)), None)


def is_file(path: Path) -> bool:
    """Whether a file stands for runs of a known tracker."""
    return of_file(path) is not None or trackio.is_project(path)


def open_database(path: Path) -> GatheredStore | None:
    """The store that a SQLite file is; None where no known tracker wrote it."""
    return trackio.TrackioStore(path) if trackio.is_project(path) else None


def is_foreign(root: Path) -> bool:
    """Whether a folder is or holds runs of a known tracker."""
    return any(one.kind in find(root) for one in FORMATS)


def _some(folders: Iterable[Path]) -> str:
    names = [str(one) for one in dict.fromkeys(folders)]
    return ", ".join(names[:_NAMED]) + ", ..." * (len(names) > _NAMED)
