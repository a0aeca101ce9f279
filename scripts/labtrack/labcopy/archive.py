"""The export itself: a tar file, compressed, encrypted with the lab's vault password by Ansible's own library.

Without the kit it is read by `ansible-vault decrypt --output lab.tar.gz FILE`.
"""

from __future__ import annotations

import gzip
import io
import json
import socket
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from labtrack import __version__, files, vault
from labtrack.envfile.register import now
from labtrack.errors import BadInputError, LabtrackError
from labtrack.lab import Lab
from labtrack.labcopy import content
from labtrack.labcopy.content import Content, Mark

VERSION = 1
_HEAD = b"$ANSIBLE_VAULT;"
_CIPHER = b"AES256"
_MANIFEST = "manifest.json"
_BLOCK = 16  # bytes of AES


@dataclass(frozen=True)
class Export:
    """An export that was opened.  by: who wrote it, as name@host.  at: when, ISO 8601, UTC."""

    content: Content
    mark: Mark
    by: str
    at: str
    fqdn: str


def who() -> str:
    """Who and where this is, as others are told."""
    return f"{files.user_name()}@{socket.gethostname()}"


def pack(lab: Lab, found: Content, mark: Mark) -> bytes:
    """The export of a content, encrypted."""
    manifest = {
        "what": "labtrack lab export", "version": VERSION, "kit": __version__, "lab": lab.name, "fqdn": lab.fqdn,
        "by": who(), "at": now(), "serial": mark.serial, "digest": mark.digest, "base": dict(mark.sums),
        "personal": sorted(found.personal),
        "sums": {name: content.checksum(data) for name, data in found.files.items()},
    }  # fmt: skip
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in ((_MANIFEST, json.dumps(manifest, indent=1).encode()), *sorted(found.files.items())):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o600
            tar.addfile(member, io.BytesIO(data))
    return vault.encrypt(gzip.compress(buffer.getvalue(), mtime=0), lab.root)


def unpack(lab: Lab, data: bytes, source: str) -> Export:
    """Opens an export.  source: where it comes from, for messages.

    Raises BadInputError where it is none, was cut off, is encrypted otherwise, is another lab's, or holds what
    does not belong into the lab's folder.
    """
    tar = _decrypted(lab, data, source)
    try:
        members = _members(tar, source)
        manifest: dict[str, Any] = json.loads(members.pop(_MANIFEST))
        if manifest["what"] != "labtrack lab export":
            raise KeyError("what")
        if manifest["version"] > VERSION:
            what = f"{source} was written by a newer labtrack ({manifest['kit']}); this is {__version__}."
            raise BadInputError(what, "take the same version of the repository: git pull.")
        export = Export(
            Content(members, frozenset(manifest["personal"])),
            Mark(int(manifest["serial"]), int(manifest["serial"]), manifest["digest"], dict(manifest["base"])),
            str(manifest["by"]), str(manifest["at"]), str(manifest["fqdn"]),
        )  # fmt: skip
        whose, sums = manifest["lab"], manifest["sums"]
    except (KeyError, ValueError, TypeError, AttributeError, EOFError, OSError, tarfile.TarError, zlib.error) as error:
        what = f"{source} opens with the vault password, but is no export of a lab ({type(error).__name__})."
        raise BadInputError(what, f"`labtrack lab export {lab.shown_folder} -o FILE` writes one.") from None
    if whose != lab.name:
        raise BadInputError(f"{source} is an export of the lab {whose}, not of {lab.name}.", "name that lab's folder.")
    for name in members:
        content.place_of(lab, name)
    if _sums(members) != sums:
        raise BadInputError(f"{source} is damaged: its files are not those that were packed.", "take another export.")
    return export


def _sums(members: Mapping[str, bytes]) -> dict[str, str]:
    return {name: content.checksum(data) for name, data in members.items()}


def _members(data: bytes, source: str) -> dict[str, bytes]:
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
        plain = packed.read(content.LARGEST * 2)
        if packed.read(1):
            raise BadInputError(f"{source} has more than {content.LARGEST // 2**20} MiB of files.", "take another.")
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(plain), mode="r:") as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isreg() else None
            if file is None or member.name in found:
                raise BadInputError(
                    f"{source} has {member.name!r} as a link, a folder or twice; an export has plain files only.",
                    f"`labtrack lab export {'LAB_DIR'} -o FILE` writes one.",
                )
            found[member.name] = file.read()
    return found


def _decrypted(lab: Lab, data: bytes, source: str) -> bytes:
    write = f"`labtrack lab export {lab.shown_folder} -o FILE` writes one."
    if not data.strip():
        raise BadInputError(f"{source} is empty.", write)
    if not data.startswith(_HEAD):
        raise BadInputError(f"{source} is no export of a lab: it is not encrypted by ansible-vault.", write)
    head, _, body = data.partition(b"\n")
    parts = head.strip().split(b";")
    if parts[2:3] != [_CIPHER]:
        cipher = parts[2].decode(errors="replace") if parts[2:3] else "nothing that is known"
        raise BadInputError(f"{source} is encrypted with {cipher!r}, not with {_CIPHER.decode()}.", write)
    if _cut_off(body):
        raise BadInputError(
            f"{source} is truncated: its end is missing ({len(data)} bytes are there).", "copy it again."
        )
    plain = vault.opened(data, lab.root)
    if plain is None:
        raise LabtrackError(
            f"{source} can't be decrypted: it was made with another vault password, or it is damaged.",
            f"put the lab's vault password into {vault.password_file(lab.root)}; `labtrack preflight "
            f"{lab.shown_folder}` says whether secrets.yml opens with it.",
        )
    return plain


def _cut_off(body: bytes) -> bool:
    """Whether what follows the head is not a whole one: hexadecimal, and in it three parts, the last whole blocks."""
    try:
        parts = bytes.fromhex(b"".join(body.split()).decode("ascii")).split(b"\n", 2)
        return len(parts) < 3 or len(bytes.fromhex(parts[2].decode("ascii"))) % _BLOCK != 0  # noqa: PLR2004
    except ValueError:
        return True
