"""labtrack lab move: what is refused, what is carried, and which playbooks run in which order; no machines."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import LAB

from labtrack import files, labmove, release, secrets
from labtrack import lab as labs
from labtrack.cloud.key import Key
from labtrack.envfile import read
from labtrack.envfile.render import Contents, render
from labtrack.errors import BadInputError, LabtrackError
from labtrack.lab import Lab

KEY_PEM = "-----BEGIN PRIVATE KEY-----\nMIIBkey\n-----END PRIVATE KEY-----\n"
CERTIFICATE = "-----BEGIN CERTIFICATE-----\nMIIBca\n-----END CERTIFICATE-----\n"
CA = KEY_PEM + CERTIFICATE
OLD = {
    "secret_mlflow_admin_password": "the admin's",
    "secret_verify_password": "of the check",
    "secret_certificate_ca": CA,
    "secret_s3_access_key_id": "01d01d",
    "secret_s3_secret_access_key": "of the old project",
    "secret_backup_cipher_pass": "of the old backups",
    "secret_alerts_mail_password": 'of the "relay", \\ and ü',
}


def lab(root: Path, name: str, **settings: object) -> Lab:
    folder = root / "inventory" / name
    (folder / "group_vars/all").mkdir(parents=True)
    written = LAB | {"lab_name": name, "lab_bucket": f"{name}-mlflow", **settings}
    (folder / "group_vars/all/lab.yml").write_text(yaml.safe_dump(written))
    return labs.load(folder)


class Plays:
    """What was run: of which lab, which playbook, with which variables."""

    def __init__(self) -> None:
        self.done: list[tuple[str, str, dict[str, Any]]] = []
        self.fails = ""

    def __call__(self, lab_: Lab, playbook: str, variables: dict[str, Any]) -> int:
        name = playbook.removeprefix("playbooks/").removesuffix(".yml")
        self.done.append((lab_.name, name, variables))
        assert (labmove.KIT / playbook).is_file()
        return int(name == self.fails)

    @property
    def order(self) -> list[tuple[str, str]]:
        return [(name, playbook) for name, playbook, _ in self.done]


@pytest.fixture
def plays() -> Plays:
    return Plays()


@pytest.fixture
def move(tmp_path: Path, plays: Plays) -> labmove.Move:
    old, new = lab(tmp_path, "climate"), lab(tmp_path, "tundra")
    for one in (old, new):
        one.private.mkdir(parents=True)
        release.note(one)
    secrets.add(old, {name: json.dumps(value)[1:-1] for name, value in OLD.items()})
    secrets.write_ca(old)
    for user in ("ada", "grace"):
        env_file(old, user, f"of {user}")
    return labmove.between(old, new, plays)


def env_file(of: Lab, user: str, password: str, access: str = "01dada") -> Path:
    """A person's file, as the kit writes it."""
    file = of.env_file(user)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    files.write_private(file, render(Contents(of, user, password, Key(access, "of a key"), "2026-11-27T00:00:00Z")))
    return file


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"lab_fqdn": "other.example.org"}, "lab_fqdn is mlflow.example.org in the old lab and other.example.org"),
        ({"lab_artifact_access": "proxied"}, "lab_artifact_access is direct in the old lab and proxied in the new one"),
        (
            {"lab_certificate": "acme", "lab_acme_email": "a@example.org"},
            "lab_certificate is selfsigned in the old lab",
        ),
    ],
)
def test_two_labs_that_are_not_the_same_one_are_refused(tmp_path: Path, changed: dict[str, object], said: str) -> None:
    with pytest.raises(BadInputError, match=said):
        labmove.between(lab(tmp_path, "climate"), lab(tmp_path, "tundra", **changed))


def test_a_lab_is_not_moved_onto_itself_or_to_another_checkout(tmp_path: Path) -> None:
    one = lab(tmp_path, "climate")
    with pytest.raises(BadInputError, match="Both are the lab climate"):
        labmove.between(one, one)
    with pytest.raises(BadInputError, match="two checkouts"):
        labmove.between(one, lab(tmp_path / "other", "tundra"))


def test_files_carry_passwords_ca_and_people_s_files_and_no_key_of_the_project(move: labmove.Move) -> None:
    assert len(list(move("files"))) == 4
    kept = secrets.read(move.new)
    assert kept == {name: OLD[name] for name in OLD if "_s3_" not in name and "cipher" not in name}
    assert move.new.ca_file.read_text() == CERTIFICATE
    for user in ("ada", "grace"):
        file = read.load(move.new.env_file(user))
        assert file and file.variables["MLFLOW_TRACKING_PASSWORD"] == f"of {user}"
        assert file.path.stat().st_mode & 0o077 == 0 and file.path.parent.stat().st_mode & 0o077 == 0
    assert b"the admin's" not in move.new.secrets_file.read_bytes()
    assert list(move("files")) == []


def test_files_keep_a_new_key_beside_the_old_password(move: labmove.Move) -> None:
    list(move("files"))
    file = env_file(move.new, "ada", "of ada", "4e3ada")
    assert list(move("files")) == [] and "4e3ada" in file.read_text()
    env_file(move.old, "ada", "another since")
    assert len(list(move("files"))) == 1 and "another since" in file.read_text()


def test_a_new_lab_with_a_ca_of_its_own_is_refused(move: labmove.Move) -> None:
    secrets.add(move.new, {secrets.CA: CA.replace("MIIBca", "MIIBother").replace("\n", "\\n")})
    with pytest.raises(BadInputError, match="tundra has a CA of its own") as refused:
        list(move("all"))
    assert "before the first deploy" in refused.value.hint


def test_people_who_are_not_listed_in_the_new_lab_are_told(tmp_path: Path, move: labmove.Move) -> None:
    new = dataclasses.replace(move.new, users=move.new.users[:1])
    assert any("grace; the account moves" in line for line in dataclasses.replace(move, new=new)("files"))


def test_all_closes_the_old_lab_after_most_is_copied_and_opens_none(move: labmove.Move, plays: Plays) -> None:
    said = list(move("all"))
    assert plays.order == [
        ("tundra", "move/vacant"),
        ("tundra", "move/copy"),
        ("climate", "move/leave"),
        ("tundra", "move/copy"),
        ("tundra", "move/arrive"),
    ]
    assert not any(value in json.dumps([one for *_, one in plays.done]) for value in OLD.values())
    assert any("--step open" in line for line in said)
    assert not (move.new.private / ".move").exists()


@pytest.mark.parametrize("fails", ["move/vacant", "move/copy", "move/leave", "move/arrive"])
def test_what_fails_stops_there_and_is_begun_again(move: labmove.Move, plays: Plays, fails: str) -> None:
    plays.fails = fails
    with pytest.raises(LabtrackError, match=f"playbooks/{fails}.yml") as failed:
        list(move("all"))
    assert plays.order[-1][1] == fails and "it goes on" in failed.value.hint
    assert not (move.new.private / ".move").exists()
    plays.fails = ""
    list(move("all"))
    assert plays.order[-1][1] == "move/arrive"


def test_labs_of_two_versions_of_the_kit_are_refused(move: labmove.Move, plays: Plays) -> None:
    (move.old.private / release.FILE).write_text('{"version": "0.1.0"}')
    with pytest.raises(BadInputError, match=r"different versions of the kit: climate with 0\.1\.0"):
        list(move("all"))
    (move.new.private / release.FILE).unlink()
    with pytest.raises(BadInputError, match="tundra is not deployed") as refused:
        list(move("copy"))
    assert "--step files" in refused.value.hint and plays.order == []


def test_open_and_back_let_people_into_one_of_them(move: labmove.Move, plays: Plays) -> None:
    list(move("open"))
    assert plays.order == [("tundra", "open")]
    list(move("back", discard_newer=True))
    assert plays.order[1:] == [("tundra", "move/unused"), ("climate", "open")]
    assert plays.done[1][2] == {"move_of": "climate", "discard_newer": True}
    plays.fails = "move/unused"
    with pytest.raises(LabtrackError):
        list(move("back"))
    assert plays.order[-1] == ("tundra", "move/unused")
