"""`labtrack doctor --cluster`: can jobs record here, and does what they record stay whole?

Everything is looked at at once, and what has not answered in time is a finding: this may stand in a job's prologue.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote

from labtrack.doctor import bounded, locks, site
from labtrack.doctor import folder as folders
from labtrack.doctor.bounded import Group
from labtrack.doctor.context import Context
from labtrack.doctor.result import Result, failed, skipped
from labtrack.errors import BadInputError

SECONDS = 2.2
_ANSWER = 1.8  # seconds that a server or a gateway has


def folder_of(env: Mapping[str, str]) -> str:
    """Where jobs record with these variables: the folder of MLFLOW_TRACKING_URI, or this one."""
    uri = env.get("MLFLOW_TRACKING_URI", "")
    for scheme in ("labtrack://", "file://", "sqlite:///"):
        if uri.startswith(scheme):
            path = unquote(uri[len(scheme) :].partition("?")[0]) or "."
            return os.path.dirname(path) or "." if scheme == "sqlite:///" else path  # noqa: PTH120
    return uri if uri and "://" not in uri else "."


def examine(folder: Path, env: Mapping[str, str] | None = None, seconds: float | None = None) -> Iterator[Result]:
    """All checks of a folder and what is around it, in at most so many seconds, or SECONDS.

    Raises BadInputError where this system can't do that.
    """
    if not hasattr(os, "fork"):
        raise BadInputError(
            "A cluster is not looked at from here.", "run this on the cluster: labtrack doctor --cluster"
        )
    env = dict(os.environ) if env is None else env
    place = folders.Place(folder, None, env)
    gateways = site.Gateways(env)
    temporary = Path(env.get("TMPDIR") or "/tmp")  # noqa: S108  gettempdir() would look at it
    groups = [
        Group("folder", functools.partial(folders.check, place), functools.partial(_hangs, folder)),
        Group(locks.BETWEEN, functools.partial(locks.between, folder, env), _no_answer("srun", locks.BETWEEN)),
        Group("quota", functools.partial(folders.quota, place), _no_answer("the quota", "quota")),
        Group("TMPDIR", functools.partial(site.temporary, env), functools.partial(_hangs, temporary)),
        Group("proxies", functools.partial(site.proxies, env), _no_answer("nothing", "proxies")),
        Group("modules", functools.partial(site.modules, env), _no_answer("Python's packages", "modules")),
        Group("container", functools.partial(site.container, folder, env), _no_answer("apptainer", "container")),
        *(
            Group("gateway", functools.partial(gateways.check, name), functools.partial(_silent, name))
            for name in gateways.names()
        ),
        Group("clock", functools.partial(site.clock, Context(env, timeout=_ANSWER)), _no_answer("the server", "clock")),
    ]  # fmt: skip
    yield from bounded.examine(groups, SECONDS if seconds is None else seconds)


def _hangs(folder: Path, doing: str, seconds: float) -> Result:
    seen = f"{folder} has not answered for {seconds:.1f} s ({doing or 'not begun'}): its file system hangs"
    return failed(
        "folder", seen, "tell the site's support; until then record elsewhere, for instance in $SLURM_TMPDIR."
    )


def _silent(name: str, doing: str, seconds: float) -> Result:
    hint = f"try `ssh -o BatchMode=yes {name} exit`; a jump host or ControlMaster in ~/.ssh/config may make it quicker."
    return failed("gateway", f"{name} has not answered for {seconds:.1f} s", hint)


def _no_answer(who: str, check: str) -> functools.partial[Result]:
    return functools.partial(_late, check, who)


def _late(check: str, who: str, doing: str, seconds: float) -> Result:
    return skipped(check, f"{who} has not answered within {seconds:.1f} s ({doing or 'not begun'})")
