"""Planning and making the machine, with a stand-in for Terraform and services over HTTP for the cloud."""

from __future__ import annotations

import json
import os

import pytest
from fake_services import FakeServices, ident
from fake_terraform import ADDRESS, BUCKET, HOSTS, NETWORK, PORT, SERVER, WANTED, FakeTerraform
from provisioned import changed, made, mode, state

from labtrack.errors import BadInputError, Exit, LabtrackError
from labtrack.provision import destroy, make
from labtrack.provision.make import Wish
from labtrack.provision.terraform import Place, UnavailableError


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
