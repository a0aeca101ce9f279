"""What is killed comes back by itself, and what was acknowledged is there afterwards."""

from __future__ import annotations

import datetime
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from api import Api, account
from recap import changed


class Ledger(threading.Thread):
    """Logs one step after the other and notes which of them the server acknowledged."""

    def __init__(self, api: Api) -> None:
        super().__init__(daemon=True)
        self.api, self.run_id = api, api.new_run()
        self.acknowledged: list[int] = []
        self.silences: list[float] = []
        self.over = threading.Event()

    def run(self) -> None:
        step, last = 0, time.monotonic()
        while not self.over.is_set():
            step += 1
            try:
                ok = self.api.log(self.run_id, step, timeout=10).status_code == 200
            except requests.RequestException:
                ok = False
            if ok:
                self.acknowledged.append(step)
                self.silences.append(time.monotonic() - last)
                last = time.monotonic()
            else:
                time.sleep(0.05)

    def wait(self, more: int, seconds: float) -> None:
        """Wait until so many more were acknowledged."""
        until, wanted = time.monotonic() + seconds, len(self.acknowledged) + more
        while len(self.acknowledged) < wanted:
            assert time.monotonic() < until, f"nothing was acknowledged for {seconds} s"
            time.sleep(0.02)

    def lost(self) -> set[int]:
        """Acknowledged and not there."""
        self.over.set()
        self.join(timeout=30)
        return set(self.acknowledged) - set(self.api.steps(self.run_id))


@pytest.fixture
def ledger(rehearsal: Any) -> Iterator[Ledger]:
    admin = Api(rehearsal.url, str(rehearsal.ca), ("admin", rehearsal.secrets["secret_mlflow_admin_password"]))
    with account(admin) as api:
        thread = Ledger(api)
        thread.start()
        try:
            thread.wait(20, 30)
            yield thread
        finally:
            thread.over.set()
            thread.join(timeout=30)


KILL = """
old=$(systemctl show -p MainPID --value {unit}); kill -9 $old; start=$(date +%s%N)
for turn in $(seq {turns}); do
    new=$(systemctl show -p MainPID --value {unit})
    [ "$new" != 0 ] && [ "$new" != "$old" ] && systemctl -q is-active {unit} && break
    sleep 0.05
done
echo $(( ($(date +%s%N) - start) / 1000000 ))
"""


@pytest.mark.parametrize(("unit", "seconds"), [("nginx", 3), ("mlflow@1", 60), ("postgresql@*-main", 10)])
def test_what_is_killed_comes_back_and_loses_nothing(rehearsal: Any, ledger: Ledger, unit: str, seconds: int) -> None:
    find = f"systemctl list-units --plain --no-legend '{unit}.service' | cut -d' ' -f1"
    name = rehearsal.ssh("server", find, check=True).stdout.strip()
    done = rehearsal.ssh("server", KILL.format(unit=name, turns=seconds * 40), check=True)
    back = int(done.stdout) / 1000
    ledger.wait(20, 30)
    print(f"{unit}: back after {back:.1f} s, longest silence {max(ledger.silences):.1f} s")
    assert back <= seconds
    assert ledger.lost() == set()
    if unit == "mlflow@1":
        assert max(ledger.silences) < 3, "the other instance has to take over at once"


CURRENT = """
- hosts: mlflow
  become: true
  gather_facts: false
  roles:
    - {role: systemd_unit, systemd_unit_names: [ssh.service, nginx.service, "mlflow@1.service", labtrack-egress.timer]}
"""


def test_a_reboot_brings_everything_back(rehearsal: Any, ledger: Ledger, tmp_path: Path) -> None:
    before = rehearsal.ssh("server", "cat /proc/sys/kernel/random/boot_id; systemctl show -p UserspaceTimestamp").stdout
    rehearsal.ssh("server", "systemctl reboot")
    start = time.monotonic()
    time.sleep(5)
    ledger.wait(20, 180)
    took = time.monotonic() - start
    assert rehearsal.ssh("server", "systemctl show -p UserspaceTimestamp", check=True).stdout not in before
    for _ in range(60):
        health = rehearsal.ssh("server", "mlflowctl check")
        if health.returncode == 0:
            break
        time.sleep(1)
    assert health.returncode == 0, health.stdout
    failed = rehearsal.ssh("server", "systemctl --failed --plain --no-legend", check=True).stdout
    assert failed == ""
    print(f"reboot: metrics are taken again after {took:.0f} s")
    assert ledger.lost() == set()
    # systemd has read its files at the boot: there is nothing to be read again
    (tmp_path / "play.yml").write_text(CURRENT)
    assert changed(rehearsal.playbook(str(tmp_path / "play.yml"), check=True).stdout) == []


@pytest.fixture
def soon(rehearsal: Any, tmp_path: Path) -> Iterator[datetime.datetime]:
    """When the lab's window begins: as soon as a deploy with it is done."""
    begins = (datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(minutes=4)).replace(second=0)
    window = f"{begins:%H:%M}-{begins + datetime.timedelta(hours=2):%H:%M} UTC"
    setting = tmp_path / "window.yml"
    setting.write_text(json.dumps({"lab_reboot_window": window}))
    deploy = ("playbooks/deploy.yml", "--tags", "base,monitoring")
    try:
        rehearsal.playbook(*deploy, "--extra-vars", f"@{setting}", check=True)
        yield begins
    finally:
        rehearsal.playbook("playbooks/open.yml", check=True)
        rehearsal.playbook(*deploy, check=True)


@pytest.mark.long
def test_the_lab_s_window_restarts_the_machine_and_loses_nothing(
    rehearsal: Any, soon: datetime.datetime, ledger: Ledger
) -> None:
    """As after a new kernel; the timer itself begins it, and who works on the server is waited for."""
    booted = "systemctl show -p UserspaceTimestamp"
    before = rehearsal.ssh("server", f"touch /run/reboot-required; {booted}", check=True).stdout
    rows = json.loads(rehearsal.ssh("server", "labtrack-status --json", check=True).stdout)["results"]
    (row,) = (one for one in rows if one["check"] == "reboot")
    assert f"{soon:%H:%M}" in row["seen"], row
    rehearsal.playbook("playbooks/close.yml", "-e", "close_why=somebody works on it", check=True)
    assert datetime.datetime.now(datetime.timezone.utc) < soon, "the window has begun before all was prepared"
    until = time.monotonic() + 400
    while "waits: closed: since" not in (log := rehearsal.ssh("server", "journalctl -b -u labtrack-window").stdout):
        assert time.monotonic() < until, log
        time.sleep(2)
    rehearsal.playbook("playbooks/open.yml", check=True)
    ledger.wait(1, 30)
    while rehearsal.ssh("server", booted).stdout in ("", before):
        assert time.monotonic() < until, rehearsal.ssh("server", "journalctl -b -u labtrack-window").stdout
        time.sleep(2)
    ledger.wait(20, 180)
    assert ledger.lost() == set()
    said = json.loads(rehearsal.ssh("server", "cat /var/lib/labtrack-window/last.json", check=True).stdout)["said"]
    assert said.startswith("done: ") and said.endswith("restart of the machine")
    assert rehearsal.ssh("server", "test -e /run/reboot-required").returncode == 1


def test_what_a_timer_starts_is_read_again_when_it_has_changed(rehearsal: Any, tmp_path: Path) -> None:
    """As after a run that was killed between writing a service and telling systemd of it."""
    play, unit = tmp_path / "play.yml", "/etc/systemd/system/labtrack-egress.service"
    play.write_text(CURRENT)
    reads = "systemctl show -p NeedDaemonReload --value labtrack-egress.service"
    written = rehearsal.ssh("server", f"cp -p {unit} /run/kept.service; echo >> {unit}; {reads}", check=True)
    assert written.stdout == "yes\n"
    try:
        assert "daemon-reload labtrack-egress.timer" in rehearsal.playbook(str(play), "-v", check=True).stdout
        assert rehearsal.ssh("server", reads).stdout == "no\n"
    finally:
        rehearsal.ssh("server", f"cat /run/kept.service > {unit}; rm /run/kept.service", check=True)
        rehearsal.playbook(str(play), check=True)
    assert changed(rehearsal.playbook(str(play), check=True).stdout) == []
