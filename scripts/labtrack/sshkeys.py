"""Public SSH keys as people name them, in files of all kinds; the server takes OpenSSH's: one line for each key."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

_KINDS = r"ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(?:256|384|521)|sk-(?:ssh-ed25519|ecdsa-sha2-nistp256)@openssh\.com"
_KEY = re.compile(rf"((?:{_KINDS})[ \t]+[A-Za-z0-9+/]+={{0,2}})(?:[ \t].*)?")
_BEHIND = re.compile(rf"[\s\"](?:{_KINDS})[ \t]+AAAA")
_PLAIN = "save it as plain text (UTF-8 without a byte order mark)."
# How other files begin, what they are, and what helps.
_OTHERS = (
    (b"\xef\xbb\xbf", "is written with a byte order mark", _PLAIN),
    (b"\xff\xfe", "is written as UTF-16", _PLAIN),
    (b"\xfe\xff", "is written as UTF-16", _PLAIN),
    (b"PuTTY-User-Key-File", "is a private key", "puttygen FILE.ppk -O public-openssh -o FILE.pub, and name that."),
    (b"---- BEGIN SSH2", "is a public key as PuTTY writes it", "ssh-keygen -i -f FILE > NEW.pub, and name that."),
)


def of_admins(admins: Iterable[Mapping[str, Any]], root: Path) -> list[str]:
    """The public keys of the admins who are there, in the order of lab.yml, each once.

    They are taken from files as they stand: a key pair whose text changes is another key pair for Nova.
    admins: lab_admins of a checked lab.yml.  root: what relative paths start at.  Raises OSError for a file that is
    gone since it was checked.
    """
    found: list[str] = []
    for admin in admins:
        if admin.get("state", "present") != "present":
            continue
        found += admin.get("ssh_keys", [])
        for path in admin.get("ssh_key_files", []):
            text = (root / Path(path).expanduser()).read_text(encoding="utf-8")
            found += re.findall(r"(?m)^[a-z][^\r\n]*", text)
    return list(dict.fromkeys(found))


def why_no_key(line: str) -> str:
    """What is wrong with a line that should be a key; empty where nothing is."""
    found = _KEY.fullmatch(line)
    if not found:
        return "is no public key of OpenSSH"
    try:
        load_ssh_public_key(found[1].replace("\t", " ").encode())
    except (ValueError, UnsupportedAlgorithm):
        return "is no whole key: some of it is missing or changed"
    return ""


def why_no_keys(data: bytes) -> tuple[str, str]:
    """What is wrong with a file of public keys, and what helps; both empty where nothing is.

    Blank lines and comments are skipped, and the ends of lines may be those of Windows.
    """
    for begins, what, hint in _OTHERS:
        if data.startswith(begins):
            return what, hint
    if b"PRIVATE KEY-----" in data[:4096]:
        return "is a private key", "name the public one, the file that ends in .pub."
    text = data.decode("utf-8", "replace")
    lines = [line.strip() for line in text.splitlines()]
    keys = [(number, line) for number, line in enumerate(lines, 1) if line and not line.startswith("#")]
    if not keys:
        return "has no key in it", "make a pair with `ssh-keygen`, and name its .pub file."
    wrong = next(filter(any, (_wrong(number, line) for number, line in keys)), ("", ""))
    if not any(wrong) and any("\ufffd" in line for _, line in keys):
        return "has letters in a comment that are not UTF-8", "give the key another one: ssh-keygen -c -f KEY"
    return wrong


def _wrong(number: int, line: str) -> tuple[str, str]:
    wrong = why_no_key(line)
    if not wrong:
        return "", ""
    if "-cert-v01@openssh.com" in line.partition(" ")[0]:
        return f"has a certificate in line {number}", "name the .pub file of the key itself."
    if _BEHIND.search(line):
        hint = "leave only the key: its kind, the long word, and a comment; no options and no host."
        return f"has something before the key in line {number}", hint
    return f"has a line {number} that {wrong}", "copy the .pub file itself again."
