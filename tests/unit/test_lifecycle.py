"""Accounts, keys and files: created, rotated, revoked, and killed in between."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path

import pytest
from conftest import at
from fakes import FakeCloud

from labtrack import lab as labs
from labtrack import secrets
from labtrack.cloud.key import Key
from labtrack.envfile import lifecycle, read_envfile
from labtrack.envfile.listing import listed
from labtrack.envfile.register import now, seconds_until
from labtrack.errors import BadInputError
from labtrack.lab import Lab


def state(lab: Lab) -> dict[str, object]:
    return json.loads((lab.private / "keys.json").read_text())


def test_a_new_person_gets_account_key_and_file(lab: Lab, cloud: FakeCloud, context) -> None:
    with context() as opened:
        outcome = lifecycle.create(opened, "ada")
    file = read_envfile(lab.env_file("ada"))
    assert [line.split()[0] for line in outcome.changed] == ["key", "account", "member", "experiment", "file"]
    assert cloud.accounts["ada"] == file.variables["MLFLOW_TRACKING_PASSWORD"]
    assert cloud.keys == {file.access: file.variables["AWS_SECRET_ACCESS_KEY"]}
    assert lab.env_file("ada").stat().st_mode & 0o777 == 0o600
    assert file.variables["AWS_SECRET_ACCESS_KEY"] not in (lab.private / "keys.json").read_text()
    assert not cloud.objects, "the probe left an object behind"


def test_a_second_call_changes_nothing(lab: Lab, cloud: FakeCloud, context) -> None:
    with context() as opened:
        lifecycle.create(opened, "ada")
    before = untouched(lab), dict(cloud.keys), dict(cloud.accounts)
    with context() as opened:
        assert lifecycle.create(opened, "ada").changed == []
    assert (untouched(lab), cloud.keys, cloud.accounts) == before


def untouched(lab: Lab) -> tuple[int, int, int]:
    """What changes when the file is written again; when it was read does not matter."""
    found = lab.env_file("ada").stat()
    return found.st_ino, found.st_mtime_ns, found.st_mode


def its_end_has_come(opened: lifecycle.Context, access: str) -> None:
    """Moves the end of an old key into the past, as time does."""
    entry = opened.keys.register.keys[access]
    assert entry.state == "old" and entry.until
    opened.keys.register.put(dataclasses.replace(entry, until=now(-1)))


def test_rotation_keeps_the_password_and_the_old_key_for_its_grace(lab: Lab, cloud: FakeCloud, context) -> None:
    with context() as opened:
        lifecycle.create(opened, "ada")
        before = read_envfile(lab.env_file("ada"))
        told = lifecycle.rotate(opened, "ada").changed
    after = read_envfile(lab.env_file("ada"))
    assert set(cloud.keys) == {before.access, after.access} and len(cloud.keys) == 2
    assert any(line.startswith(f"old key {before.access} works until ") for line in told)
    with context() as opened:
        assert 7 * 86400 - 60 < seconds_until(opened.keys.register.keys[before.access].until) <= 7 * 86400
        assert [line.left for line in listed(opened).lines if line.access == before.access] == ["6 d left"]
        assert lifecycle.create(opened, "ada").changed == [] and before.access in cloud.keys
        its_end_has_come(opened, before.access)
        assert "to be deleted" in next(line.left for line in listed(opened).lines if line.access == before.access)
        assert before.access in cloud.keys, "looking deletes nothing"
        # whoever is the next to get something: the kit has no process that waits
        assert f"old key {before.access} of ada deleted" in lifecycle.create(opened, "grace").changed
    assert before.access not in cloud.keys and after.access in cloud.keys
    assert after.variables["MLFLOW_TRACKING_PASSWORD"] == before.variables["MLFLOW_TRACKING_PASSWORD"]


def test_a_leaked_file_becomes_worthless_at_once(lab: Lab, cloud: FakeCloud, context) -> None:
    with context() as opened:
        lifecycle.create(opened, "ada")
        before = read_envfile(lab.env_file("ada"))
        lifecycle.rotate(opened, "ada", grace=3600)
        lifecycle.rotate(opened, "ada", leaked=True)
    assert list(cloud.keys) == [read_envfile(lab.env_file("ada")).access], "older ones end too"
    assert before.access not in cloud.keys
    assert cloud.accounts["ada"] != before.variables["MLFLOW_TRACKING_PASSWORD"]
    assert cloud.accounts["ada"] == read_envfile(lab.env_file("ada")).variables["MLFLOW_TRACKING_PASSWORD"]


@pytest.mark.parametrize(("said", "grace"), [("0", 0), (0, 0), ("36h", 129600), (2, 172800), ("10s", 10)])
def test_rotation_takes_the_grace_of_lab_yml(
    said: str | int, grace: float, lab: Lab, cloud: FakeCloud, context
) -> None:
    file = labs.lab_yml(lab.folder)
    file.write_text(file.read_text() + f"lab_key_grace: {json.dumps(said)}\n")
    assert labs.load(lab.folder).key_grace == grace
    with at(dataclasses.replace(lab, key_grace=grace), cloud) as opened:
        secrets.add(lab, {"secret_mlflow_admin_password": cloud.accounts["admin"]})
        lifecycle.create(opened, "ada")
        old = read_envfile(lab.env_file("ada")).access
        lifecycle.rotate(opened, "ada")
        assert (old in cloud.keys) == bool(grace)


@pytest.mark.parametrize("said", ["a week", "7x", "-1", -1, 1.5, "", "7 d", True, None])
def test_lab_yml_refuses_what_is_no_duration(said: object, lab_dir: Path) -> None:
    file = labs.lab_yml(lab_dir)
    file.write_text(file.read_text() + f"lab_key_grace: {json.dumps(said)}\n")
    with pytest.raises(BadInputError, match="lab_key_grace"):
        labs.load(lab_dir)


def test_rotation_refuses_the_key_that_is_in_use(lab: Lab, cloud: FakeCloud, context) -> None:
    with context() as opened:
        lifecycle.create(opened, "ada")
        there = read_envfile(lab.env_file("ada"))
        same = Key(there.access, there.variables["AWS_SECRET_ACCESS_KEY"])
        with pytest.raises(BadInputError, match="nothing would be rotated"):
            lifecycle.rotate(opened, "ada", handed_in=same)
    assert list(cloud.keys) == [there.access]


def test_revoking_takes_everything_and_can_be_repeated(lab: Lab, cloud: FakeCloud, context) -> None:
    with context() as opened:
        lifecycle.create(opened, "ada")
        lifecycle.create(opened, "grace")
        gone = lifecycle.revoke(opened, "ada")
        again = lifecycle.revoke(opened, "ada")
    assert len(gone.changed) == 3 and again.changed == []
    assert not lab.env_file("ada").parent.exists()
    assert sorted(cloud.accounts) == ["admin", "grace"]
    assert list(cloud.keys) == [read_envfile(lab.env_file("grace")).access]


def test_a_lost_file_is_made_again_with_the_same_key(lab: Lab, cloud: FakeCloud, context) -> None:
    with context() as opened:
        lifecycle.create(opened, "ada")
        before = read_envfile(lab.env_file("ada"))
        lab.env_file("ada").unlink()
        lifecycle.create(opened, "ada")
    after = read_envfile(lab.env_file("ada"))
    assert after.access == before.access and list(cloud.keys) == [after.access]
    assert cloud.accounts["ada"] == after.variables["MLFLOW_TRACKING_PASSWORD"]


def test_a_key_deleted_behind_the_kits_back_is_replaced(lab: Lab, cloud: FakeCloud, context) -> None:
    with context() as opened:
        lifecycle.create(opened, "ada")
    cloud.keys.clear()
    with context() as opened:
        lifecycle.create(opened, "ada")
    assert list(cloud.keys) == [read_envfile(lab.env_file("ada")).access]
    assert [key["access"] for key in state(lab)["keys"]] == list(cloud.keys)


class Killed(Exception):
    """A call that was killed came back alive."""


def dies(lab: Lab, cloud: FakeCloud, step: int, call) -> bool:
    """Runs `call` in a child process that is killed at its `step`-th step; False when it ended before."""
    child = os.fork()
    if child == 0:
        left = [step]

        def kill(_: str) -> None:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        code = 1
        try:
            with at(lab, cloud, step=kill) as opened:
                call(opened)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


CALLS = {
    "create": lambda opened: lifecycle.create(opened, "ada"),
    "rotate": lambda opened: lifecycle.rotate(opened, "ada", grace=0),
    "leaked": lambda opened: lifecycle.rotate(opened, "ada", leaked=True),
    "revoke": lambda opened: lifecycle.revoke(opened, "ada"),
}


@pytest.mark.parametrize("name", CALLS)
def test_killed_between_any_two_steps_the_next_call_finishes(name: str, lab: Lab, cloud: FakeCloud, context) -> None:
    call, step = CALLS[name], 0
    while True:
        step += 1
        with context() as opened:  # a fresh start for each step
            lifecycle.revoke(opened, "ada")
            if name != "create":
                lifecycle.create(opened, "ada")
        before = dict(cloud.keys)
        if not dies(lab, cloud, step, call):
            break
        file = lab.env_file("ada")
        if file.exists():
            assert file.read_bytes().rstrip().rpartition(b"\n")[2].startswith(b"# labtrack: complete")
        with context() as opened:
            call(opened)
        if name == "revoke":
            assert (cloud.keys, list(cloud.accounts), file.exists()) == ({}, ["admin"], False), step
        else:
            written = read_envfile(file)
            assert cloud.keys == {written.access: written.variables["AWS_SECRET_ACCESS_KEY"]}, f"at step {step}"
            assert cloud.accounts["ada"] == written.variables["MLFLOW_TRACKING_PASSWORD"], f"at step {step}"
            if name != "create":
                assert written.access not in before, f"at step {step}"
        register = state(lab)
        assert [key["access"] for key in register["keys"]] == list(cloud.keys)
        assert register["intents"] == {} and register["passwords"] == []
    assert step > 5, "the steps are no longer told"
