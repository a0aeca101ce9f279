"""lab_reboot_window, and labtrack-window, which uses it.  When it is open is asked of the real systemd."""

from __future__ import annotations

import datetime
import fcntl
import importlib.util
import json
import os
import shutil
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from conftest import LAB, ROOT
from looked_at import PROGRAM as STATUS
from looked_at import Server, ago

from labtrack import lab as labs
from labtrack import labfile, labwindow

PROGRAM = ROOT / "roles/monitoring/files/labtrack_window.py"
# The real look, but at no disks: those are this machine's.
LOOKS = f"""exec {sys.executable} - "$@" <<'END'
import sys
sys.path.insert(0, "{STATUS.parent}")
import labtrack_status
labtrack_status.places = list
sys.exit(labtrack_status.main(sys.argv[1:]))
END"""
needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not here")


def problems(lab_dir: Path, window: object) -> list[labfile.Problem]:
    labs.lab_yml(lab_dir).write_text(yaml.safe_dump({**LAB, "lab_reboot_window": window}))
    return labfile.check(labfile.read(labs.lab_yml(lab_dir)), lab_dir, lab_dir.parents[1])


@needs_systemd
@pytest.mark.parametrize(
    "window",
    [
        "Sun 04:00-05:00", "04:00-04:15", "Mon..Fri 23:30-00:30", "Sat,Sun 01:00-03:00 Europe/Berlin",
        "Sun 04:00-05:00 UTC", "Mon..Wed,Sat 04:00-05:00 America/Toronto",
    ],
)  # fmt: skip
def test_windows_that_may_be(lab_dir: Path, window: str) -> None:
    assert problems(lab_dir, window) == []


@pytest.mark.parametrize(
    ("window", "what", "hint"),
    [
        ("Sunday 4am", "which is not allowed", "like Sun 04:00-05:00"),
        ("Sun 04:00", "which is not allowed", "a time from-to"),
        ("Sun 24:00-25:00", "which is not allowed", "a time from-to"),
        ("Sun 04:00-04:10", "is shorter than 15 minutes", "at least 15 minutes"),
        ("Sun 04:00-04:00", "is shorter than 15 minutes", "at least 15 minutes"),
        ("Sun 04:00-05:00 Mars/Olympus", "there is no time zone Mars/Olympus", "America/Toronto"),
        (400, "is 400, which YAML takes for a number", "from-to"),
        ('Sun 04:00-05:00"; reboot', "which is not allowed", "like Sun"),
    ],
)
def test_windows_that_may_not_be(lab_dir: Path, window: object, what: str, hint: str) -> None:
    (problem,) = problems(lab_dir, window)
    assert what in problem.what and hint in problem.hint and problem.line > 0


@needs_systemd
def test_systemd_has_the_last_word() -> None:
    assert "Invalid argument" in labwindow._systemd("Someday 04:00:00")
    assert labwindow._systemd("Sun 04:00:00") == ""


@pytest.fixture
def server(tmp_path: Path) -> Server:
    """A server where all is well, nothing waits, and no service is at work."""
    server = Server(tmp_path)
    server.program("labtrack-status", """echo '{"results": [{"check": "disk", "status": "warning", "seen": "85%"}]}'""")
    server.program("apt-config", "printf '\\npostgresql-\\n'")
    server.program("apt-get", "true")
    server.program("needrestart", "true")
    server.program("unattended-upgrade", f'cat "$APT_CONFIG" >{tmp_path}/upgraded; rm -f {tmp_path}/updates')
    server.program("systemctl", f'case $1 in list-units|show) ;; *) echo "$@" >>{tmp_path}/called;; esac')
    (server.root / "etc/apt/apt.conf.d").mkdir(parents=True)
    for name in ("60labtrack-upgrades", "61labtrack-window"):
        (server.root / "etc/apt/apt.conf.d" / name).write_text("")
    return server


@pytest.fixture
def program(server: Server, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program as a module, on that server; its window is always open."""
    monkeypatch.setenv("LABTRACK_WINDOW_ROOT", str(server.root))
    monkeypatch.setenv("LABTRACK_STATUS_ROOT", str(server.root))
    monkeypatch.setenv("PATH", f"{server.bin}:{os.environ['PATH']}")
    spec = importlib.util.spec_from_file_location("labtrack_window", PROGRAM)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "labtrack_window", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "AGAIN", 0.05)
    monkeypatch.setattr(module, "ends", lambda _window, now: now + 60)
    return module


def asked(server: Server) -> None:
    (server.root / "run/reboot-required").touch()
    (server.root / "run/reboot-required.pkgs").write_text("linux-image-amd64\n")


def called(server: Server) -> list[str]:
    """The calls that change something."""
    file = server.root.parent / "called"
    return file.read_text().splitlines() if file.exists() else []


def said(server: Server) -> str:
    return str(json.loads((server.root / "var/lib/labtrack-window/last.json").read_text())["said"])


@needs_systemd
@pytest.mark.parametrize(
    ("window", "now", "left"),
    [
        ("Sun 04:00-05:00 UTC", "2026-11-29T04:00:00+00:00", 60),
        ("Sun 04:00-05:00 UTC", "2026-11-29T04:59:00+00:00", 1),
        ("Sun 04:00-05:00 UTC", "2026-11-29T03:59:59+00:00", None),
        ("Sun 04:00-05:00 UTC", "2026-11-29T05:00:01+00:00", None),
        ("Sun 04:00-05:00 UTC", "2026-11-28T04:30:00+00:00", None),
        ("Sat 23:30-00:30 UTC", "2026-11-29T00:10:00+00:00", 20),
        ("Sun 04:00-05:00 America/Toronto", "2026-11-29T04:30:00-05:00", 30),
        ("Sun 04:00-05:00 America/Toronto", "2026-07-05T04:30:00-04:00", 30),
        ("Sun 04:00-05:00 America/Toronto", "2026-11-29T04:30:00+00:00", None),
        ("04:00-05:00 UTC", "2026-11-27T04:30:00+00:00", 30),
    ],
)
def test_when_the_window_is_open(
    server: Server, window: str, now: str, left: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABTRACK_WINDOW_ROOT", str(server.root))
    spec = importlib.util.spec_from_file_location("labtrack_window_clock", PROGRAM)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    moment = datetime.datetime.fromisoformat(now).timestamp()
    until = module.ends(window, moment)
    assert until == (0 if left is None else moment + left * 60)


def test_nothing_waits(program: ModuleType, server: Server) -> None:
    assert program.main(["in", "Sun 04:00-05:00"]) == 0
    assert called(server) == [] and said(server) == "nothing waited for the window"


def test_outside_of_the_window_nothing_is_done(
    program: ModuleType, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked(server)
    monkeypatch.setattr(program, "ends", lambda _window, _now: 0)
    program.main(["in", "Sun 04:00-05:00"])
    assert called(server) == [] and "Sun 04:00-05:00 is not now" in capsys.readouterr().out


def test_a_restart_that_is_asked_for(program: ModuleType, server: Server) -> None:
    asked(server)
    program.main(["in", "Sun 04:00-05:00"])
    assert called(server) == ["reboot"], "a warning of the look is no obstacle"
    assert said(server) == "done: restart of the machine, asked for by linux-image-amd64"


class TestInTheWay:
    """What keeps the machine from being restarted, to the end of the window."""

    def kept(self, program: ModuleType, server: Server) -> str:
        program.ends = lambda _window, now: now + 0.2  # type: ignore[attr-defined]  # it waits for as long
        asked(server)
        program.main(["in", "Sun 04:00-05:00"])
        assert called(server) == []
        return said(server).removeprefix("the window was not used, because ")

    def test_something_is_not_well(self, program: ModuleType, server: Server) -> None:
        row = '{"check": "store", "status": "failed", "seen": "connection refused"}'
        server.program("labtrack-status", f"""echo '{{"results": [{row}]}}'; exit 2""")
        assert self.kept(program, server) == "store: connection refused"

    def test_somebody_has_closed_the_server_for_their_work(self, program: ModuleType, server: Server) -> None:
        row = '{"check": "closed", "status": "warning", "seen": "no requests are taken: by hand"}'
        server.program("labtrack-status", f"""echo '{{"results": [{row}]}}'; exit 1""")
        assert self.kept(program, server) == "closed: no requests are taken: by hand"

    @pytest.mark.parametrize(
        ("why", "age"),
        [("by hand", 60), ("a new disk", 9 * 86400), ("arriving from parted", 60), ("arrived from parted", 9 * 86400)],
    )
    def test_a_closed_server_by_its_own_look(self, program: ModuleType, server: Server, why: str, age: int) -> None:
        server.program("labtrack-status", LOOKS)
        server.close(why, age)
        assert self.kept(program, server).endswith(f"no requests are taken: {why}")

    def test_the_look_gives_no_answer(self, program: ModuleType, server: Server) -> None:
        server.program("labtrack-status", "exit 1")
        assert self.kept(program, server).startswith("labtrack-status gave no answer")

    def test_a_playbook_is_at_work(self, program: ModuleType, server: Server) -> None:
        (server.root / "run/labtrack-lab.lock").write_text("token\n{}\n")
        assert self.kept(program, server) == "a playbook is at work"

    @pytest.mark.parametrize(
        "lock",
        [
            "var/lib/labtrack-backup/lock",
            "var/lib/labtrack-backup-artifacts/lock",
            "run/lock/mlflow-upgrade",
            "var/lib/mlflow/gc.lock",
        ],
    )
    def test_a_lock_is_held(self, program: ModuleType, server: Server, lock: str) -> None:
        (server.root / lock).parent.mkdir(parents=True, exist_ok=True)
        with (server.root / lock).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            assert self.kept(program, server) == f"somebody holds {server.root / lock}"

    def test_a_backup_is_at_work(self, program: ModuleType, server: Server) -> None:
        line = "labtrack-backup@run.service loaded activating start start Backup"
        others = "labtrack-look.service loaded activating start start Look\nlabtrack-window.service loaded activating x"
        server.program("systemctl", f"""test "$1" != list-units || printf '{others}\\n{line}\\n'""")
        assert self.kept(program, server) == "labtrack-backup@run.service is at work"

    def test_a_dead_playbook_s_lock_is_none(self, program: ModuleType, server: Server) -> None:
        lock = server.root / "run/labtrack-lab.lock"
        lock.write_text("token\n{}\n")
        os.utime(lock, (ago(3 * 3600),) * 2)
        asked(server)
        program.main(["in", "Sun 04:00-05:00"])
        assert called(server) == ["reboot"]

    def test_it_passes(self, program: ModuleType, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        """Which was in the way at first: the rest of the window is used."""
        answers = iter(["store: refused", "store: refused", ""])
        monkeypatch.setattr(program, "unwell", lambda: next(answers, ""))
        asked(server)
        program.main(["in", "Sun 04:00-05:00"])
        assert called(server) == ["reboot"]


class TestLeft:
    """A server whose lab a move has taken elsewhere."""

    @pytest.mark.parametrize("why", ["left for moved", "given up for parted"])
    def test_is_restarted_though_it_is_closed_and_its_name_s_certificate_ends(
        self, program: ModuleType, server: Server, why: str
    ) -> None:
        server.program("labtrack-status", LOOKS)
        server.program("labtrack-certificate", """echo '{"status": "failed", "seen": "acme, valid for 3 more days"}'""")
        server.close(why, 90 * 86400)
        assert server.found()["closed"] == "warning", "the look itself goes on telling it"
        asked(server)
        program.main(["in", "Sun 04:00-05:00"])
        assert called(server) == ["reboot"]

    def test_waits_for_who_is_at_work(self, program: ModuleType, server: Server) -> None:
        server.close("left for moved", 90 * 86400)
        TestInTheWay().test_a_playbook_is_at_work(program, server)

    def test_of_a_lab_that_came_back_is_one_like_others(self, program: ModuleType, server: Server) -> None:
        server.close("left for moved", 90 * 86400)
        server.closed.unlink()
        TestInTheWay().test_something_is_not_well(program, server)


def test_nothing_begins_between_the_look_and_the_restart(program: ModuleType, server: Server) -> None:
    lock = server.root / "var/lib/labtrack-backup/lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    held: list[int] = []
    assert program.busy(held) == ""
    with lock.open() as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    for descriptor in held:
        os.close(descriptor)


def test_postgresql_is_upgraded_and_restarted_in_the_window(
    program: ModuleType, server: Server, tmp_path: Path
) -> None:
    """By the rules of each night, without the one that keeps it for the window."""
    lines = "Inst postgresql-17 [17.5] (17.6 Debian)\\nInst libc6 [2.41] (2.42 Debian)\\n"
    server.program("apt-get", f"printf '{lines}'")
    services = "NEEDRESTART-SVC: postgresql@17-main.service\\nNEEDRESTART-SVC: nginx.service\\n"
    server.program("needrestart", f"printf '{services}'")
    program.main(["in", "Sun 04:00-05:00"])
    parts = Path((tmp_path / "upgraded").read_text().split('"')[1])
    assert [one.name for one in parts.iterdir()] == ["60labtrack-upgrades"]
    assert called(server) == ["restart postgresql@17-main.service"], "nginx by needrestart itself"
    assert said(server) == "done: upgrade of postgresql-17; restart of postgresql@17-main.service"


def test_what_the_upgrades_have_broken_is_not_restarted(program: ModuleType, server: Server, tmp_path: Path) -> None:
    asked(server)
    server.program("apt-get", "printf 'Inst postgresql-17 [17.5] (17.6 Debian)\\n'")
    row = '{"check": "database", "status": "failed", "seen": "no answer"}'
    server.program(
        "labtrack-status",
        f"""test -e {tmp_path}/upgraded && echo '{{"results": [{row}]}}' || echo '{{"results": []}}'""",
    )
    program.main(["in", "Sun 04:00-05:00"])
    assert called(server) == [] and said(server) == "not restarted, because after the upgrades database: no answer"


def test_mlflow_s_instances_are_restarted_one_after_the_other(program: ModuleType, server: Server) -> None:
    services = "".join(f"NEEDRESTART-SVC: {name}.service\\n" for name in ("mlflow@2", "mlflow@1", "postgresql@17-main"))
    server.program("needrestart", f"printf '{services}'")
    program.main(["services"])
    assert called(server) == ["restart mlflow@1.service", "restart mlflow@2.service"]


@pytest.mark.skipif(not shutil.which("apt-config"), reason="apt is not here")
def test_apt_takes_the_rules_of_the_window(program: ModuleType, server: Server, tmp_path: Path) -> None:
    """The real apt: without 61labtrack-window no package is left out."""
    parts = server.root / "etc/apt/apt.conf.d"
    (parts / "61labtrack-window").write_text('Unattended-Upgrade::Package-Blacklist { "postgresql-"; };\n')
    dump = "apt-config dump --format '%v%n' Unattended-Upgrade::Package-Blacklist"
    (tmp_path / "with.conf").write_text(f'Dir::Etc::Parts "{parts}";\n')
    (server.bin / "apt-config").unlink()
    server.program(
        "unattended-upgrade", f"{dump} >{tmp_path}/window; APT_CONFIG={tmp_path}/with.conf {dump} >{tmp_path}/night"
    )
    program.upgrade()
    assert "postgresql-" in (tmp_path / "night").read_text() and "postgresql-" not in (tmp_path / "window").read_text()


class TestStatus:
    """The row `reboot` of labtrack-status."""

    def planned(self, server: Server) -> None:
        script = """case "$1" in show) echo 'Sun 2026-11-29 04:00:00 UTC';; esac"""
        server.program("systemctl", script)

    def test_says_when(self, server: Server) -> None:
        asked(server)
        self.planned(server)
        row = server.look()["reboot"]
        assert row["seen"].endswith("by linux-image-amd64; will be in the window of Sun 2026-11-29 04:00:00 UTC")
        assert row["status"] == "ok"

    def test_says_what_was_in_the_way(self, server: Server) -> None:
        asked(server)
        self.planned(server)
        os.utime(server.root / "run/reboot-required", (ago(9 * 86400),) * 2)
        last = server.root / "var/lib/labtrack-window/last.json"
        last.parent.mkdir(parents=True)
        last.write_text(json.dumps({"time": time.time() - 86400, "said": "the window was not used, because x"}))
        row = server.look()["reboot"]
        assert row["status"] == "warning" and "1.0 days ago: the window was not used, because x" in row["seen"]
        assert "journalctl -u labtrack-window" in row["hint"]
