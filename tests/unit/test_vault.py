"""Where the vault password comes from, and what may be wrong there; and the checkout that Ansible takes it from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import ROOT

from labtrack import preflight, secrets, vault
from labtrack.cli import cli
from labtrack.doctor.result import Result, Status
from labtrack.errors import LabtrackError
from labtrack.lab import Lab


@pytest.fixture(params=["own file", "of the script"])
def password(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file that holds the password: one that Ansible was told of, or that of scripts/vault-password."""
    file = tmp_path / "password"
    if request.param == "own file":
        monkeypatch.setenv("ANSIBLE_VAULT_PASSWORD_FILE", str(file))
    else:
        monkeypatch.setenv("LABTRACK_VAULT_PASSWORD_FILE", str(file))
    return file


def refused(what: str, hint: str) -> None:
    """Encrypting and preflight both say so."""
    with pytest.raises(LabtrackError) as raised:
        vault.encrypt("x", ROOT)
    assert what in raised.value.what and hint in raised.value.hint, raised.value
    row = said()
    assert row.status is Status.FAILED
    assert what in row.seen and hint.lower() in row.hint.lower()


def said() -> Result:
    """What preflight says of the password."""
    (row,) = preflight._vault(ROOT)
    return row


def test_a_password(password: Path) -> None:
    password.write_text("open sesame\n")
    password.chmod(0o600)
    assert vault.password(ROOT) == b"open sesame"
    assert vault.password_file(ROOT) == password and said().status is Status.OK


def test_a_folder(password: Path) -> None:
    password.mkdir()
    refused("is a folder", "rmdir")


@pytest.mark.parametrize("text", [b"", b" \n"])
def test_an_empty_file(password: Path, text: bytes) -> None:
    password.write_bytes(text)
    refused("is empty", "backup")


def test_a_file_that_is_no_text(password: Path) -> None:
    password.write_bytes(b"\xff\xfe\x00")
    refused("is no text", "backup")


def test_a_file_of_another_person(password: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    password.write_text("x")
    password.chmod(0o600)
    read = Path.read_bytes

    def closed(path: Path) -> bytes:
        if path == password:
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", closed)  # root may read all
    refused("can't be read: Permission denied", "ls -l")


@pytest.mark.parametrize("kind", ["folder", "closed"])
def test_a_secrets_file_that_can_not_be_read(kind: str, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.secrets_file.parent.mkdir(parents=True, exist_ok=True)
    if kind == "folder":
        lab.secrets_file.mkdir()
    else:
        secrets.ensure_passwords(lab)
        monkeypatch.setattr(
            Path, "read_bytes", lambda _: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
        )
    with pytest.raises(LabtrackError, match=r"secrets\.yml can't be read"):
        secrets.read(lab)
    (row,) = preflight._secrets(lab.secrets_file, lab.root)
    assert row.status is Status.FAILED and "can't be read" in row.seen and row.hint


class TestExecutables:
    """What ANSIBLE_VAULT_PASSWORD_FILE names and may be run, Ansible runs."""

    def made(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> Path:
        file = tmp_path / "password"
        file.write_text(text)
        file.chmod(0o700)
        monkeypatch.setenv("ANSIBLE_VAULT_PASSWORD_FILE", str(file))
        return file

    def test_a_password_with_an_x_bit(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = self.made(tmp_path, monkeypatch, "open sesame\n")
        refused("is marked executable", f"chmod 600 {file}")

    def test_a_program(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = self.made(tmp_path, monkeypatch, "#!/bin/sh\necho open sesame\n")
        assert vault.password(ROOT) == b"open sesame"
        # it is never asked where its file is: it would print the password
        assert vault.password_file(ROOT) == file and said().seen == f"given by the program {file}"

    def test_programs_that_fail(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made(tmp_path, monkeypatch, "#!/bin/sh\necho locked >&2\nexit 3\n")
        refused("failed: locked", "by hand")
        self.made(tmp_path, monkeypatch, "#!/bin/sh\n")
        refused("gives no vault password", "by hand")
        self.made(tmp_path, monkeypatch, "#!/nonexistent\n")
        refused("can't be run", "ls -l")


class TestCheckouts:
    """Ansible takes no ansible.cfg from a folder that everybody can write to."""

    def test_told_by_preflight_secrets_and_init(self, lab_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        root = lab_dir.parents[1]

        def row() -> list[Result]:
            return [one for one in preflight.check(lab_dir) if one.check == "checkout"]

        assert row() == []
        root.chmod(0o777)
        try:
            (found,) = row()
            assert found.status is Status.FAILED and f"chmod o-w {root}" in found.hint
            done = CliRunner().invoke(cli, ["secrets", "ensure", str(lab_dir)])
            assert f"chmod o-w {root}" in " ".join(done.output.split())
            monkeypatch.setenv("ANSIBLE_CONFIG", str(root / "ansible.cfg"))
            (found,) = row()
            assert found.status is Status.WARNING
        finally:
            root.chmod(0o755)
        assert not os.environ.get("ANSIBLE_VAULT_PASSWORD_FILE")
