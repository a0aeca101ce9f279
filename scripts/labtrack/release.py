"""The kit's releases, and which one a lab was deployed with."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from labtrack import __version__, files
from labtrack.errors import BadInputError
from labtrack.lab import Lab

LIST = Path(__file__).resolve().parents[2] / "releases.yml"
FILE = "kit.json"  # in private/<lab>, so that it goes to the other admins with the lab's files


class Release(NamedTuple):
    """A line of releases.yml.  through: why it has to be deployed on the way to a later one, or empty."""

    version: str
    date: str
    commit: str
    through: str = ""


def releases(path: Path = LIST) -> tuple[Release, ...]:
    """All of them, the oldest first."""
    import yaml

    return tuple(Release(**{key: str(value) for key, value in one.items()}) for one in yaml.safe_load(path.read_text()))


def deployed(lab: Lab) -> str:
    """The version that the lab was last deployed with; empty where none is known.  Raises BadInputError."""
    from packaging.version import InvalidVersion, Version

    file = lab.private / FILE
    try:
        return str(Version(json.loads(file.read_text())["version"]))
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, TypeError, InvalidVersion) as error:
        raise BadInputError(
            f"{file} does not say with which version of the kit the lab was deployed: {error}.",
            f"remove it (rm {file}); the server's copy is taken over by the next run, or the deploy writes it anew.",
        ) from None


def check(lab: Lab, own: str = __version__, known: Iterable[Release] | None = None, *, older: bool = False) -> None:
    """Raises BadInputError where this kit must not deploy what the lab has.

    older: the lab was deployed with a later version, and that is meant.
    """
    from packaging.version import Version

    there = deployed(lab)
    if not there:
        return
    if Version(there) > Version(own) and not older:
        raise BadInputError(
            f"The lab was deployed with version {there} of the kit, and this is {own}.",
            "`git pull`. If the older one is meant, and its MLflow knows the databases: -e allow_older_kit=true.",
        )
    for one in releases() if known is None else known:
        if one.through and Version(there) < Version(one.version) < Version(own):
            raise BadInputError(
                f"The lab was deployed with version {there} of the kit, and {one.version} has to be deployed"
                f" before {own}: {one.through}",
                f"`git checkout {one.commit}`, deploy, and come back (`git checkout -`).",
            )


def note(lab: Lab) -> bool:
    """Keeps the version that the lab was deployed with; whether it is another than before."""
    file = lab.private / FILE
    text = json.dumps({"version": __version__}) + "\n"
    if file.is_file() and file.read_text() == text:
        return False
    files.write_private(file, text.encode())
    return True
