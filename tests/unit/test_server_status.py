"""labtrack-status on a server that is a folder with stand-ins for programs, and `labtrack status`, which asks it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from looked_at import ALL, UNITS, WELL, Server, ago, loaded

from labtrack import serverstatus
from labtrack.lab import Lab


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, server: Server) -> ModuleType:
    """The program as a module, on that server."""
    return loaded(server, monkeypatch)


def test_a_well_server(server: Server) -> None:
    said = json.loads(server("--json").stdout)
    assert [row["check"] for row in said["results"]] == ALL
    assert set(said) == {"version", "status", "time", "host", "results"} and said["version"] == 1
    assert server.found() == {}
    rows = server.look()
    assert rows["certificate"]["seen"] == "selfsigned, valid for 300 more days"
    assert [name for name, row in rows.items() if row["status"] == "skipped"] == [
        "backup",
        "drill",
        "versions",
        "alarms",
    ]


def test_exit_codes_and_the_table(server: Server) -> None:
    server.program("timedatectl", "echo no")
    done = server()
    assert done.returncode in (1, 2), "2 where this machine's disk is full"
    lines = done.stdout.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("clock "))
    assert lines[at].split() == ["clock", "warning", "not", "synchronised"]
    assert lines[at + 1].strip().startswith("To fix: `systemctl status systemd-timesyncd`")
    server.program("mlflowctl", "exit 3")
    assert server().returncode == 2
    assert server("--no-such").returncode == 2 and "labtrack-status --json" in server("--no-such").stderr


def test_what_mlflowctl_says_is_passed_on(server: Server) -> None:
    row = '{"check": "store", "status": "failed", "seen": "connection refused", "hint": "look"}'
    server.program("mlflowctl", f"""test "$2" != store || {{ echo '{row}'; exit 2; }}\n{WELL["mlflowctl"]}""")
    assert server.found() == {"store": "failed"}
    assert (server.look()["store"]["seen"], server.look()["store"]["hint"]) == ("connection refused", "look")
    server.program("mlflowctl", "echo 'ImportError: no psycopg2' >&2; exit 1")
    seen = server.look()["database"]["seen"]
    assert seen == "mlflowctl ended with code 1 and said: ImportError: no psycopg2"
    (server.bin / "mlflowctl").unlink()
    assert server.look()["database"]["seen"] == "MLflow is not installed"


def test_checks_that_hang_are_ended_with_time_to_clean_up(
    program: ModuleType, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that cleans up, one that can't be ended softly, and one whose thread hangs; the others answer."""
    monkeypatch.setattr(program, "LIMIT", 1)
    monkeypatch.setattr(program, "GRACE", 0.5)
    cleaned, pid = tmp_path / "cleaned", tmp_path / "pid"
    server.program("mlflowctl", f"trap 'touch {cleaned}; exit 1' TERM; sleep 60 & wait")
    server.program("timedatectl", f"echo $$ >{pid}; trap '' TERM; sleep 60")
    monkeypatch.setitem(program.CHECKS, "memory", lambda: time.sleep(60))
    start = time.monotonic()
    rows = {row["check"]: row for row in program.look(["store", "clock", "memory", "certificate"])}
    assert time.monotonic() - start < 10
    assert rows["store"]["seen"] == "mlflowctl gave no answer within 1 s" and cleaned.exists()
    assert rows["clock"]["seen"] == "timedatectl gave no answer within 1 s"
    assert not Path(f"/proc/{pid.read_text().strip()}").exists()
    assert rows["memory"]["seen"] == "no answer within 1 s"
    assert rows["certificate"]["status"] == "ok"


def test_a_check_that_breaks_is_a_row(server: Server) -> None:
    server.program("labtrack-certificate", "echo '{'")
    (server.root / "proc/meminfo").unlink()
    assert server.found() == {"certificate": "failed", "memory": "failed"}
    assert server.look()["memory"]["seen"].startswith("FileNotFoundError: ")


@pytest.mark.parametrize(
    ("used", "status"), [(0.5, "ok"), (0.79, "ok"), (0.81, "warning"), (0.89, "warning"), (0.91, "failed")]
)
def test_disk_and_inodes(program: ModuleType, monkeypatch: pytest.MonkeyPatch, used: float, status: str) -> None:
    free = 1000 - round(1000 * used)
    numbers = {"f_frsize": 2**30, "f_blocks": 1000, "f_bfree": free, "f_bavail": free}
    files = {"f_files": 1000, "f_ffree": free, "f_favail": free}
    monkeypatch.setattr(program, "places", lambda: [("/var", SimpleNamespace(**numbers, **files))])
    for check in (program.disk, program.inodes):
        found, seen, hint, parts = check()
        assert parts == (["/var"] if hint else [])
        assert found == status and seen.startswith(f"/var {used:.0%} of ")
        assert bool(hint) == (status != "ok") and (not hint or "/var" in hint)


def test_a_file_system_that_counts_no_inodes(program: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "places", lambda: [("/", SimpleNamespace(f_files=0, f_blocks=0))])
    assert program.inodes() == ("ok", "", "", []) == program.disk()


def test_disks_that_are_not_well_are_all_told_the_worst_first(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    disks = [(name, SimpleNamespace(f_frsize=2**30, f_blocks=100, f_bfree=free, f_bavail=free)) for name, free in
             (("/", 50), ("/var", 15), ("/srv", 5))]  # fmt: skip
    monkeypatch.setattr(program, "places", lambda: disks)
    status, seen, hint, parts = program.disk()
    assert (status, seen, parts) == ("failed", "/srv 95% of 100.0 GiB; /var 85% of 100.0 GiB", ["/srv", "/var"])
    assert "/srv" in hint


def test_memory(server: Server) -> None:
    server.memory(16, 1)
    assert server.found() == {"memory": "warning"}
    server.memory(16, 0.5)
    assert server.found() == {"memory": "failed"}


@pytest.mark.parametrize(
    ("line", "status", "seen"),
    [
        ("nginx.service loaded failed failed x", "failed", "nginx.service failed"),
        ("nginx.service loaded inactive dead x", "failed", "nginx.service is not running"),
        ("mlflow@2.service loaded inactive dead x", "failed", "mlflow@2.service is not running"),
        ("labtrack-backup@run.service loaded failed failed x", "failed", "labtrack-backup@run.service failed"),
        ("labtrack-backup-run.timer loaded inactive dead x", "failed", "labtrack-backup-run.timer is not running"),
        ("apt-daily.service loaded failed failed x", "warning", "apt-daily.service failed"),
        ("apt-daily.service loaded inactive dead x", "ok", "none has failed, and ours run"),
    ],
)
def test_units(server: Server, line: str, status: str, seen: str) -> None:
    server.program("systemctl", f"cat <<'END'\n{UNITS}{line}\nEND")
    row = server.look()["units"]
    assert (row["status"], row["seen"]) == (status, seen)
    assert bool(row["hint"]) == (status != "ok")
    assert row["parts"] == ([line.split(maxsplit=1)[0]] if row["hint"] else [])


def test_the_alarms_timer_runs_where_somebody_is_told(server: Server) -> None:
    server.program("systemctl", f"cat <<'END'\n{UNITS}labtrack-alarm.timer loaded inactive dead x\nEND")
    assert server.found() == {}
    (server.root / "etc/labtrack-alarm.json").touch()
    assert server.look()["units"]["seen"] == "labtrack-alarm.timer is not running"


def test_reboot_is_a_warning_after_a_week(server: Server) -> None:
    asked = server.root / "run/reboot-required"
    asked.touch()
    asked.with_name("reboot-required.pkgs").write_text("linux-image-amd64\nlinux-image-amd64\n")
    assert server.look()["reboot"]["seen"] == "asked for since 0 days, by linux-image-amd64" and server.found() == {}
    os.utime(asked, (ago(8 * 86400),) * 2)
    assert server.found() == {"reboot": "warning"}


class TestVersions:
    """What Debian has closed, and the night's upgrades have installed or not."""

    LINE = "Inst libssl3 [3.0.1] (3.0.2 Debian-Security:12/stable-security [amd64])"

    def nights(self, server: Server, days_ago: float, pending: str = "") -> None:
        """The upgrades of that night were the last, and what apt would install now."""
        for name in ("etc/apt/apt.conf.d/60labtrack-upgrades", "var/lib/apt/periodic/unattended-upgrades-stamp"):
            (server.root / name).parent.mkdir(parents=True, exist_ok=True)
            (server.root / name).write_text('APT::Periodic::Unattended-Upgrade "1";')
            os.utime(server.root / name, (ago(days_ago * 86400),) * 2)
        (server.root / "var/lib/apt/lists/partial").mkdir(parents=True, exist_ok=True)
        os.utime(server.root / "var/lib/apt/lists/partial", (ago(days_ago * 86400 + 60),) * 2)
        server.program("apt-get", f"cat <<'END'\n{pending}\nEND")

    def test_all_are_installed(self, server: Server) -> None:
        self.nights(server, 0.5, "Inst vim [1] (2 Debian:12/stable [amd64])")
        assert server.look()["versions"]["seen"] == "no security upgrades wait" and server.found() == {}

    def test_that_apt_can_not_say_it(self, server: Server) -> None:
        self.nights(server, 0.5)
        server.program("apt-get", "echo 'E: The list of sources could not be read.' >&2; exit 100")
        assert server.look()["versions"]["seen"] == "apt-get: E: The list of sources could not be read."
        assert server.found() == {"versions": "warning"}

    def test_one_is_left_out(self, server: Server) -> None:
        self.nights(server, 0.5, self.LINE)
        assert server.look()["versions"]["seen"] == "security upgrades that are not installed: libssl3"
        assert server.found() == {"versions": "warning"}

    def test_one_that_is_new_waits_for_the_night(self, server: Server) -> None:
        self.nights(server, 0.5, self.LINE)
        os.utime(server.root / "var/lib/apt/lists/partial")
        assert server.look()["versions"]["seen"] == "1 security upgrades wait" and server.found() == {}

    def test_postgresql_s_wait_for_the_window(self, server: Server) -> None:
        self.nights(server, 0.5, self.LINE.replace("libssl3", "postgresql-17"))
        assert server.found() == {"versions": "warning"}
        server.program(
            "systemctl",
            f"""test "$1" != show || {{ echo 'Sun 2026-11-29 04:00:00 UTC'; exit; }}
            {WELL["systemctl"]}""",
        )
        assert server.look()["versions"]["seen"] == "1 security upgrades wait"
        assert server.found() == {}

    def test_the_nights_upgrades_do_not_run(self, server: Server) -> None:
        self.nights(server, 5)
        assert server.found() == {}, "the machine was off"
        (server.root / "proc/uptime").write_text("432000.00 1.00\n")
        assert server.look()["versions"]["seen"] == "no upgrades were installed for 5 days"
        (server.root / "var/lib/apt/periodic/unattended-upgrades-stamp").unlink()
        assert server.look()["versions"]["seen"] == "no upgrades were installed for 5 days"
        assert server.found() == {"versions": "warning"}
        os.utime(server.root / "etc/apt/apt.conf.d/60labtrack-upgrades")
        assert server.look()["versions"]["status"] == "ok"


def test_clock(server: Server) -> None:
    server.program("timedatectl", "echo no")
    assert server.found() == {"clock": "warning"}
    (server.root / "proc/uptime").write_text("60.00 1.00\n")
    assert server.found() == {}, "right after a boot"
    server.program("systemd-detect-virt", "exit 0")
    assert server.look()["clock"]["status"] == "skipped"


def test_receivers_of_alarms_that_were_not_reached(server: Server) -> None:
    (server.root / "etc/labtrack-alarm.json").touch()
    assert server.look()["alarms"]["seen"] == "the first look is still to come"
    for folder, saved, down in (("var/lib", 1, {}), ("run", 2, {"mail": {"since": ago(7200), "why": "refused"}})):
        state = server.root / folder / "labtrack-alarm/state.json"
        state.parent.mkdir(parents=True)
        state.write_text(json.dumps({"saved": saved, "down": down}))
    row = server.look()["alarms"]
    assert (row["status"], row["seen"]) == ("failed", "not reached: mail, for 2.0 h: refused"), "the newer of both"
    assert "labtrack-alarm --test" in row["hint"]
    (server.root / "run/labtrack-alarm/state.json").unlink()
    assert server.look()["alarms"]["seen"] == "all could be reached"


def test_the_alarms_look_asks_twice_where_something_is_not_well(
    program: ModuleType, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that is being restarted is no alarm, one that stays away is; what is well is asked once."""
    monkeypatch.setattr(program, "AGAIN", 0.1)
    monkeypatch.setattr(program, "places", list)
    row = '{"check": "x", "status": "failed", "seen": "refused", "hint": "look"}'
    down, up = f"{{ echo '{row}'; exit 2; }}", tmp_path / "up"
    script = f"""
        echo "$2" >>{tmp_path}/asked
        case "$2" in
        store) {down};;
        instances) test -e {up} || {{ touch {up}; {down}; }};;
        esac"""
    server.program("mlflowctl", f"{script}\n{WELL['mlflowctl']}")
    file = tmp_path / "look.json"
    assert program.main(["--write", str(file)]) == 0
    said = json.loads(file.read_text())
    assert [one["check"] for one in said["results"]] == ALL and said["status"] == "failed"
    assert [one["check"] for one in said["results"] if one["status"] == "failed"] == ["store"]
    asked = (tmp_path / "asked").read_text().split()
    assert {name: asked.count(name) for name in ("database", "store", "instances")} == {
        "database": 1, "store": 2, "instances": 2,
    }  # fmt: skip
    assert file.stat().st_mode & 0o777 == 0o644 and not file.with_suffix(".part").exists()
    server.program("mlflowctl", WELL["mlflowctl"])
    assert program.main(["--write", str(file)]) == 0
    assert json.loads(file.read_text())["status"] == "ok"


class TestBackups:
    """The results that labtrack-backup leaves."""

    @property
    def ran(self) -> dict[str, Any]:
        """Two hours ago, and it worked."""
        when = ago(7200)
        return {"ok": True, "time": when, "last_ok": when, "too_old": False, "message": "12 MiB stored."}

    def test_all_worked(self, server: Server) -> None:
        server.backups(run=self.ran, check=self.ran, drill=self.ran)
        rows = server.look()
        assert rows["drill"]["seen"] == "drill, 2.0 h ago: 12 MiB stored."
        assert "run, 2.0 h ago" in rows["backup"]["seen"] and "check, 2.0 h ago" in rows["backup"]["seen"]
        assert server.found() == {}

    def test_one_failed(self, server: Server) -> None:
        failed = {**self.ran, "ok": False, "message": "The store refuses the key.\nTo fix: another key."}
        server.backups(run=self.ran, check=failed, drill=self.ran)
        row = server.look()["backup"]
        assert (row["status"], row["seen"], row["hint"]) == (
            "failed",
            "check: The store refuses the key.",
            "another key.",
        )
        assert server.found() == {"backup": "failed"}

    def test_the_last_is_old(self, server: Server) -> None:
        old = {**self.ran, "time": ago(10 * 86400), "last_ok": ago(10 * 86400), "too_old": True}
        server.backups(run=self.ran, check=self.ran, drill=old)
        assert server.look()["drill"]["seen"] == "drill: the last that worked was 10.0 days ago"
        assert server.found() == {"drill": "failed"}

    def test_one_that_worked_and_has_something_to_tell(self, server: Server) -> None:
        warned = {**self.ran, "message": "A model has no files.", "warning": "put them back."}
        server.backups(run=self.ran, artifacts=self.ran, drill=warned)
        row = server.look()["drill"]
        assert (row["status"], row["seen"], row["hint"]) == (
            "warning",
            "drill: A model has no files.",
            "put them back.",
        )
        assert server.found() == {"drill": "warning"}

    def test_a_drill_that_never_ran(self, server: Server) -> None:
        server.backups(run=self.ran, check=self.ran, drill={"too_old": True})
        assert server.found() == {}, "its timer is weekly"
        os.utime(server.root / "etc/labtrack-backup.json", (ago(10 * 86400),) * 2)
        assert server.found() == {"drill": "failed"}


class TestAsked:
    """`labtrack status`, with a stand-in for ansible."""

    def ask(self, lab: Lab, tmp_path: Path, script: str) -> dict[str, Any]:
        program = tmp_path / "ansible"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        return serverstatus.ask(lab, program)

    def test_the_server_s_rows(self, lab: Lab, server: Server, tmp_path: Path) -> None:
        said = server("--json").stdout.strip()
        asked = self.ask(
            lab,
            tmp_path,
            f"echo \"$@\" >{tmp_path}/called; echo 'server | CHANGED | rc=0 >>'; cat <<'END'\n{said}\nEND",
        )
        assert asked == json.loads(said) and [row.check for row in serverstatus.rows(asked)] == ALL
        called = (tmp_path / "called").read_text()
        assert f"--inventory {lab.folder} mlflow --become" in called and "labtrack-status --json" in called

    def test_the_week_s_report(self, lab: Lab, tmp_path: Path) -> None:
        program = tmp_path / "ansible"
        program.write_text("""#!/bin/sh\necho '{"version": 1, "time": 1, "text": "a week"}'\n""")
        program.chmod(0o755)
        assert serverstatus.week(lab, program)["text"] == "a week"
        program.write_text("#!/bin/sh\necho '/bin/sh: 1: labtrack-report: not found'; exit 2\n")
        (row,) = serverstatus.rows(serverstatus.week(lab, program))
        assert row.seen == "The server has no labtrack-report." and "deploy.yml" in row.hint

    @pytest.mark.parametrize(
        ("script", "seen", "hint"),
        [
            (
                "echo '[ERROR]: Task failed: Data could not be sent: connection refused' >&2; exit 4",
                "The server can't be reached: Data could not be sent: connection refused",
                "-m ping",
            ),
            ("echo '[WARNING]: No hosts matched, nothing to do' >&2", "The lab has no server yet.", "site.yml"),
            (
                "echo 'server | CHANGED | rc=0 >>'; echo '/bin/sh: 1: labtrack-status: not found'",
                "The server has no labtrack-status.",
                "deploy.yml",
            ),
            ("echo '[ERROR]: Incorrect sudo password' >&2; exit 2", "The server could not be asked: Incorrect", "ping"),
            ("""echo '{"version": 2}'""", "The server answers in format 2, and this labtrack reads 1.", "version"),
        ],
    )
    def test_a_server_that_can_t_be_asked(self, lab: Lab, tmp_path: Path, script: str, seen: str, hint: str) -> None:
        (row,) = serverstatus.rows(self.ask(lab, tmp_path, script))
        assert row.check == "server" and row.status.value == "failed"
        assert row.seen.startswith(seen) and hint in row.hint

    def test_nothing_is_reached(self, lab: Lab) -> None:
        """The real ansible, at a port where nothing listens."""
        server = "{hosts: {server: {ansible_host: 127.0.0.1, ansible_port: 9}}}"
        (lab.folder / "hosts.yml").write_text(f"mlflow: {server}\n")
        said = serverstatus.ask(lab)
        assert said["results"][0]["seen"].startswith("The server can't be reached: ")
