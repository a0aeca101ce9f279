"""The lab's own files: from an admin's run to the server, in the night to the backup, and back to an empty computer."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from artifact_copies import COPIES, COPIES_KEY, Artifacts
from s3_server import REGION

from labtrack import lab as labs
from labtrack import labbackup, secrets
from labtrack.lab import Lab
from labtrack.labcopy import content, handover
from labtrack.labcopy.remote import Holder, Server

LABTRACK = Path(sys.executable).with_name("labtrack")
SSH_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJmX4h7pJkQ0nS1Vh0Vt1oEXAMPLEonlyKEYofTESTS0 ada@example"


def clone(root: Path, artifacts: Artifacts) -> Lab:
    """The lab's repository, without what git does not have."""
    folder = root / "inventory" / "climate"
    (folder / "group_vars" / "all").mkdir(parents=True)
    store = artifacts.store
    settings = {
        "lab_name": "climate", "lab_fqdn": "mlflow.example.org", "lab_admins": [{"name": "ada", "ssh_keys": [SSH_KEY]}],
        "lab_admin_networks": ["203.0.113.0/24"], "lab_users": [{"name": "ada"}], "lab_cloud": "arbutus",
        "lab_bucket": "climate-mlflow", "lab_s3_endpoint": "https://s3.example.org",
        "lab_backup": {"endpoint": store.endpoint, "bucket": COPIES, "region": REGION, "ca_file": str(store.ca)},
    }  # fmt: skip
    labs.lab_yml(folder).write_text(yaml.safe_dump(settings))
    return labs.load(folder)


def on_the_server(script: str, data: bytes) -> tuple[int, str, str]:
    done = subprocess.run(["sh", "-c", script], input=data, capture_output=True, check=False)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def imported(lab: Lab, *, fails: bool = False) -> str:
    done = subprocess.run(
        [LABTRACK, "lab", "import", lab.folder, "--from-backup"], capture_output=True, text=True, check=False
    )
    assert (done.returncode != 0) is fails, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_an_empty_computer_gets_the_files_of_the_last_night(
    artifacts: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    password = tmp_path / "vault-password"
    password.write_text("of the lab")
    password.chmod(0o600)
    monkeypatch.setenv("ANSIBLE_VAULT_PASSWORD_FILE", str(password))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "The server has no file of the lab yet" in artifacts.night()["message"]

    ada = clone(tmp_path / "ada", artifacts)
    secrets.add(ada, dict(zip(labbackup.KEYS, COPIES_KEY, strict=True)))
    for name, text in (("ada/mlflow_env.sh", "password of ada"), ("keys.json", '{"keys": []}')):
        file = ada.private / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    exports = Path(artifacts.settings["files"])
    exports.mkdir(mode=0o750)  # as the role makes it, for the account that copies
    exports.chmod(0o750)
    server = Server(on_the_server, str(exports), str(tmp_path / "lock"), str(tmp_path / "mlflow"))
    me = Holder("token", "ada@laptop", "laptop", "ada", 1, "site.yml", "2026-01-01")
    handover.end(ada, server, me)
    assert {stat.S_IMODE(one.stat().st_mode) for one in exports.iterdir()} == {0o640}

    night = artifacts.night()
    (facts,) = (json.loads(one.read_text()) for one in exports.glob("*.json"))
    assert night["lab"]["number"] == 1 and f"(number {facts['serial']})" in night["message"]
    (key,) = (key for key in artifacts.copies if key.startswith("climate/lab/"))
    assert bytes(artifacts.copies[key]) == (exports / "00000001.vault").read_bytes()
    artifacts.night()
    assert [key for key in artifacts.copies if key.startswith("climate/lab/")] == [key], "it was there already"

    laptop = clone(tmp_path / "laptop", artifacts)
    assert "take it from git; or set AWS_ACCESS_KEY_ID" in imported(laptop, fails=True)
    laptop.secrets_file.write_bytes(ada.secrets_file.read_bytes())  # what git has
    assert "ada/mlflow_env.sh" in imported(laptop)
    assert dict(content.read(laptop).files) == dict(content.read(ada).files)

    # a lost repository: the key by hand, the password from where passwords are kept
    bare = clone(tmp_path / "bare", artifacts)
    for name, value in zip(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), COPIES_KEY, strict=True):
        monkeypatch.setenv(name, value)
    imported(bare)
    assert dict(content.read(bare).files) == dict(content.read(ada).files)
    artifacts.store.buckets.pop(COPIES)
    assert "can't be read: NoSuchBucket" in imported(bare, fails=True)


def test_the_last_ones_are_kept_and_what_cannot_be_read_is_told(artifacts: Artifacts) -> None:
    exports = Path(artifacts.settings["files"])
    exports.mkdir()
    for day in range(2, 24):  # as so many nights would
        artifacts.copies[f"climate/lab/202611{day:02d}T030000Z-{day:08d}.vault"] = b"$"
    (exports / "00000024.json").write_text(json.dumps({"serial": 24, "at": "2026-11-24T03:00:00Z"}))
    (exports / "00000024.vault").write_bytes(b"$ANSIBLE_VAULT")
    assert artifacts.night()["lab"]["number"] == 24
    kept = sorted(key for key in artifacts.copies if key.startswith("climate/lab/"))
    assert [int(key[-14:-6]) for key in kept] == list(range(5, 25))
    (exports / "00000024.vault").unlink()
    assert "the lab's files in" in artifacts.night(fails=True)["message"]
