"""`labtrack lab move`: a lab goes to another project or cloud, from inventory/OLD to inventory/NEW.

Exactly one of the two servers takes requests at any time: the old one is closed before its databases are dumped, and
the new one is opened by a step of its own.  Why so: docs/decisions/0028-a-move-is-two-labs.md.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from labtrack import files, labbackup, release, secrets
from labtrack.envfile import read, register
from labtrack.errors import BadInputError, LabtrackError
from labtrack.lab import Lab

KIT = Path(__file__).resolve().parents[2]
# Of the old project, and no use in the new one.
NOT_CARRIED = {secrets.S3_ACCESS, secrets.S3_SECRET, *labbackup.KEYS, labbackup.CIPHER}
_FOLDER = ".move"  # of the new lab's private files: dumps on their way; not part of `labtrack lab export`

# Runs a playbook with a lab's inventory and variables; its exit code.
Play = Callable[[Lab, str, dict[str, Any]], int]


@dataclass(frozen=True)
class Move:
    """From one lab to another; made by `between`.  play: how playbooks are run, otherwise in tests."""

    old: Lab
    new: Lab
    play: Play

    def __call__(self, step: str, *, discard_newer: bool = False) -> Iterator[str]:
        """Does a step, or "all" that fills the new lab; gives what to tell.  Raises LabtrackError."""
        if step == "files":
            yield from self.files()
        elif step == "copy":
            self._deployed()
            self._copy()
        elif step == "all":
            yield from self._all()
        elif step == "open":
            self._run(self.new, "open", {})
            yield "The new lab takes requests."
            yield f"Next: ansible-playbook -i {self.new.shown_folder} site.yml, which makes everybody's new file."
        else:
            self._run(self.new, "move/unused", {"move_of": self.old.name, "discard_newer": discard_newer})
            self._run(self.old, "open", {"open_anyway": True})
            yield f"The old lab takes requests again, and {self.new.name} does not."

    def files(self) -> Iterator[str]:
        """Gives the new lab the old one's passwords, CA and people's files, so that what people have works there.

        Their keys are of the old project: playbooks/users.yml makes new ones.  What was done; nothing where all is so.
        """
        ours, theirs = secrets.read(self.old), secrets.read(self.new)
        if not ours:
            raise BadInputError(
                f"{self.old.secrets_file} has no secrets.", "deploy the old lab, or name the right folder."
            )
        if theirs.get(secrets.CA, ours.get(secrets.CA)) != ours.get(secrets.CA):
            raise BadInputError(
                f"{self.new.name} has a CA of its own already, and everybody's file trusts that of {self.old.name}.",
                "take the new server away (playbooks/destroy.yml), delete secret_certificate_ca "
                f"(ansible-vault edit {self.new.secrets_file}), and do this step before the first deploy.",
            )
        carried = {n: v for n, v in ours.items() if n not in NOT_CARRIED and theirs.get(n) != v}
        # as secrets.yml has them, between quotation marks
        secrets.add(self.new, {name: json.dumps(value, ensure_ascii=False)[1:-1] for name, value in carried.items()})
        if carried:
            yield f"{self.new.secrets_file}: {', '.join(carried)}"
        if secrets.write_ca(self.new):
            yield f"{self.new.ca_file}: the lab's CA"
        yield from self._people()

    def _people(self) -> Iterator[str]:
        known = register.load(self.old.keys_file)
        listed = {user.name for user in self.new.users if user.present}
        for user in self.old.users:
            if not user.present:
                continue
            if user.name not in listed:
                yield f"not in lab_users of {self.new.name}: {user.name}; the account moves all the same"
            file = Path(known.outputs.get(user.name) or self.old.env_file(user.name))
            place = self.new.env_file(user.name)
            if host := known.elsewhere(user.name):
                yield f"the file of {user.name} is on {host}: copy it to {place}, or they get another password"
            elif there := read.load(file):
                has = read.load(place)
                name = "MLFLOW_TRACKING_PASSWORD"
                if has is None or has.variables.get(name) != there.variables.get(name):
                    files.make_private_folder(self.new.private)
                    files.make_private_folder(place.parent)
                    files.write_private(place, there.data)
                    yield f"{place}: with the password, and until playbooks/users.yml the old key"

    def _all(self) -> Iterator[str]:
        self._deployed()
        yield from self.files()
        self._run(self.new, "move/vacant", {"move_of": self.old.name})
        self._copy()  # most of it while the old lab is in use
        folder = self.new.private / _FOLDER
        shutil.rmtree(folder, ignore_errors=True)
        files.make_private_folder(folder)
        try:
            self._run(self.old, "move/leave", {"move_folder": str(folder), "move_to": self.new.name})
            self._copy()
            self._run(self.new, "move/arrive", {"move_folder": str(folder), "move_of": self.old.name})
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        yield f"All of {self.old.name} is in {self.new.name}.  Neither takes requests now; jobs keep what they record."
        yield f"Next: let {self.new.fqdn} lead to {_address(self.new)}, and then add --step open to this command."
        yield "To stay with the old one: --step back."

    def _deployed(self) -> None:
        versions = {lab.name: release.deployed(lab) for lab in (self.old, self.new)}
        for lab in (self.old, self.new):
            if not versions[lab.name]:
                raise BadInputError(
                    f"{lab.name} is not deployed.",
                    f"labtrack lab move {self.old.shown_folder} {self.new.shown_folder} --step files; then "
                    f"ansible-playbook -i {lab.shown_folder} playbooks/provision.yml playbooks/deploy.yml",
                )
        if len(set(versions.values())) > 1:
            shown = ", ".join(f"{name} with {version}" for name, version in versions.items())
            raise BadInputError(
                f"The labs were deployed with different versions of the kit: {shown}.",
                "deploy both with the same: git pull, and playbooks/deploy.yml for each.",
            )

    def _copy(self) -> None:
        store = {
            "endpoint": self.old.s3_endpoint,
            "bucket": self.old.bucket,
            "region": self.old.s3_region,
            "ca_file": str(self.old.s3_ca_file or ""),
            "secrets": str(self.old.secrets_file),
        }
        self._run(self.new, "move/copy", {"move_from": store})

    def _run(self, lab: Lab, playbook: str, variables: dict[str, Any]) -> None:
        if self.play(lab, f"playbooks/{playbook}.yml", variables):
            raise LabtrackError(
                f"The move stopped in playbooks/{playbook}.yml, with {lab.shown_folder}.",
                "see to what is said above, and call this again: it goes on.  The old lab is whole in any case; "
                "--step back opens it.",
            )


def between(old: Lab, new: Lab, play: Play | None = None) -> Move:
    """A move.  Raises BadInputError where these are no two places of the same lab."""
    if old.folder == new.folder or old.name == new.name:
        raise BadInputError(f"Both are the lab {old.name}.", "name two folders, with two values of lab_name.")
    if old.root != new.root:
        raise BadInputError(f"{old.folder} and {new.folder} are of two checkouts.", "put both into inventory/ of one.")
    if old.fqdn != new.fqdn:
        raise BadInputError(
            f"lab_fqdn is {old.fqdn} in the old lab and {new.fqdn} in the new one.",
            "let both have the old one's: it is in everybody's file, and the DNS says which server it leads to.",
        )
    for name in ("lab_artifact_access", "lab_certificate"):
        if old.settings[name] != new.settings[name]:
            raise BadInputError(
                f"{name} is {old.settings[name]} in the old lab and {new.settings[name]} in the new one.",
                "move with the same, and change it afterwards.",
            )
    return Move(old, new, play or _play)


def _play(lab: Lab, playbook: str, variables: dict[str, Any]) -> int:
    """What it says is shown as it comes."""
    program = Path(sys.executable).with_name("ansible-playbook")
    command = [str(program), "-i", str(lab.folder), playbook, "-e", json.dumps(variables)]
    environment = {**os.environ, "ANSIBLE_CONFIG": str(KIT / "ansible.cfg")}
    return subprocess.run(command, cwd=KIT, env=environment, umask=0o077, check=False).returncode


def _address(lab: Lab) -> str:
    """Where the lab's server is, as hosts.yml has it."""
    try:
        hosts = yaml.safe_load((lab.folder / "hosts.yml").read_text())["nginx"]["hosts"]
        return str(next(iter(hosts.values()))["ansible_host"])
    except (OSError, LookupError, TypeError, AttributeError, StopIteration, yaml.YAMLError):
        return "the new server's address"
