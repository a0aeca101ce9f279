"""`ssh://host/path`: what is an address, what is refused, what becomes of it."""

from __future__ import annotations

import io

import pytest
from click.testing import CliRunner

from labtrack.cli import cli
from labtrack.errors import BadInputError, LabtrackError
from labtrack.stores import open_store
from labtrack.stores.pull import Address, databases, is_address, refuse, ssh
from labtrack.ui import session


@pytest.mark.parametrize(
    ("text", "machine", "port", "path"),
    [
        ("ssh://fir/scratch/ada/runs", "fir", 0, "/scratch/ada/runs"),
        ("ssh://ada@fir.example.org:2222/scratch//ada/./runs/", "ada@fir.example.org", 2222, "/scratch/ada/runs"),
        ("SSH://[fe80::1%eth0]:22/x", "fe80::1%eth0", 22, "/x"),
        ("ssh://fir/~/runs", "fir", 0, "runs"),
        ("ssh://fir/scratch/my%20runs/it's", "fir", 0, "/scratch/my runs/it's"),
        ("ssh://fir/~/-v", "fir", 0, "./-v"),
    ],
)
def test_address_is_read(text: str, machine: str, port: int, path: str) -> None:
    found = Address.parse(text)
    assert (found.machine, found.port, found.path) == (machine, port, path)
    assert is_address(text)


@pytest.mark.parametrize(
    "text",
    [
        "ssh://-oProxyCommand=touch${IFS}x/runs", "ssh://-l@fir/runs", "ssh://fir name/runs", "ssh://fir;id/runs",
        "ssh://fir'/runs", "ssh:///runs", "ssh://fir", "ssh://fir/", "ssh://fir/~/", "ssh://fir/~grace/runs",
        "ssh:/fir/runs",
        "ssh://fir/a\nb", "ssh://fir/a%0ab", "ssh://fir/a%1bb", "ssh://fir/../etc", "ssh://fir/a/%2e%2e/b", "ssh://fir:/x",
        "ssh://fir:0/x", "ssh://fir:65536/x", "ssh://fir:22a/x", "ssh://@fir/x", "ssh://ada@/x", "ssh://a b@fir/x",
        "ssh://[::1/x", "ssh://[x;y]/x",
    ],
)  # fmt: skip
def test_address_that_is_none_is_refused_before_ssh_runs(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABTRACK_SSH", "/nowhere/ssh")
    with pytest.raises(BadInputError) as refused:
        open_store(text)
    assert "To fix" in str(refused.value)


def test_address_with_a_password_is_refused_without_showing_it() -> None:
    with pytest.raises(BadInputError) as refused:
        Address.parse("ssh://ada:s3cret@fir/runs")
    assert "s3cret" not in str(refused.value)


def test_address_key_is_one_for_each_place() -> None:
    same = {Address.parse(text).key for text in ("ssh://fir/a/b", "ssh://fir/a//b/", "SSH://fir/a/./b")}
    other = {Address.parse(text).key for text in ("ssh://fir/a/c", "ssh://fir:22/a/b", "ssh://ada@fir/a/b")}
    assert len(same) == 1
    assert len(other | same) == 4
    assert "/" not in Address.parse("ssh://[::1]/a").key


def test_what_changes_a_recording_is_refused_for_another_machines() -> None:
    for how in (["--status", "FAILED"], ["--synced"]):
        found = CliRunner().invoke(cli, ["prune", "ssh://ada@fir:2/runs", *how], standalone_mode=False).exception
        assert isinstance(found, BadInputError)
        assert found.hint == "do it there: ssh -p 2 ada@fir labtrack prune ..."
    with pytest.raises(BadInputError, match="on another machine"):
        session._link("ssh://fir/runs", None, None)
    refuse("/here/runs", "prune")


def test_pull_without_ssh_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABTRACK_SSH", "/nowhere/ssh -F x")
    with pytest.raises(LabtrackError, match="is not on this machine"):
        open_store("ssh://fir/runs")


@pytest.mark.parametrize(
    ("said", "word", "hint"),
    [
        ("ssh: Could not resolve hostname fir: Name or service not known", "resolved", "Host"),
        ("ssh: connect to host fir port 22: Connection timed out", "reached", "VPN"),
        ("REMOTE HOST IDENTIFICATION HAS CHANGED!\nHost key verification failed.", "another one", "-R 'fir'"),
        ("No ED25519 host key is known for fir and you have requested strict checking.", "not known", "fingerprint"),
        ("ada@fir: Permission denied (publickey,keyboard-interactive).", "refuses the login", "ssh-agent"),
        ("bash: rsync: command not found\nrsync: connection unexpectedly closed", "no rsync", "module"),
        ("protocol version mismatch -- is your shell clean?", "is not rsync", "must print nothing"),
        ('rsync: [sender] link_stat "/runs" failed: No such file or directory (2)', "there is no /runs", "ls /runs"),
        ('rsync: [sender] change_dir "/runs" failed: Permission denied (13)', "may not be read", "ls -ld /runs"),
        ("rsync: connection unexpectedly closed (0 bytes received so far) [Receiver]", "did not run rsync", "command="),
        ("rsync: connection unexpectedly closed (4711 bytes received so far) [Receiver]", "broke", "again"),
        ("/home/ada/.ssh/config: line 3: Bad configuration option: foo", "configuration", "config"),
        ("rsync: write failed on x: No space left on device (28)", "disk is full", "df -h"),
        ("rsync: --info=name1,symsafe1: unknown option", "is another one", "3.1"),
        ("something new", "ended with 12", "by hand"),
    ],
)  # fmt: skip
def test_trouble_says_what_happened_and_what_to_do(said: str, word: str, hint: str) -> None:
    found = ssh.trouble(Address.parse("ssh://fir/runs"), ssh.Done(12, "", said))
    assert word in found.what
    assert hint in found.hint


def test_receive_takes_a_whole_backup_and_no_other(tmp_path) -> None:
    source = tmp_path / "a.db"
    source.write_bytes(b"x" * 3_000_000)
    out = io.BytesIO()
    databases.send(source, out)
    whole = b"Welcome to fir!\n" + out.getvalue()
    got = io.BytesIO()
    databases.receive(io.BytesIO(whole), got)
    assert got.getvalue() == source.read_bytes()
    for broken in (b"", b"Welcome", whole[:100], whole[:-1000], whole[:-2], whole.replace(b"xx", b"xy", 1)):
        with pytest.raises(LabtrackError):
            databases.receive(io.BytesIO(broken), io.BytesIO())
