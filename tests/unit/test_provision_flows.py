"""Making and destroying the machine, with a stand-in for Terraform and services over HTTP for the cloud."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_services import FakeServices, ident
from fake_terraform import ADDRESS, BUCKET, HOSTS, NETWORK, PORT, SERVER, VOLUME, WANTED, FakeTerraform

from labtrack import lab as labs
from labtrack.errors import BadInputError, Exit, LabtrackError
from labtrack.lab import Lab
from labtrack.provision import destroy, make
from labtrack.provision.make import Wish
from labtrack.provision.terraform import Place, UnavailableError

ROOT = Path(__file__).resolve().parents[2]
LABTRACK = Path(sys.executable).with_name("labtrack")


@pytest.fixture
def terraform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeTerraform:
    """The stand-in, first on PATH."""
    fake = FakeTerraform(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{fake.folder}:{os.environ['PATH']}")
    return fake


@pytest.fixture
def place(there: Lab, terraform: FakeTerraform, services: FakeServices) -> Place:
    """The lab in the services' project, with the modules in its checkout; its port is the server's."""
    services.answers["/ports/p1$"] = (200, {"port": {"id": "p1", "device_id": "s1"}})
    source = there.root / "terraform"
    source.mkdir()
    (source / "versions.tf").write_text("")
    return Place.of(there)


def changed(place: Place, **wishes: Any) -> Place:
    """The same with other wishes for the machine."""
    lab = place.lab
    return Place(dataclasses.replace(lab, machine=dataclasses.replace(lab.machine, **wishes)), place.source)


def made(place: Place, **wish: Any) -> list[str]:
    """Plans and applies; what that has changed."""
    planned = make.plan(place, Wish(**wish))
    assert planned.error is None
    return make.apply(place).lines


def state(place: Place) -> dict[str, Any]:
    return json.loads(place.state.read_text() or '{"fake": {}}')["fake"]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


class TestMaking:
    """plan and apply."""

    def test_a_plan_is_shown_and_carried_out_by_apply(self, place: Place) -> None:
        planned = make.plan(place, Wish())
        assert planned.changes and f"  # {SERVER} ['create']" in planned.lines
        assert not any("known after apply" in line for line in planned.lines)
        assert state(place) == {} and not place.hosts.exists()
        assert "applied: the plan" in make.apply(place).lines
        assert state(place) == WANTED and place.hosts.read_text() == HOSTS
        assert not place.plan.exists() and not place.unfinished.exists()

    def test_a_second_run_changes_nothing(self, place: Place, terraform: FakeTerraform) -> None:
        made(place)
        planned = make.plan(place, Wish())
        assert (planned.changes, planned.lines, planned.forgotten) == (False, [], [])
        applied = len([call for call in terraform.calls if call[0] == "apply"])
        assert make.apply(place).lines == []
        assert len([call for call in terraform.calls if call[0] == "apply"]) == applied

    def test_a_plan_that_another_run_has_made_meanwhile_is_not_taken_for_the_one_that_was_shown(
        self, place: Place, terraform: FakeTerraform
    ) -> None:
        make.plan(place, Wish())
        shown = place.plan_id
        terraform.write(wanted={NETWORK: {"id": "n2"}})
        make.plan(place, Wish())
        with pytest.raises(LabtrackError, match="another run has made another plan") as raised:
            make.apply(place, plan_id=shown)
        assert raised.value.code == Exit.LOCKED and state(place) == {}
        assert "applied: the plan" in make.apply(place, plan_id=place.plan_id).lines

    def test_files_are_the_admins_alone(self, place: Place) -> None:
        os.umask(0o022)
        make.plan(place, Wish())
        modes = {one: mode(one) for one in (place.state, place.plan)}
        make.apply(place)
        assert {*modes.values(), mode(place.state)} == {0o600}
        assert {mode(place.work), mode(place.lab.private)} == {0o700}
        assert mode(place.hosts) == 0o644

    def test_terraform_gets_the_login_and_nothing_of_the_shells(
        self, place: Place, terraform: FakeTerraform, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OS_REGION_NAME", "Elsewhere")
        terraform.program.write_text(f"#!/bin/sh\nenv > {terraform.folder}/env\nexit 1\n")
        make.plan(place, Wish())
        env = dict(line.split("=", 1) for line in (terraform.folder / "env").read_text().splitlines() if "=" in line)
        assert env["OS_REGION_NAME"] == "" and env["OS_CLOUD"] == "labtrack"
        assert env["OS_CLIENT_CONFIG_FILE"] == str(place.work / "clouds.yaml")
        assert (env["TF_WORKSPACE"], env["TF_DATA_DIR"]) == ("climate", str(place.work))

    def test_what_was_made_and_not_written_down_is_given_to_adopt(
        self, place: Place, terraform: FakeTerraform, services: FakeServices
    ) -> None:
        services.things["networks"].append({"id": ident(9), "name": "climate-network", "project_id": "p" * 32})
        made(place)  # no state yet
        given = next(one for one in terraform.last("plan") if one.startswith("-var=adopt="))
        assert json.loads(given.partition("adopt=")[2]) == {"network": ident(9)}
        make.plan(place, Wish())  # all is known
        assert "-var=adopt={}" in terraform.last("plan")
        place.unfinished.touch()  # a run was killed
        make.plan(place, Wish())
        assert "-var=adopt={}" not in terraform.last("plan")

    def test_another_project_is_told_to_terraform(self, place: Place, terraform: FakeTerraform) -> None:
        make.plan(place, Wish(expected_project="f00"))
        assert "-var=expected_project=f00" in terraform.last("plan")


class TestWithoutLeave:
    """Plans that take something away."""

    @pytest.mark.parametrize("lost", [SERVER, PORT])
    def test_a_plan_that_takes_the_server_is_refused_and_kept_by_nobody(
        self, place: Place, terraform: FakeTerraform, lost: str
    ) -> None:
        made(place)
        terraform.write(replaces=[lost])
        planned = make.plan(place, Wish())
        assert planned.error and "The plan takes the server away" in planned.error.what
        assert "-e replace_server=true" in planned.error.hint
        assert f"  # {lost} ['delete', 'create']" in planned.lines
        with pytest.raises(BadInputError, match="There is no plan"):
            make.apply(place)

    def test_with_leave_it_is_made_anew_and_shut_down_before(
        self, place: Place, terraform: FakeTerraform, services: FakeServices
    ) -> None:
        made(place)
        assert make.plan(place, Wish(replace_server=True)).error is None
        assert f"-replace={SERVER}" in terraform.last("plan")
        services.answers["/servers/s1/action$"] = (202, {})
        services.answers["/servers/s1$"] = (200, {"server": {"id": "s1", "status": "SHUTOFF"}})
        make.apply(place)
        assert "POST /compute/v2.1/servers/s1/action" in services.asked

    def test_a_server_that_is_broken_goes_without_being_shut_down(
        self, place: Place, terraform: FakeTerraform, services: FakeServices
    ) -> None:
        made(place)
        make.plan(place, Wish(replace_server=True))
        services.answers["/servers/s1/action$"] = (409, {"conflictingRequest": {"message": "in vm_state error"}})
        assert make.apply(place).lines == ["applied: the plan"]

    def test_what_lab_yml_no_longer_wants_is_kept_and_forgotten(self, place: Place, terraform: FakeTerraform) -> None:
        made(place)
        less = {address: values for address, values in WANTED.items() if address not in (ADDRESS, BUCKET)}
        terraform.write(wanted=less)
        other = changed(place, floating_ip="203.0.113.9", bucket_manage=False)
        looked = make.plan(other, Wish(only_look=True))
        assert [line.partition(": ")[2] for line in looked.lines] == [ADDRESS, BUCKET]
        assert looked.forgotten == [] and state(place) == WANTED  # check mode forgets nothing
        planned = make.plan(other, Wish())
        assert planned.forgotten == [ADDRESS, BUCKET] and planned.lines == looked.lines
        assert state(place) == less
        assert make.plan(other, Wish()).forgotten == []

    def test_a_plan_that_was_only_looked_at_can_t_be_applied(self, place: Place) -> None:
        planned = make.plan(place, Wish(only_look=True))
        assert planned.changes and planned.lines
        with pytest.raises(BadInputError):
            make.apply(place)


class TestFailing:
    """Calls of Terraform that fail, at each step."""

    def test_no_program(self, place: Place, terraform: FakeTerraform, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(place.source))
        error = make.plan(place, Wish()).error
        assert isinstance(error, UnavailableError) and error.code == Exit.UNAVAILABLE
        assert error.why == "terraform or tofu is not on PATH" and "install Terraform" in error.hint
        assert isinstance(named := make.plan(place, Wish(program="tofu")).error, UnavailableError)
        assert named.why == "tofu is not on PATH"

    def test_init_fails(self, place: Place, terraform: FakeTerraform) -> None:
        terraform.write(fails={"init": "Error: Failed to query available\n  provider packages " + "x" * 900})
        planned = make.plan(place, Wish())
        assert isinstance(planned.error, UnavailableError)
        assert planned.error.why.startswith("its `init` failed: Error: Failed to query available provider packages x")
        assert planned.error.why.endswith("...") and planned.ready.environment["OS_CLOUD"] == "labtrack"
        log = place.work / "init.log"
        assert "x" * 900 in log.read_text() and mode(log) == 0o600 and str(log) in planned.error.hint

    @pytest.mark.parametrize("step", ["state", "plan", "show"])
    def test_a_step_fails_and_nothing_is_made(self, place: Place, terraform: FakeTerraform, step: str) -> None:
        terraform.write(fails={step: "Error: no route to host"})
        with pytest.raises(LabtrackError, match="Terraform stopped:\nno route to host") as raised:
            make.plan(place, Wish())
        assert "the cloud did not answer" in raised.value.hint
        assert state(place) == {} and not place.hosts.exists()

    @pytest.mark.parametrize("said", ["", "Terraform v1.0\n", "[1, ", "not JSON \x1b[31m\x00"])
    def test_odd_output_is_told(self, place: Place, terraform: FakeTerraform, said: str) -> None:
        terraform.write(prints={"show": said})
        with pytest.raises(LabtrackError, match="was asked for JSON and answers") as raised:
            make.plan(place, Wish())
        assert "1.9 or newer" in raised.value.hint

    @pytest.mark.parametrize(
        "said",
        ["null", "[]", '"text"', "{}", '{"resource_changes": null, "output_changes": null, "prior_state": null}'],
    )
    def test_json_of_another_shape_is_no_traceback(self, place: Place, terraform: FakeTerraform, said: str) -> None:
        terraform.write(prints={"show": said})
        try:
            assert not make.plan(place, Wish()).changes
        except LabtrackError as error:
            assert "was asked for JSON and answers" in error.what

    def test_a_program_that_can_t_be_run_is_told(self, place: Place, terraform: FakeTerraform) -> None:
        terraform.program.write_bytes(b"\x7fELF of another processor")
        with pytest.raises(LabtrackError, match=r"can't be run: Exec format error"):
            make.plan(place, Wish())

    def test_half_way_and_the_next_run_ends_it(
        self, place: Place, terraform: FakeTerraform, services: FakeServices
    ) -> None:
        terraform.write(half=True)
        with pytest.raises(LabtrackError, match="Quota exceeded") as raised:
            made(place)
        assert "the project's quota is used up" in raised.value.hint
        assert "it goes on from here" in raised.value.hint
        assert list(state(place)) == [NETWORK] and place.unfinished.exists() and not place.hosts.exists()
        terraform.write(half=False)
        assert "applied: the plan" in made(place)
        assert state(place) == WANTED and not place.unfinished.exists()

    def test_outputs_that_can_t_be_read_are_read_by_the_next_run(self, place: Place, terraform: FakeTerraform) -> None:
        terraform.write(fails={"output": "Error: state snapshot was created by a newer version"})
        with pytest.raises(LabtrackError, match="newer version"):
            made(place)
        terraform.write(fails={})
        assert made(place) == [f"written: {place.hosts}"]


class TestState:
    """Where the state is, and is not."""

    def test_a_lost_state_is_looked_for_in_the_project(
        self, place: Place, terraform: FakeTerraform, services: FakeServices
    ) -> None:
        made(place)
        place.state.unlink()
        services.things["networks"].append({"id": ident(9), "name": "climate-network", "project_id": "p" * 32})
        make.plan(place, Wish())
        assert f'-var=adopt={{"network": "{ident(9)}"}}' in terraform.last("plan")

    def test_one_that_is_left_behind_is_refused(self, place: Place, terraform: FakeTerraform) -> None:
        made(place)
        (place.source / "backend_override.tf").write_text("")
        for call in (lambda: make.plan(place, Wish()), lambda: destroy.begin(place, Wish(), ())):
            with pytest.raises(LabtrackError, match="names another place for the state, but this lab's state is still"):
                call()

    def test_another_backend_is_left_as_it_is(self, place: Place, terraform: FakeTerraform) -> None:
        make.plan(place, Wish())
        assert f"-backend-config=workspace_dir={place.lab.private.parent}" in terraform.last("init")
        place.state.unlink()
        (place.source / "backend_override.tf").write_text("")
        make.plan(place, Wish())
        assert not any("backend-config" in one for one in terraform.last("init"))
        assert not place.state.exists()

    def test_no_state_file_is_no_failure(self, place: Place, terraform: FakeTerraform) -> None:
        terraform.write(fails={"state": "No state file was found!"})
        assert make.plan(place, Wish()).changes

    def test_a_machine_of_the_labs_own_is_left_alone(self, place: Place, terraform: FakeTerraform) -> None:
        place.hosts.write_text("mlflow: {}\n")
        with pytest.raises(BadInputError, match="written by hand"):
            make.plan(place, Wish())
        with pytest.raises(BadInputError, match="nothing of it is taken away"):
            destroy.begin(place, Wish(), ())
        assert terraform.calls == []


class TestPort:
    """A port that somebody has deleted by hand."""

    def test_a_loose_port_is_attached_although_nothing_else_changes(
        self, place: Place, terraform: FakeTerraform, services: FakeServices
    ) -> None:
        made(place)
        services.answers["/ports/p1$"] = (200, {"port": {"id": "p1", "device_id": ""}})
        services.answers["/servers/s1/os-interface$"] = (200, {"interfaceAttachment": {"port_id": "p1"}})
        terraform.write(found={PORT: {"device_id": ""}})
        assert made(place) == ["attached: the server's port"]
        assert "POST /compute/v2.1/servers/s1/os-interface" in services.asked

    def test_a_port_that_is_another_servers_is_told(
        self, place: Place, terraform: FakeTerraform, services: FakeServices
    ) -> None:
        services.answers["/ports/p1$"] = (200, {"port": {"id": "p1", "device_id": "other"}})
        with pytest.raises(LabtrackError, match="belongs to other, and not to the lab's server s1"):
            made(place)


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
