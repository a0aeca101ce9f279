"""lab_backup: the secrets that it needs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from labtrack import labbackup, secrets
from labtrack.errors import BadInputError
from labtrack.lab import Lab

ROOT = Path(__file__).resolve().parents[2]


def test_the_key_is_asked_for_and_the_pass_is_made_once_and_never_renewed(lab: Lab, context) -> None:
    given = {"endpoint": "https://s3.example.org", "bucket": "climate-backup"}
    lab = dataclasses.replace(lab, settings={**lab.settings, "lab_backup": given})
    with context():
        with pytest.raises(BadInputError) as raised:
            secrets.ensure_passwords(lab)
        assert all(name in str(raised.value) for name in labbackup.KEYS) and "ansible-vault edit" in str(raised.value)
        made = secrets.read(lab)[labbackup.CIPHER]
        secrets.add(lab, {labbackup.KEYS[0]: "a"})
        with pytest.raises(BadInputError, match=f"has no {labbackup.KEYS[1]}[.]"):
            secrets.ensure_passwords(lab)
        secrets.add(lab, {labbackup.KEYS[1]: "b"})
        assert secrets.ensure_passwords(lab) == []
    assert secrets.read(lab)[labbackup.CIPHER] == made and len(made) == secrets.LENGTH
    assert labbackup.CIPHER not in secrets.named([]), "with another one, the backups can't be read"


def test_without_it_nothing_is_asked_for(lab: Lab, context) -> None:
    with context():
        secrets.ensure_passwords(lab)
    assert not {labbackup.CIPHER, *labbackup.KEYS} & set(secrets.read(lab))


def test_the_order_of_what_a_deploy_does_with_backups() -> None:
    plays = [play.get("name") for play in yaml.safe_load((ROOT / "playbooks/deploy.yml").read_text())]
    told = [
        "Stop backing up, where the lab has ceased to", "Set up the machine", "Run PostgreSQL",
        "Bring the databases back from their backup", "Run MLflow", "Back up the databases and the artifacts",
    ]  # fmt: skip
    assert [play for play in plays if play in told] == told
