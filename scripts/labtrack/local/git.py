"""The state of the code that an experiment runs: commit, branch, and what is not committed."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

_ASKED = 20.0  # seconds
_LARGEST = 10_000_000  # bytes of a diff that are kept


@dataclass(frozen=True)
class State:
    """commit: empty where there is none.  diff: what differs from it, without untracked files, which are in `new`.

    remote: where the repository is fetched from, without a login.
    """

    commit: str = ""
    branch: str = ""
    diff: str = ""
    new: tuple[str, ...] = ()
    remote: str = ""

    @property
    def dirty(self) -> bool:
        """Whether the commit alone does not give the code."""
        return bool(self.diff or self.new)

    def tags(self) -> dict[str, str]:
        """As MLflow names it, and `git.dirty`."""
        if not self.commit:
            return {}
        return {
            "mlflow.source.git.commit": self.commit,
            **({"mlflow.source.git.branch": self.branch} if self.branch else {}),
            **({"mlflow.source.git.repoURL": self.remote} if self.remote else {}),
            "git.dirty": str(self.dirty).lower(),
        }


def state(folder: Path) -> State:
    """The state of the repository that a folder is in; empty where it is in none, or git is not here."""
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    if not commit:
        return State()
    return State(
        commit,
        _git(folder, "symbolic-ref", "--quiet", "--short", "HEAD"),
        _git(folder, "diff", "HEAD", "--no-color", "--no-ext-diff", "--no-textconv", strip=False)[:_LARGEST],
        tuple(_git(folder, "ls-files", "--others", "--exclude-standard").splitlines()[:1000]),
        _without_login(_git(folder, "remote", "get-url", "origin")),
    )


def _without_login(address: str) -> str:
    """`git@host:path` has no secret in it; what stands before the host in an address with a scheme may be one."""
    return re.sub(r"^([A-Za-z][A-Za-z0-9+.-]*://)[^/]*@", r"\1", address)


def _git(folder: Path, *arguments: str, strip: bool = True) -> str:
    command = ["git", "-C", str(folder), "--no-optional-locks", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, check=True, timeout=_ASKED, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError):
        return ""
    said = done.stdout.decode("utf-8", "replace")
    return said.strip() if strip else said
