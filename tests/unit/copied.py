"""A lab in two checkouts: the first admin's with all its files, the second's an empty clone."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from conftest import CA, LAB

from labtrack import lab as labs
from labtrack import secrets
from labtrack.lab import Lab
from labtrack.labcopy import content, handover
from labtrack.labcopy.remote import Holder, Server

ADA, KEYS, KNOWN = "private/ada/mlflow_env.sh", "private/keys.json", "private/known_hosts"


def checkout(root: Path, **settings_: object) -> Lab:
    """A clone of the lab's repository, with nothing that git does not have."""
    folder = root / "inventory" / "climate"
    (folder / "group_vars" / "all").mkdir(parents=True)
    labs.lab_yml(folder).write_text(yaml.safe_dump({**LAB, **settings_}, sort_keys=False))
    return labs.load(folder)


def write(lab: Lab, name: str, text: str) -> Path:
    """Writes a file of a lab, by its name in the export."""
    path = content.place_of(lab, name)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_text(text)
    return path


def deployed(root: Path) -> Lab:
    """The first admin's checkout, after a deployment."""
    lab = checkout(root)
    write(lab, KEYS, '{"keys": []}')
    write(lab, KNOWN, "203.0.113.10 ssh-ed25519 AAAA\n")
    write(lab, ADA, "password of ada")
    write(lab, "private/grace/mlflow_env.sh", "password of grace")
    write(lab, "private/terraform.tfstate", '{"serial": 4}')
    write(lab, "private/ca.pem", CA)
    secrets.add(lab, {"secret_verify_password": "v" * 40})
    return lab


def files_of(lab: Lab) -> dict[str, bytes]:
    """What an export of a lab would have."""
    return dict(content.read(lab).files)


def use_password(monkeypatch: pytest.MonkeyPatch, file: Path, password: str) -> None:
    """Has the vault password in a file of its own: the repository's script is a process more for each call."""
    file.write_text(password)
    file.chmod(0o600)
    monkeypatch.setenv("ANSIBLE_VAULT_PASSWORD_FILE", str(file))


class Admin:
    """An admin with a checkout; the server's commands are carried out in a folder."""

    def __init__(self, lab: Lab, server: Server, name: str) -> None:
        self.lab, self.server = lab, server
        self.me = Holder(f"token-{name}", f"{name}@{name}-laptop", f"{name}-laptop", name, 1, "site.yml", "2026-01-01")
        self.sent = 0

    def begin(self, **more: object) -> handover.Done:
        return handover.begin(self.lab, self.server, self.me, **more)  # type: ignore[arg-type]

    def end(self) -> handover.Done:
        return handover.end(self.lab, self.server, self.me)

    def run(self, **files: str) -> handover.Done:
        """A whole run, which changes these files (`ada`, `keys`)."""
        self.begin()
        for name, text in files.items():
            write(self.lab, {"ada": ADA, "keys": KEYS, "known": KNOWN}[name], text)
        return self.end()
