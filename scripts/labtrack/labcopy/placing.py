"""Putting the files of an export where they belong: all of them, whenever the process dies.

They are collected in private/<lab>/.import first.  Once a list of what is to happen is there too, it happens: by this
call, or, after a crash, by the next one.  Before that, what was collected is thrown away.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from labtrack import files
from labtrack.envfile.register import now
from labtrack.errors import LabtrackError
from labtrack.lab import Lab
from labtrack.labcopy import content
from labtrack.labcopy.content import Files

FOLDER = ".import"
_LIST = "list.json"
ASIDE = ".replaced"


def place(lab: Lab, take: Files, drop: Iterable[str] = (), *, keep_old: bool = False) -> Path | None:
    """Puts files into the lab's folders and takes others away.

    keep_old: what is written over or taken away is put aside first; gives the folder where.
    Raises LabtrackError when the disk is full; then nothing has changed.
    """
    finish(lab)
    folder = lab.private / FOLDER
    drop = list(drop)
    if not take and not drop:
        return None
    files.make_private_folder(folder)
    aside = lab.private / ASIDE / now().replace(":", "")
    olds = [name for name in (*take, *drop) if content.place_of(lab, name).is_file()] if keep_old else []
    for name in olds:
        old = aside / name
        files.make_private_folder(old.parent)
        files.write_private(old, content.place_of(lab, name).read_bytes())
    numbers = {name: str(number) for number, name in enumerate(take)}
    try:
        for name, number in numbers.items():
            files.write_private(folder / number, take[name])
        files.write_private(folder / _LIST, json.dumps({"take": numbers, "drop": drop}).encode())
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finish(lab)
    return aside if olds else None


def finish(lab: Lab) -> bool:
    """Ends what a call has begun that died; whether there was such a thing."""
    folder = lab.private / FOLDER
    if not folder.is_dir():
        return False
    try:
        todo = json.loads((folder / _LIST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        shutil.rmtree(folder)
        return True
    except (OSError, ValueError) as error:
        raise LabtrackError(
            f"{folder / _LIST} can't be read ({error}).", f"remove {folder}, then import again."
        ) from None
    for name, number in todo["take"].items():
        path = content.place_of(lab, name)
        files.make_private_folder(path.parent)
        write = files.write_whole if name == content.HOSTS else files.write_private  # it has no secret, and git has it
        write(path, (folder / number).read_bytes())
    for name in todo["drop"]:
        path = content.place_of(lab, name)
        path.unlink(missing_ok=True)
        if path.parent != lab.private and path.parent.is_dir() and not any(path.parent.iterdir()):
            path.parent.rmdir()
    (folder / _LIST).unlink()
    shutil.rmtree(folder)
    return True
