"""From what a person writes to the store that is meant."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from labtrack.errors import BadInputError, LabtrackError
from labtrack.stores import journals, tree
from labtrack.stores.database import HEADER, Database
from labtrack.stores.files import FileStore
from labtrack.stores.folders import META, holds_experiments, holds_runs
from labtrack.stores.foreign import formats
from labtrack.stores.portable import PortableStore
from labtrack.stores.recordings import RecordingsStore
from labtrack.stores.reports import METRICS, ReportsStore, folders_of_reports
from labtrack.stores.sqlite import SqliteStore

if TYPE_CHECKING:
    from labtrack.stores.model import Store

# what MLflow, JupyterHub's launchers and Anemoi name their files, in the order in which they are looked for
_DATABASES = ("mlflow.db", "mlruns.db")
_FOLDERS = ("mlruns", "mlflow")  # Anemoi: <logs>/mlflow
_SUFFIXES = (".db", ".sqlite", ".sqlite3")
_LEVELS, _LOOKED_INTO, _LISTED = 3, 1000, 10  # how far down, and among how many folders, stores are looked for
_ZIP = b"PK\x03\x04"
_OTHER_DATABASES = ("postgresql", "mysql", "mssql", "oracle")


def open_store(where: str | os.PathLike[str]) -> Store:
    """Opens a recording for reading.

    where: `sqlite:////abs/file.db`, `labtrack:///…`, `file:///…`, `file:./mlruns`, a path to a SQLite file or a folder
    with one, an mlruns folder or a folder with one, a folder of recordings, a file that `labtrack export` wrote,
    a folder of reports, a tracking server's `https://…`; `ssh://host/path`, of which a copy is brought up to date.
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
    if scheme == "ssh":
        return open_store(pulled(text))
    if scheme in ("http", "https"):
        from labtrack.stores.server import ServerStore

        return ServerStore(text)
    if scheme.split("+")[0] in _OTHER_DATABASES:
        raise BadInputError(
            f"{scheme}:// is a server's own database, which is not read directly.",
            "name the address of the tracking server in front of it: https://…",
        )
    if scheme == "labtrack":
        return _of_recordings(text)
    if scheme and scheme != "file":
        raise BadInputError(
            f"{scheme}:// is not a place for recorded runs.", "name a path, sqlite:///…, https://… or ssh://…"
        )
    path, host = _path_of_address(text) if scheme == "file" else (Path(text).expanduser(), "")
    if host and not path.exists():
        raise BadInputError(
            f"{text} names a host called {host}, and there is no folder {path.absolute()} either.",
            f"three slashes stand before an absolute path: file:///{text[len('file://') :]}",
        )
    store = _of_path(path, text)
    if host:
        store.found.warning(
            text, f"{host} stands where a host's name does, and is read as the folder {path.absolute()}"
        )
    return store


def is_portable(path: Path) -> bool:
    """Whether `path` is for `labtrack import`; also what isn't there, to be told so.

    That is a zip, reports or another tracker's files, but not what `labtrack sync` is for, whatever is in that.
    """
    if not tree.is_folder(path):
        return not path.exists() or _starts_with(path, _ZIP) or formats.is_file(path) or path.name == METRICS
    return not (_stores_in(path) or _store_around(path)) and bool(folders_of_reports(path) or formats.is_foreign(path))


def find_stores(where: str | os.PathLike[str]) -> list[str]:
    """The recordings that a place is or holds, each as `open_store` takes it.

    A folder may hold many, as `run-1.db`, `run-2.db`, one for each job; anything else is one.  Of another machine's
    it is the copies here, which are brought up to date first.
    Raises BadInputError where there is none.
    """
    text = pulled(os.fspath(where).strip())
    scheme = _scheme(text)
    path = _path_of_address(text)[0] if scheme == "file" else Path(text).expanduser()
    if text and scheme in ("", "file") and tree.is_folder(path):
        found = _stores_in(path)
        if len(found) > 1:
            return [str(one) for one in found]
    return [text]


def open_stores(where: str | os.PathLike[str]) -> list[Store]:
    """Opens all recordings that a place is or holds: see `find_stores` and `open_store`.  Close each of them."""
    return [open_store(one) for one in find_stores(where)]


def pulled(text: str) -> str:
    """What a source is here: of `ssh://host/path` the copy, which is brought up to date; anything else itself."""
    from labtrack.stores import pull

    return str(pull.pull(text)) if pull.is_address(text) else text


def _scheme(text: str) -> str:
    found = re.match(r"(?:([a-zA-Z][a-zA-Z0-9+.-]+):/|(file|labtrack):)", text, re.IGNORECASE)
    return (found[1] or found[2]).lower() if found else ""


def _path_of_address(text: str) -> tuple[Path, str]:
    """The path of `file:...`, and the host in it that is meant as a folder: `file://mlruns` is `mlruns`."""
    rest = unquote(text[len("file:") :])
    if not rest.startswith("//"):
        return Path(rest).expanduser(), ""
    host, slash, path = rest[2:].partition("/")
    if host.lower() in ("", "localhost"):
        return Path(f"/{path}"), ""
    return Path(f"{host}{slash}{path}").expanduser(), host


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


def _of_recordings(text: str) -> Store:
    path = unquote(text.split(":", 1)[1])
    if not path.startswith("///") and not re.match("/[^/]", path):
        raise BadInputError(
            f"{text} is not absolute.", f"labtrack:///{path.lstrip('/')}, with the whole path from / on."
        )
    root = Path("/" + path.lstrip("/"))
    if _journals(root):
        return RecordingsStore(root)
    raise BadInputError(
        f"{root} holds no recordings{'' if root.is_dir() else ': there is no such folder'}.",
        "name what MLFLOW_TRACKING_URI was in the job; if it has just begun, wait until it has logged.",
    )


def _journals(root: Path) -> bool:
    try:
        return bool(journals.journals(root))
    except OSError:
        return True  # there are some, and it is told why they can't be read


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
    if path.name == METRICS:
        return formats.open_folder(path.parent) or ReportsStore(path.parent)
    other = formats.open_file(path)  # by its name, whatever it begins with
    if other:
        return other
    if _starts_with(path, _ZIP):
        return PortableStore(path)
    try:
        return SqliteStore(path)
    except BadInputError:
        found = formats.open_database(path)
        if found is None:
            raise
        return found


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
    found = _stores_in(folder)
    if len(found) > 1:
        names = ", ".join(str(path) for path in found)
        raise BadInputError(f"{folder} holds more than one store: {names}.", "name one of them, and then the other.")
    if found:
        return _open_found(found[0])
    around = _store_around(folder)
    if around:
        raise BadInputError(f"{folder} holds no runs by itself: it is a part of a store of MLflow.", f"name {around}.")
    other = formats.open_folder(folder)
    if other:
        return other
    if folders_of_reports(folder):
        return ReportsStore(folder)
    databases = _databases_in(folder)
    if databases:
        return SqliteStore(databases[0])  # somebody else's, which is said
    raise BadInputError(
        f"{folder} holds no runs: no mlflow.db, no experiments, nothing of another tracker.", _where_instead(folder)
    )


def _open_found(path: Path) -> Store:
    if tree.is_file(path):
        return SqliteStore(path)
    return RecordingsStore(path.parent) if path.name == journals.FOLDER and _journals(path.parent) else FileStore(path)


def _stores_in(folder: Path) -> list[Path]:
    """The databases and `mlruns` folders that a folder is or holds, as MLflow's users have them."""
    places = [folder, *(folder / name for name in _FOLDERS)]
    databases = [place / name for place in places for name in _DATABASES if tree.is_file(place / name)]
    others = [path for path in _databases_in(folder) if path not in databases]
    databases += [path for path in others if is_recording(path)]
    folders = [place for place in places if holds_experiments(place)]
    if databases or len(folders) > 1:  # MLflow's page makes an empty mlruns folder beside a database
        folders = [place for place in folders if holds_runs(place)] or folders[: not databases]
    root = folder.parent if folder.name == journals.FOLDER else folder
    return [*databases, *folders, *([root / journals.FOLDER] if _journals(root) else [])]


def _databases_in(folder: Path) -> list[Path]:
    found = (path for path in folder.iterdir() if path.suffix in _SUFFIXES and not tree.is_clutter(path.name))
    return sorted(path for path in found if _starts_with(path, HEADER))


def is_recording(path: Path) -> bool:
    """Whether a SQLite file is one of MLflow's; also where that can't be seen now."""
    try:
        with SqliteStore(path):
            return True
    except BadInputError:
        try:
            with contextlib.closing(Database(path)) as found:
                return bool(found.columns("experiments") or found.columns("runs"))
        except LabtrackError:
            return True
    except LabtrackError:
        return True


def _where_instead(folder: Path) -> str:
    below = _below(folder)
    if below:
        more = f", and {len(below) - _LISTED} more" if len(below) > _LISTED else ""
        return f"there are stores further down: {', '.join(map(str, below[:_LISTED]))}{more}"
    return "name the folder that was MLflow's tracking location, often `mlruns`, or the SQLite file."


def _store_around(folder: Path) -> Path | None:
    """The mlruns folder that a folder of an experiment, of a run or of its artifacts is in."""
    whole = folder.absolute()
    for above in (whole, *list(whole.parents)[:2]):
        if tree.is_file(above / META) and holds_experiments(above.parent):
            return above.parent
    return None


def _below(folder: Path) -> list[Path]:
    """Stores in a folder's folders, and in theirs."""
    found: list[Path] = []
    level = [folder]
    for _ in range(_LEVELS):
        level = [one for above in level for one in tree.subfolders(above, lambda *_: None)][:_LOOKED_INTO]
        for one in level:
            with contextlib.suppress(BadInputError, OSError):
                if one.parent not in found:
                    found += [one] if holds_experiments(one) else [db for db in _databases_in(one) if is_recording(db)]
        level = [one for one in level if one not in found]
    return found


def _starts_with(path: Path, head: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(head)) == head
    except OSError:
        return False
