"""The lab's files as one encrypted file, carried by hand."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import io
import json
import os
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from conftest import LAB
from copied import ADA, KEYS, KNOWN, checkout, files_of, use_password, write
from hypothesis import given
from hypothesis import strategies as st

from labtrack import secrets, vault
from labtrack.errors import BadInputError, LabtrackError
from labtrack.lab import Lab
from labtrack.labcopy import byhand, content, placing
from labtrack.labcopy.merge import merge

LABTRACK = Path(sys.executable).with_name("labtrack")


# --- by hand


def test_an_export_brings_back_every_file_as_it_was(full: Lab, empty: Lab, tmp_path: Path) -> None:
    file = tmp_path / "lab.vault"
    byhand.export(full, file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    brought = byhand.bring(empty, file)
    assert files_of(empty) == files_of(full) and len(brought.written) == 7
    assert secrets.read(empty) == secrets.read(full)
    assert {stat.S_IMODE(path.stat().st_mode) for path in empty.private.rglob("*") if path.is_file()} == {0o600}
    again = byhand.bring(empty, file)
    assert again.written == () and len(again.same) == 7


def test_an_export_has_no_secret_in_the_clear_and_ansible_vault_opens_it(full: Lab, tmp_path: Path) -> None:
    file, opened = tmp_path / "lab.vault", tmp_path / "lab.tar.gz"
    byhand.export(full, file)
    assert b"password" not in file.read_bytes()
    command = [
        Path(sys.executable).with_name("ansible-vault"), "decrypt", "--output", opened, file,
        "--vault-password-file", vault.password_file(full.root),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    with tarfile.open(opened) as tar:
        assert tar.extractfile(ADA).read() == b"password of ada"  # type: ignore[union-attr]


def test_an_export_leaves_out_caches_logins_and_keys_of_admins(tmp_path: Path) -> None:
    root = tmp_path / "first"
    private = root / "private" / "climate"
    private.mkdir(parents=True)
    key = LAB["lab_admins"][0]["ssh_keys"][0]  # type: ignore[index]
    for name, text in {
        "clouds.yaml": "clouds: {}", "id_lab": "private half", "id_lab.pub": key, "id_own": "x", "id_own.pub": key,
        "terraform.tfstate.backup": "old", "keys.json": "{}", ".lock": "{}",
    }.items():  # fmt: skip
        (private / name).write_text(text)
    (private / "terraform" / "providers").mkdir(parents=True)
    (private / "terraform" / "providers" / "openstack").write_bytes(bytes(100))
    (private / "linked").symlink_to("/etc/hostname")
    lab = checkout(
        root, lab_clouds_file="private/climate/clouds.yaml",
        lab_admins=[{"name": "ada", "ssh_key_files": ["private/climate/id_lab.pub"]}],
    )  # fmt: skip
    found = byhand.export(lab, tmp_path / "lab.vault")
    assert sorted(found.files) == ["private/id_lab", "private/id_lab.pub", "private/keys.json"]
    assert found.personal >= {"private/id_lab", "private/id_lab.pub"}
    assert len(found.skipped) == 3 and "linked is no plain file" in " ".join(found.skipped)


@pytest.mark.parametrize("changed", [ADA, KNOWN, content.SECRETS])
def test_what_differs_is_not_written_over(changed: str, full: Lab, empty: Lab, tmp_path: Path) -> None:
    file = tmp_path / "lab.vault"
    byhand.export(full, file)
    other = write(empty, changed, "of the second admin")
    before = files_of(empty)
    with pytest.raises(BadInputError, match="differ") as refused:
        byhand.bring(empty, file)
    assert str(other) in refused.value.what and "--force" in refused.value.hint
    assert files_of(empty) == before
    brought = byhand.bring(empty, file, force=True)
    assert files_of(empty) == files_of(full)
    assert brought.aside and (brought.aside / changed).read_text() == "of the second admin"


def test_an_import_says_which_files_are_newer(full: Lab, empty: Lab, tmp_path: Path) -> None:
    byhand.export(full, tmp_path / "lab.vault")
    later = 4102444800
    os.utime(write(empty, ADA, "later"), (later, later))
    with pytest.raises(BadInputError, match="newer than the export"):
        byhand.bring(empty, tmp_path / "lab.vault")


def packed(lab: Lab, members: dict[str, bytes | str], kind: bytes = tarfile.REGTYPE, **changed: object) -> bytes:
    """An export as somebody could write it who has the vault password."""
    sums = {name: content.checksum(data) for name, data in members.items() if isinstance(data, bytes)}
    manifest = {
        "what": "labtrack lab export", "version": 1, "kit": "9", "lab": lab.name, "fqdn": lab.fqdn, "by": "x@y",
        "at": "2026-01-01T00:00:00Z", "serial": 1, "digest": "", "base": {}, "personal": [], "sums": sums, **changed,
    }  # fmt: skip
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in {"manifest.json": json.dumps(manifest).encode(), **members}.items():
            member = tarfile.TarInfo(name)
            if isinstance(data, str):
                member.type, member.linkname = kind, data
                tar.addfile(member)
            else:
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return vault.encrypt(gzip.compress(buffer.getvalue()), lab.root)


@pytest.mark.parametrize(
    "name",
    ["private/../../escaped", "/etc/escaped", "private//etc/x", "../escaped", "private/./x", "inventory/lab.yml",
     "private/ada/../../../x", "private/.server.json", "private/ada/.bashrc", "private/terraform/providers/x",
     "private/terraform.tfstate.backup", "private/a\\..\\x", "private/a\nb", "private", "private/", ""],
)  # fmt: skip
def test_a_name_that_leads_elsewhere_is_refused(name: str, empty: Lab, tmp_path: Path) -> None:
    file = tmp_path / "lab.vault"
    file.write_bytes(packed(empty, {KEYS: b"{}", name: b"x"}))
    with pytest.raises(BadInputError, match=r"export has|plain files only"):
        byhand.bring(empty, file)
    assert files_of(empty) == {} and not (tmp_path / "escaped").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_an_export_with_a_link_is_refused(kind: bytes, empty: Lab, tmp_path: Path) -> None:
    file = tmp_path / "lab.vault"
    file.write_bytes(packed(empty, {ADA: "/etc/passwd"}, kind))
    with pytest.raises(BadInputError, match="plain files only"):
        byhand.bring(empty, file)
    assert files_of(empty) == {}


def test_nothing_is_written_through_a_link_that_is_here(full: Lab, empty: Lab, tmp_path: Path) -> None:
    byhand.export(full, tmp_path / "lab.vault")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    empty.private.mkdir(mode=0o700, parents=True)
    (empty.private / "ada").symlink_to(elsewhere)
    with pytest.raises(BadInputError, match="is a link"):
        byhand.bring(empty, tmp_path / "lab.vault", force=True)
    assert list(elsewhere.iterdir()) == [] and files_of(empty) == {}


def spoiled(data: bytes) -> dict[str, tuple[bytes, str]]:
    head, _, body = data.partition(b"\n")
    return {
        "empty": (b"", "is empty"),
        "head only": (head + b"\n", "truncated"),
        "half": (data[: len(data) // 2], "truncated"),
        "a character less": (data.rstrip()[:-1], "truncated"),
        "a line less": (data.rstrip().rpartition(b"\n")[0], "truncated|can't be decrypted"),
        "other cipher": (data.replace(b"AES256", b"AES", 1), "encrypted with 'AES'"),
        "no cipher": (b"$ANSIBLE_VAULT;1.1\n" + body, "encrypted with"),
        "gpg": (b"-----BEGIN PGP MESSAGE-----\n", "not encrypted by ansible-vault"),
        "binary": (bytes(range(256)), "not encrypted by ansible-vault"),
        "a digit": (
            data[:200] + (b"1" if data[200:201] != b"1" else b"2") + data[201:],
            "truncated|can't be decrypted",
        ),
    }


@pytest.mark.parametrize("how", spoiled(b"\n" * 500))
def test_a_damaged_export_has_words_of_its_own(how: str, full: Lab, empty: Lab, tmp_path: Path) -> None:
    file = tmp_path / "lab.vault"
    byhand.export(full, file)
    data, said = spoiled(file.read_bytes())[how]
    file.write_bytes(data)
    with pytest.raises(LabtrackError, match=said):
        byhand.bring(empty, file)
    assert files_of(empty) == {}


def test_other_encrypted_files_are_told_from_an_export(full: Lab, empty: Lab) -> None:
    with pytest.raises(BadInputError, match="no export of a lab"):
        byhand.bring(empty, full.secrets_file)


def test_another_vault_password_is_told(full: Lab, empty: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    byhand.export(full, tmp_path / "lab.vault")
    use_password(monkeypatch, tmp_path / "other-password", "another")
    with pytest.raises(LabtrackError, match="another vault password"):
        byhand.bring(empty, tmp_path / "lab.vault")
    assert files_of(empty) == {}


def test_an_export_of_another_lab_is_refused(full: Lab, tmp_path: Path) -> None:
    byhand.export(full, tmp_path / "lab.vault")
    ocean = dataclasses.replace(checkout(tmp_path / "other"), name="ocean")
    with pytest.raises(BadInputError, match="of the lab climate, not of ocean"):
        byhand.bring(ocean, tmp_path / "lab.vault", force=True)
    moved = checkout(tmp_path / "moved", lab_fqdn="mlflow.elsewhere.org")
    with pytest.raises(BadInputError, match=r"mlflow\.elsewhere\.org"):
        byhand.bring(moved, tmp_path / "lab.vault")
    byhand.bring(moved, tmp_path / "lab.vault", force=True)


def test_an_export_by_a_newer_kit_is_refused(empty: Lab, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(packed(empty, {KEYS: b"{}"}, version=2))
    with pytest.raises(BadInputError, match="newer labtrack"):
        byhand.bring(empty, tmp_path / "x")
    (tmp_path / "x").write_bytes(packed(empty, {KEYS: b"{}"}, sums={}))
    with pytest.raises(BadInputError, match="damaged"):
        byhand.bring(empty, tmp_path / "x")


def test_export_to_where_it_can_not_be(full: Lab, empty: Lab, tmp_path: Path) -> None:
    mine = tmp_path / "thesis.tex"
    mine.write_text("mine")
    for target, said in (
        (tmp_path, "is a folder"), (tmp_path / "no" / "x", "There is no folder"), (mine, "is no export"),
        (full.private / "x", "in the folder that is exported"),
    ):  # fmt: skip
        with pytest.raises(BadInputError, match=said):
            byhand.export(full, target)
    assert mine.read_text() == "mine"
    with pytest.raises(BadInputError, match="no files of the lab yet"):
        byhand.export(empty, tmp_path / "x")
    byhand.export(full, tmp_path / "x")
    byhand.export(full, tmp_path / "x")  # an export is written over


@pytest.mark.parametrize("dies_at", [0, 1, 5, 8, 9, 10, 12, 99])
def test_an_import_that_dies_is_ended_or_forgotten_by_the_next_call(
    dies_at: int, full: Lab, empty: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    byhand.export(full, tmp_path / "lab.vault")
    write(empty, ADA, "older")
    before = files_of(empty)
    calls = 0
    real = placing.files.write_private

    def dying(path: Path, data: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls > dies_at:
            os._exit(9)
        real(path, data)

    child = os.fork()
    if child == 0:
        monkeypatch.setattr(placing.files, "write_private", dying)
        with contextlib.suppress(BaseException):
            byhand.bring(empty, tmp_path / "lab.vault", force=True)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    placing.finish(empty)
    assert files_of(empty) in (before, files_of(full))
    assert not (empty.private / placing.FOLDER).exists()
    if os.waitstatus_to_exitcode(status) == 0:
        assert files_of(empty) == files_of(full)


def test_the_command_ends_with_words_and_a_code(full: Lab, empty: Lab, tmp_path: Path) -> None:
    def run(*arguments: object) -> tuple[int, str]:
        done = subprocess.run([LABTRACK, "lab", *arguments], capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout + done.stderr

    assert run("export", full.folder, "-o", tmp_path / "x") == (
        0,
        f"""\
Written: {tmp_path / "x"}, with 7 files.  It opens with the vault password only: keep that elsewhere.
""",
    )
    code, said = run("import", empty.folder, tmp_path / "x")
    assert code == 0 and "written: ada/mlflow_env.sh" in said and files_of(empty) == files_of(full)
    (tmp_path / "x").write_bytes((tmp_path / "x").read_bytes()[:-9])
    code, said = run("import", empty.folder, tmp_path / "x")
    assert code == 2 and "truncated" in said and "To fix" in said


# --- three ways


NAMES = st.sampled_from([ADA, "private/grace/mlflow_env.sh", KEYS, content.SECRETS])
SUMS = st.dictionaries(NAMES, st.sampled_from("abc"))


@given(SUMS, SUMS, SUMS)
def test_a_merge_loses_no_change_of_either_side(
    base: dict[str, str], here: dict[str, str], there: dict[str, str]
) -> None:
    plan = merge(base, here, there)
    after = {**here, **{name: there[name] for name in plan.take}}
    for name in plan.drop:
        del after[name]
    for name in {*base, *here, *there}:
        sides = {side.get(name) for side in (here, there)} - {base.get(name)}
        if name in plan.clash:
            assert len(sides) == 2 and after.get(name) == here.get(name)
        elif name == content.SECRETS and name not in there:
            assert after.get(name) == here.get(name)  # git has it: it is never taken away
        else:
            assert after.get(name) == (sides.pop() if sides else base.get(name))
    theirs = merge(base, here, there, theirs=True)
    assert theirs.clash == () and set(plan.take) <= set(theirs.take)
