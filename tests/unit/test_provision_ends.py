"""How making ends early, and how all of it ends: stopped, killed, destroyed.  With stand-ins, as making itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_services import FakeServices
from fake_terraform import ADDRESS, BUCKET, NETWORK, SERVER, VOLUME, WANTED, FakeTerraform
from provisioned import changed, made, mode, state

from labtrack import lab as labs
from labtrack.errors import BadInputError, Exit, LabtrackError
from labtrack.provision import destroy, make
from labtrack.provision.make import Wish
from labtrack.provision.terraform import Place

LABTRACK = Path(sys.executable).with_name("labtrack")


class TestDestroying:
    """destroy."""

    def begun(self, place: Place, *named: str) -> destroy.Destruction:
        return destroy.begin(place, Wish(), named)

    def test_what_is_lost_is_said_before_anything_goes(self, place: Place, terraform: FakeTerraform) -> None:
        made(place)
        assert self.begun(place, "address").lines == [
            "The lab climate in the cloud arbutus.",
            "Lost: the server with everything on its own disk, the database with all runs and accounts included.",
            "Lost: the floating IP, which the DNS names.",
            "Deleted: networking_network_v2.lab[0], compute_instance_v2.server, networking_port_v2.server.",
            "Kept: the bucket climate-mlflow with all artifacts (-e destroy=bucket deletes it).",
        ]
        self.begun(place).try_out()
        assert state(place) == WANTED and not place.plan.exists() and place.hosts.exists()

    def test_the_labs_name_is_wanted(self, place: Place) -> None:
        begun = self.begun(place)
        for typed in ("", "yes", "climat"):
            with pytest.raises(BadInputError, match="Nothing was destroyed") as raised:
                begun.refuse_without(typed)
            assert "-e confirm=climate" in raised.value.hint
        begun.refuse_without("climate")

    def test_data_and_address_are_kept(self, place: Place, terraform: FakeTerraform, services: FakeServices) -> None:
        made(place)
        self.begun(place).carry_out()
        assert set(state(place)) == {ADDRESS, BUCKET} and not place.hosts.exists() and not place.unfinished.exists()
        assert [one for one in services.asked if one.startswith("DELETE")] == []
        assert self.begun(place).carry_out() == []  # again

    def test_what_is_named_is_deleted_in_the_cloud_and_forgotten(
        self, place: Place, terraform: FakeTerraform, services: FakeServices
    ) -> None:
        made(place)
        services.answers["climate-mlflow$|/floatingips/a1$"] = (204, None)
        self.begun(place, "bucket", "address").carry_out()
        assert state(place) == {}
        assert [one.rpartition("/")[2] for one in services.asked if one.startswith("DELETE")] == [
            "climate-mlflow",
            "a1",
        ]

    def test_what_is_gone_already_is_no_trouble(self, place: Place, terraform: FakeTerraform) -> None:
        made(place)
        assert "deleted: the bucket" in self.begun(place, "bucket").carry_out()  # the services know of none
        assert set(state(place)) == {ADDRESS}

    def test_a_bucket_with_content_stays_and_the_rest_goes(
        self, place: Place, terraform: FakeTerraform, services: FakeServices
    ) -> None:
        made(place)
        services.answers["climate-mlflow$"] = (409, {"message": "There was a conflict"})
        with pytest.raises(LabtrackError, match="Not everything could be deleted: the bucket") as raised:
            self.begun(place, "bucket", "address").carry_out()
        assert "a bucket must be empty" in raised.value.hint
        assert set(state(place)) == {BUCKET}

    def test_unknown_names_are_refused(self, place: Place) -> None:
        with pytest.raises(BadInputError, match="-e destroy=buckets can't be followed") as raised:
            self.begun(place, "buckets")
        assert "Allowed: one or more of bucket, volume, address" in raised.value.hint

    def test_what_terraform_knows_of_no_more_is_said(self, place: Place) -> None:
        assert self.begun(place, "volume").lines[-1].startswith("Left alone: the volume climate-data")

    def test_one_that_fails_goes_on_with_the_next_run(self, place: Place, terraform: FakeTerraform) -> None:
        made(place)
        terraform.write(half=True)
        with pytest.raises(LabtrackError, match="Terraform stopped"):
            self.begun(place).carry_out()
        assert place.unfinished.exists() and place.hosts.exists()
        terraform.write(half=False)
        self.begun(place).carry_out()
        assert set(state(place)) == {ADDRESS, BUCKET} and not place.unfinished.exists()

    def test_a_volume_saves_the_database(self, place: Place, terraform: FakeTerraform) -> None:
        attachment = "module.server.openstack_compute_volume_attach_v2.data[0]"
        terraform.write(wanted={**WANTED, VOLUME: {"id": "v1"}, attachment: {"id": "s1/v1"}})
        made(changed(place, data_volume="manage"))
        said = "\n".join(self.begun(place).lines)
        assert "Lost: the server with everything on its own disk.\n" in said
        assert "Kept: the volume climate-data with the database (-e destroy=volume deletes it)." in said


def until(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class TestStopped:
    """`labtrack provision`, as a process that is told to stop."""

    @pytest.fixture
    def command(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
        """The lab, as the command line finds it."""
        lab = place.lab
        settings = yaml.safe_load(labs.lab_yml(lab.folder).read_text())
        settings |= {"lab_image": "Debian-13", "lab_flavor": "p2-3gb", "lab_clouds_file": str(lab.clouds_file)}
        labs.lab_yml(lab.folder).write_text(yaml.safe_dump(settings))
        return place

    def call(self, place: Place, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [LABTRACK, "provision", *arguments, place.lab.folder], capture_output=True, text=True, check=False, **more
        )

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_terraform_ends_what_it_has_begun(
        self, command: Place, terraform: FakeTerraform, number: signal.Signals
    ) -> None:
        make.plan(command, Wish())
        terraform.write(waits=True)
        running = subprocess.Popen(
            [LABTRACK, "provision", "apply", command.lab.folder],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # below nohup it is ignored, and rightly stays so
            preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # noqa: PLW1509 - no threads then
        )
        until((terraform.folder / "at work").exists)
        running.send_signal(number)
        _, said = running.communicate(timeout=20)
        assert running.returncode == Exit.INTERRUPTED and "it goes on from here" in said
        self.left_half(command)
        terraform.write(waits=False)
        self.finished(command)

    def test_killed_the_next_run_goes_on(self, command: Place, terraform: FakeTerraform) -> None:
        make.plan(command, Wish())
        terraform.write(waits=True)
        running = subprocess.Popen([LABTRACK, "provision", "apply", command.lab.folder], stdout=subprocess.DEVNULL)
        until((terraform.folder / "at work").exists)
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        for pid in (running.pid, *map(int, children)):
            os.kill(pid, signal.SIGKILL)
        running.wait()
        self.left_half(command)
        terraform.write(waits=False)
        self.finished(command)

    def test_what_was_started_to_outlive_its_terminal_goes_on(self, command: Place, terraform: FakeTerraform) -> None:
        make.plan(command, Wish())
        terraform.write(waits=True)
        running = subprocess.Popen(
            ["nohup", LABTRACK, "provision", "apply", command.lab.folder], stdout=subprocess.DEVNULL
        )
        until((terraform.folder / "at work").exists)
        running.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            running.wait(timeout=0.5)
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=20) == Exit.INTERRUPTED

    def left_half(self, place: Place) -> None:
        assert place.unfinished.exists() and list(state(place)) == [NETWORK] and mode(place.state) == 0o600
        assert not place.hosts.exists()

    def finished(self, place: Place) -> None:
        assert "applied: the plan" in made(place)
        assert state(place) == WANTED and not place.unfinished.exists() and place.hosts.exists()

    def test_exit_codes_and_words(self, command: Place, terraform: FakeTerraform) -> None:
        planned = self.call(command, "plan")
        assert planned.returncode == 0 and f"# {SERVER} ['create']" in planned.stdout
        assert "applied: the plan" in self.call(command, "apply").stdout
        again = self.call(command, "plan", "--json")
        assert {"changes": False, "lines": [], "forgotten": []}.items() <= json.loads(again.stdout).items()
        assert json.loads(self.call(command, "apply", "--json").stdout) == {"changed": False, "lines": []}
        refused = self.call(command, "destroy", stdin=subprocess.DEVNULL)
        assert refused.returncode == Exit.BAD_INPUT and "Nothing was destroyed" in refused.stderr
        looked = json.loads(self.call(command, "destroy", "--only-look", "--json").stdout)
        assert looked["changed"] is False and looked["lines"][0] == "The lab climate in the cloud arbutus."
        terraform.write(fails={"init": "Error: no"})
        unavailable = self.call(command, "plan", "--json")
        assert unavailable.returncode == Exit.UNAVAILABLE and "can't be had here" in unavailable.stderr
        told = json.loads(unavailable.stdout)
        assert told["why_not"] == "its `init` failed: Error: no" and told["environment"]["OS_CLOUD"] == "labtrack"
        terraform.write(fails={})
        gone = json.loads(self.call(command, "destroy", "--json", "--confirm", "climate").stdout)
        assert gone["changed"] and "destroyed: 3 things" in gone["lines"]
