"""Keys are made by their access key, adopted only on proof, and never taken from anybody."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
from conftest import at, nothing_was_made
from fakes import PROJECT, USER, FakeCloud

from labtrack import secrets
from labtrack.cloud.key import Key
from labtrack.envfile import lifecycle, read_envfile
from labtrack.envfile.listing import listed
from labtrack.envfile.register import OLD, Asked, Entry, now
from labtrack.errors import BadInputError, LabtrackError
from labtrack.lab import SERVER_OWNER, Lab

MINE = "made-by-hand"


def register(lab: Lab) -> dict[str, object]:
    return json.loads((lab.private / "keys.json").read_text())


class TestRefused:
    """A clear answer leaves no intent, so a key that somebody makes afterwards stays theirs."""

    @pytest.mark.parametrize("named", [True, False])
    @pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 429, 503])
    def test_a_key_made_by_hand_afterwards_is_nobodys(
        self, status: int, named: bool, lab: Lab, cloud: FakeCloud, context
    ) -> None:
        cloud.names_keys = named
        cloud.making = [status, status]  # the second answers the other way to a key, and a login that was renewed
        with context() as opened, pytest.raises(LabtrackError):
            lifecycle.create(opened, "ada")
        assert nothing_was_made(lab, cloud)
        assert (register(lab)["asked"], register(lab)["intents"]) == ([], {}), "nothing is waited for"
        cloud.making.clear()
        cloud.keys[MINE] = "secret"
        with context() as opened:
            assert lifecycle.create(opened, "ada").notes == []
            assert read_envfile(lab.env_file("ada")).access != MINE
            lifecycle.revoke(opened, "ada")
        assert cloud.keys == {MINE: "secret"}

    def test_the_message_says_that_nothing_was_made(self, cloud: FakeCloud, context) -> None:
        cloud.making = [503]
        with context() as opened, pytest.raises(LabtrackError, match=r"503: as the test wants it\. No key was made"):
            lifecycle.create(opened, "ada")


class TestLost:
    """An answer that does not come proves nothing: the key is looked for by its access key."""

    @pytest.mark.parametrize("answer", ["lost", "502"])
    def test_a_key_that_was_made_is_used_at_once(self, answer: str, lab: Lab, cloud: FakeCloud, context) -> None:
        cloud.keys[MINE] = "secret"
        cloud.making = [answer]
        with context() as opened:
            lifecycle.create(opened, "ada")
        there = read_envfile(lab.env_file("ada"))
        assert cloud.keys == {MINE: "secret", there.access: there.variables["AWS_SECRET_ACCESS_KEY"]}
        assert register(lab)["asked"] == []

    @pytest.mark.parametrize("answer", ["late", 500, 502, 504])
    def test_nothing_else_is_taken_for_one_that_is_not_there_yet(
        self, answer: int | str, lab: Lab, cloud: FakeCloud, context
    ) -> None:
        cloud.making = [answer]
        with context() as opened, pytest.raises(LabtrackError):
            lifecycle.create(opened, "ada")
        (asked,) = register(lab)["asked"]
        cloud.keys[MINE] = "secret"
        cloud.arrive()
        arrived = set(cloud.keys) - {MINE}
        with context() as opened:
            lifecycle.create(opened, "ada")
        assert read_envfile(lab.env_file("ada")).access == asked["access"], "one access key for all attempts"
        assert arrived <= {asked["access"]} and set(cloud.keys) == {MINE, asked["access"]}

    def test_one_that_comes_after_its_owner_was_revoked_is_deleted(self, lab: Lab, cloud: FakeCloud, context) -> None:
        cloud.making = ["late"]
        with context() as opened, pytest.raises(LabtrackError):
            lifecycle.create(opened, "ada")
        with context() as opened:
            lifecycle.revoke(opened, "ada")
        cloud.arrive()
        cloud.keys[MINE] = "secret"
        (late,) = set(cloud.keys) - {MINE}
        with context() as opened:
            assert ("ada", late, "asked for", "yes") in [
                (line.owner, line.access, line.state, line.in_keystone) for line in listed(opened).lines
            ]
            assert f"old key {late} of ada deleted" in lifecycle.create(opened, "grace").changed
        assert late not in cloud.keys and MINE in cloud.keys

    def test_one_that_came_twice_does_not_rise_again(self, lab: Lab, cloud: FakeCloud, context) -> None:
        cloud.making = ["late"]
        with context() as opened, pytest.raises(LabtrackError):
            lifecycle.create(opened, "ada")
        with context() as opened:
            lifecycle.create(opened, "ada")
            old = read_envfile(lab.env_file("ada")).access
            lifecycle.rotate(opened, "ada", leaked=True)
        cloud.arrive()  # the first request, with the access key that has leaked since
        assert old in cloud.keys
        with context() as opened:
            lifecycle.create(opened, "ada")
        assert list(cloud.keys) == [read_envfile(lab.env_file("ada")).access] != [old]

    def test_one_that_never_comes_is_forgotten_after_a_day(self, lab: Lab, cloud: FakeCloud, context) -> None:
        with context() as opened:
            opened.keys.register.asked["x"] = Asked("x", "ada", USER, PROJECT, now(-3600))
            lifecycle.revoke(opened, "ada")
            assert list(opened.keys.register.asked) == ["x"]
            opened.keys.register.asked["x"] = Asked("x", "ada", USER, PROJECT, now(-90_000))
            lifecycle.revoke(opened, "ada")
            assert opened.keys.register.asked == {}


class TestUnnamed:
    """Where Keystone lets nobody choose an access key, nothing proves a key ours, so none is adopted."""

    @pytest.mark.parametrize("answer", ["lost", "late", "502"])
    def test_what_has_appeared_is_told_and_left_alone(self, answer: str, lab: Lab, cloud: FakeCloud, context) -> None:
        cloud.names_keys = False
        cloud.making = [answer]
        with context() as opened, pytest.raises(LabtrackError):
            lifecycle.create(opened, "ada")
        cloud.keys[MINE] = "secret"
        cloud.arrive()
        before = dict(cloud.keys)
        with context() as opened:
            notes = lifecycle.create(opened, "ada").notes
            assert all(access in notes[0] for access in before) and "None was touched" in notes[0]
            lifecycle.revoke(opened, "ada")
        assert cloud.keys == before

    def test_an_application_credential_of_an_older_keystone(self, lab: Lab, cloud: FakeCloud, context) -> None:
        cloud.names_keys = False
        with context() as opened:
            lifecycle.create(opened, "ada")
        assert list(cloud.keys) == [read_envfile(lab.env_file("ada")).access]


class TestOthers:
    """Keys that are in other hands: another lab's, another login's, one put into secrets.yml by hand."""

    @pytest.fixture
    def other(self, lab: Lab) -> Lab:
        """A second lab of the same checkout, in the same project."""
        shutil.copytree(lab.folder, lab.folder.parent / "ocean")
        shutil.copytree(lab.private, lab.root / "private" / "ocean")
        return dataclasses.replace(lab, name="ocean", folder=lab.folder.parent / "ocean")

    def test_two_labs_in_one_project(self, lab: Lab, other: Lab, cloud: FakeCloud, context) -> None:
        with context() as opened:
            lifecycle.create(opened, "ada")
        mine = read_envfile(lab.env_file("ada"))
        with at(other, cloud) as opened:
            secrets.add(other, {"secret_mlflow_admin_password": cloud.accounts["admin"]})
            assert ("ada of the lab climate", mine.access) in [(x.owner, x.access) for x in listed(opened).lines]
            handed = Key(mine.access, mine.variables["AWS_SECRET_ACCESS_KEY"])
            with pytest.raises(BadInputError, match="registered for ada of the lab climate"):
                lifecycle.create(opened, "grace", handed_in=handed)
            cloud.making = ["late"]
            with pytest.raises(LabtrackError):
                lifecycle.create(opened, "grace")
            lifecycle.create(opened, "grace")
            lifecycle.revoke(opened, "grace")
            # registered in both, by an older kit
            opened.keys.register.put(Entry(mine.access, "grace", OLD, USER, PROJECT))
            assert "registered for ada of the lab climate too" in lifecycle.revoke(opened, "grace").notes[0]
        assert list(cloud.keys) == [mine.access]

    def test_a_second_login_leaves_what_it_can_not_see(self, lab: Lab, cloud: FakeCloud, context) -> None:
        """Another admin, or the same one in another project: the keys do not show, and are there all the same."""
        with context() as opened:
            lifecycle.create(opened, "ada")
            entry = opened.keys.register.of("ada")[0]
            opened.keys.register.put(dataclasses.replace(entry, project_id="p-other"))
        shown, before = dict(cloud.keys), lab.env_file("ada").read_bytes()
        with context() as opened:
            opened.keys.listed = {}
            assert lifecycle.create(opened, "ada").changed == []
        assert (cloud.keys, lab.env_file("ada").read_bytes()) == (shown, before)

    def test_a_second_login_does_not_forget_a_new_key(self, lab: Lab, cloud: FakeCloud, context) -> None:
        with context() as opened:
            opened.keys.register.put(Entry("theirs", "ada", "new", "u-other", PROJECT))
            notes = lifecycle.create(opened, "ada").notes
            assert "theirs" in opened.keys.register.keys and "another user of the cloud" in notes[0]

    def test_a_refused_key_that_is_in_use_is_not_taken_back(self, lab: Lab, cloud: FakeCloud, context) -> None:
        with context() as opened:
            lifecycle.create(opened, "ada")
            there = read_envfile(lab.env_file("ada"))
            lab.env_file("ada").unlink()
            cloud.refuse_keys = "AccessDenied"
            with pytest.raises(LabtrackError):
                lifecycle.create(opened, "ada", handed_in=Key(there.access, there.variables["AWS_SECRET_ACCESS_KEY"]))
            assert opened.keys.register.keys[there.access].state == "active" and there.access in cloud.keys


class TestServerKey:
    """The server's own key."""

    @pytest.fixture
    def first(self, lab: Lab, cloud: FakeCloud, context) -> str:
        with context() as opened:
            lifecycle.server_key(opened)
        return secrets.get(lab, secrets.S3_ACCESS)

    def test_its_old_one_works_until_the_server_has_the_new_one(
        self, first: str, lab: Lab, cloud: FakeCloud, context
    ) -> None:
        with context() as opened:
            lifecycle.server_key(opened, renew=True, leaked=True)
            second = secrets.get(lab, secrets.S3_ACCESS)
            lifecycle.create(opened, "ada")
            assert lifecycle.server_key(opened) == []
            assert lifecycle.server_runs_with(opened, first) == [], "the deploy was of the secrets before"
            assert {first, second} < set(cloud.keys)
            assert lifecycle.server_runs_with(opened, second) == [first]
        assert first not in cloud.keys and second in cloud.keys

    def test_its_old_one_has_the_grace_too(self, first: str, lab: Lab, cloud: FakeCloud, context) -> None:
        with context() as opened:
            lifecycle.server_key(opened, renew=True)
            second = secrets.get(lab, secrets.S3_ACCESS)
            assert lifecycle.server_runs_with(opened, second) == []
            entry = opened.keys.register.keys[first]
            opened.keys.register.put(dataclasses.replace(entry, until=now(-1)))
            assert lifecycle.server_runs_with(opened, second) == [first]
        assert list(cloud.keys) == [second]

    def test_one_put_into_secrets_yml_by_hand_is_never_deleted(self, lab: Lab, cloud: FakeCloud, context) -> None:
        cloud.keys[MINE] = "secret"
        secrets.add(lab, {secrets.S3_ACCESS: MINE, secrets.S3_SECRET: "secret"})
        with context() as opened:
            assert lifecycle.server_key(opened) == []
            lifecycle.server_key(opened, renew=True, leaked=True)
            lifecycle.server_runs_with(opened, secrets.get(lab, secrets.S3_ACCESS))
            assert MINE in opened.keys.notes[0] and "by hand" in opened.keys.notes[0]
        assert MINE in cloud.keys

    def test_one_of_a_person_is_refused(self, lab: Lab, cloud: FakeCloud, context) -> None:
        with context() as opened:
            lifecycle.create(opened, "ada")
            there = read_envfile(lab.env_file("ada"))
            secrets.add(
                lab, {secrets.S3_ACCESS: there.access, secrets.S3_SECRET: there.variables["AWS_SECRET_ACCESS_KEY"]}
            )
            with pytest.raises(BadInputError, match="registered for ada already"):
                lifecycle.server_key(opened)
            assert opened.keys.register.of(SERVER_OWNER) == []
