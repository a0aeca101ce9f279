"""`labtrack project init`: a project whose recordings git leaves alone."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from labtrack.errors import BadInputError, LabtrackError
from labtrack.files import write_whole

IGNORED = ("mlflow.db", "*.db-shm", "*.db-wal", "mlruns/", "mlartifacts/", ".mlflow/")
BEGIN, END = "# >>> labtrack: what MLflow records here", "# <<< labtrack"
_TARGETS = """.PHONY: mlflow-ui clean
mlflow-ui: ## MLflow's pages over what is recorded here
\tlabtrack ui .
clean: ## remove what is recorded here
\tlabtrack clean .
"""


@dataclass(frozen=True)
class Made:
    """What was done.

    ignore, makefile: the files, None where nothing had to be changed in them.  targets: lines for a Makefile that
    were not written.  tracked: what git has already committed of what is to be ignored.
    """

    ignore: Path | None
    makefile: Path | None
    targets: str
    tracked: tuple[str, ...]


def init(folder: Path, *, make: bool = False) -> Made:
    """Has git ignore what MLflow records in a folder; what its .gitignore has already stays as it is.

    make: also puts the targets mlflow-ui and clean into its Makefile.
    Raises BadInputError where there is no such folder or the Makefile has other targets of that name.
    """
    if not folder.is_dir():
        raise BadInputError(f"There is no folder {folder.absolute()}.", "name the project's folder.")
    makefile = next((one for one in (folder / "Makefile", folder / "makefile") if one.is_file()), folder / "Makefile")
    targets, has = _read(makefile), _block(_TARGETS)
    if make and has not in targets:
        own = [line for line in targets.splitlines() if line.startswith(("mlflow-ui:", "clean:"))]
        if own:
            raise BadInputError(
                f"{makefile} has a target of its own: {own[0]}", f"leave --make away and add by hand:\n{_TARGETS}"
            )
    ignore = folder / ".gitignore"
    before = _read(ignore)
    after = _with_block(before, "\n".join(IGNORED) + "\n") if _missing(before) else before
    if after != before:
        write_whole(ignore, after.encode())
    if make and has not in targets:
        write_whole(makefile, _with_block(targets, _TARGETS).encode())
    return Made(
        ignore if after != before else None, makefile if make and has not in targets else None,
        "" if make or has in targets else _TARGETS, _tracked(folder),
    )  # fmt: skip


def _missing(text: str) -> list[str]:
    lines = {line.strip().lstrip("/") for line in text.splitlines()}
    return [one for one in IGNORED if one not in lines and one.rstrip("/") not in lines]


def _block(body: str) -> str:
    return f"{BEGIN}\n{body}{END}\n"


def _with_block(text: str, body: str) -> str:
    """The text with the block in the place of an older one, or at its end."""
    lines = text.splitlines(keepends=True)
    marks = [line.rstrip("\r\n") for line in lines]
    if BEGIN in marks and END in marks[marks.index(BEGIN) :]:
        first = marks.index(BEGIN)
        last = marks.index(END, first)
        return "".join(lines[:first]) + _block(body) + "".join(lines[last + 1 :])
    gap = "" if not text else "\n" if text.endswith("\n") else "\n\n"
    return text + gap + _block(body)


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError:
        raise BadInputError(f"{path} is not UTF-8, and is left alone.", "save it as UTF-8.") from None
    except OSError as error:
        raise LabtrackError(f"{path} can't be read: {error.strerror}.", f"look at `ls -ld {path}`.") from error


def _tracked(folder: Path) -> tuple[str, ...]:
    """What of the ignored git has already: it goes on with these."""
    command = ["git", "-C", str(folder), "ls-files", "-z", "--", *IGNORED]
    try:
        done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):  # no git here, or no repository
        return ()
    return tuple(sorted({name.decode("utf-8", "replace") for name in done.stdout.split(b"\0") if name}))
