"""labtrack-alarm: what it tells and when, by the real program, with looks that the test writes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from alarm_receivers import DAY, HOUR, PROGRAM, TOKEN, Alarms, module
from conftest import ROOT
from looked_at import UNITS, WELL, Server, loaded
from receivers import Hook, Relay, serving

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


def test_what_comes_and_goes_is_told_twice_and_over_after_a_calm_hour(alarms: Alarms, hook: Hook) -> None:
    told = [alarms.run(**look) for look in ({"disk": "warning"}, {}) * 4]
    assert told == [["new disk warning"], ["over disk warning"], ["new disk warning"], [], [], [], [], []]
    assert "disk: warning, comes and goes, since " in hook.on("/hook")[-1].json["text"]
    alarms.age(HOUR - 60)
    assert alarms.run() == []
    assert alarms.run(disk="failed") == ["worse disk failed"]
    assert alarms.run() == []
    alarms.age(HOUR)
    assert alarms.run() == ["over disk failed"]
    alarms.age(HOUR)
    assert (alarms.run(disk="failed"), alarms.run()) == (["new disk failed"], ["over disk failed"])


def test_a_second_unit_that_fails_is_told_though_the_first_is_still_down(alarms: Alarms, hook: Hook) -> None:
    """Once, where it comes and goes; again, where it was well for an hour."""

    def told(*parts: str) -> list[str]:
        before = len(hook.on("/hook"))
        alarms.look(parts=parts, disk="failed")
        alarms()
        return [event["kind"] for request in hook.on("/hook")[before:] for event in request.json["events"]]

    one, other = "nginx.service", "labtrack-backup@run.service"
    assert [told(one), told(one), told(one, other)] == [["new"], [], ["worse"]]
    assert [told(one), told(one, other), told(other), told(one, other)] == [[], [], [], []]
    assert told(one) == []
    alarms.age(HOUR)
    assert [told(one), told(one, other)] == [[], ["worse"]]
    assert alarms.run() == ["over disk failed"]


def test_a_state_of_before_parts_had_times_tells_nothing_twice(alarms: Alarms) -> None:
    alarms.look(parts=["nginx.service"], disk="failed")
    alarms()
    file = alarms.states[0] / "state.json"
    state = json.loads(file.read_text())
    del state["open"]["disk"]["lately"]
    file.write_text(json.dumps(state))
    alarms.look(parts=["nginx.service"], disk="failed")
    alarms()
    assert len(alarms.hook.on("/hook")) == 1


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


# --- both programs


LINE = '{"check": "x", "status": "failed", "seen": "refused", "hint": "look"}'
WRONG = {
    "the store is cut off": (
        {"mlflowctl": f"""test "$2" != store || {{ echo '{LINE}'; exit 2; }}\n{WELL["mlflowctl"]}"""},
        "new store failed",
    ),
    "nginx is stopped": (
        {"systemctl": f"cat <<'END'\n{UNITS}nginx.service loaded inactive dead x\nEND"},
        "new units failed",
    ),
    "a backup failed": (
        {"systemctl": f"cat <<'END'\n{UNITS}labtrack-backup@run.service loaded failed failed x\nEND"},
        "new units failed",
    ),
    "the certificate was not renewed": (
        {"labtrack-certificate": """echo '{"status": "warning", "seen": "less than a third of its time"}'; exit 1"""},
        "new certificate warning",
    ),
    "the clock is off": ({"timedatectl": "echo no"}, "new clock warning"),
    "the look does not end": ({}, "new look failed"),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_right_message_arrives_and_no_other(
    name: str, alarms: Alarms, hook: Hook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What labtrack-status finds of a server, told by labtrack-alarm, until it is mended."""
    server = Server(tmp_path / "server")
    status = loaded(server, monkeypatch)
    monkeypatch.setattr(status, "AGAIN", 0.05)
    monkeypatch.setattr(status, "places", list)
    programs, told = WRONG[name]

    def looked(ends: bool = True) -> None:
        if ends:
            assert status.main(["--write", str(alarms.here / "look.json")]) == 0
        else:
            alarms.look(age=700)
        assert alarms().returncode == 0

    looked()
    assert (len(hook.on("/hook")), alarms.beats()) == (0, 1)
    for program, script in programs.items():
        server.program(program, script)
    for _ in range(2):
        looked(ends=bool(programs))
    for program in programs:
        server.program(program, WELL[program])
    for _ in range(2):
        looked()
    events = [event for request in hook.on("/hook") for event in request.json["events"]]
    _, check, status_then = told.split()
    assert [f"{one['kind']} {one['check']} {one['status']}" for one in events] == [told, f"over {check} {status_then}"]
    assert (len(hook.on("/hook")), alarms.beats()) == (2, 3), "a message each, and no heartbeat in between"


# --- killed


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


# --- the units


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not here")
@pytest.mark.parametrize(("unit", "tenths"), [("look.service", 26), ("report.service", 26), ("alarm.service", 15)])
def test_units_are_sandboxed(unit: str, tenths: int, tmp_path: Path) -> None:
    folder = ROOT / "roles/monitoring/templates"
    templates = jinja2.Environment(undefined=jinja2.StrictUndefined, loader=jinja2.FileSystemLoader(folder))  # noqa: S701
    text = (folder / f"{unit}.j2").read_text().replace("{{ ansible_managed | comment }}", "")
    known = yaml.safe_load((ROOT / "roles/monitoring/vars/main.yml").read_text())
    file = tmp_path / f"labtrack-{unit}"
    file.write_text(templates.from_string(text).render(known))
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={tenths}", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-200:] + done.stderr


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
        and not path.name.startswith("drill.")  # which the drill starts, and whose failure is its own
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
