"""Files that people name as their public keys: what is taken, and what is said of the others."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from fakes import SSH_KEY as KEY
from hypothesis import given
from hypothesis import strategies as st

from labtrack import labfile
from labtrack.sshkeys import why_no_key, why_no_keys

FIDO = (
    "sk-ssh-ed25519@openssh.com "
    "AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4fAAAABHNzaDo="
)
PUTTY = f'---- BEGIN SSH2 PUBLIC KEY ----\nComment: "a"\n{KEY.split()[1]}\n---- END SSH2 PUBLIC KEY ----\n'


@pytest.mark.parametrize(
    "text",
    [
        KEY, f"{KEY} ada@laptop\n", f"{KEY} two words\r\n", f"# hers\n\n{KEY}\n{FIDO} token\n", f"  {KEY}\n",
        KEY.replace(" ", "\t", 1), f"{KEY} ada@büro\n",
    ],
)  # fmt: skip
def test_keys_are_taken(text: str) -> None:
    assert why_no_keys(text.encode()) == ("", "")


@pytest.mark.parametrize(
    ("data", "what", "hint"),
    [
        (b"\xef\xbb\xbf" + KEY.encode(), "a byte order mark", "plain text"),
        (f"{KEY} J\u00fcrgen".encode("latin-1"), "not UTF-8", "ssh-keygen -c"),
        (KEY.encode("utf-16"), "UTF-16", "plain text"),
        (b"", "no key", "ssh-keygen"),
        (b"# nothing yet\n", "no key", "ssh-keygen"),
        (PUTTY.encode(), "PuTTY", "ssh-keygen -i"),
        (b"PuTTY-User-Key-File-3: ssh-ed25519\n", "is a private key", "puttygen"),
        (b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n", "is a private key", ".pub"),
        (f"203.0.113.1 {KEY}\n".encode(), "before the key in line 1", "no host"),
        (f"github.com,10.0.0.1 {KEY}\n".encode(), "before the key in line 1", "no host"),
        (f'from="10.0.0.0/8" {KEY} a\n'.encode(), "before the key in line 1", "no options"),
        (f"{KEY}\nssh-ed25519-cert-v01@openssh.com AAAA\n".encode(), "certificate in line 2", ".pub"),
        (f"{KEY[:-7]}\n".encode(), "is no whole key", "again"),
        (f"{KEY}\n{KEY[:-12]}= ada\n".encode(), "line 2 that is no whole key", "again"),
        (KEY.replace("ssh-ed25519", "ssh-rsa").encode(), "is no whole key", "again"),
        (b"ssh-dss AAAAB3NzaC1kc3M=\n", "is no public key", "again"),
        (b"<html>not found</html>", "is no public key", "again"),
        (b"\x00\x01\x02\xff", "is no public key", "again"),
    ],
)
def test_what_is_no_key_is_told(data: bytes, what: str, hint: str) -> None:
    said = why_no_keys(data)
    assert what in said[0] and hint in said[1], said


@pytest.mark.parametrize("kind", ["ed25519", "rsa", "ecdsa"])
def test_keys_of_ssh_keygen_are_taken_whole_only(kind: str, tmp_path: Path) -> None:
    if not shutil.which("ssh-keygen"):
        pytest.skip("needs ssh-keygen")
    file = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "a b", "-f", file], check=True)
    data = file.with_suffix(".pub").read_bytes()
    assert why_no_keys(data) == ("", "")
    assert "private key" in why_no_keys(file.read_bytes())[0]
    first, second, *_ = data.decode().split()
    for length in range(0, len(second), 4):  # each whole base64
        assert why_no_key(f"{first} {second[:length]}"), length


@given(st.binary(max_size=200))
def test_anything_gets_an_answer(data: bytes) -> None:
    what, hint = why_no_keys(data)
    assert bool(what) == bool(hint)


def test_file_and_setting_are_named(lab_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "ada.pub").write_text(PUTTY)
    file = lab_dir / "group_vars/all/lab.yml"
    lab = yaml.safe_load(file.read_text())
    lab["lab_admins"] = [{"name": "ada", "ssh_keys": [KEY, KEY[:-4]], "ssh_key_files": [str(tmp_path / "ada.pub")]}]
    file.write_text(yaml.safe_dump(lab))
    said = [problem.what for problem in labfile.check(labfile.read(file), lab_dir, tmp_path)]
    assert sorted(said) == [
        f"lab_admins[1].ssh_key_files[1]: {tmp_path}/ada.pub is a public key as PuTTY writes it.",
        "lab_admins[1].ssh_keys[2] is no whole key: some of it is missing or changed.",
    ]
