"""Two admins of one lab: the server's copy of its files, and its lock."""

from __future__ import annotations

import dataclasses
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from copied import ADA, KEYS, KNOWN, Admin, checkout, files_of, use_password, write
from hypothesis import given, settings
from hypothesis import strategies as st

from labtrack import labmoved, secrets
from labtrack.errors import BadInputError, Exit, LabtrackError
from labtrack.lab import Lab
from labtrack.labcopy import archive, byhand, content, handover, placing
from labtrack.labcopy.remote import KEPT, Holder, Server

STATE = "private/terraform.tfstate"


# --- two admins and the server


@pytest.fixture
def server(tmp_path: Path) -> Server:
    """The server's side, by the real scripts."""
    calls: list[int] = []

    def run(script: str, data: bytes) -> tuple[int, str, str]:
        calls.append(len(data))
        done = subprocess.run(["/bin/sh", "-c", script], input=data, capture_output=True, check=False)
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    place = tmp_path / "server"
    place.mkdir()
    made = Server(run, str(place / "exports" / "lab"), str(place / "lock"), str(place / "mlflow"))
    object.__setattr__(made, "calls", calls)
    return made


@pytest.fixture
def ada(full: Lab, server: Server) -> Admin:
    """The first admin, who has deployed the lab."""
    admin = Admin(full, server, "ada")
    admin.run()
    Path(server.deployed).touch()
    return admin


@pytest.fixture
def bob(empty: Lab, server: Server) -> Admin:
    """The second admin, with an empty clone."""
    return Admin(empty, server, "bob")


def exports(server: Server) -> list[str]:
    return sorted(path.name for path in Path(server.exports).iterdir())


def test_an_empty_clone_gets_every_file_as_it_was(ada: Admin, bob: Admin, server: Server) -> None:
    done = bob.begin()
    assert done.changed and files_of(bob.lab) == files_of(ada.lab)
    assert not bob.end().changed and exports(server) == ["00000001.json", "00000001.vault"]
    assert not ada.run().changed


def test_the_servers_copy_is_roots_and_encrypted(ada: Admin, server: Server) -> None:
    folder = Path(server.exports)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    for path in folder.iterdir():
        assert b"password of" not in path.read_bytes() and content.checksum(b"password of ada").encode() not in (
            path.read_bytes()
        )
    assert content.read(ada.lab).sums[ADA] in (ada.lab.private / content.MARK).read_text()


def test_a_run_that_changes_nothing_asks_twice_and_sends_nothing(ada: Admin, server: Server) -> None:
    calls: list[int] = server.calls  # type: ignore[attr-defined]
    calls.clear()
    assert not ada.run().changed
    assert calls == [0, 0]


def test_changes_go_back_and_forth(ada: Admin, bob: Admin, server: Server) -> None:
    bob.run(ada="new password", keys="more keys")
    taken = ada.begin()
    assert taken.changed and files_of(ada.lab) == files_of(bob.lab)
    assert "bob@" not in taken.lines[0] and archive.who() in taken.lines[0]
    shutil.rmtree(ada.lab.private / "grace")
    ada.end()
    bob.begin()
    assert not (bob.lab.private / "grace").exists() and files_of(ada.lab) == files_of(bob.lab)
    bob.end()


def test_what_each_has_changed_alone_is_put_together(ada: Admin, bob: Admin) -> None:
    bob.run()
    write(ada.lab, "private/grace/mlflow_env.sh", "new for grace")
    bob.run(ada="new for ada")
    ada.run()
    bob.run()
    assert files_of(ada.lab) == files_of(bob.lab)
    assert files_of(bob.lab)[ADA] == b"new for ada" and b"new for grace" in files_of(bob.lab).values()


@pytest.fixture
def fork(ada: Admin, bob: Admin) -> None:
    """Both have changed the register."""
    bob.run()
    write(ada.lab, KEYS, "as ada has it")
    bob.run(keys="as bob has it")


@pytest.mark.usefixtures("fork")
def test_a_fork_stops_before_anything_changes(ada: Admin, bob: Admin, server: Server) -> None:
    before = files_of(ada.lab), exports(server)
    with pytest.raises(LabtrackError, match=r"in different ways: keys\.json") as told:
        ada.begin()
    assert "lab_copy=server" in told.value.hint and "lab_copy=here" in told.value.hint
    assert (files_of(ada.lab), exports(server)) == before
    assert not bob.run().changed  # the lock was let go


@pytest.mark.usefixtures("fork")
def test_of_a_fork_the_servers_side_is_taken_when_asked(ada: Admin, bob: Admin) -> None:
    done = ada.begin(choice="server")
    assert files_of(ada.lab) == files_of(bob.lab)
    (kept,) = (ada.lab.private / placing.ASIDE).glob(f"*/{KEYS}")
    assert kept.read_text() == "as ada has it" and str(kept.parents[1]) in done.lines[-1]
    assert not ada.end().changed


@pytest.mark.usefixtures("fork")
def test_of_a_fork_this_side_is_kept_when_asked(ada: Admin, bob: Admin) -> None:
    ada.begin(choice="here")
    assert ada.end().changed
    bob.run()
    assert files_of(bob.lab)[KEYS] == b"as ada has it"


def test_what_was_made_from_the_cloud_a_moment_ago_is_no_fork(ada: Admin, bob: Admin) -> None:
    write(bob.lab, STATE, '{"lineage": "adopted"}')
    bob.begin()
    assert files_of(bob.lab)[STATE] == b'{"lineage": "adopted"}' and files_of(bob.lab)[ADA] == b"password of ada"
    assert bob.end().changed
    ada.run()
    assert files_of(ada.lab) == files_of(bob.lab)


def test_known_hosts_and_a_hosts_yml_by_hand_are_each_admins_own(ada: Admin, bob: Admin) -> None:
    own = {KNOWN: "learned from the console\n", content.HOSTS: "mlflow: {hosts: {server: {ansible_user: bob}}}\n"}
    for name, text in own.items():
        write(bob.lab, name, text)
    write(ada.lab, content.HOSTS, "mlflow: {hosts: {server: {ansible_user: ada}}}\n")
    had = {name: files_of(ada.lab)[name] for name in own}
    bob.run(ada="newer")
    ada.run()
    assert {name: files_of(ada.lab)[name] for name in own} == had and files_of(ada.lab)[ADA] == b"newer"
    bob.run()
    assert {name: files_of(bob.lab)[name].decode() for name in own} == own


def test_a_run_of_who_does_not_know_yet_that_the_lab_has_moved_is_refused(ada: Admin, bob: Admin) -> None:
    bob.run()
    ada.begin()
    labmoved.note(ada.lab, "left for tundra")
    ada.end()
    with pytest.raises(BadInputError, match="it is tundra now"):
        bob.begin(refuse_moved=True)
    assert labmoved.where(bob.lab) == "left for tundra"
    assert not ada.run().changed, "the lock was let go"
    assert not bob.run().changed, "what keeps the server closed may run"


def test_a_run_of_who_does_not_know_yet_that_the_lab_is_back_goes_on(ada: Admin, bob: Admin) -> None:
    ada.begin()
    labmoved.note(ada.lab, "left for tundra")
    ada.end()
    bob.run()
    ada.begin()
    labmoved.note(ada.lab, "")
    ada.end()
    assert bob.begin(refuse_moved=True).changed and labmoved.where(bob.lab) == ""


def test_an_older_secrets_yml_of_git_is_told(ada: Admin, bob: Admin) -> None:
    write(bob.lab, content.SECRETS, "from git, older")
    with pytest.raises(LabtrackError, match=r"secrets\.yml"):
        bob.begin()
    bob.begin(choice="server")
    assert secrets.read(bob.lab) == secrets.read(ada.lab)


def test_without_the_vault_password_nothing_changes(
    ada: Admin, bob: Admin, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = exports(server)
    use_password(monkeypatch, tmp_path / "other-password", "another")
    for admin in (bob, ada):
        had = files_of(admin.lab)
        with pytest.raises(LabtrackError, match="another vault password"):
            admin.begin()
        assert files_of(admin.lab) == had
    assert exports(server) == before
    ada.begin(choice="here")  # it was changed on purpose
    assert ada.end().changed


def test_a_lab_whose_files_are_nowhere_is_not_made_anew(ada: Admin, bob: Admin, server: Server) -> None:
    shutil.rmtree(server.exports)  # deployed by an older kit
    with pytest.raises(LabtrackError, match=r"neither in .* nor on the server"):
        bob.begin()
    ada.run()
    bob.begin()
    assert files_of(bob.lab) == files_of(ada.lab)


def test_a_new_machine_gets_what_is_here(ada: Admin, bob: Admin, server: Server) -> None:
    bob.run(ada="newer")
    shutil.rmtree(server.exports)
    Path(server.deployed).unlink()
    assert bob.run().changed and exports(server)[-1] == "00000003.vault"
    ada.run()
    assert files_of(ada.lab)[ADA] == b"newer"


def test_a_server_from_an_old_backup_does_not_take_anything_back(ada: Admin, server: Server) -> None:
    shutil.copytree(server.exports, f"{server.exports}.old")
    ada.run(ada="newer")
    shutil.rmtree(server.exports)
    Path(f"{server.exports}.old").rename(server.exports)
    assert "older files" in ada.begin().lines[0]
    assert ada.end().changed and files_of(ada.lab)[ADA] == b"newer"
    assert exports(server)[-1] == "00000003.vault"


def test_the_last_few_exports_are_kept(ada: Admin, server: Server) -> None:
    for number in range(KEPT + 2):
        ada.run(ada=f"password {number}")
    assert len(exports(server)) == 2 * KEPT and exports(server)[-1] == f"{KEPT + 3:08d}.vault"


def test_a_damaged_copy_on_the_server_is_told(ada: Admin, bob: Admin, server: Server) -> None:
    (file,) = Path(server.exports).glob("*.vault")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(BadInputError, match="truncated"):
        bob.begin()
    facts = Path(server.exports, "00000001.json")
    other = ada.lab.private.parent / "other"
    byhand.export(ada.lab, other)
    file.write_bytes(other.read_bytes())
    facts.write_text(facts.read_text().replace('"serial": 1', '"serial": 7'))
    file.rename(file.with_name("00000007.vault"))
    with pytest.raises(LabtrackError, match="not what its description says"):
        bob.begin()
    bob.begin(choice="here", look=True)
    facts.write_text("{")
    with pytest.raises(LabtrackError, match="can't be read"):
        ada.begin()


def test_looking_changes_nothing(ada: Admin, bob: Admin, server: Server) -> None:
    there = sorted(path.name for path in Path(server.lock).parent.iterdir())
    done = bob.begin(look=True)
    assert done.changed and not bob.lab.private.exists()
    assert sorted(path.name for path in Path(server.lock).parent.iterdir()) == there


# --- the lock


def test_the_second_is_told_who_is_at_work(ada: Admin, bob: Admin) -> None:
    ada.begin()
    with pytest.raises(
        LabtrackError, match=r"ada@ada-laptop is at work on this lab since 2026-01-01: site\.yml"
    ) as told:
        bob.begin()
    assert told.value.code == Exit.LOCKED and "take_lock=true" in told.value.hint
    assert files_of(bob.lab) == {}
    ada.begin()  # the same run goes on
    ada.end()
    bob.begin()


def test_a_lock_is_taken_when_asked_and_its_old_owner_does_not_end_it(ada: Admin, bob: Admin) -> None:
    ada.begin()
    bob.begin(take_lock=True)
    ada.end()
    with pytest.raises(LabtrackError, match="bob@bob-laptop is at work"):
        ada.begin()
    bob.run()
    ada.begin()


def test_the_one_who_lost_the_lock_writes_nothing_over(ada: Admin, bob: Admin) -> None:
    ada.begin()
    bob.begin(take_lock=True)
    write(bob.lab, ADA, "by bob")
    bob.end()
    write(ada.lab, KEYS, "by ada")
    with pytest.raises(LabtrackError, match="while this run was at work"):
        ada.end()
    ada.run()
    bob.run()
    assert files_of(ada.lab) == files_of(bob.lab) and files_of(ada.lab)[ADA] == b"by bob"


def test_a_lock_of_two_hours_is_nobodys(ada: Admin, bob: Admin, server: Server) -> None:
    ada.begin()
    lock = Path(server.lock)
    os.utime(lock, (lock.stat().st_atime, lock.stat().st_mtime - 119 * 60))
    with pytest.raises(LabtrackError):
        bob.begin()
    os.utime(lock, (lock.stat().st_atime, lock.stat().st_mtime - 2 * 60))
    bob.begin()


@pytest.fixture
def ended() -> Iterator[int]:
    """The number of a process that is no more."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    yield child.pid


def test_a_run_that_died_here_is_nobodys_lock(ada: Admin, bob: Admin, ended: int) -> None:
    here = {"host": "one", "user": "ada"}
    ada.me = dataclasses.replace(ada.me, **here, pid=os.getpid())
    bob.me = dataclasses.replace(bob.me, **here)
    ada.begin()
    with pytest.raises(LabtrackError, match="is at work"):
        bob.begin()
    ada.end()
    ada.me = dataclasses.replace(ada.me, pid=ended)
    ada.begin()
    bob.begin()


def test_the_holder_is_the_same_in_one_run_only(full: Lab) -> None:
    one: Callable[[int], Holder] = lambda pid: handover.holder(full, "site.yml", pid)  # noqa: E731
    assert one(7).token == one(7).token != one(8).token


@settings(max_examples=int(os.environ.get("LABTRACK_EXAMPLES", "8")), deadline=None)
@given(
    steps=st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["ada", "keys", ""]), st.booleans()), max_size=6)
)
def test_two_admins_never_lose_a_change_in_silence(steps: list[tuple[str, str, bool]], tmp_path_factory) -> None:
    """Changes with and without a run around them: each is in both checkouts at last, or a run has stopped."""
    root = tmp_path_factory.mktemp("two")

    def run(script: str, data: bytes) -> tuple[int, str, str]:
        done = subprocess.run(["/bin/sh", "-c", script], input=data, capture_output=True, check=False)
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    server = Server(run, str(root / "exports"), str(root / "lock"), str(root / "mlflow"))
    admins = {name: Admin(checkout(root / name), server, name) for name in "ab"}
    write(admins["a"].lab, KEYS, "first")
    admins["a"].run()
    admins["b"].run()
    last: dict[str, str] = {"keys": "first"}
    for number, (who, what, runs) in enumerate(steps):
        admin = admins[who]
        try:
            if runs:
                admin.begin()
            if what:
                write(admin.lab, {"ada": ADA, "keys": KEYS}[what], f"{number}")
                last[what] = f"{number}"
            if runs:
                admin.end()
        except LabtrackError as stopped:
            assert "in different ways" in stopped.what
            return
    try:
        for name in "aba":
            admins[name].run()
    except LabtrackError as stopped:
        assert "in different ways" in stopped.what
        return
    for admin in admins.values():
        found = files_of(admin.lab)
        assert {name: found[{"ada": ADA, "keys": KEYS}[name]].decode() for name in last} == last
