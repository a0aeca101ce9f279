#!/usr/bin/python3
"""Tells the lab's admins what labtrack-status has found: once, again each day, and when it is over.

labtrack-alarm            tell what has changed since the last call, and ping the heartbeat when all is well
labtrack-alarm --test     send a test message to each receiver; run as root

Reads SETTINGS (the lab's name; mail, webhook, heartbeat), LOOK, which labtrack-status has written a moment ago, and
REPORT, which labtrack-report leaves once a week. What
is to be told is in the state's queues before it is sent, and leaves them when it has been taken: a call that is killed
may have it sent twice, and a receiver that is down gets it later. The state is on the disk, or in memory while that is
full.
"""

from __future__ import annotations

import contextlib
import email.message
import email.utils
import fnmatch
import hashlib
import json
import os
import pwd
import signal
import smtplib
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

ACCOUNT = "labtrack-alarm"
# systemd hands the settings over as a credential, because only root may read the file.
SETTINGS = Path(os.environ.get("CREDENTIALS_DIRECTORY", "/etc"), "labtrack-alarm.json")
LOOK = Path(os.environ.get("LABTRACK_ALARM_LOOK", "/run/labtrack-status/look.json"))
REPORT = Path(os.environ.get("LABTRACK_ALARM_REPORT", "/var/lib/labtrack-report/report.json"))
STATES = [
    Path(folder, "state.json")
    for folder in os.environ.get("LABTRACK_ALARM_STATES", "/var/lib/labtrack-alarm:/run/labtrack-alarm").split(":")
]
AGAIN = 24 * 3600  # seconds, after which a problem that is still there is told again
OLD = 600  # seconds: an older look is none
CALM = 3600  # seconds: what comes again within them comes and goes, and is over when it has been well for as long
STALE = 48 * 3600  # seconds: an older report is no news
LIMIT = 30  # seconds for a receiver
MOST = 100  # events that wait for a receiver: the oldest go
ANSWER = 15  # seconds, that a receiver may be silent
NOT_ITS_OWN = "alarms"  # the check that says which receivers are down: telling it would need one
HEARTBEAT = "heartbeat"
CLOSED = "closed"  # the check that says whether the server was closed on purpose
# What then stands still on purpose, too: MLflow is stopped, its databases are filled, or PostgreSQL is worked on.
AT_REST = ("database", "accounts", "connections", "wal", "instances")
UNITS_AT_REST = ("mlflow@*.service", "postgresql@*.service")
BODY = 3900  # bytes of a message to ntfy, which makes a file of more than 4096

# "open": problems by check, "over": when each was over; "queues": events, "down": why, both by receiver
State = dict[str, Any]
Event = dict[str, Any]  # kind (new, worse, still, over), check, status, seen, hint, since, at


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """A receiver that sends us elsewhere is a wrong address, and elsewhere the token does not belong."""

    def redirect_request(self, *_: Any) -> None:
        return None


# --- what has happened


def looked(now: float) -> list[dict[str, Any]]:
    """The rows of the look; one that did not come to its end is a row too."""
    row = {"check": "look", "status": "ok", "seen": "", "hint": "`journalctl -u labtrack-look` says why."}
    try:
        found = json.loads(LOOK.read_text())
        if now - found["time"] < OLD:
            return [*(one for one in found["results"] if one["check"] != NOT_ITS_OWN), row]
        seen = "The last look at the server is from " + moment(found["time"])
    except (OSError, ValueError, KeyError, TypeError):
        seen = "The server could not be looked at"
    return [{**row, "status": "failed", "seen": seen}]


def well(row: dict[str, Any]) -> bool:
    return row["status"] not in ("warning", "failed")


def at_rest(row: dict[str, Any]) -> bool:
    """Whether a row is about what stands still while the server is closed, and about nothing else."""
    if row["check"] != "units":
        return row["check"] in AT_REST
    resting = [unit for unit in row["parts"] if any(fnmatch.fnmatch(unit, pattern) for pattern in UNITS_AT_REST)]
    return bool(resting) and resting == row["parts"]


def awake(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows without those that are not well because the server is closed, which is told once: by its own row."""
    if all(well(row) for row in rows if row["check"] == CLOSED):
        return rows
    return [row for row in rows if well(row) or not at_rest(row)]


def changes(state: State, rows: list[dict[str, Any]], now: float) -> list[Event]:
    """What is new, worse, still there after a day, or over; the state's problems are brought up to date."""
    known, over = state["open"], state["over"]
    events = []
    for row in rows:
        check, problem = row["check"], known.get(row["check"])
        if well(row):
            if problem and now - problem.setdefault("well", now) >= (CALM if problem.get("flaps") else 0):
                events.append({**problem, "kind": "over", "at": problem["well"]})
                over[check] = now
                del known[check]
            continue
        parts = row.get("parts", [])
        before = {part: then for part, then in (problem or {}).get("lately", {}).items() if now - then < CALM}
        lately = before | dict.fromkeys(parts, now)
        # a second unit that fails is told, though the row has failed already; but once, where it comes and goes
        fresh = set(parts) - set(before) - set(problem["parts"] if problem else ())
        flaps = problem.get("flaps", False) if problem else check != CLOSED and now - over.get(check, 0) < CALM
        if problem is None:
            kind = "new"
        elif (row["status"] == "failed" and problem["status"] == "warning") or fresh:
            kind = "worse"
        elif now - problem["told"] >= AGAIN:
            kind = "still"
        else:
            problem |= {"parts": parts, "lately": lately}
            problem.pop("well", None)
            continue
        known[check] = problem = {key: row[key] for key in ("check", "seen", "hint")} | {
            "status": "failed" if problem and problem["status"] == "failed" else row["status"], "parts": parts,
            "lately": lately, "flaps": flaps, "since": problem["since"] if problem else now, "told": now,
        }  # fmt: skip
        events.append({**problem, "kind": kind, "at": now})
    return events


def reported(state: State, now: float) -> list[Event]:
    """The week's report, where it has not been told yet."""
    try:
        report = json.loads(REPORT.read_text())
        if report["time"] <= state.get("reported", 0) or now - report["time"] > STALE:
            return []
        named = {"kind": "report", "check": "week", "status": "report", "seen": report["text"], "hint": ""}
        state["reported"] = report["time"]
        return [{**named, "since": report["time"], "at": now}]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def prepare(state: State, receivers: list[str]) -> None:
    """Make a queue for each receiver.  One that is new gets what is open; one that is gone is forgotten."""
    told = [{**problem, "kind": "still", "at": problem["told"]} for problem in state["open"].values()]
    state["queues"] = {name: state["queues"].get(name, told) for name in receivers}
    state["down"] = {name: down for name, down in state["down"].items() if name in (*receivers, HEARTBEAT)}


def enqueue(state: State, events: list[Event]) -> None:
    """Put events into each queue; what waits there needs no reminder beside it."""
    for name, waiting in state["queues"].items():
        known = {event["check"] for event in waiting}
        fresh = [event for event in events if event["kind"] != "still" or event["check"] not in known]
        state["queues"][name] = (waiting + fresh)[-MOST:]


# --- the state


def load() -> State:
    """The newest state that can be read."""
    found: list[State] = []
    for path in STATES:
        with contextlib.suppress(OSError, ValueError):
            found.append(json.loads(path.read_text()))
    empty: State = {"saved": 0, "open": {}, "over": {}, "queues": {}, "down": {}}
    return empty | max(found, key=lambda state: state["saved"], default={})


def save(state: State) -> None:
    """Write the state whole, where it can be written."""
    state["saved"] = time.time()
    for path in STATES:
        part = path.with_suffix(".part")
        try:
            with part.open("w") as file:
                json.dump(state, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError as error:  # the disk is full, which is to be told all the more
            with contextlib.suppress(OSError):
                part.unlink()
            print(f"{path} could not be written: {error}", file=sys.stderr)
        else:
            return


# --- words


def moment(when: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(when))


def subject(settings: dict[str, Any], events: list[Event]) -> str:
    """One line: what is wrong first."""
    last = {event["check"]: "over" if event["kind"] == "over" else event["status"] for event in events}
    words = {"failed": "failed", "warning": "warning", "over": "over", "test": "test", "report": "report"}
    parts = [
        f"{word}: {', '.join(check for check, status in last.items() if status == word)}"
        for word in words
        if word in last.values()
    ]
    return f"[{settings['lab']}] {'; '.join(parts)}"


def text(settings: dict[str, Any], events: list[Event]) -> str:
    """The message."""
    lines = []
    for event in events:
        since = f"since {moment(event['since'])}"
        if event["kind"] == "report":
            lines.append(event["seen"])
        elif event["kind"] == "over":
            lines.append(
                f"{event['check']}: over at {moment(event['at'])}. It was {event['status']} {since}: {event['seen']}"
            )
        else:
            word = {"new": "", "worse": "worse, ", "still": "still, "}.get(event["kind"], "")
            word += "comes and goes, " if event.get("flaps") else ""
            lines.append(f"{event['check']}: {event['status']}, {word}{since}: {event['seen']}")
            if event["hint"]:
                lines.append(f"    To fix: {event['hint']}")
    return "\n".join([*lines, "", f"`labtrack status` shows all of {settings['fqdn']}."])


# --- receivers


def post(url: str, data: bytes | None, method: str = "POST", **headers: str) -> None:
    """Send a request.  Raises OSError unless it is taken."""
    request = urllib.request.Request(url, data, headers, method=method)  # noqa: S310  the admin's own address
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}),
        NoRedirects(),
        urllib.request.HTTPSHandler(context=ssl.create_default_context()),
    )
    with opener.open(request, timeout=ANSWER) as answer:
        answer.read(1024)


def send_webhook(settings: dict[str, Any], events: list[Event], name: str) -> None:
    hook, title, body = settings["webhook"], subject(settings, events), text(settings, events)
    url, template = hook["url"], hook["template"]
    headers = {"Authorization": f"Bearer {hook['token']}"} if hook.get("token") else {}
    as_json = {"Content-Type": "application/json", **headers}
    if template == "ntfy":
        over = all(event["kind"] in ("over", "report") for event in events)
        urgent = any(event["status"] == "failed" and event["kind"] != "over" for event in events)
        plain = title.encode("ascii", "replace").decode()
        tags, priority = "white_check_mark" if over else "warning", "high" if urgent else "default"
        data = body.encode()[:BODY].decode(errors="ignore").encode()
        post(url, data, Title=plain, Priority=priority, Tags=tags, **headers)
    elif template == "slack":
        escaped = f"*{title}*\n{body}".replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        post(url, json.dumps({"text": escaped}).encode(), **as_json)
    elif template == "matrix":  # by its name the homeserver knows a message that it has already
        message = {"msgtype": "m.text", "body": f"{title}\n{body}"}
        post(f"{url.rstrip('/')}/{name}", json.dumps(message).encode(), "PUT", **as_json)
    else:
        named = {"lab": settings["lab"], "host": settings["fqdn"], "id": name, "subject": title, "text": body}
        told = [{key: event[key] for key in event if key not in ("well", "lately")} for event in events]  # the state's
        post(url, json.dumps({"version": 1, **named, "events": told}).encode(), **as_json)


def send_mail(settings: dict[str, Any], events: list[Event], name: str) -> None:
    mail = settings["mail"]
    message = email.message.EmailMessage()
    message["Subject"], message["From"], message["To"] = subject(settings, events), mail["from"], ", ".join(mail["to"])
    message["Date"], message["Message-ID"] = email.utils.formatdate(), f"<{name}@{settings['fqdn']}>"
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no answers of people on holiday
    message.set_content(text(settings, events))
    context = ssl.create_default_context()
    where = {"host": mail["relay"], "port": mail["port"], "local_hostname": settings["fqdn"], "timeout": ANSWER}
    relay = smtplib.SMTP_SSL(**where, context=context) if mail["encryption"] == "tls" else smtplib.SMTP(**where)
    with relay:
        if mail["encryption"] == "starttls":
            relay.starttls(context=context)
        if mail.get("user"):
            relay.login(mail["user"], mail["password"])
        refused = relay.send_message(message)
    if refused:
        print(f"mail: the relay refuses {', '.join(refused)}", file=sys.stderr)


SENDERS: dict[str, Callable[[dict[str, Any], list[Event], str], None]] = {"mail": send_mail, "webhook": send_webhook}


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    """End what takes longer, also where a receiver sends a byte now and then."""

    def late(*_: object) -> None:
        raise TimeoutError(f"no answer within {seconds} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def why_not(what: Callable[[], None]) -> str:
    """Try to reach a receiver; why it was not reached, without its address, which may be a secret."""
    try:
        with within(LIMIT):
            what()
    except urllib.error.HTTPError as error:
        return f"it answers {error.code} {error.reason}"
    except Exception as error:  # whatever is wrong with one, the others are told
        return " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
    return ""


def tell(settings: dict[str, Any], state: State) -> None:
    """Send what waits; the queue of who has taken it is empty then."""
    for name, waiting in state["queues"].items():
        if not waiting:
            continue
        identity = hashlib.sha256(json.dumps([name, waiting]).encode()).hexdigest()[:32]
        reason = why_not(partial(SENDERS[name], settings, waiting, identity))
        note(state, name, reason)
        if not reason:
            state["queues"][name] = []
        save(state)


def note(state: State, name: str, reason: str) -> None:
    """Keep whether a receiver was reached; labtrack-status shows it."""
    if not reason:
        state["down"].pop(name, None)
        return
    since = state["down"].get(name, {}).get("since", time.time())
    state["down"][name] = {"since": since, "why": reason}
    print(f"{name}: not reached, tried again next time: {reason}", file=sys.stderr)


def begin() -> dict[str, Any]:
    """The settings.  Root, who calls this by hand, goes on as the account that systemd starts it as."""
    settings: dict[str, Any] = json.loads(SETTINGS.read_text())
    if os.getuid() == 0 and "CREDENTIALS_DIRECTORY" not in os.environ:
        account = pwd.getpwnam(ACCOUNT)
        os.setgroups([])
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)
        os.umask(0o077)
    return settings


def main() -> int:
    settings, now = begin(), time.time()
    receivers = [name for name in SENDERS if settings.get(name)]
    rows, state = looked(now), load()
    prepare(state, receivers)
    enqueue(state, changes(state, awake(rows), now) + reported(state, now))
    save(state)
    tell(settings, state)
    if all(map(well, rows)) and not any(state["queues"].values()) and settings.get(HEARTBEAT):
        note(state, HEARTBEAT, why_not(partial(post, settings[HEARTBEAT], None, "GET")))
        save(state)
    return 0


def test() -> int:
    """A message to each receiver, by the account and the firewall's rules that alarms have."""
    settings, now = begin(), time.time()
    event = {
        "kind": "test", "check": "test", "status": "test", "seen": f"sent by hand on {socket.gethostname()}",
        "hint": "", "since": now, "at": now,
    }  # fmt: skip
    failed = 0
    for name in (name for name in SENDERS if settings.get(name)):
        reason = why_not(partial(SENDERS[name], settings, [event], f"test{time.time_ns():x}"))
        print(f"{name}: {reason or 'taken'}")
        failed = failed or bool(reason)
    return int(failed)


if __name__ == "__main__":
    if sys.argv[1:] not in ([], ["--test"]):
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    sys.exit(test() if sys.argv[1:] else main())
