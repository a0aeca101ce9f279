"""Walking a recording's folders, where nothing that can't be read is passed over in silence."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

Tells = Callable[[Path, str], None]  # a place that can't be read, and why
# what desktops, editors and NFS leave in folders: nobody's data
_CLUTTER = re.compile(
    r"\.DS_Store|\._.*|Thumbs\.db|[Dd]esktop\.ini|\.directory|\.nfs.*|.*~|\.?.*\.sw[op]|\.fuse_hidden.*|\.__afs.*"
)
_NFS = re.compile(r"\.nfs[0-9a-f]{16,}|\.fuse_hidden[0-9a-f]+")  # deleted, and still open in some program


def is_clutter(name: str) -> bool:
    """Whether a file or folder among parameters, tags, metrics or experiments is nobody's."""
    return _CLUTTER.fullmatch(name) is not None


def is_deleted(name: str) -> bool:
    """Whether a file is one that was deleted while a program had it open."""
    return _NFS.fullmatch(name) is not None


def subfolders(folder: Path, tells: Tells) -> list[Path]:
    """The folders in a folder, links to folders among them, sorted; none where there is no such folder."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_clutter(entry.name):
                    continue
                path = folder / entry.name
                if _is_folder(entry, path, tells):
                    found.append(path)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        tells(folder, f"can't be read: {error.strerror}")
    return sorted(found)


def _is_folder(entry: os.DirEntry[str], path: Path, tells: Tells) -> bool:
    try:
        if entry.is_symlink() and not path.exists():
            tells(path, f"is a link to {path.readlink()}, which is not there")
            return False
        return entry.is_dir()
    except OSError as error:
        tells(path, f"can't be read: {error.strerror}")
        return False


def files(folder: Path, tells: Tells) -> Iterator[Path]:
    """All files below a folder, and links to folders, which are not entered; no order."""

    def failed(error: OSError) -> None:
        if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
            tells(Path(error.filename or folder), f"can't be read: {error.strerror}")

    for place, folders, names in os.walk(folder, onerror=failed):
        here = Path(place)
        yield from (here / name for name in names)
        yield from (here / name for name in folders if (here / name).is_symlink())  # os.walk does not enter them


def is_readable(path: Path, how: int = os.R_OK) -> bool:
    """Whether this process may read it, as far as the file system tells beforehand."""
    return os.access(path, how, effective_ids=os.access in os.supports_effective_ids)


def is_file(path: Path) -> bool:
    """Whether there is such a file, as far as that can be seen."""
    return os.path.isfile(path)  # noqa: PTH113  Path.is_file raises where the folder may not be looked into


def is_folder(path: Path) -> bool:
    """Whether there is such a folder, as far as that can be seen."""
    return os.path.isdir(path)  # noqa: PTH112
