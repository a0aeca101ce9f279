"""The people of lab.yml against the accounts."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, at, nothing_was_made
from fakes import FakeCloud

from labtrack import experiments, labfile, preflight, secrets, users
from labtrack import lab as labs
from labtrack.envfile import lifecycle, read_envfile
from labtrack.envfile.listing import listed
from labtrack.errors import BadInputError
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


@pytest.mark.parametrize("access", ["direct", "proxied"])
def test_somebody_who_is_no_longer_listed_is_told_and_taken_away_when_asked(
    access: str, lab: Lab, cloud: FakeCloud, context
) -> None:
    with context():
        secrets.ensure_passwords(lab)
    lab = dataclasses.replace(lab, artifact_access=access)
    synced(lab, cloud)
    cloud.accounts["by-hand"] = "made in the web page"
    lab = dataclasses.replace(lab, users=(User("grace", True),))
    for _ in range(2):  # at each run
        done = synced(lab, cloud)
        assert list(done) == ["grace", VERIFY_USER, "ada", "by-hand"], "never the accounts that the kit itself uses"
        what = "an account and a key" if access == "direct" else "an account"
        assert done["ada"].outcome.notes[0].startswith(f"has {what} but is not in lab_users")
        assert "labtrack env revoke inventory/climate ada" in done["ada"].outcome.notes[0]
        assert not any(person.outcome.changed for person in done.values()) and "ada" in cloud.accounts
    with at(lab, cloud) as opened:
        notes = listed(opened).notes
    assert [note.split()[0] for note in notes] == ["ada", "by-hand"]
    with at(lab, cloud) as opened:
        lifecycle.revoke(opened, "by-hand")
        done = {person.outcome.user: person for person in users.sync(opened, remove_unlisted=True)}
    assert sorted(cloud.accounts) == ["admin", "grace", VERIFY_USER] and not lab.env_file("ada").exists()
    assert len(cloud.keys) == (2 if access == "direct" else 0) and "account deleted" in done["ada"].outcome.changed
    assert list(synced(lab, cloud)) == ["grace", VERIFY_USER]


def test_a_file_on_another_computer_is_left_alone(
    lab: Lab, cloud: FakeCloud, context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usb = tmp_path / "usb"
    usb.mkdir(mode=0o700)
    with context() as opened:
        secrets.ensure_passwords(lab)
        lifecycle.create(opened, "ada", output=usb / "mlflow_env.sh")
    before = read_envfile(usb / "mlflow_env.sh"), dict(cloud.accounts), dict(cloud.keys)
    usb.rename(tmp_path / "elsewhere")  # the same private/ folder, on a computer without that one
    assert synced(lab, cloud)["ada"].outcome.notes[0].startswith(f"the file {usb}/mlflow_env.sh is on another computer")
    with at(lab, cloud) as opened:
        for call in (lifecycle.create, lifecycle.rotate):
            with pytest.raises(BadInputError, match="nothing was changed") as raised:
                call(opened, "ada")
            assert "--output" in raised.value.hint
        assert [line.file for line in listed(opened).lines if line.owner == "ada"] == ["on another computer"]
    usb.mkdir(mode=0o700)  # a folder of the same name, on another computer
    monkeypatch.setattr("socket.gethostname", lambda: "another")
    assert "the file" in synced(lab, cloud)["ada"].outcome.notes[0] and list(usb.iterdir()) == []
    assert (cloud.accounts["ada"], before[0].access in cloud.keys) == (before[1]["ada"], True), "hers still works"
    with at(lab, cloud) as opened:  # a new one here, when asked
        lifecycle.create(opened, "ada", output=lab.env_file("ada"))
        assert opened.keys.register.outputs == {}
    assert cloud.accounts["ada"] == read_envfile(lab.env_file("ada")).variables["MLFLOW_TRACKING_PASSWORD"]


def test_somebody_whose_file_is_on_another_computer_can_be_revoked(
    lab: Lab, cloud: FakeCloud, context, tmp_path: Path
) -> None:
    usb = tmp_path / "usb"
    usb.mkdir(mode=0o700)
    with context() as opened:
        lifecycle.create(opened, "ada", output=usb / "mlflow_env.sh")
    usb.rename(tmp_path / "elsewhere")
    with context() as opened:
        changed = lifecycle.revoke(opened, "ada").changed
        assert changed[-1] == f"file {usb}/mlflow_env.sh opens nothing any more: delete it on another computer"
        assert lifecycle.revoke(opened, "ada").changed == []
    assert cloud.keys == {} and list(cloud.accounts) == ["admin"]


def test_a_file_lost_on_this_computer_is_made_again(lab: Lab, cloud: FakeCloud, context, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with context() as opened:
        lifecycle.create(opened, "ada", output=tmp_path / "mlflow_env.sh")
    (tmp_path / "mlflow_env.sh").unlink()
    with context() as opened:
        assert f"file {tmp_path}/mlflow_env.sh written" in lifecycle.create(opened, "ada").changed


KIT = ["known_hosts", "keys.json", "ca.pem", "cloud-ca.pem", "clouds.yaml", "id_ed25519", "id_ed25519.pub",
       "terraform", "terraform.tfstate", "terraform.tfstate.backup", "known_hosts.old"]  # fmt: skip


@pytest.mark.parametrize("name", KIT)
def test_a_name_that_the_kit_uses_is_refused_everywhere(name: str, lab: Lab, cloud: FakeCloud, context) -> None:
    file = labs.lab_yml(lab.folder)
    settings = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(settings | {"lab_users": [{"name": name}]}))
    with pytest.raises(BadInputError, match="a name that the kit uses itself"):
        labs.load(lab.folder)
    for call in (lifecycle.create, lifecycle.rotate):
        with context() as opened, pytest.raises(BadInputError, match="a name that the kit uses itself"):
            opened.keys.register.save()
            call(opened, name)
    assert nothing_was_made(lab, cloud)
    # what an older kit made for it can be taken away
    file.write_text(yaml.safe_dump(settings | {"lab_users": [{"name": name, "state": "absent"}]}))
    assert labs.load(lab.folder).users == (User(name, False),)
    left = lab.private / name
    if not left.is_file():
        left.mkdir()
        (left / "mlflow_env.sh").write_text("old")
    cloud.accounts[name] = "x"
    with context() as opened:
        lifecycle.revoke(opened, name)
    assert name not in cloud.accounts and not (left / "mlflow_env.sh").exists()
    assert (lab.private / "ca.pem").is_file() and (lab.private / "keys.json").is_file(), "the kit's own are untouched"


@pytest.mark.parametrize("name", ["KNOWN_HOSTS", "Terraform", "CA.pem", "Keys.json"])
def test_a_name_that_differs_in_case_alone_is_refused(name: str, context) -> None:
    assert labfile.why_no_name(name)
    with context() as opened, pytest.raises(BadInputError):
        lifecycle.create(opened, name)


@pytest.mark.parametrize("name", ["ada", "ca", "pem", "terra", "id", "hosts", "keys", "ada.lovelace", "clouds"])
def test_other_names_are_not(name: str) -> None:
    assert labfile.why_no_name(name) == ""


def test_every_file_that_the_kit_keeps_beside_peoples_folders_is_no_name() -> None:
    """What playbooks, roles, Terraform and the package name under private/<lab>/, read from their text."""
    places = r"""(?x) (?: private_dir \s }}/ | private/ [^/\n]+ / | (?:self|lab)\.private \s/\s " | PRIVATE \s/\s " )
                  ([a-z][\w.-]+) """
    found: set[str] = set()
    for folder in ("playbooks", "roles", "terraform", "scripts"):
        for file in (ROOT / folder).rglob("*"):
            if file.suffix in (".yml", ".py", ".tf", ".tftpl", ".j2") and "tests" not in file.parts:
                found |= set(re.findall(places, file.read_text()))
    assert {"known_hosts", "keys.json", "ca.pem", "clouds.yaml", "id_ed25519", "terraform.tfstate"} <= found, found
    people = {"mlflow_env.sh", "labtrack-verify", "rehearsal", "ada"}
    assert sorted(name for name in found - people if not labfile.why_no_name(name)) == []


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


def test_preflight_tells_of_a_folder_that_such_a_name_left(lab: Lab) -> None:
    left = lab.private / "known_hosts" / "mlflow_env.sh"
    left.parent.mkdir()
    left.write_text("old")
    told = [row for row in preflight.check(lab.folder) if row.status.value == "failed" and str(left.parent) in row.seen]
    assert [row.hint for row in told] == ["remove the account: labtrack env revoke inventory/climate known_hosts"]
