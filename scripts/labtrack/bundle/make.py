"""What is in a bundle: gathered here and on the server, without secrets, and packed."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import platform
import subprocess
import sys
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from labtrack import __version__, files, lab, preflight, release, serverstatus
from labtrack.bundle import known, onserver
from labtrack.cloud import preflight as in_the_cloud
from labtrack.doctor.result import as_json
from labtrack.errors import BadInputError, LabtrackError
from labtrack.lab import Lab
from labtrack.provision import completed
from labtrack.provision.terraform import Place, Terraform
from labtrack.run.masking import MASK, mask_report

README = f"""\
What `labtrack bundle` has gathered, for somebody who helps with a lab that has trouble.

The secrets that the lab's machine knows are replaced by {MASK}, in each encoding that they may have: of secrets.yml,
clouds.yaml, each mlflow_env.sh, .netrc, keys, addresses of lab_alerts; so are tokens that look like some.
Names of people, machines, projects and buckets, and addresses are in it.  A secret that nobody has told the kit, in a
message of a program's, can be in it: READ IT BEFORE YOU SEND IT.

here/    of the admin's machine: settings, versions, what preflight says, the names of what Terraform looks after
server/  of the lab's server: what labtrack-status says, a day of the journal, units, disks, memory, firewall
"""


@dataclass(frozen=True)
class Bundle:
    """What was gathered.

    files: by name.  removed: in how many places of each something was replaced.  not_reached: why the server is not in
    it, or empty.  too_short: where secrets are from that could not be looked for.
    """

    files: dict[str, str]
    removed: dict[str, int]
    not_reached: str
    too_short: list[str]


def name_for(lab_name: str) -> Path:
    """A file in the current folder; git takes no notice of such."""
    return Path(f"labtrack-bundle-{lab_name}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.tar.gz")


def gather(loaded: Lab, cloud: str | None = None) -> Bundle:
    """All of it.  Raises LabtrackError where the secrets can't be read, which have to be known to be removed."""
    secrets = known.secrets_of(loaded)
    found = {f"here/{name}": text for name, text in _here(loaded, cloud)}
    status = serverstatus.ask(loaded)
    found["server/status.json"] = _json(status)
    there = serverstatus.answer(loaded, _command())
    why = ""
    if "files" in there:
        found |= {f"server/{name}": text for name, text in _unpacked(there["files"]).items()}
    else:
        (row,) = serverstatus.rows(there)
        why = f"{row.seen}\nTo fix: {row.hint}"
        found["server/NOT-REACHED.txt"] = f"{why}\n"
    masked = {name: mask_report(text, secrets) for name, text in sorted(found.items())}
    removed = {name: text.count(MASK) - found[name].count(MASK) for name, text in masked.items()}
    return Bundle({"README.txt": README, **masked}, {"README.txt": 0, **removed}, why, known.too_short(secrets))


def write(bundle: Bundle, where: Path) -> None:
    """Packs it at `where`, readable by its owner alone.  Raises LabtrackError."""
    packed = io.BytesIO()
    top = where.name.removesuffix(".tar.gz").removesuffix(".tgz")
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, text in bundle.files.items():
            data = text.encode("utf-8", "replace")
            about = tarfile.TarInfo(f"{top}/{name}")
            about.size, about.mode, about.mtime = len(data), 0o600, int(time.time())
            archive.addfile(about, io.BytesIO(data))
    files.write_private(where, packed.getvalue())


def refuse_existing(where: Path) -> None:
    """Raises BadInputError where something is there already, or no folder for it."""
    if where.exists():
        raise BadInputError(f"{where} is there already.", "name another file, or remove it.")
    if not where.absolute().parent.is_dir():
        raise BadInputError(f"There is no folder {where.absolute().parent}.", "make it, or name another file.")


def _here(loaded: Lab, cloud: str | None) -> Iterator[tuple[str, str]]:
    yield "versions.txt", _versions(loaded)
    yield "lab.yml", _text(lab.lab_yml(loaded.folder))
    yield "hosts.yml", _text(loaded.folder / "hosts.yml")
    yield "lab.json", _json(completed.complete(loaded, {}))
    yield "build-lab.json", _text(loaded.root / "build" / loaded.name / "lab.json")
    yield "preflight.json", _tried(lambda: _json(as_json(list(preflight.check(loaded.folder)))))
    yield "preflight-cloud.json", _tried(lambda: _json(as_json(list(in_the_cloud.check(loaded, cloud)))))
    yield "terraform-state.txt", _tried(lambda: _terraform(loaded))
    yield "private.txt", _listing(loaded.private)


def _versions(loaded: Lab) -> str:
    lines = [
        f"labtrack {__version__}, last deployed: {_tried(lambda: release.deployed(loaded)) or 'not known'}",
        f"Python {sys.version}",
        f"{platform.platform()}",
        _said(loaded.root, "git", "log", "-1", "--format=commit %H of %cI"),
        _said(loaded.root, "git", "status", "--short", "--untracked-files=no"),
        *sorted({f"{one.name} {one.version}" for one in metadata.distributions()}, key=str.lower),
    ]
    return "\n".join(filter(None, lines)) + "\n"


def _terraform(loaded: Lab) -> str:
    place = Place.of(loaded)
    if not place.work.is_dir():
        return "Terraform has not been run for this lab here.\n"
    return "".join(f"{address}\n" for address in Terraform.found(place).known())


def _listing(folder: Path) -> str:
    """Names, sizes and modes; no content."""
    lines = []
    for path in sorted(folder.rglob("*")):
        with contextlib.suppress(OSError):
            about = path.lstat()
            lines.append(f"{about.st_mode:o} {about.st_uid} {about.st_size:>9} {path.relative_to(folder)}\n")
    return "".join(lines)


def _tried(gather: Callable[[], str]) -> str:
    """What is gathered, or why it could not be."""
    try:
        return gather()
    except (LabtrackError, OSError, subprocess.SubprocessError) as error:
        return f"Not to be had: {error}\n"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return f"Not to be had: {error.strerror}\n"


def _said(folder: Path, *command: str) -> str:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return (done.stdout or done.stderr).strip()


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n"


def _command() -> str:
    """onserver.py for the server's shell, in characters that neither Ansible nor a shell takes for its own."""
    script = Path(onserver.__file__).read_bytes()
    script += b"\n" * (-len(script) % 3)  # no = at the end
    return f"echo {base64.b64encode(script).decode()} | base64 -d | python3 -; true"


def _unpacked(packed: str) -> dict[str, str]:
    unpacked: dict[str, str] = json.loads(zlib.decompress(base64.b64decode(packed)))
    return unpacked
