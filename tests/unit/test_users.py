"""The people of lab.yml against the accounts."""

from __future__ import annotations

import dataclasses

from conftest import at
from fakes import FakeCloud

from labtrack import experiments, secrets, users
from labtrack.envfile import read_envfile
from labtrack.lab import VERIFY_USER, Lab, User


def synced(lab: Lab, cloud: FakeCloud) -> dict[str, users.Person]:
    """What a sync did, by person."""
    with at(lab, cloud) as context:
        return {person.outcome.user: person for person in users.sync(context)}


def test_everybody_once_and_nothing_twice(lab: Lab, cloud: FakeCloud, context) -> None:
    with context():
        secrets.ensure_passwords(lab)
    first = synced(lab, cloud)
    assert list(first) == [experiments.ROLE, "ada", "grace", VERIFY_USER]
    assert all(len(first[name].outcome.changed) == 5 for name in ("ada", "grace", VERIFY_USER))
    assert sorted(cloud.accounts) == ["ada", "admin", "grace", VERIFY_USER] and len(cloud.keys) == 3
    assert cloud.accounts[VERIFY_USER] == secrets.get(lab, "secret_verify_password")
    assert all(person.outcome.changed == [] for person in synced(lab, cloud).values())


def test_absent_people_lose_everything(lab: Lab, cloud: FakeCloud, context) -> None:
    with context():
        secrets.ensure_passwords(lab)
    synced(lab, cloud)
    gone = dataclasses.replace(lab, users=(User("ada", False), User("grace", True)))
    assert len(synced(gone, cloud)["ada"].outcome.changed) == 3
    assert "ada" not in cloud.accounts and len(cloud.keys) == 2 and not lab.env_file("ada").exists()
    assert synced(gone, cloud)["ada"].outcome.changed == []


def test_somebody_who_is_no_longer_listed_is_told_not_taken_away(lab: Lab, cloud: FakeCloud, context) -> None:
    with context():
        secrets.ensure_passwords(lab)
    synced(lab, cloud)
    fewer = synced(dataclasses.replace(lab, users=(User("grace", True),)), cloud)
    assert "state: absent" in fewer["ada"].outcome.notes[0] and "ada" in cloud.accounts


def test_one_bad_file_does_not_stop_the_others(lab: Lab, cloud: FakeCloud, context) -> None:
    with context():
        secrets.ensure_passwords(lab)
    synced(lab, cloud)
    lab.env_file("ada").chmod(0o644)
    lab.env_file("grace").unlink()
    done = synced(lab, cloud)
    assert "chmod 600" in done["ada"].error and done["grace"].error == ""
    assert lab.env_file("grace").exists()


def test_changed_settings_reach_every_file_and_proxied_takes_the_keys(lab: Lab, cloud: FakeCloud, context) -> None:
    with context():
        secrets.ensure_passwords(lab)
    synced(lab, cloud)
    before = read_envfile(lab.env_file("ada"))
    moved = dataclasses.replace(lab, s3_region="elsewhere")
    assert all(person.outcome.changed for person in synced(moved, cloud).values())
    after = read_envfile(lab.env_file("ada"))
    assert (after.variables["AWS_DEFAULT_REGION"], after.access) == ("elsewhere", before.access)
    synced(dataclasses.replace(lab, artifact_access="proxied"), cloud)
    assert cloud.keys == {} and read_envfile(lab.env_file("ada")).access == ""


def test_a_changed_verify_password_reaches_account_and_file(lab: Lab, cloud: FakeCloud, context) -> None:
    with context():
        secrets.ensure_passwords(lab)
    synced(lab, cloud)
    secrets.add(lab, {"secret_verify_password": "b" * 40})
    assert synced(lab, cloud)[VERIFY_USER].outcome.changed[0] == "password set"
    assert cloud.accounts[VERIFY_USER] == "b" * 40
    assert synced(lab, cloud)[VERIFY_USER].outcome.changed == []
