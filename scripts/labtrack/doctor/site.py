"""What a cluster puts around a job: proxies, modules, temporary files, containers, the way out."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from labtrack.doctor import network, tracking
from labtrack.doctor.bounded import doing
from labtrack.doctor.context import Context
from labtrack.doctor.result import Result, failed, ok, skipped, warning
from labtrack.errors import LabtrackError
from labtrack.stores.mounts import mount_of
from labtrack.stores.pull import ssh
from labtrack.stores.pull.address import Address
from labtrack.tracking.address import hide_login

_LOOPBACK = ("localhost", "127.0.0.1")
_ALWAYS_BOUND = ("/tmp", "/var/tmp")  # noqa: S108  what apptainer shows of itself
_BINDS = ("APPTAINER_BIND", "APPTAINER_BINDPATH", "SINGULARITY_BIND", "SINGULARITY_BINDPATH")


def proxies(env: Mapping[str, str]) -> Iterator[Result]:
    """The proxies that Python's, curl's and MLflow's requests go through."""
    found = {name: env[name] for name in ("https_proxy", "http_proxy", "all_proxy") if env.get(name)}
    found.update({name: env[name] for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
                  if env.get(name) and name.lower() not in found})  # fmt: skip
    if not found:
        yield ok("proxies", "none")
        return
    seen = ", ".join(f"{name}={hide_login(value)}" for name, value in found.items())
    both = [name for name in found if env.get(name.upper()) and env[name.upper()] != found[name]]
    if both:
        yield warning(
            "proxies", f"{both[0]} and {both[0].upper()} differ: programs go different ways", "unset one of them."
        )
    spared = [one.strip() for one in (env.get("no_proxy") or env.get("NO_PROXY") or "").split(",")]
    if "*" not in spared and not set(_LOOPBACK) <= set(spared):
        hint = f"export no_proxy={','.join([*filter(None, spared), *(one for one in _LOOPBACK if one not in spared)])}"
        yield warning("proxies", f"{seen}; what is on this machine itself would be asked there, too", hint)
        return
    host = urlsplit(env.get("MLFLOW_TRACKING_URI", "")).hostname
    to_server = (
        f"; {host} is reached through it" if host and not any(host.endswith(one) for one in spared if one) else ""
    )
    yield ok("proxies", f"{seen}{to_server}")


def modules(env: Mapping[str, str]) -> Iterator[Result]:
    """The modules that are loaded, and whether the Python environment is one for them."""
    loaded = [one for one in env.get("LOADEDMODULES", "").split(":") if one]
    if not loaded and not env.get("MODULESHOME") and not env.get("LMOD_CMD"):
        yield skipped("modules", "there is no module system here")
    else:
        yield ok("modules", ", ".join(loaded) or "none loaded")
    wanted, here = env.get("EBVERSIONPYTHON", ""), ".".join(map(str, sys.version_info[:2]))
    if wanted and env.get("VIRTUAL_ENV") and ".".join(wanted.split(".")[:2]) != here:
        seen = f"python/{wanted} is loaded, and the environment {env['VIRTUAL_ENV']} is of Python {here}"
        yield warning(
            "modules", seen, "load the module that it was made with, before you activate it; or: labtrack setup"
        )
    with contextlib.suppress(metadata.PackageNotFoundError):
        version = metadata.version("mlflow")
        if env.get("CC_CLUSTER") and not find_spec("pyarrow"):
            hint = "module load gcc arrow   (before the environment is activated)"
            yield failed(
                "modules", f"MLflow {version} needs pyarrow, which is a module on the Alliance's clusters", hint
            )


def temporary(env: Mapping[str, str]) -> Iterator[Result]:
    """Where temporary files go: copies of databases, uploads."""
    folder = Path(env.get("TMPDIR") or "/tmp")  # noqa: S108
    doing(f"look at TMPDIR, {folder}")
    mount = mount_of(folder)
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        yield failed("TMPDIR", f"{folder} can't be written to", "export TMPDIR=/tmp")
    elif mount and mount.network:
        there = next((f"${one}" for one in ("SLURM_TMPDIR", "LOCALSCRATCH") if env.get(one)), "/tmp")  # noqa: S108
        seen = f"{folder} is on {mount.kind}: every temporary file goes over the network"
        yield warning("TMPDIR", seen, f"export TMPDIR={there}")
    else:
        yield ok("TMPDIR", f"{folder}, {mount.kind if mount else 'of a type that is not known'}")


def container(folder: Path, env: Mapping[str, str]) -> Iterator[Result]:
    """Whether a container sees the folder, and by the same path."""
    inside = env.get("APPTAINER_CONTAINER") or env.get("SINGULARITY_CONTAINER")
    if inside:
        doing(f"find the file system of {folder}")
        mount = mount_of(folder)
        if mount and mount.kind in ("overlay", "squashfs"):
            yield failed("container", f"{folder} is a part of {inside}, and not outside of it", _bind(folder))
        else:
            yield ok("container", f"inside {inside}; {folder} is from outside")
        return
    program = next((one for one in ("apptainer", "singularity") if shutil.which(one, path=env.get("PATH"))), None)
    given = [one for name in _BINDS for one in env.get(name, "").split(",") if one]
    if program is None and not given:
        yield skipped("container", "neither apptainer nor singularity is here (module load apptainer)")
        return
    where = Path(os.path.abspath(folder))  # noqa: PTH100  resolve() would look at the file system
    for one in given:
        source, _, rest = one.partition(":")
        target = rest.partition(":")[0] or source
        if where == Path(source) or Path(source) in where.parents:
            if rest.partition(":")[2] == "ro":
                yield failed("container", f"{folder} is bound read-only ({one})", _bind(folder))
            elif target != source:
                there = Path(target) / where.relative_to(source)
                hint = f"inside: MLFLOW_TRACKING_URI=labtrack://{there}; a SQLite file's artifacts need the same path."
                yield warning("container", f"{folder} is {there} inside ({one})", hint)
            else:
                yield ok("container", f"{folder} is the same path inside ({one})")
            return
    usual = [Path(one) for one in (*_ALWAYS_BOUND, env.get("HOME", ""), os.getcwd()) if one and one != "/"]  # noqa: PTH109
    if any(where == one or one in where.parents for one in usual):
        yield ok(
            "container", f"{folder} is the same path inside, as {program or 'apptainer'} binds home, /tmp and here"
        )
    else:
        yield warning("container", f"{folder} is not seen inside a container as nothing binds it", _bind(folder))


def _bind(folder: Path) -> str:
    return f"export APPTAINER_BIND={folder}   (with a comma before what is in it already)"


@dataclass(frozen=True)
class Gateways:
    """The machines in LABTRACK_GATEWAYS, which jobs reach the server through."""

    env: Mapping[str, str]

    def names(self) -> list[str]:
        """As they are written there."""
        return self.env.get("LABTRACK_GATEWAYS", "").replace(",", " ").split()

    def check(self, name: str) -> Iterator[Result]:
        """Whether ssh gets in without asking anybody."""
        doing(f"ssh {name}")
        with contextlib.suppress(LabtrackError):
            yield self._tried(name)
            return
        yield failed(
            "gateway", f"{name!r} is no user@host", "correct LABTRACK_GATEWAYS: user@host, several with blanks"
        )

    def _tried(self, name: str) -> Result:
        address = Address.parse(f"ssh://{name}/x")
        with ssh.connected(address, self.env, asks=False, shares=False) as connection:
            done = connection.call([*connection.ssh, "--", address.machine, "exit"])
        if not done.code or "labtrack" in done.out:
            return ok("gateway", f"{name} lets this account in")
        why = ssh.trouble(address, done)
        return failed("gateway", " ".join(why.what.split(": ", 1)[-1].split()), why.hint)


def clock(context: Context) -> Iterator[Result]:
    """This machine's clock against the server's."""
    if not context.env.get("MLFLOW_TRACKING_URI", "").startswith(("https://", "http://")):
        yield skipped("clock", "MLFLOW_TRACKING_URI is no server's address")
        return
    doing("ask the server for the time")
    for row in tracking.version(context):
        if row.status.value == "failed":
            hint = (
                "compute nodes often have no internet access: record with `labtrack run`, and sync from a login node."
            )
            yield warning("server", f"{context.server.hostname} does not answer from here", hint)
    yield from network.clock(context)
