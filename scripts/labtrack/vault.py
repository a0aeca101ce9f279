"""The lab's secrets at rest: Ansible's own vault format, so `ansible-vault view` and playbooks read them."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from pathlib import Path

from ansible.errors import AnsibleError
from ansible.parsing.vault import VaultLib, VaultSecret

from labtrack.errors import LabtrackError

_ID = "default"
_PATIENCE = 60.0  # seconds for a script: a password manager may ask its own agent

_SCRIPT = Path("scripts", "vault-password")


def password_source(root: Path) -> Path:
    """What gives the vault password: the file Ansible was told about, or the repository's script.

    A lab may be kept outside the checkout; the script is then the one beside this package.
    """
    named = os.environ.get("ANSIBLE_VAULT_PASSWORD_FILE")
    if named:
        return Path(named).expanduser()
    return next((found for found in _own_scripts(root) if found.is_file()), root / _SCRIPT)


def _own_scripts(root: Path) -> tuple[Path, Path]:
    return root / _SCRIPT, Path(__file__).resolve().parents[2] / _SCRIPT


def password_file(root: Path) -> Path:
    """The file that holds the vault password, or the admin's own program that gives it."""
    source = password_source(root)
    # another program would take no notice of --where, and print the password
    return Path(_run(source, "--where")) if _is_program(source) and source in _own_scripts(root) else source


def comes_from_program(root: Path) -> bool:
    """Whether a program of the admin's gives the password, which no file then holds."""
    source = password_source(root)
    return _is_program(source) and source not in _own_scripts(root)


def why_unusable(file: Path) -> tuple[str, str]:
    """What keeps a password file from being used, and what helps; both empty where nothing does, or there is none."""
    backup = "put back the password file from your backup"
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return "", ""
    except IsADirectoryError:
        return f"{file} is a folder, and the vault password is in a file.", f"remove it (rmdir {file}), and {backup}."
    except OSError as error:
        return f"{file} can't be read: {error.strerror}.", f"ls -l {file}; it must be yours, with mode 0600."
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return f"{file} is no text (UTF-8), so it holds no vault password.", f"{backup}."
    hint = "" if text.strip() else f"{backup}; if there is no secrets.yml yet, remove the file."
    return (f"The vault password of {file} is empty.", hint) if hint else ("", "")


def _is_program(source: Path) -> bool:
    """Whether Ansible would run it: the repository's script, or one that ANSIBLE_VAULT_PASSWORD_FILE names."""
    try:
        return source.is_file() and os.access(source, os.X_OK)
    except OSError:  # in a folder that is closed to us
        return False


def password(root: Path) -> bytes:
    """The vault password; one is made on first use.  Raises LabtrackError when there is none that can be used."""
    source = password_source(root)
    what, hint = why_unusable(password_file(root))
    if what and not comes_from_program(root):
        raise LabtrackError(what, hint)
    if not source.exists():
        hint = "work in the repository, or set ANSIBLE_VAULT_PASSWORD_FILE to the file with the vault password."
        raise LabtrackError(f"No vault password: there is no {source}.", hint)
    if not _is_program(source):
        return source.read_text(encoding="utf-8").strip().encode()
    text = _run(source)
    if not text:
        raise LabtrackError(f"{source} gives no vault password.", f"run {source} by hand.")
    return text.encode()


def _run(*command: Path | str) -> str:
    """What the script that gives the password says.  Only its own words are repeated, never what it printed."""
    program = command[0]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=_PATIENCE
        )
    except OSError as error:
        if error.errno == errno.ENOEXEC:
            what = f"{program} is marked executable, so Ansible runs it, but it is no program."
            raise LabtrackError(what, f"if it holds the vault password itself: chmod 600 {program}") from None
        raise LabtrackError(f"{program} can't be run: {error.strerror}.", f"ls -l {program}") from None
    except UnicodeDecodeError:
        raise LabtrackError(f"{program} prints no text (UTF-8).", f"run {program} by hand.") from None
    except subprocess.TimeoutExpired:
        what = f"{program} gave no vault password in {_PATIENCE:.0f} s."
        raise LabtrackError(what, "it must not wait for an answer: run it by hand.") from None
    if done.returncode:
        said = done.stderr.strip() or f"it ended with {done.returncode}"
        raise LabtrackError(f"{program} failed: {said}", f"run {program} by hand.")
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
