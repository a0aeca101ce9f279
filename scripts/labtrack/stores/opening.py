"""From what a person writes to the store that is meant."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from labtrack.errors import BadInputError
from labtrack.stores.database import HEADER
from labtrack.stores.files import FileStore
from labtrack.stores.folders import META, holds_experiments, holds_runs
from labtrack.stores.portable import PortableStore
from labtrack.stores.reports import ReportsStore, folders_of_reports
from labtrack.stores.sqlite import SqliteStore

if TYPE_CHECKING:
    from labtrack.stores.model import Store

# what MLflow, JupyterHub's launchers and Anemoi name their files, in the order in which they are looked for
_DATABASES = ("mlflow.db", "mlruns.db")
_FOLDERS = ("mlruns", "mlflow")  # Anemoi: <logs>/mlflow
_ZIP = b"PK\x03\x04"
_OTHER_DATABASES = ("postgresql", "mysql", "mssql", "oracle")


def open_store(where: str | os.PathLike[str]) -> Store:
    """Opens a recording for reading.

    where: `sqlite:////abs/file.db`, `file:///…`, a path to a SQLite file or a folder with one, an mlruns folder or a
    folder with one, a file that `labtrack export` wrote, a folder of reports, a tracking server's `https://…`.
    Raises BadInputError where there is no store, or more than one, with words on what to name instead.
    """
    text = os.fspath(where).strip()
    if not text:
        raise BadInputError(
            "No store was named.", "name a SQLite file, an mlruns folder or a server's https:// address."
        )
    scheme = _scheme(text)
    if scheme == "sqlite":
        return _of_file(_sqlite_path(text), text)
    if scheme in ("http", "https"):
        from labtrack.stores.server import ServerStore

        return ServerStore(text)
    if scheme.split("+")[0] in _OTHER_DATABASES:
        raise BadInputError(
            f"{scheme}:// is a server's own database, which is not read directly.",
            "name the address of the tracking server in front of it: https://…",
        )
    if scheme and scheme != "file":
        raise BadInputError(f"{scheme}:// is not a place for recorded runs.", "name a path, sqlite:///… or https://…")
    path = Path(unquote(urlsplit(text).path)) if scheme == "file" else Path(text).expanduser()
    return _of_path(path, text)


def is_portable(path: Path) -> bool:
    """Whether `path` is for `labtrack import`: a zip, or a folder of reports; also what isn't there, to be told so."""
    return not path.exists() or _starts_with(path, _ZIP) or (path.is_dir() and bool(folders_of_reports(path)))


def _scheme(text: str) -> str:
    found = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]*):/", text)
    return found[1].lower() if found else ""


def _sqlite_path(text: str) -> Path:
    """The file of a SQLAlchemy address: three slashes and a relative path, or four and an absolute one."""
    rest = text.split(":", 1)[1]
    if not rest.startswith("///"):
        raise BadInputError(
            f"{text} has too few slashes: what stands after `sqlite://` is a host, and there is none.",
            f"sqlite:///{rest.lstrip('/')} for a path from here, sqlite:////… for an absolute one.",
        )
    name = unquote(rest[3:].partition("?")[0])
    if not name or name == ":memory:":
        raise BadInputError(f"{text} names no file.", "sqlite:////abs/path/mlflow.db")
    return Path(name)


def _of_path(path: Path, text: str) -> Store:
    try:
        if path.is_dir():
            return _of_folder(path)
    except OSError as error:
        raise BadInputError(f"{path} can't be looked at: {error.strerror}.", f"look at `ls -ld {path}`.") from error
    return _of_file(path, text)


def _of_file(path: Path, text: str) -> Store:
    if path.is_dir():
        raise BadInputError(
            f"{text} is a folder, not a SQLite file.", "name the file, often mlflow.db, or the folder alone."
        )
    if not path.exists():
        raise BadInputError(f"There is no {path.absolute()}.", _hint(path, text))
    if not path.is_file():
        raise BadInputError(f"{path} is not a file (a device, a pipe, a socket).", "name the file that MLflow wrote.")
    if _starts_with(path, _ZIP):
        return PortableStore(path)
    return SqliteStore(path)


def _hint(path: Path, text: str) -> str:
    if text.startswith("sqlite:///") and not text.startswith("sqlite:////") and Path("/", path).exists():
        return f"was sqlite:///{Path('/', path)} meant? An absolute path needs four slashes."
    if re.fullmatch(r"[\w.-]+\.[\w.-]+(:\d+)?(/.*)?", text) and not text.endswith(".db"):
        return f"if it is a server: https://{text}"
    if path.parent.is_dir():
        there = sorted(one.name for one in path.parent.iterdir() if one.suffix == ".db" or one.name == "mlruns")
        return f"in {path.parent.absolute()} there is {', '.join(there)}." if there else "is the path right?"
    return f"there is no folder {path.parent.absolute()} either; is the file system mounted here?"


def _of_folder(folder: Path) -> Store:
    """The one store that a folder is or holds."""
    places = [folder, *(folder / name for name in _FOLDERS)]
    databases = [place / name for place in places for name in _DATABASES if (place / name).is_file()]
    if not databases:
        databases = [path for path in sorted(folder.glob("*.db")) if _starts_with(path, HEADER)]
    folders = [place for place in places if holds_experiments(place)]
    if databases or len(folders) > 1:  # MLflow's page makes an empty mlruns folder beside a database
        folders = [place for place in folders if holds_runs(place)] or folders[: not databases]
    found = [*databases, *folders]
    if len(found) > 1:
        names = ", ".join(str(path) for path in found)
        raise BadInputError(f"{folder} holds more than one store: {names}.", "name one of them, and then the other.")
    if found:
        return FileStore(found[0]) if folders else SqliteStore(found[0])
    if folders_of_reports(folder):
        return ReportsStore(folder)
    raise BadInputError(f"{folder} holds no runs of MLflow: no mlflow.db, and no experiments.", _where_instead(folder))


def _where_instead(folder: Path) -> str:
    whole = folder.absolute()
    for above in (whole, *list(whole.parents)[:2]):
        if (above / META).is_file() and holds_experiments(above.parent):
            return f"{folder} is a part of a store: name {above.parent}."
    if any(holds_experiments(one) for one in folder.glob("*/mlruns")):
        return f"there are stores further down: {', '.join(sorted(str(one) for one in folder.glob('*/mlruns')))}"
    return "name the folder that was MLflow's tracking location, often `mlruns`, or the SQLite file."


def _starts_with(path: Path, head: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(head)) == head
    except OSError:
        return False
