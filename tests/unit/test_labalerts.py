"""lab_alerts: the secrets that it needs, and how playbooks/deploy.yml hands it to the roles."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from labtrack import labalerts, secrets
from labtrack.errors import BadInputError
from labtrack.lab import Lab

MAIL = {"relay": "smtp.example.org", "from": "a@example.org", "to": ["b@example.org"]}
SECRETS = {
    labalerts.PASSWORD: "of-the-relay", labalerts.TOKEN: "of-the-room",
    "secret_alerts_webhook_url": "https://hooks.example.org/T/x", "secret_alerts_heartbeat_url": "http://beat.example.org:8000/x",
}  # fmt: skip


@pytest.mark.parametrize(
    ("alerts", "names"),
    [
        ({"mail": MAIL}, []),
        ({"mail": MAIL | {"user": "lab"}}, [labalerts.PASSWORD]),
        ({"webhook": {"url": "https://ntfy.sh/x", "template": "ntfy"}}, []),
        ({"webhook": {"url": "https://m.example.org/x", "template": "matrix"}}, [labalerts.TOKEN]),
        (
            {"webhook": {"url": "vault", "template": "slack"}, "heartbeat": "vault"},
            ["secret_alerts_webhook_url", "secret_alerts_heartbeat_url"],
        ),
    ],
)
def test_secrets_that_are_missing_are_named(lab: Lab, context: Any, alerts: dict[str, Any], names: list[str]) -> None:
    lab = dataclasses.replace(lab, settings={**lab.settings, "lab_alerts": alerts})
    with context():
        if names:
            with pytest.raises(BadInputError) as raised:
                secrets.ensure_passwords(lab)
            assert all(f'{name}: "..."' in str(raised.value) for name in names)
            assert "ansible-vault edit" in str(raised.value)
        secrets.add(lab, {name: SECRETS[name] for name in names})
        secrets.ensure_passwords(lab)


def test_an_address_in_the_vault_that_is_none_is_told_and_not_shown(lab: Lab, context: Any) -> None:
    lab = dataclasses.replace(lab, settings={**lab.settings, "lab_alerts": {"heartbeat": "vault"}})
    with context():
        secrets.add(lab, {"secret_alerts_heartbeat_url": "token-without-address"})
        with pytest.raises(BadInputError) as raised:
            secrets.ensure_passwords(lab)
    assert "secret_alerts_heartbeat_url" in str(raised.value) and "token-without" not in str(raised.value)


def handed(tmp_path: Path, **variables: Any) -> dict[str, Any]:
    """What the plays of deploy.yml make of a lab's settings and secrets."""
    plays = yaml.safe_load((ROOT / "playbooks/deploy.yml").read_text())
    base = next(play for play in plays if play.get("tags") == ["base"])
    made = ("deploy_mail", "deploy_webhook", "deploy_heartbeat", "deploy_receivers")
    play = {
        "hosts": "localhost", "connection": "local", "gather_facts": False,
        "vars_files": [str(ROOT / "playbooks/vars/alerts.yml")],
        "vars": {name: base["vars"][name] for name in ("deploy_alarm_urls", "deploy_receivers")},
        "tasks": [{
            "ansible.builtin.copy": {
                "dest": str(tmp_path / "made.json"), "mode": "0600",
                "content": "{{ {" + ", ".join(f"'{name}': {name}" for name in made) + "} | to_json }}",
            },
        }],
    }  # fmt: skip
    file = tmp_path / "play.yml"
    file.write_text(yaml.safe_dump([play]))
    command = [
        Path(sys.executable).with_name("ansible-playbook"),
        "-i",
        "localhost,",
        file,
        "-e",
        json.dumps(variables),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    made_of: dict[str, Any] = json.loads((tmp_path / "made.json").read_text())
    return made_of


def test_deploy_hands_on_secrets_and_lets_the_firewall_through(tmp_path: Path) -> None:
    alerts = {
        "mail": MAIL | {"user": "lab"}, "webhook": {"url": "vault", "template": "slack"}, "heartbeat": "vault",
    }  # fmt: skip
    made = handed(tmp_path, lab_alerts=alerts, **SECRETS)
    assert made["deploy_mail"] == {
        **MAIL,
        "user": "lab",
        "password": "of-the-relay",
        "encryption": "starttls",
        "port": 587,
    }
    assert made["deploy_webhook"] == {
        "url": SECRETS["secret_alerts_webhook_url"], "template": "slack", "token": "of-the-room",
    }  # fmt: skip
    assert made["deploy_heartbeat"] == SECRETS["secret_alerts_heartbeat_url"]
    assert made["deploy_receivers"] == [
        {"host": "smtp.example.org", "port": 587},
        {"host": "hooks.example.org", "port": 443},
        {"host": "beat.example.org", "port": 8000},
    ]


def test_deploy_without_secrets_or_without_alerts(tmp_path: Path) -> None:
    made = handed(
        tmp_path,
        lab_alerts={"mail": MAIL | {"encryption": "none"}, "webhook": {"url": "http://hook/x", "template": "json"}},
    )
    assert (made["deploy_mail"]["port"], "password" in made["deploy_mail"]) == (25, False)
    assert made["deploy_webhook"] == {"url": "http://hook/x", "template": "json"}
    assert made["deploy_receivers"] == [{"host": "smtp.example.org", "port": 25}, {"host": "hook", "port": 80}]
    assert handed(tmp_path) == {
        "deploy_mail": {}, "deploy_webhook": {}, "deploy_heartbeat": "", "deploy_receivers": [],
    }  # fmt: skip
