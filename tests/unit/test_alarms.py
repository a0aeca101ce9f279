"""labtrack-alarm: the real program against receivers of this test, with looks that the test writes."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from alarm_receivers import Hook, Relay, certificate, serving
from conftest import ROOT

PROGRAM = ROOT / "roles/monitoring/files/labtrack_alarm.py"
HOUR, DAY = 3600, 24 * 3600
TOKEN = "tk-not-to-be-seen"


class Alarms:
    """A server's look, its settings, its state and its receiver."""

    def __init__(self, here: Path, hook: Hook) -> None:
        self.here, self.hook = here, hook
        self.states = [here / "disk", here / "memory"]
        for folder in self.states:
            folder.mkdir()
        self.settings(webhook={"url": hook.url("/hook"), "template": "json"}, heartbeat=hook.url("/beat"))
        self.look()

    def settings(self, **receivers: Any) -> None:
        named = {"lab": "climate", "fqdn": "mlflow.example.org", "mail": {}, "webhook": {}, "heartbeat": ""}
        (self.here / "labtrack-alarm.json").write_text(json.dumps(named | receivers))

    def look(self, age: float = 0, **status: str) -> None:
        """What labtrack-status has written: disk, store and clock, ok unless said otherwise."""
        rows = [
            {
                "check": name,
                "status": status.get(name, "ok"),
                "seen": f"{name} seen",
                "hint": f"mend {name}",
                "seconds": 0,
            }
            for name in ("disk", "store", "clock", "alarms")
        ]
        said = {"version": 1, "status": "ok", "time": time.time() - age, "host": "server", "results": rows}
        (self.here / "look.json").write_text(json.dumps(said))

    def environment(self) -> dict[str, str]:
        states = ":".join(map(str, self.states))
        named = {"CREDENTIALS_DIRECTORY": self.here, "LABTRACK_ALARM_LOOK": self.here / "look.json"}
        return {**os.environ, **{name: str(path) for name, path in named.items()}, "LABTRACK_ALARM_STATES": states}

    def __call__(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(PROGRAM), *arguments]
        done = subprocess.run(
            command, env=self.environment() | more, capture_output=True, text=True, timeout=60, check=False
        )
        assert "Traceback" not in done.stderr and TOKEN not in done.stdout + done.stderr
        return done

    def run(self, **status: str) -> list[str]:
        """A look and what is told then: kind, check and status of each event."""
        self.look(**status)
        before = len(self.hook.on("/hook"))
        assert self().returncode == 0
        sent = self.hook.on("/hook")[before:]
        return [f"{one['kind']} {one['check']} {one['status']}" for request in sent for one in request.json["events"]]

    def age(self, seconds: float) -> None:
        """Let time pass in the state."""
        file = self.states[0] / "state.json"
        state = json.loads(file.read_text())
        for problem in state["open"].values():
            problem["since"] -= seconds
            problem["told"] -= seconds
        file.write_text(json.dumps(state))

    def beats(self) -> int:
        return len(self.hook.on("/beat"))


@pytest.fixture
def hook() -> Iterator[Hook]:
    server = Hook()
    with serving(server):
        yield server


@pytest.fixture
def alarms(tmp_path: Path, hook: Hook) -> Alarms:
    return Alarms(tmp_path, hook)


# --- what is told, and when


def test_a_problem_is_told_once_again_daily_and_when_it_is_over(alarms: Alarms) -> None:
    assert alarms.run() == []
    assert alarms.run(disk="failed") == ["new disk failed"]
    assert alarms.run(disk="failed") == []
    alarms.age(23 * HOUR)
    assert alarms.run(disk="failed") == []
    alarms.age(HOUR)
    assert alarms.run(disk="failed") == ["still disk failed"]
    assert alarms.run(disk="failed") == []
    assert alarms.run() == ["over disk failed"]
    assert alarms.run() == []


def test_what_gets_worse_is_told_and_what_gets_a_little_better_is_not(alarms: Alarms) -> None:
    assert alarms.run(disk="warning") == ["new disk warning"]
    assert alarms.run(disk="failed") == ["worse disk failed"]
    assert alarms.run(disk="warning") == []
    assert alarms.run(disk="failed") == []
    assert alarms.run(disk="skipped") == ["over disk failed"]


def test_problems_of_one_look_are_one_message(alarms: Alarms, hook: Hook) -> None:
    assert alarms.run(disk="failed", clock="warning") == ["new disk failed", "new clock warning"]
    (request,) = hook.on("/hook")
    assert request.json["subject"] == "[climate] failed: disk; warning: clock"
    assert re.search(
        r"^disk: failed, since \d{4}-\d\d-\d\d \d\d:\d\d UTC: disk seen\n    To fix: mend disk$",
        request.json["text"],
        re.M,
    )
    assert "`labtrack status` shows all of mlflow.example.org." in request.json["text"]
    assert alarms.run(store="failed", clock="warning") == ["over disk failed", "new store failed"]
    assert hook.on("/hook")[1].json["subject"] == "[climate] failed: store; over: disk"
    assert "disk: over at 20" in hook.on("/hook")[1].json["text"]


def test_a_look_that_did_not_end_is_told_and_changes_nothing_else(alarms: Alarms, hook: Hook) -> None:
    alarms.run(disk="failed")
    alarms.look(age=700)
    alarms()
    alarms()
    (event,) = hook.on("/hook")[-1].json["events"]
    assert (event["check"], event["kind"], len(hook.on("/hook"))) == ("look", "new", 2)
    assert event["seen"].startswith("The last look at the server is from 20")
    (alarms.here / "look.json").write_text("{")
    alarms()
    assert len(hook.on("/hook")) == 2
    assert alarms.run(disk="failed") == ["over look failed"]


def test_receivers_that_are_down_are_not_told_of_as_a_problem(alarms: Alarms) -> None:
    assert alarms.run(alarms="failed") == []


# --- heartbeat


def test_heartbeat_only_when_all_is_well(alarms: Alarms, hook: Hook) -> None:
    alarms.run()
    assert alarms.beats() == 1 and hook.on("/beat")[0].method == "GET"
    alarms.run(disk="failed")
    alarms.run(disk="warning")
    assert alarms.beats() == 1
    alarms.run(clock="skipped")
    assert alarms.beats() == 2
    alarms.look(age=700)
    alarms()
    assert alarms.beats() == 2


def test_no_heartbeat_while_somebody_has_to_be_told(alarms: Alarms, hook: Hook) -> None:
    alarms.run(disk="failed")
    hook.status = 503
    alarms.run()
    assert alarms.beats() == 0
    hook.status = 200
    alarms.run()
    assert alarms.beats() == 1


def test_heartbeat_that_is_not_taken_is_tried_again(alarms: Alarms, hook: Hook) -> None:
    hook.status = 500
    assert "heartbeat: not reached, tried again next time: it answers 500" in alarms().stderr
    down = json.loads((alarms.states[0] / "state.json").read_text())["down"]
    alarms()
    assert json.loads((alarms.states[0] / "state.json").read_text())["down"] == down, "since the first time"
    hook.status = 200
    assert alarms().stderr == "" and alarms.beats() == 3
    assert json.loads((alarms.states[0] / "state.json").read_text())["down"] == {}


# --- receivers that are down


def test_what_a_receiver_could_not_take_it_gets_later_and_once(alarms: Alarms, hook: Hook) -> None:
    hook.status = 503
    alarms.look(disk="failed")
    done = alarms()
    assert done.returncode == 0, "no failed unit, which would be told of again"
    assert "webhook: not reached, tried again next time: it answers 503" in done.stderr
    alarms.age(DAY)
    assert alarms.run(disk="failed") == ["new disk failed"], "tried again, without a reminder"
    hook.status = 200
    assert alarms.run(store="failed") == ["new disk failed", "over disk failed", "new store failed"]
    assert alarms.run(store="failed") == []


def test_one_receiver_that_is_down_holds_up_no_other(alarms: Alarms, hook: Hook) -> None:
    relay = Relay()
    with serving(relay):
        mail = {
            "relay": "127.0.0.1",
            "port": relay.port,
            "encryption": "none",
            "from": "a@example.org",
            "to": ["b@example.org"],
        }
        alarms.settings(mail=mail, webhook={"url": hook.url("/hook"), "template": "json"})
        hook.status = 404
        alarms.run(disk="failed")
        alarms.run(disk="failed")
        assert [mail["Subject"] for mail in relay.mails] == ["[climate] failed: disk"]
    hook.status = 200
    assert alarms.run() == ["new disk failed", "over disk failed"]
    relay = Relay()  # another port: the mail goes there
    with serving(relay):
        alarms.settings(mail=mail | {"port": relay.port}, webhook={"url": hook.url("/hook"), "template": "json"})
        assert alarms.run() == []
        assert [mail["Subject"] for mail in relay.mails] == ["[climate] over: disk"]


def test_nothing_listens(alarms: Alarms) -> None:
    alarms.settings(webhook={"url": "http://127.0.0.1:9/hook", "template": "json", "token": TOKEN})
    alarms.look(disk="failed")
    assert "webhook: not reached, tried again next time: [Errno 111] Connection refused" in alarms().stderr


def test_a_redirect_is_no_receiver(alarms: Alarms, hook: Hook) -> None:
    alarms.settings(webhook={"url": hook.url("/hook"), "template": "json", "token": TOKEN})
    hook.status = 302
    alarms.look(disk="failed")
    assert "it answers 302" in alarms().stderr
    assert hook.on("/elsewhere") == []


def test_a_new_receiver_gets_what_is_open(alarms: Alarms, hook: Hook) -> None:
    alarms.settings()
    alarms.run(disk="failed")
    alarms.settings(webhook={"url": hook.url("/hook"), "template": "json"})
    assert alarms.run(disk="failed") == ["still disk failed"]


# --- killed


def module(alarms: Alarms, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program as a module, in this process."""
    for name, value in alarms.environment().items():
        monkeypatch.setenv(name, value)
    spec = importlib.util.spec_from_file_location("labtrack_alarm", PROGRAM)
    assert spec and spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


class KilledError(BaseException):
    """In the place of SIGKILL."""


def test_killed_at_any_step_it_is_told_once_or_twice(
    alarms: Alarms, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before and after each write of the state and each message of: new, nothing, over."""
    alarm = module(alarms, monkeypatch)
    steps = {"left": 0, "reached": False}

    def dying(call: Any) -> Any:
        def step() -> None:
            steps["left"] -= 1
            if steps["left"] == 0:
                steps["reached"] = True
                raise KilledError

        def called(*arguments: Any, **more: Any) -> None:
            step()
            call(*arguments, **more)
            step()

        return called

    monkeypatch.setattr(alarm, "save", dying(alarm.save))
    monkeypatch.setattr(alarm, "post", dying(alarm.post))
    for number in range(1, 100):
        hook.got.clear()
        for folder in alarms.states:
            (folder / "state.json").unlink(missing_ok=True)
        steps.update(left=number, reached=False)
        for status in ({"disk": "failed"}, {"disk": "failed"}, {}, {}):
            alarms.look(**status)
            try:
                alarm.main()
            except KilledError:
                alarm.main()
        told = [event["kind"] for request in hook.on("/hook") for event in request.json["events"]]
        assert told.count("new") in (1, 2) and told.count("over") in (1, 2) and len(told) <= 3, (number, told)
        if not steps["reached"]:
            break
    assert number > 10 and told == ["new", "over"]


def test_killed_after_the_receiver_took_it_sends_the_same_once_more(alarms: Alarms, hook: Hook) -> None:
    """The real program and SIGKILL; a homeserver of Matrix knows the second by its name."""
    alarms.settings(webhook={"url": hook.url("/rooms/!r:x/send/m.room.message"), "template": "matrix", "token": TOKEN})
    alarms.look(disk="failed")
    with subprocess.Popen([sys.executable, str(PROGRAM)], env=alarms.environment()) as running:
        hook.taken = lambda: os.kill(running.pid, signal.SIGKILL)
        running.wait(30)
    assert running.returncode == -signal.SIGKILL
    hook.taken = lambda: None
    for _ in range(2):
        assert alarms().returncode == 0
    first, second = hook.got
    assert first.path == second.path and first.body == second.body


def test_a_full_disk_is_told_once(alarms: Alarms) -> None:
    """The state can't be written there, and is kept in memory."""
    alarms.run()
    (alarms.states[0] / "state.part").mkdir()
    assert alarms.run(disk="failed") == ["new disk failed"]
    assert alarms.run(disk="failed") == []
    (alarms.states[0] / "state.part").rmdir()
    assert alarms.run() == ["over disk failed"]
    assert alarms.run() == []


def test_a_state_that_can_t_be_read_is_begun_anew(alarms: Alarms) -> None:
    alarms.run(disk="failed")
    (alarms.states[0] / "state.json").write_text("")
    assert alarms.run(disk="failed") == ["new disk failed"]


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
    request = sent(alarms, hook, "json", disk="failed")
    assert set(request.json) == {"version", "lab", "host", "id", "subject", "text", "events"}
    (event,) = request.json["events"]
    assert set(event) == {"kind", "check", "status", "seen", "hint", "since", "at", "told"}
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


# --- the units


def test_failures_of_whatever_a_timer_starts_lead_here() -> None:
    """Each unit of the roles that a timer starts, and certbot's, has OnFailure=."""
    templates = {
        path: path.read_text() for path in (ROOT / "roles").glob("*/templates/*.j2") if "/rehearsal_" not in str(path)
    }
    roles = {path.parents[1].name for path, text in templates.items() if "[Timer]" in text}
    assert {"backup", "base", "certificates", "monitoring"} <= roles
    own = ROOT / "roles/monitoring"
    started = [
        path for path, text in templates.items()
        if path.parents[1].name in roles and "[Service]" in text and own not in path.parents
    ]  # fmt: skip
    assert len(started) >= 4
    lacking = [
        path
        for path in started
        if "\nOnFailure=labtrack-alarm.service\n" not in templates[path].partition("[Service]")[0]
    ]
    assert lacking == []
    assert "OnFailure" not in (own / "templates/look.service.j2").read_text(), "its failure would start it again"
    assert "Wants=network-online.target labtrack-look.service" in (own / "templates/alarm.service.j2").read_text()
