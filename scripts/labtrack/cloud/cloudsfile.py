"""clouds.yaml as people write it: what is wrong in it is told before OpenStack's libraries stumble over it."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import yaml
from openstack.config import loader

from labtrack.errors import BadInputError

_KINDS = {
    type(None): "nothing", bool: "yes or no", int: "a number", float: "a number", datetime.date: "a date",
    datetime.datetime: "a date", dict: "a mapping", list: "a list",
}  # fmt: skip
_SHAPE = "it looks like: clouds: {NAME: {auth: {auth_url: https://..., username: ..., ...}}}"


def check(named: Path | str | None, entry: str) -> None:
    """Looks at the file, or at the one that OpenStack's tools find without a name, and at one entry of it.

    That there is no file or no such entry is left to others; the files that are read beside it must be YAML, too.
    Raises BadInputError.
    """
    for other in filter(_is_file, map(Path, (*loader.SECURE_FILES, *loader.VENDOR_FILES))):
        _read(other)
    file = _found(named)
    if file is None:
        return
    data = _read(file)
    clouds = data.get("clouds") if isinstance(data, dict) else {}
    if not isinstance(clouds, dict):
        raise BadInputError(f"`clouds` in {file} is no mapping of names to entries.", _SHAPE)
    if entry in clouds:
        _look(clouds[entry], f"The entry {entry} of {file}")


def entries(named: Path | str | None) -> list[str]:
    """The names of the entries of the file, or of the one that OpenStack's tools find without a name.

    Empty where there is no such file.  Raises BadInputError.
    """
    file = _found(named)
    data = _read(file) if file else {}
    clouds = data.get("clouds") or {} if isinstance(data, dict) else {}
    if not isinstance(clouds, dict):
        raise BadInputError(f"`clouds` in {file} is no mapping of names to entries.", _SHAPE)
    return [str(name) for name in clouds]


def _found(named: Path | str | None) -> Path | None:
    return next(filter(_is_file, map(Path, [named] if named else loader.CONFIG_FILES)), None)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # in a folder that is closed to us
        return False


def _read(file: Path) -> Any:
    try:
        return yaml.safe_load(file.read_bytes().decode())
    except OSError as error:
        raise BadInputError(f"{file} can't be read: {error.strerror}.", f"ls -l {file}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise BadInputError(
            f"{file} is not written as UTF-8: byte 0x{error.object[error.start]:02x} in line {line}.",
            "save it as UTF-8.",
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        what = getattr(error, "problem", None) or str(error)
        raise BadInputError(
            f"{file} is no YAML{where}: {what}.", "YAML indents with spaces, never with tabs, and by the same number."
        ) from None


def _look(entry: Any, what: str) -> None:
    if not isinstance(entry, dict):
        raise BadInputError(f"{what} is empty." if entry is None else f"{what} is no mapping.", _SHAPE)
    auth = entry.get("auth", {})
    if not isinstance(auth, dict):
        raise BadInputError(f"{what} has an empty `auth`, or one that is no mapping.", _SHAPE)
    for name, value in auth.items():
        if not isinstance(value, str):
            kind = _KINDS.get(type(value), "no text")
            raise BadInputError(f"{what}: auth.{name} is {kind} for YAML, and text is meant.", "put it in quotes.")
    if not any(name.startswith("application_credential_") for name in auth):
        return
    if "auth_type" not in entry:
        raise BadInputError(
            f"{what} has an application credential, but does not say so.",
            "add `auth_type: v3applicationcredential` to it, beside `auth`.",
        )
    scope = sorted(name for name in auth if name.startswith(("project_", "tenant_")))
    if scope:
        raise BadInputError(
            f"{what} names a project for an application credential, which has its own.", f"take out {', '.join(scope)}."
        )
