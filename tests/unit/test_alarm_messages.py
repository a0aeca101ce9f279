"""labtrack-alarm: the messages, in the form that each receiver documents."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import pytest
from alarm_receivers import TOKEN, Alarms, certificate, module
from receivers import Hook, Relay, serving

# --- what the receivers document that they take


def sent(alarms: Alarms, hook: Hook, template: str, path: str = "/hook", **status: str) -> Any:
    alarms.settings(webhook={"url": hook.url(path), "template": template, "token": TOKEN})
    alarms.look(**status)
    assert alarms().returncode == 0
    return hook.got[-1]


def test_ntfy(alarms: Alarms, hook: Hook) -> None:
    """docs.ntfy.sh/publish: the message is the body, of 4,096 bytes at most; the rest are headers."""
    request = sent(alarms, hook, "ntfy", "/climate-lab", disk="failed")
    assert (request.method, request.path) == ("POST", "/climate-lab")
    assert request.headers["Title"] == "[climate] failed: disk" and request.headers["Priority"] == "high"
    assert request.headers["Tags"] == "warning" and request.headers["Authorization"] == f"Bearer {TOKEN}"
    assert request.body.decode().startswith("disk: failed, since ") and len(request.body) <= 4096
    over = sent(alarms, hook, "ntfy", "/climate-lab")
    assert (over.headers["Tags"], over.headers["Priority"]) == ("white_check_mark", "default")


def test_ntfy_cuts_what_it_would_make_a_file_of(alarms: Alarms, hook: Hook) -> None:
    alarms.settings(webhook={"url": hook.url("/t"), "template": "ntfy"})
    alarms.look(disk="failed")
    look = alarms.here / "look.json"
    look.write_text(look.read_text().replace("disk seen", "é" * 5000))
    alarms()
    assert 3800 < len(hook.got[-1].body) <= 4096 and hook.got[-1].body.decode().endswith("é")


def test_slack(alarms: Alarms, hook: Hook) -> None:
    """api.slack.com/messaging/webhooks: JSON with text, in which &, < and > are escaped."""
    alarms.settings(webhook={"url": hook.url("/services/T/B/x"), "template": "slack"})
    alarms.look(disk="failed")
    look = alarms.here / "look.json"
    look.write_text(look.read_text().replace("disk seen", "a <b> & c"))
    alarms()
    request = hook.got[-1]
    assert (request.method, request.headers["Content-Type"]) == ("POST", "application/json")
    assert set(request.json) == {"text"} and "Authorization" not in request.headers
    assert request.json["text"].startswith("*[climate] failed: disk*\ndisk: failed, since ")
    assert "a &lt;b&gt; &amp; c" in request.json["text"]


def test_matrix(alarms: Alarms, hook: Hook) -> None:
    """spec.matrix.org, PUT /_matrix/client/v3/rooms/{roomId}/send/{eventType}/{txnId}."""
    room = "/_matrix/client/v3/rooms/!room:example.org/send/m.room.message"
    request = sent(alarms, hook, "matrix", room, disk="failed")
    assert request.method == "PUT" and re.fullmatch(re.escape(room) + "/[0-9a-f]{32}", request.path)
    assert request.headers["Authorization"] == f"Bearer {TOKEN}"
    assert request.json["msgtype"] == "m.text" and request.json["body"].startswith(
        "[climate] failed: disk\ndisk: failed"
    )
    assert sent(alarms, hook, "matrix", room).path != request.path


def test_json(alarms: Alarms, hook: Hook) -> None:
    for kind, rows in (("new", {"disk": "failed"}), ("over", {})):
        request = sent(alarms, hook, "json", **rows)
        assert set(request.json) == {"version", "lab", "host", "id", "subject", "text", "events"}
        (event,) = request.json["events"]
        assert event["kind"] == kind
        assert set(event) == {"kind", "check", "status", "seen", "hint", "parts", "flaps", "since", "at", "told"}
    assert (request.json["version"], request.json["lab"], request.json["host"]) == (1, "climate", "mlflow.example.org")


def test_mail(alarms: Alarms) -> None:
    relay = Relay()
    mail = {"relay": "127.0.0.1", "port": relay.port, "encryption": "none", "from": "mlflow@example.org"}
    with serving(relay):
        alarms.settings(mail=mail | {"to": ["ada@example.org", "bob@example.org"]})
        alarms.look(disk="failed")
        alarms()
    (got,) = relay.mails
    assert (got["Subject"], got["From"], got["To"]) == (
        "[climate] failed: disk", "mlflow@example.org", "ada@example.org, bob@example.org",
    )  # fmt: skip
    assert relay.to == ["rcpt TO:<ada@example.org>", "rcpt TO:<bob@example.org>"]
    assert got["Auto-Submitted"] == "auto-generated" and got["Date"]
    assert re.fullmatch(r"<[0-9a-f]{32}@mlflow.example.org>", got["Message-ID"])
    assert got.get_payload().startswith("disk: failed, since ")


def test_mail_by_starttls_with_a_login_and_not_to_an_unknown_ca(alarms: Alarms, tmp_path: Path) -> None:
    relay = Relay(certificate(tmp_path))
    mail = {
        "relay": "localhost", "port": relay.port, "encryption": "starttls", "from": "mlflow@example.org",
        "to": ["ada@example.org"], "user": "lab", "password": TOKEN,
    }  # fmt: skip
    with serving(relay):
        alarms.settings(mail=mail)
        alarms.look(disk="failed")
        assert "mail: not reached, tried again next time: " in (said := alarms().stderr) and "CERTIFICATE" in said
        assert relay.logins == []
        assert alarms(SSL_CERT_FILE=str(tmp_path / "ca.pem")).stderr == ""
    assert base64.b64decode(relay.logins[0]) == b"\0lab\0" + TOKEN.encode()
    assert [mail["Subject"] for mail in relay.mails] == ["[climate] failed: disk"]


def test_the_test_message(alarms: Alarms, hook: Hook, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    alarm = module(alarms, monkeypatch)
    assert alarm.test() == 0
    assert capsys.readouterr().out == "webhook: taken\n"
    assert hook.got[-1].json["subject"] == "[climate] test: test"
    assert "test: test, since" in hook.got[-1].json["text"] and "sent by hand on" in hook.got[-1].json["text"]
    hook.status = 403
    assert alarm.test() == 1
    assert capsys.readouterr().out == "webhook: it answers 403 Forbidden\n"
