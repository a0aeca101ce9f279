"""A second admin: an empty clone, the vault password, an SSH key and a login to the cloud are enough."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from admin import Kit
from recap import changed

from labtrack.labcopy.remote import EXPORTS, LOCK

if TYPE_CHECKING:
    from conftest import Rehearsal

pytestmark = pytest.mark.timeout(900)

OWN = ("id_ed25519", "id_ed25519.pub", "clouds.yaml", "cloud-ca.pem")  # what an admin brings
USERS = "playbooks/users.yml"
BEGUN = "server: Keep other admins out, and take over what they have changed"


class Clone:
    """A clone of the repository, with what its admin brings."""

    def __init__(self, rehearsal: Rehearsal, root: Path) -> None:
        self.rehearsal, self.root = rehearsal, root
        subprocess.run(["git", "clone", "--quiet", rehearsal.root, root], check=True)
        self.lab, self.private = root / "inventory" / "rehearsal", root / "private" / "rehearsal"
        self.private.mkdir(parents=True, mode=0o700)
        self.private.parent.chmod(0o700)
        for name in OWN:
            shutil.copy2(rehearsal.private / name, self.private)
        known = (rehearsal.private / "known_hosts").read_text().splitlines(keepends=True)
        address = rehearsal.addresses["server"][0]
        self.servers = [line for line in known if line.startswith(address)]
        # the rehearsal's own machines, which get the server's name by SSH: a lab has a DNS for that
        (self.private / "known_hosts").write_text("".join(line for line in known if line not in self.servers))

    def playbook(self, playbook: str, *arguments: str, **more: object) -> subprocess.CompletedProcess[str]:
        return self.rehearsal.playbook(str(self.root / playbook), "-i", str(self.lab), *arguments, **more)

    def knows_the_machine(self) -> None:
        """As with a machine of one's own: hosts.yml is in git, and known_hosts was written from its console."""
        shutil.copy2(self.rehearsal.lab_dir / "hosts.yml", self.lab)
        with (self.private / "known_hosts").open("a") as file:
            file.writelines(self.servers)


def files(private: Path, lab: Path) -> dict[str, bytes]:
    """What a run could make anew: everybody's file, the register, the secrets."""
    found = [*private.glob("*/mlflow_env.sh"), private / "keys.json", private / "ca.pem"]
    names = {str(path.relative_to(private)): path for path in found}
    return {name: path.read_bytes() for name, path in {**names, "secrets": lab / "group_vars/all/secrets.yml"}.items()}


@pytest.fixture(scope="module")
def first(rehearsal: Rehearsal) -> Kit:
    """The first admin, whose last run was after all that other tests have done."""
    rehearsal.playbook(USERS, check=True)
    return Kit(rehearsal)


@pytest.fixture
def clone(first: Kit, tmp_path: Path) -> Clone:
    return Clone(first.rehearsal, tmp_path / "clone")


def test_an_empty_clone_changes_nobodys_password_or_key(first: Kit, clone: Clone, tmp_path: Path) -> None:
    rehearsal = first.rehearsal
    before, keys = files(rehearsal.private, rehearsal.lab_dir), first.seen()
    assert len(before) >= 6
    clone.knows_the_machine()

    other = {"LABTRACK_VAULT_PASSWORD_FILE": str(tmp_path / "another-password")}
    refused = clone.playbook(USERS, env=other)
    assert refused.returncode != 0 and "another vault password" in refused.stdout
    assert not (clone.private / "keys.json").exists() and not list(clone.private.glob("*/mlflow_env.sh"))

    done = clone.playbook(USERS, check=True)
    assert changed(done.stdout)[0] == BEGUN and "localhost" not in " ".join(changed(done.stdout))
    assert files(clone.private, clone.lab) == before == files(rehearsal.private, rehearsal.lab_dir)
    assert first.seen() == keys
    assert clone.rehearsal.run("labtrack", "doctor", "--file", str(clone.private / "ada/mlflow_env.sh")).returncode in (
        0,
        1,
    )


@pytest.fixture
def locked(rehearsal: Rehearsal) -> Iterator[str]:
    """Another admin is at work."""
    who = {
        "who": "emmy@observatory",
        "host": "observatory",
        "user": "emmy",
        "pid": 1,
        "doing": "site.yml",
        "since": "x",
    }
    rehearsal.ssh("server", f"cat >{LOCK}", stdin=f"another\n{json.dumps(who)}\n", check=True)
    yield "emmy@observatory"
    rehearsal.ssh("server", f"rm -f {LOCK}", check=True)


def test_while_another_admin_is_at_work_nothing_is_changed(rehearsal: Rehearsal, first: Kit, locked: str) -> None:
    assert first.rehearsal is rehearsal
    done = rehearsal.playbook(USERS)
    assert done.returncode != 0 and f"{locked} is at work on this lab" in done.stdout
    assert "Give each person" not in done.stdout.partition("fatal: ")[2]
    assert changed(done.stdout) == []


def test_the_servers_copy_is_for_root_alone(rehearsal: Rehearsal, first: Kit) -> None:
    assert first.rehearsal is rehearsal
    found = rehearsal.ssh("server", f"stat -c '%a %U' {EXPORTS} {EXPORTS}/*; ls {LOCK}").stdout.split("\n")
    assert found[0] == "700 root" and set(found[1:-1]) == {"600 root"}
    secrets = [value for name, value in rehearsal.secrets.items() if "access_key_id" not in name]
    text = rehearsal.ssh("server", f"cat {EXPORTS}/*", check=True).stdout
    assert [value for value in secrets if value in text] == []


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_site_of_an_empty_clone_changes_nobodys_password_or_key(first: Kit, clone: Clone) -> None:
    rehearsal = first.rehearsal
    before, keys, start = files(rehearsal.private, rehearsal.lab_dir), first.seen(), time.monotonic()
    done = clone.playbook("site.yml", "-e", "auto_approve=true", check=True)
    print(f"site.yml of an empty clone: {time.monotonic() - start:.0f} s")
    assert files(clone.private, clone.lab) == before
    assert first.seen() == keys
    assert {line for line in changed(done.stdout) if line.startswith("server: ")} <= {
        BEGUN, "server: Leave the newest files to other admins, and let them in"
    }  # fmt: skip
    again = rehearsal.playbook(USERS, check=True)
    assert files(rehearsal.private, rehearsal.lab_dir) == before, again.stdout
