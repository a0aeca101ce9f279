"""Which files of a lab belong to the export, and what they were when server and admin last had the same."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from labtrack import files, labfile, vault
from labtrack.errors import BadInputError, LabtrackError
from labtrack.lab import Lab, lab_yml

LARGEST = 32 * 2**20  # bytes of all files together: what is larger was put there by somebody
MARK = ".server.json"
PRIVATE, INVENTORY = "private", "inventory"
SECRETS, HOSTS = f"{INVENTORY}/secrets.yml", f"{INVENTORY}/hosts.yml"
# Made anew from the cloud: where two differ, the one that is here was made last, by this very run.
_STATE = f"{PRIVATE}/terraform.tfstate"
DERIVED = frozenset({HOSTS, _STATE, f"{PRIVATE}/ca.pem"})
# Each admin's own: taken where there is none.  It may know more machines than the lab's, and keys are only ever added.
_KNOWN_HOSTS = f"{PRIVATE}/known_hosts"
_WORK = "terraform"  # TF_DATA_DIR: the provider's program, plans
_OLD_STATES = "terraform.tfstate."
_ROUNDS = 10_000  # of PBKDF2, as in the vault's own format

Files = Mapping[str, bytes]
Sums = Mapping[str, str]


@dataclass(frozen=True)
class Content:
    """The files of a lab, by their names in the export.  personal: names that each admin has a file of their own for.

    skipped: what is there and does not belong to it, links above all.
    """

    files: Files
    personal: frozenset[str] = frozenset()
    skipped: tuple[str, ...] = ()

    @property
    def sums(self) -> dict[str, str]:
        """What is compared: without what is personal."""
        return {name: checksum(data) for name, data in self.files.items() if name not in self.personal}


@dataclass(frozen=True)
class Mark:
    """What the server had when it was last spoken to, kept in private/<lab>/.server.json.

    serial: of the export that these files are the same as, or have been made from.  seen: of the newest that the
    server had; another one where it was lost.  digest, sums: of that export's content.
    """

    serial: int
    seen: int
    digest: str
    sums: Sums = field(default_factory=dict)


def read(lab: Lab) -> Content:
    """The files of a lab.  Raises LabtrackError where one can't be read or they are too large together."""
    found: dict[str, bytes] = {}
    skipped: list[str] = []
    named = _ssh_keys(lab)
    try:
        for path in _walk(lab.private):
            name = f"{PRIVATE}/{path.relative_to(lab.private).as_posix()}"
            if path.is_symlink() or not path.is_file():
                skipped.append(f"{path} is no plain file")
            elif path.resolve() == (lab.clouds_file.resolve() if lab.clouds_file else None):
                continue  # the admin's own login
            elif _is_ssh_key(path) and path.resolve() not in named:
                skipped.append(f"{path} is a key of the admin's own")
            elif name != _STATE or path.stat().st_size:  # an empty state is Terraform's way to have none
                found[name] = path.read_bytes()
        for name in (SECRETS, HOSTS):
            path = place_of(lab, name)
            if path.is_file():
                found[name] = path.read_bytes()
    except OSError as error:
        raise LabtrackError(f"Can't read {error.filename}: {error.strerror}.", f"`ls -l {error.filename}`.") from None
    size = sum(map(len, found.values()))
    if size > LARGEST:
        largest = max(found, key=lambda name: len(found[name]))
        raise LabtrackError(
            f"The files of {lab.private} have {size // 2**20} MiB together; {LARGEST // 2**20} are allowed.",
            f"move what the kit did not make elsewhere; the largest is {place_of(lab, largest)}.",
        )
    personal = {f"{PRIVATE}/{path.relative_to(lab.private.resolve())}" for path in named}
    # written by hand, it says how this admin logs in
    personal |= {_KNOWN_HOSTS, HOSTS} if lab.own_machine else {_KNOWN_HOSTS}
    return Content(found, frozenset(personal), tuple(skipped))


def place_of(lab: Lab, name: str) -> Path:
    """Where a file of the export belongs.  Raises BadInputError for a name that leads elsewhere, or through a link."""
    root, _, rest = name.partition("/")
    if name == SECRETS:
        return lab.secrets_file
    if name == HOSTS:
        return lab.folder / "hosts.yml"
    parts = rest.split("/")
    if root != PRIVATE or any(part in ("", ".", "..") or part[0] == "." for part in parts) or "\\" in rest:
        raise BadInputError(f"The export has a file {name!r}, which is not in the lab's folder.", _NOT_OURS)
    if any(ord(one) < 32 for one in rest):  # noqa: PLR2004  control characters
        raise BadInputError(f"The export has a file with control characters in its name: {name!r}.", _NOT_OURS)
    if parts[0] == _WORK or parts[0].startswith(_OLD_STATES):
        raise BadInputError(f"The export has a file {name!r}, which is Terraform's own.", _NOT_OURS)
    path = lab.private
    for part in parts:
        path = path / part
        if path.is_symlink():
            raise BadInputError(f"{path} is a link, and the export has a file there.", f"remove the link: rm {path}")
    return path


_NOT_OURS = "`labtrack lab export` does not write such a file: take another one."


def _walk(folder: Path) -> Iterator[Path]:
    """All that is in the folder, sorted; without caches and what begins with a dot (locks, unfinished files)."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir() and not path.is_symlink():
            if path.name != _WORK:
                yield from _walk(path)
        elif not path.name.startswith(_OLD_STATES):
            yield path


def _is_ssh_key(path: Path) -> bool:
    return path.name.startswith("id_") or path.with_name(f"{path.name}.pub").exists()


def _ssh_keys(lab: Lab) -> set[Path]:
    """The admins' keys that lab.yml names, with their private halves."""
    try:
        admins = labfile.read(lab_yml(lab.folder)).data.get("lab_admins", ())
        names = [name for admin in admins for name in admin.get("ssh_key_files") or ()]
    except (AttributeError, TypeError):  # lab.yml is wrong there, and preflight says so
        return set()
    public = {labfile.expand(name, lab.root) for name in names}
    return {path.resolve() for one in public for path in (one, one.with_suffix("")) if _inside(path, lab)}


def _inside(path: Path, lab: Lab) -> bool:
    return lab.private.resolve() in path.resolve().parents


def checksum(data: bytes) -> str:
    """The SHA-256 of a file."""
    return hashlib.sha256(data).hexdigest()


def _key(lab: Lab) -> bytes:
    salt = f"labtrack lab {lab.name}".encode()
    return hashlib.pbkdf2_hmac("sha256", vault.password(lab.root), salt, _ROUNDS)


def digest(lab: Lab, sums: Sums) -> str:
    """What two contents are compared by: nobody without the vault password learns more of them than that."""
    text = "".join(f"{name}\0{sums[name]}\n" for name in sorted(sums))
    return hmac.new(_key(lab), text.encode(), "sha256").hexdigest()


def password_check(lab: Lab) -> str:
    """What tells one vault password from another."""
    return hmac.new(_key(lab), b"which password is it", "sha256").hexdigest()[:16]


def mark(lab: Lab) -> Mark | None:
    """What the server had; None where this checkout has not spoken to it, or the note is damaged."""
    try:
        known = json.loads((lab.private / MARK).read_text(encoding="utf-8"))
        known.pop("version")
        return Mark(**known)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def set_mark(lab: Lab, known: Mark) -> None:
    """Notes what the server has."""
    if known != mark(lab):
        files.make_private_folder(lab.private)
        data = json.dumps({"version": 1, **asdict(known)}, indent=1) + "\n"
        files.write_private(lab.private / MARK, data.encode())
