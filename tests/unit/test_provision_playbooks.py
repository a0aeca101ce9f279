"""playbooks/provision.yml and destroy.yml up to the server, with a stand-in for Terraform and services over HTTP."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from fake_services import FakeServices
from fake_terraform import ADDRESS, BUCKET, SERVER, FakeTerraform
from recap import changed

from labtrack import lab as labs
from labtrack.lab import Lab

ROOT = Path(__file__).resolve().parents[2]
PROVISION, DESTROY = "playbooks/provision.yml", "playbooks/destroy.yml"
CONSOLE = "-----BEGIN SSH HOST KEY KEYS-----\nssh-ed25519 AAAA root@mlflow\n-----END SSH HOST KEY KEYS-----\n"


@pytest.fixture
def asked(there: Lab, services: FakeServices, terraform: FakeTerraform) -> FakeTerraform:
    """The stand-in for Terraform, and a lab that a playbook can load."""
    lab_yml = labs.lab_yml(there.folder)
    settings = yaml.safe_load(lab_yml.read_text())
    settings |= {"lab_image": "Debian-13", "lab_flavor": "p2-3gb", "lab_clouds_file": str(there.clouds_file)}
    lab_yml.write_text(yaml.safe_dump(settings))
    services.answers["/ports/p1$"] = (200, {"port": {"id": "p1", "device_id": "s1"}})
    services.answers["/servers/s1/action$"] = (200, {"output": CONSOLE})
    return terraform


def command(lab: Lab, playbook: str, *arguments: str) -> list[object]:
    program = Path(sys.executable).with_name("ansible-playbook")
    # named, for a limit to leave it: there is no server to go on to
    named = ("-i", "localhost,", "-c", "local", "-e", f"ansible_python_interpreter={sys.executable}")
    return [program, playbook, "-i", lab.folder, *named, "--limit", "localhost", *arguments]


def run(lab: Lab, playbook: str, *arguments: str) -> tuple[int, str]:
    """Exit code and output, where nobody can be asked."""
    done = subprocess.run(
        command(lab, playbook, *arguments),
        stdin=subprocess.DEVNULL,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def typed(text: str, lab: Lab, playbook: str, *arguments: str) -> tuple[int, str]:
    """The same at a terminal, where somebody types `text` when asked."""
    leader, terminal = pty.openpty()
    at_it = ("setsid", "--ctty", "--wait", *command(lab, playbook, *arguments))
    running = subprocess.Popen(at_it, stdin=terminal, stdout=terminal, stderr=terminal, cwd=ROOT)
    os.close(terminal)
    said = ""
    with contextlib.suppress(OSError):  # its end
        while True:
            if select.select([leader], [], [], 0.5)[0]:
                if not (more := os.read(leader, 65536)):
                    break
                said += more.decode(errors="replace")
            elif re.search(r"Type \w+ to", said):  # what is typed too early, Ansible throws away
                os.write(leader, f"{text}\r".encode())
    os.close(leader)
    return running.wait(), re.sub(r"\x1b\[[0-9;]*m", "", said).replace("\r", "")


def test_nothing_is_made_without_a_yes_nor_in_check_mode(there: Lab, asked: FakeTerraform) -> None:
    code, said = run(there, PROVISION)
    assert code and "the plan was not confirmed with yes" in said and "-e auto_approve=true" in said
    assert f"# {SERVER} [" in said
    code, said = run(there, PROVISION, "--check")
    assert code == 0 and f"# {SERVER} [" in said and changed(said) == []
    assert "apply" not in {call[0] for call in asked.calls}
    assert not (there.folder / "hosts.yml").exists()


def test_a_yes_at_a_terminal_makes_it_and_a_second_run_changes_nothing(there: Lab, asked: FakeTerraform) -> None:
    code, said = typed("yes", there, PROVISION)
    assert code == 0, said
    assert changed(said) == [
        "localhost: Carry it out, and write the inventory", "localhost: Learn its SSH host keys from its console",
    ]  # fmt: skip
    assert "The machine is made by Terraform." in said
    assert (there.private / "known_hosts").read_text() == "203.0.113.9 ssh-ed25519 AAAA s1\n"
    code, said = run(there, PROVISION)  # nobody is asked
    assert code == 0 and changed(said) == []
    asked.write(replaces=[SERVER])
    code, said = run(there, PROVISION, "-e", "auto_approve=true")
    assert code and "The plan takes the server away" in said and "-e replace_server=true" in said
    code, said = typed("clima", there, DESTROY)
    assert code and "Nothing was destroyed" in said and (there.folder / "hosts.yml").exists()
    code, said = typed("climate", there, DESTROY, "-e", "{destroy: 'bucket, address'}")
    assert code == 0 and changed(said) == ["localhost: Destroy it"], said
    assert not (there.folder / "hosts.yml").exists()
    assert {call[-1] for call in asked.calls if call[:2] == ["state", "rm"]} == {BUCKET, ADDRESS}


def test_why_there_is_no_terraform_is_said(there: Lab, asked: FakeTerraform) -> None:
    asked.write(fails={"init": "Error: no such registry"})
    code, said = run(there, PROVISION)
    assert code and "no such registry" in said and "docs/admin/own-machine.md" in " ".join(said.split())


def test_a_stand_in_takes_the_place_of_a_terraform_that_can_t_be_had(
    there: Lab, services: FakeServices, asked: FakeTerraform
) -> None:
    """The rehearsal's: its login is the one that was looked up.  What it makes is asked in tests/rehearsal."""
    asked.write(fails={"init": "Error: no such registry"})
    (there.private / "id_ed25519.pub").write_text("ssh-ed25519 AAAA\n")
    stand_in = ("-e", "provision_stand_in=rehearsal/tasks/stand_in.yml", "-e", "lab_external_network=Public")
    code, said = run(there, PROVISION, "--check", *stand_in)
    assert code == 0 and "by the stand-in for Terraform (stand_in.yml)" in " ".join(said.split()), said
    assert "its `init` failed: Error: no such registry" in " ".join(said.split())
    _, said = run(there, PROVISION, *stand_in)
    assert "POST /network/v2.0/networks" in services.asked, said
