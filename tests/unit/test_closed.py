"""A server that was closed on purpose: what labtrack-status shows of it, and that one alarm tells it."""

from __future__ import annotations

from pathlib import Path

import pytest
from alarm_receivers import DAY, HOUR, Alarms
from looked_at import UNITS, WELL, Server, loaded
from receivers import Hook

STILL = """loaded inactive dead MLflow tracking server, instance 1"""
AT_REST = UNITS.replace("loaded active running MLflow tracking server, instance 1", STILL)
# While a move fills its databases: MLflow stands still, and what it needs is not there.
FILLED = {
    "systemctl": f"cat <<'END'\n{AT_REST}END",
    "mlflowctl": """case $2 in database|accounts|connections|wal|instances)
    echo '{"check": "x", "status": "failed", "seen": "refused", "hint": "look"}'; exit 2;; esac
"""
    + WELL["mlflowctl"],
}


@pytest.mark.parametrize(
    ("why", "hours", "status", "hint"),
    [
        ("by hand", 1, "warning", "playbooks/open.yml"),
        ("a new disk", 25, "failed", "playbooks/open.yml"),
        ("arriving from parted", 1, "warning", "goes on with the move"),
        ("arrived from parted", 25, "failed", "--step open"),
        ("left for moved", 24 * 90, "warning", "--step back"),
        ("given up for parted", 24 * 90, "warning", "playbooks/destroy.yml"),
    ],
)
def test_the_row_says_since_when_and_how_to_open_it(
    tmp_path: Path, why: str, hours: float, status: str, hint: str
) -> None:
    server = Server(tmp_path)
    assert server.look()["closed"]["seen"] == "no: requests are taken"
    server.close(why, hours * HOUR)
    row = server.look()["closed"]
    assert server.found() == {"closed": status}
    assert row["seen"].startswith("since 20") and row["seen"].endswith(f"no requests are taken: {why}")
    assert hint in row["hint"]


def test_a_file_that_can_t_be_read_is_no_open_server(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.closed.mkdir(parents=True)
    row = server.look()["closed"]
    assert row["status"] == "failed" and "IsADirectoryError" in row["seen"]


class Told:
    """A server that is looked at by labtrack-status, and told of by labtrack-alarm."""

    def __init__(self, here: Path, alarms: Alarms, hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server = Server(here / "server")
        self.alarms, self.hook = alarms, hook
        self.status = loaded(self.server, monkeypatch)
        monkeypatch.setattr(self.status, "AGAIN", 0.05)
        monkeypatch.setattr(self.status, "places", list)

    def __call__(self, **programs: str) -> list[str]:
        """Look, with these programs of the server's; what is told."""
        for name, script in programs.items():
            self.server.program(name, script)
        before = len(self.hook.on("/hook"))
        assert self.status.main(["--write", str(self.alarms.here / "look.json")]) == 0
        assert self.alarms().returncode == 0
        sent = self.hook.on("/hook")[before:]
        return [f"{one['kind']} {one['check']}" for request in sent for one in request.json["events"]]


@pytest.fixture
def told(tmp_path: Path, alarms: Alarms, hook: Hook, monkeypatch: pytest.MonkeyPatch) -> Told:
    return Told(tmp_path, alarms, hook, monkeypatch)


def test_a_closed_server_is_one_alarm_whatever_stands_still(told: Told) -> None:
    assert told() == []
    told.server.close("left for moved")
    assert told() == ["new closed"]
    assert told(**FILLED) == []
    told.alarms.age(DAY)
    assert told() == ["still closed"]
    told.server.closed.unlink()
    assert told(**WELL) == ["over closed"]


def test_what_is_wrong_beside_it_is_told(told: Told) -> None:
    told.server.close("by hand")
    failed = "labtrack-backup@run.service loaded failed failed x"
    assert told(**{**FILLED, "systemctl": f"cat <<'END'\n{AT_REST}{failed}\nEND"}) == ["new closed", "new units"]
    assert told(timedatectl="echo no") == ["new clock"]


def test_what_stands_still_when_people_are_let_in_is_told(told: Told) -> None:
    told.server.close("by hand")
    assert told(systemctl=FILLED["systemctl"]) == ["new closed"]
    told.server.closed.unlink()
    assert told() == ["over closed", "new units"]


def test_what_was_wrong_before_is_over_only_when_it_is(told: Told) -> None:
    bad = ["database", "accounts", "connections", "wal", "instances", "units"]
    assert told(**FILLED) == [f"new {name}" for name in bad]
    told.server.close("by hand")
    assert told() == ["new closed"]
    assert told(**WELL) == [f"over {name}" for name in bad]
