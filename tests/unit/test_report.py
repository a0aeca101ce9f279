"""labtrack-report on a server that is a folder, and how labtrack-alarm sends what it leaves."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from alarm_receivers import Alarms
from conftest import ROOT
from looked_at import PROGRAM as STATUS
from looked_at import WELL, Server
from receivers import Hook

PROGRAM = ROOT / "roles/monitoring/files/labtrack_report.py"
DAY, GIB = 24 * 3600, 2**30
SOME = {
    "runs": 1530, "runs_week": 12, "failed_week": 1, "people_week": 3, "experiments": 25, "experiments_week": 2,
    "accounts": 7, "database": 3 * GIB, "points": 2_000_000, "bucket": 60 * GIB, "objects": 3200,
    "bucket_limit": 100 * GIB,
}  # fmt: skip
EMPTY = {
    **dict.fromkeys(SOME, 0), "accounts": 1, "experiments": 1, "database": 8 * 2**20, "bucket_limit": None,
}  # fmt: skip


class Reports:
    """The server, and the folder in which its figures are."""

    def __init__(self, here: Path) -> None:
        self.server, self.folder = Server(here), here / "report"
        self.folder.mkdir()
        (self.server.root / "var/lib/postgresql").mkdir(parents=True)
        self.recorded(**SOME)

    def recorded(self, **figures: Any) -> None:
        said = f"test $1 = check || {{ cat <<'END'\n{json.dumps(figures)}\nEND\nexit 0; }}"
        self.server.program("mlflowctl", f"{said}\n{WELL['mlflowctl']}")

    def weeks(self, *weeks: dict[str, Any]) -> None:
        """What was noted, each so many days ago."""
        noted = [{**week, "time": time.time() - week["days"] * DAY} for week in weeks]
        (self.folder / "weeks.json").write_text(json.dumps(noted))

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        where = {"LABTRACK_REPORT_FOLDER": str(self.folder), "LABTRACK_STATUS": str(STATUS)}
        done = subprocess.run(
            [sys.executable, PROGRAM, *arguments], env=self.server.environment() | where, capture_output=True,
            text=True, timeout=60, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr
        return done

    def said(self) -> dict[str, str]:
        """The lines of the report, by what they are about."""
        done = self()
        assert done.returncode == 0, done.stderr
        found = (line.strip().partition("  ") for line in done.stdout.splitlines()[1:])
        return {name: what.strip() for name, _, what in found}


@pytest.fixture
def reports(tmp_path: Path) -> Reports:
    return Reports(tmp_path)


def test_first_week_says_that_growth_is_not_known(reports: Reports) -> None:
    said = reports.said()
    assert said["runs"] == "12 began, by 3 people, 1 of them failed; 1,530 in all"
    assert said["experiments"] == "2 new; 25 in all"
    assert said["database"] == "3.0 GiB, growth not known yet; about 2,000,000 points of metrics"
    assert said["bucket"] == "60.0 GiB of 100.0 GiB in 3,200 objects, growth not known yet"
    assert "there is no earlier week yet" in reports().stdout
    assert any(name.startswith("disk ") and "growth not known yet" in what for name, what in said.items())


def test_growth_is_told_by_the_week_and_until_when_there_is_room(reports: Reports) -> None:
    before = {**SOME, "database": 2 * GIB, "bucket": 40 * GIB, "disks": {}}
    reports.weeks({**before, "days": 80, "bucket": 0}, {**before, "days": 28}, {**SOME, "days": 7, "disks": {}})
    said = reports.said()
    assert said["database"].startswith("3.0 GiB, 256.0 MiB more a week")
    assert said["bucket"] == (
        "60.0 GiB of 100.0 GiB in 3,200 objects, 5.0 GiB more a week; full in 56 days, if it goes on like that"
    )


def test_what_shrinks_has_room_for_years(reports: Reports) -> None:
    reports.weeks({**SOME, "days": 7, "bucket": 80 * GIB, "disks": {}})
    assert reports.said()["bucket"].endswith("20.0 GiB less a week; room for years")


def test_empty_lab(reports: Reports) -> None:
    reports.recorded(**EMPTY)
    said = reports.said()
    assert said["runs"] == "none began; 0 in all"
    assert said["bucket"] == "0 B in 0 objects, growth not known yet"


def test_server_that_is_not_well_is_reported_all_the_same(reports: Reports) -> None:
    reports.server.program("mlflowctl", "echo 'connection refused' >&2; exit 1")
    said = reports.said()
    assert said["runs"] == "not known: connection refused"
    assert said["database"].startswith("failed: mlflowctl ended with code 1")
    assert "backup" in said and "drill" in said


def test_bucket_that_can_not_be_counted(reports: Reports) -> None:
    reports.recorded(**{**SOME, "bucket": None, "objects": None, "bucket_limit": None})
    assert reports.said()["bucket"] == "not known: to count its objects takes longer than a minute"


def test_each_week_is_noted_once_and_a_year_is_kept(reports: Reports) -> None:
    reports.weeks(*({**SOME, "days": days, "disks": {}} for days in range(490, 0, -7)))
    assert reports("--write").returncode == 0
    weeks = json.loads((reports.folder / "weeks.json").read_text())
    assert len(weeks) == 60
    assert weeks[-1]["runs"] == 1530 and weeks[-1]["disks"]
    left = json.loads((reports.folder / "report.json").read_text())
    assert left["time"] == weeks[-1]["time"] and "1,530 in all" in left["text"]
    assert (reports.folder / "report.json").stat().st_mode & 0o777 == 0o644
    assert json.loads(reports("--json").stdout)["figures"]["runs"] == 1530
    assert len(json.loads((reports.folder / "weeks.json").read_text())) == 60
    assert reports("--no-such").returncode == 2


@pytest.fixture
def alarms(tmp_path: Path, hook: Hook, monkeypatch: pytest.MonkeyPatch) -> Alarms:
    monkeypatch.setenv("LABTRACK_ALARM_REPORT", str(tmp_path / "report.json"))
    (tmp_path / "alarms").mkdir()
    return Alarms(tmp_path / "alarms", hook)


def leave(tmp_path: Path, text: str, days: float = 0) -> None:
    (tmp_path / "report.json").write_text(json.dumps({"version": 1, "time": time.time() - days * DAY, "text": text}))


def test_report_is_sent_once_and_again_to_who_was_down(alarms: Alarms, hook: Hook, tmp_path: Path) -> None:
    alarms()
    assert hook.on("/hook") == []
    leave(tmp_path, "The week to 2026-11-27:\n  runs  12 began")
    hook.status = 500
    alarms()
    hook.status = 200
    alarms()
    alarms()
    first, second = hook.on("/hook")
    assert first.json["text"] == second.json["text"]
    assert second.json["subject"] == "[climate] report: week"
    assert second.json["text"].startswith("The week to 2026-11-27:\n  runs  12 began\n")
    leave(tmp_path, "The next week")
    alarms.look(disk="failed")
    alarms()
    assert hook.on("/hook")[-1].json["subject"] == "[climate] failed: disk; report: week"


def test_old_or_torn_report_is_not_sent(alarms: Alarms, hook: Hook, tmp_path: Path) -> None:
    leave(tmp_path, "of last month", days=20)
    alarms()
    (tmp_path / "report.json").write_text('{"version": 1, "ti')
    alarms()
    assert hook.on("/hook") == []
