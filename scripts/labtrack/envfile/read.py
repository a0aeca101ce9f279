"""Looking at an mlflow_env.sh without running it."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from labtrack.doctor.result import Result, Status, failed, ok, skipped, warning
from labtrack.errors import BadInputError
from labtrack.files import OTHERS_CAN_WRITE
from labtrack.tracking import address

COMPLETE = "# labtrack: complete, sha256 "
REQUIRED = ("LABTRACK_LAB", "MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
_EXPORT = re.compile(r"(?ms)^ *export ([A-Z0-9_]+)=((?:'[^']*'|\"'\"|[A-Za-z0-9@%+=:,./_-])*)$")
_WRITTEN = re.compile(r"(?m)^# Written: +(\S+)")
_CHECK = "file"


@dataclass(frozen=True)
class EnvFile:
    """A file as it is on disk: the variables it exports, and when its credentials were made."""

    path: Path
    data: bytes = field(repr=False)
    variables: dict[str, str] = field(repr=False)
    written: str

    @property
    def user(self) -> str:
        """For whom it is."""
        return self.variables.get("MLFLOW_TRACKING_USERNAME", "")

    @property
    def access(self) -> str:
        """The access key in it; empty where artifacts go through the server."""
        return self.variables.get("AWS_ACCESS_KEY_ID", "")


def parse(path: Path, data: bytes) -> EnvFile:
    """The variables of a file's content; values are unquoted as a shell would, nothing is run."""
    text = data.decode("utf-8", errors="replace")
    variables = {name: "".join(shlex.split(value)) for name, value in _EXPORT.findall(text)}
    written = _WRITTEN.search(text)
    return EnvFile(path, data, variables, written.group(1) if written else "")


def read_envfile(path: Path) -> EnvFile:
    """A file's variables, whoever it belongs to.  Raises BadInputError when it can't be read."""
    try:
        return parse(path, path.read_bytes())
    except OSError as error:
        raise BadInputError(f"{path} can't be read: {error.strerror}.", "name the file that labtrack wrote.") from None


def check(path: Path) -> list[Result]:
    """Everything that can be said about a file without the network, and without running it."""
    found = list(_place(path))
    if any(result.status is Status.FAILED for result in found):
        return found
    return found + list(_content(path)) + list(_git(path))


def load(path: Path) -> EnvFile | None:
    """A file that the kit may go on with, or None when there is none.

    Raises BadInputError for a file of another owner, a link, a wrong mode, a truncated or edited one.
    """
    if not path.is_symlink() and not path.exists():
        return None
    for result in check(path):
        if result.status in (Status.FAILED, Status.WARNING):
            raise BadInputError(result.seen, result.hint)
    return parse(path, path.read_bytes())


def refuse_tracked(path: Path) -> None:
    """Raises BadInputError when git tracks `path`, or would with the next `git add`."""
    for result in _git(path):
        raise BadInputError(result.seen, result.hint)


def _place(path: Path) -> Iterator[Result]:
    try:
        found = path.lstat()
    except OSError as error:
        yield failed(_CHECK, f"{path}: {error.strerror}.", "name the file: labtrack env check FILE")
        return
    if stat.S_ISLNK(found.st_mode):
        hint = "name the file itself, or move it here in place of the link."
        yield failed(_CHECK, f"{path} is a symbolic link to {path.readlink()}.", hint)
    elif not stat.S_ISREG(found.st_mode):
        yield failed(_CHECK, f"{path} is not a regular file.", "remove it.")
    elif not hasattr(os, "geteuid"):
        yield skipped("file mode", "this system has no owners and modes as Unix has")
    elif found.st_uid != os.geteuid():
        hint = "nobody but you should own your credentials: remove it (or have it removed) and get a new one."
        yield failed(_CHECK, f"{path} belongs to another user (uid {found.st_uid}).", hint)
    elif stat.S_IMODE(found.st_mode) & 0o177:
        yield failed(
            _CHECK,
            f"{path} can be read or changed by others ({stat.filemode(found.st_mode)}), and it is a password.",
            f"chmod 600 {path}; if the machine has other users, also: labtrack env rotate --leaked",
        )
    elif path.parent.stat().st_mode & OTHERS_CAN_WRITE:
        yield failed(_CHECK, f"Others can write to its folder {path.parent}.", f"chmod go-w {path.parent}")
    else:
        yield ok("file mode", f"{path} is yours alone")


def _content(path: Path) -> Iterator[Result]:
    data = path.read_bytes()
    again = "get it again from the lab's admin (who runs `labtrack env create`, with --force over a damaged file)."
    if b"\r\n" in data:
        hint = f"sed -i 's/\\r$//' {path}, and copy it with scp instead of an editor."
        yield failed(_CHECK, f"{path} has Windows line ends, which shells take into the values.", hint)
        return
    body, mark, last = data.rpartition(COMPLETE.encode())
    if not mark:
        yield failed(_CHECK, f"{path} is truncated, or not a file of labtrack: its last line is missing.", again)
        return
    env = parse(path, data)
    missing = [name for name in REQUIRED if not env.variables.get(name)]
    if missing:
        yield failed(_CHECK, f"{path} sets no {', '.join(missing)}.", again)
        return
    try:
        address.parse(env.variables["MLFLOW_TRACKING_URI"], "MLFLOW_TRACKING_URI", "export MLFLOW_TRACKING_URI={}")
    except BadInputError as error:
        yield failed(_CHECK, f"In {path}: {error.what}", error.hint)
        return
    if hashlib.sha256(body).hexdigest().encode() + b"\n" != last:
        hint = "keep your own settings in a file of your own that sources this one; " + again
        yield warning(_CHECK, f"{path} was edited after labtrack wrote it.", hint)
    else:
        key = f", key {env.access}" if env.access else ""
        seen = f"complete: lab {env.variables['LABTRACK_LAB']}, {env.user}{key}, written {env.written}"
        yield ok("file content", seen)


def _git(path: Path) -> Iterator[Result]:
    # absolute, but not resolved: what git sees is the name, not what a link points to
    path = path.absolute()
    if not any((folder / ".git").exists() for folder in path.parents):
        return
    why = _git_says(path)
    if why:
        yield failed(
            _CHECK,
            f"{path} {why}, and it is a password.",
            f"put {path.name} into .gitignore, or the file outside the repository "
            "(if it was committed: labtrack env rotate --leaked).",
        )


def _git_says(path: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*arguments: str) -> int:
        command = ["git", "-C", str(path.parent), *arguments]
        return subprocess.run(command, capture_output=True, check=False, env=environment).returncode

    try:
        if git("rev-parse", "--is-inside-work-tree"):
            return "is in a git repository that git does not let you ask"
        if not git("ls-files", "--error-unmatch", "--", path.name):
            return "is tracked by git"
        return "" if not git("check-ignore", "-q", "--", path.name) else "would be tracked by git"
    except FileNotFoundError:
        return "is in a git repository, and there is no git here to ask whether it ignores the file"
