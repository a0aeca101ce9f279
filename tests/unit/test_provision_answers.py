"""What Terraform's answers, and a server's console, mean: functions that ask nobody."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_openstack import FakeOpenStack
from hypothesis import given
from hypothesis import strategies as st
from openstack.exceptions import HttpException

from labtrack.cloud import server
from labtrack.errors import LabtrackError
from labtrack.lab import Lab
from labtrack.provision import explain, known, plan, session
from labtrack.provision.plan import ATTACHMENT, PORT, SERVER, plan_of, state_of


def shown(*actions: str, address: str = SERVER, **about: Any) -> dict[str, Any]:
    """A plan with one change."""
    return {"resource_changes": [{"address": address, "change": {"actions": list(actions)}, **about}]}


def with_state(address: str, **values: Any) -> dict[str, Any]:
    """A state with one thing, in a module of a module."""
    module = {"resources": [{"address": address, "mode": "managed", "values": values}]}
    return {"values": {"root_module": {"child_modules": [{"child_modules": [module]}]}}}


class TestPlan:
    """plan_of."""

    @pytest.mark.parametrize("address", [SERVER, PORT, ATTACHMENT])
    @pytest.mark.parametrize("actions", [("delete",), ("delete", "create"), ("create", "delete")])
    def test_whatever_takes_the_server_or_its_port_or_volume(self, address: str, actions: tuple[str, ...]) -> None:
        assert plan_of(shown(*actions, address=address)).server_goes

    @pytest.mark.parametrize("actions", [("no-op",), ("create",), ("update",), ("read",), ("forget",)])
    def test_what_leaves_it_there(self, actions: tuple[str, ...]) -> None:
        found = plan_of(shown(*actions))
        assert not found.server_goes and found.changes is (actions != ("no-op",))

    def test_another_thing_may_go(self) -> None:
        assert not plan_of(
            shown("delete", address="module.network.openstack_networking_secgroup_rule_v2.in")
        ).server_goes

    def test_taking_over_and_moving_are_changes(self) -> None:
        taken = {"resource_changes": [{"address": SERVER, "change": {"actions": ["no-op"], "importing": {"id": "1"}}}]}
        assert plan_of(taken).changes and plan_of(shown("no-op", previous_address="x")).changes

    def test_an_output_alone_is_a_change(self) -> None:
        assert plan_of({"output_changes": {"url": {"actions": ["update"]}}}).changes
        assert not plan_of({"output_changes": {"url": {"actions": ["no-op"]}}}).changes

    @pytest.mark.parametrize(("device", "loose"), [("", True), (None, True), ("s1", False)])
    def test_a_port_that_belongs_to_no_server(self, device: str | None, loose: bool) -> None:
        found = plan_of({"prior_state": with_state(PORT, device_id=device)})
        assert found.port_is_loose is loose
        assert not plan_of({}).port_is_loose and plan_of(shown("create", address=PORT)).port_is_loose

    def test_the_server_that_was_there(self) -> None:
        assert plan_of({"prior_state": with_state(SERVER, id="s1")}).old_server == "s1"
        assert plan_of({}).old_server == ""

    def test_data_sources_are_not_looked_after(self) -> None:
        data = {"address": "data.x", "mode": "data", "values": {}}
        assert state_of({"values": {"root_module": {"resources": [data]}}}) == {}


class TestExplain:
    """failure."""

    @pytest.mark.parametrize(
        ("said", "hint"),
        [
            ("Error: Error acquiring the state lock\n\nLock Info:\n  Who: ada@laptop", "another run for this lab"),
            ("Error: Error creating openstack_networking_floatingip_v2: 409 OverQuota", "quota is used up"),
            ("Error: Quota exceeded for cores", "quota is used up"),
            ("Error: Flavor's disk is too small for requested image", "`openstack flavor list`"),
            ("Error: One or more: The request you have made requires authentication.", "log in again"),
            ("Error: Get https://x: dial tcp: lookup x: no such host", "Try again in a minute"),
            ("Error: Expected HTTP response code [200] but got 503 instead", "Try again in a minute"),
            ("Error: waiting for instance (x) to become VERIFY_RESIZE", "Set lab_flavor back"),
            ("Error: CIDR 10.20.0.0/24 overlaps with another subnet", "Choose a range that is free"),
            ("Error: Invalid key_name provided", "key of the first admin"),
            ("Error: container x could not be created: 409", "the bucket's name is taken"),
            ("Error: Instance cannot be destroyed\n\nlifecycle.prevent_destroy set", "would delete data"),
        ],
    )
    def test_each_kind_has_its_advice(self, said: str, hint: str) -> None:
        error = explain.failure(said)
        assert error.what.startswith("Terraform stopped:\n") and hint in error.hint
        assert error.hint.endswith("it goes on from here.")

    def test_what_nobody_knows_is_told_without_advice(self) -> None:
        error = explain.failure("Error: the moon is full\n")
        assert str(error) == f"Terraform stopped:\nthe moon is full\n{explain.AGAIN}"

    def test_the_place_in_our_files_is_left_out(self) -> None:
        said = (
            "\nError: Resource postcondition failed\n\n  with data.x.login,\n  on main.tf line 14, in data \"x\":\n"
            "  14:       condition     = contains(x)\n    ├────────────────\n    │ self.id is \"1\"\n\n"
            "The login is in the project b.\n\nThis was checked by the validation rule at variables.tf:1.\n"
        )  # fmt: skip
        assert "\nResource postcondition failed The login is in the project b.\n" in str(explain.failure(said))

    def test_several_errors_are_all_told_and_warnings_are_not(self) -> None:
        error = explain.failure("Warning: old\n\nError: one\n\nWarning: older\n\nError: two\n")
        assert error.what == f"Terraform stopped:\none\ntwo\n{explain.AGAIN}"

    def test_several_kinds_have_all_their_advice(self) -> None:
        assert str(explain.failure("Error: Quota exceeded\nError: i/o timeout\n")).count("\nTo fix: ") == 2

    @given(st.text())
    def test_whatever_it_says_is_told(self, said: str) -> None:
        error = explain.failure(said)
        assert error.what.startswith("Terraform stopped:\n") and error.what.splitlines()[1:]
        assert explain.AGAIN in str(error)

    def test_a_long_one_is_cut(self) -> None:
        assert len(explain.failure(f"Error: {'x' * 5000}").what) < 800


def console(keys: str, more: str = "") -> str:
    return f"boot\n{server.BEGIN}\n{keys}\n{server.END}\n{more}"


class TestHostKeys:
    """private/<lab>/known_hosts."""

    KEYS = "ssh-rsa AAAA root@mlflow\necdsa-sha2-nistp256 BBBB root@mlflow"

    def test_the_last_whole_block_counts(self) -> None:
        two = console("ssh-rsa OLD x") + console(self.KEYS)
        assert server.printed_keys(two) == ["ecdsa-sha2-nistp256 BBBB", "ssh-rsa AAAA"]
        assert server.printed_keys(f"{server.BEGIN}\nssh-rsa AA") == []
        assert server.printed_keys("") == []

    def learn(self, lab: Lab, monkeypatch: pytest.MonkeyPatch, said: str, id_: str, address: str) -> bool:
        compute = SimpleNamespace(get_server_console_output=lambda _: {"output": said})
        monkeypatch.setattr(session, "connect", lambda _: SimpleNamespace(compute=compute))
        return known.learn_host_keys(lab, id_, address)

    def test_keys_are_learnt_once_for_each_server(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        file = lab.private / "known_hosts"
        file.write_text("elsewhere ssh-rsa CCCC\n203.0.113.9 ssh-rsa OLD s0\n")
        assert self.learn(lab, monkeypatch, console(self.KEYS), "s1", "203.0.113.9")
        learnt = file.read_text()
        assert learnt.splitlines() == [
            "elsewhere ssh-rsa CCCC", "203.0.113.9 ecdsa-sha2-nistp256 BBBB s1", "203.0.113.9 ssh-rsa AAAA s1",
        ]  # fmt: skip
        assert not self.learn(lab, monkeypatch, console("ssh-rsa FORGED x"), "s1", "203.0.113.9")
        assert file.read_text() == learnt and file.stat().st_mode & 0o777 == 0o600

    def test_a_server_with_another_address_keeps_its_keys(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        self.learn(lab, monkeypatch, console(self.KEYS), "s1", "203.0.113.9")
        assert self.learn(lab, monkeypatch, "a console forgets", "s1", "203.0.113.10")
        assert "203.0.113.10 ssh-rsa AAAA s1" in (lab.private / "known_hosts").read_text().splitlines()

    def test_a_console_without_keys_is_told_with_its_end(self) -> None:
        compute = SimpleNamespace(get_server_console_output=lambda _: {"output": "kernel panic\n\n"})
        with pytest.raises(LabtrackError, match=r"(?s)no SSH host keys after 0 s.*kernel panic") as raised:
            server.host_keys(lambda: SimpleNamespace(compute=compute), "s1", timeout=0)
        assert "openstack console log show s1" in raised.value.hint

    def test_a_console_that_nobody_may_read_is_told_at_once(self) -> None:
        def refuse(_: str) -> None:
            raise HttpException("policy", http_status=403)

        compute = SimpleNamespace(get_server_console_output=refuse)
        with pytest.raises(LabtrackError, match="console of the server s1 can't be read"):
            server.host_keys(lambda: SimpleNamespace(compute=compute), "s1")


def test_login_that_was_not_written_is_told(lab: Lab) -> None:
    with pytest.raises(LabtrackError, match=r"clouds.yaml is not there") as raised:
        session.connect(lab)
    assert "labtrack provision prepare" in raised.value.hint


def test_what_lab_yml_does_not_want_made(lab: Lab) -> None:
    assert plan.no_longer_wanted(lab) == [plan.VOLUME]


def test_a_port_that_has_its_server_is_left_alone() -> None:
    cloud: Any = FakeOpenStack()
    cloud.network.get_port = lambda _: SimpleNamespace(device_id="s1")
    assert server.attach(cloud, "s1", "p1") is False


def test_a_real_first_plan() -> None:
    """What Terraform 1.11 with the provider 3.4 printed for a lab of which nothing was there."""
    file = Path(__file__).resolve().parents[1] / "fixtures" / "terraform" / "first.json"
    first = plan_of(json.loads(file.read_text()))
    assert first.changes and first.port_is_loose and not first.server_goes and not first.old_server
    assert {SERVER, PORT, plan.BUCKET, plan.ADDRESS} <= first.created and not first.deleted
