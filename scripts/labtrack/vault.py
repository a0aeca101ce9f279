"""The lab's secrets at rest: Ansible's own vault format, so `ansible-vault view` and playbooks read them."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

from ansible.errors import AnsibleError
from ansible.parsing.vault import VaultLib, VaultSecret

from labtrack.errors import LabtrackError

_ID = "default"


_SCRIPT = Path("scripts", "vault-password")


def password_source(root: Path) -> Path:
    """What gives the vault password: the file Ansible was told about, or the repository's script.

    A lab may be kept outside the checkout; the script is then the one beside this package.
    """
    named = os.environ.get("ANSIBLE_VAULT_PASSWORD_FILE")
    if named:
        return Path(named).expanduser()
    checkout = Path(__file__).resolve().parents[2]
    return next((found for found in (root / _SCRIPT, checkout / _SCRIPT) if found.is_file()), root / _SCRIPT)


def password_file(root: Path) -> Path:
    """The file that holds the vault password."""
    source = password_source(root)
    return Path(_run(source, "--where")) if os.access(source, os.X_OK) else source


def password(root: Path) -> bytes:
    """The vault password.  Raises LabtrackError when there is none."""
    source = password_source(root)
    if not source.is_file():
        hint = "work in the repository, or set ANSIBLE_VAULT_PASSWORD_FILE to the file with the vault password."
        raise LabtrackError(f"No vault password: there is no {source}.", hint)
    text = _run(source) if os.access(source, os.X_OK) else source.read_text(encoding="utf-8").strip()
    if not text:
        raise LabtrackError(f"The vault password of {source} is empty.", "put back the password file from your backup.")
    return text.encode()


def _run(*command: Path | str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabtrackError(f"{command[0]} failed: {done.stderr.strip()}", f"run {command[0]} by hand.")
    return done.stdout.strip()


def _vault(root: Path) -> VaultLib:
    return VaultLib([(_ID, VaultSecret(password(root)))])


def encrypt(content: str | bytes, root: Path) -> bytes:
    """`content` in Ansible's vault format."""
    encrypted: bytes = _vault(root).encrypt(content.encode() if isinstance(content, str) else content)
    return encrypted


def opened(data: bytes, root: Path) -> bytes | None:
    """What is in `data`, which is in Ansible's vault format; None when this vault password does not open it."""
    try:
        plain: bytes = _vault(root).decrypt(data)
    except AnsibleError:  # of a damaged file it raises others than AnsibleVaultError, too
        return None
    return plain


def decrypt(data: bytes, file: Path, root: Path) -> str:
    """The text of a vault file.  Raises LabtrackError when it is not one, or the password is another."""
    if not data.startswith(b"$ANSIBLE_VAULT;"):
        hint = f"if it is yours and complete: `ansible-vault encrypt {file}`; else remove it, and new secrets are made."
        raise LabtrackError(f"{file} is not encrypted.", hint)
    plain = opened(data, root)
    if plain is None:
        raise LabtrackError(
            f"{file} can't be decrypted: it was made with another vault password, or it is damaged.",
            f"put the right password into {password_file(root)}, or the file back from a backup.",
        )
    return plain.decode()


def open_to_others(file: Path) -> bool:
    """Whether anybody but the owner may read the password file."""
    return bool(stat.S_IMODE(file.stat().st_mode) & 0o077)
