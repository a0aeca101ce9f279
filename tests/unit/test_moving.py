"""Keys that belong to another login of the cloud, and an empty clone that must not make anything anew."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator

import pytest
from conftest import at
from fakes import USER, FakeCloud

from labtrack import secrets, users
from labtrack.envfile import lifecycle, read_envfile
from labtrack.envfile.listing import listed
from labtrack.envfile.register import ACTIVE, OLD, load
from labtrack.errors import BadInputError, LabtrackError
from labtrack.lab import SERVER_OWNER, VERIFY_USER, Lab

Context = Callable[..., Iterator[lifecycle.Context]]
LEFT = "u-who-leaves"


@pytest.fixture
def inherited(lab: Lab, cloud: FakeCloud, context: Context) -> Lab:
    """A lab whose keys were all made by an admin who leaves; that of grace was handed in."""
    with context() as opened:
        secrets.ensure_passwords(lab)
        lifecycle.server_key(opened)
    with at(lab, cloud) as opened:
        assert all(not person.error for person in users.sync(opened))
        for entry in list(opened.keys.register.keys.values()):
            theirs = dataclasses.replace(entry, user_id=LEFT, handed_in=entry.owner == "grace")
            opened.keys.register.put(theirs)
    return lab


def made_by(lab: Lab) -> dict[str, str]:
    """Whose the keys in use are."""
    return {entry.owner: entry.user_id for entry in load(lab.keys_file).keys.values() if entry.state == ACTIVE}


def test_keys_of_another_login_are_named(inherited: Lab, cloud: FakeCloud) -> None:
    with at(inherited, cloud) as opened:
        (note,) = [note for note in listed(opened).notes if LEFT in note]
        assert "4 key(s)" in note and "labtrack env move" in note and "Handed in, of grace" in note
    with at(inherited, cloud) as opened:
        told = [note for person in users.sync(opened) for note in person.outcome.notes]
    assert [note for note in told if LEFT in note] == [note]


def test_a_login_that_made_all_keys_is_told_nothing(lab: Lab, cloud: FakeCloud, context: Context) -> None:
    with context() as opened:
        lifecycle.create(opened, "ada")
        assert [note for note in listed(opened).notes if "end when" in note] == []
        assert list(lifecycle.move(opened)) == []


def test_moving_gives_everybody_a_key_of_this_login_and_keeps_the_old_one_for_its_grace(
    inherited: Lab, cloud: FakeCloud
) -> None:
    before = {user: read_envfile(inherited.env_file(user)) for user in ("ada", "grace", VERIFY_USER)}
    server = secrets.get(inherited, secrets.S3_ACCESS)
    with at(inherited, cloud) as opened:
        moved = {outcome.user: outcome for outcome in lifecycle.move(opened)}
    assert set(moved) == {"ada", SERVER_OWNER, VERIFY_USER} and "site.yml" in moved[SERVER_OWNER].changed[-1]
    assert made_by(inherited) == {"ada": USER, "grace": LEFT, SERVER_OWNER: USER, VERIFY_USER: USER}
    after = read_envfile(inherited.env_file("ada"))
    assert after.access != before["ada"].access
    assert after.variables["MLFLOW_TRACKING_PASSWORD"] == before["ada"].variables["MLFLOW_TRACKING_PASSWORD"]
    assert read_envfile(inherited.env_file("grace")) == before["grace"]
    old = [entry for entry in load(inherited.keys_file).of("ada", OLD) if entry.access == before["ada"].access]
    assert old and old[0].until and old[0].access in cloud.keys
    assert secrets.get(inherited, secrets.S3_ACCESS) != server and server in cloud.keys

    with at(inherited, cloud) as opened:
        assert list(lifecycle.move(opened)) == []
        (outcome,) = lifecycle.move(opened, ["grace"])  # named, so the handed-in one too
    assert outcome.user == "grace" and made_by(inherited)["grace"] == USER


def test_moving_somebody_whose_key_is_of_this_login_is_told(inherited: Lab, cloud: FakeCloud) -> None:
    with at(inherited, cloud) as opened:
        list(lifecycle.move(opened, ["ada"]))
        with pytest.raises(BadInputError, match="ada has no key of another login"):
            list(lifecycle.move(opened, ["grace", "ada"]))
    assert made_by(inherited)["grace"] == LEFT


def test_what_can_not_be_moved_does_not_stop_the_others(inherited: Lab, cloud: FakeCloud) -> None:
    inherited.env_file("ada").unlink()
    with at(inherited, cloud) as opened:
        moved = {outcome.user: outcome for outcome in lifecycle.move(opened)}
    assert "has no file" in moved["ada"].notes[0] and moved[VERIFY_USER].changed


@pytest.mark.parametrize("access", ["direct", "proxied"])
def test_an_empty_clone_gives_no_account_a_new_password(
    access: str, lab: Lab, cloud: FakeCloud, context: Context
) -> None:
    lab = dataclasses.replace(lab, artifact_access=access)
    with context() as opened:
        secrets.ensure_passwords(lab)
    with at(lab, cloud) as opened:
        lifecycle.server_key(opened)
        assert all(not person.error for person in users.sync(opened))
    before = dict(cloud.accounts), set(cloud.keys)
    shutil.rmtree(lab.private)
    lab.private.mkdir(mode=0o700)
    lab.ca_file.write_text("-----BEGIN CERTIFICATE-----\nMIIBlabCA\n-----END CERTIFICATE-----\n")
    with at(lab, cloud) as opened:
        done = {person.outcome.user: person for person in users.sync(opened)}
        assert "made by another admin" in done["ada"].error and "labtrack lab import" in done["ada"].error
        with pytest.raises(LabtrackError, match="made by another admin"):
            lifecycle.create(opened, "grace")
    assert (dict(cloud.accounts), set(cloud.keys)) == before and not lab.env_file("ada").exists()
    with at(lab, cloud) as opened:
        assert "password set" in lifecycle.create(opened, "grace", force=True).changed
