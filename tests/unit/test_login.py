"""Logging in to Keystone, and keys that were made elsewhere: every way that works, and every way that fails."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from conftest import nothing_was_made
from fakes import PROJECT, USER, FakeCloud

from labtrack.cli import cli
from labtrack.cloud import key
from labtrack.cloud.ec2 import KeystoneKeys
from labtrack.cloud.login import login
from labtrack.envfile import lifecycle, read_envfile
from labtrack.errors import BadInputError, Exit, LabtrackError
from labtrack.lab import Lab


def auth(lab: Lab, **changed: object) -> None:
    """Changes the lab's entry of clouds.yaml; None takes a setting out."""
    entry = yaml.safe_load(lab.clouds_file.read_text())["clouds"]["arbutus"]
    kept = {name: value for name, value in {**entry["auth"], **changed}.items() if value is not None}
    auth_type = kept.pop("auth_type", None)
    entry = {"auth": kept, **({"auth_type": auth_type} if auth_type else {})}
    lab.clouds_file.write_text(yaml.safe_dump({"clouds": {"arbutus": entry}}))


class TestLogin:
    """Keystone, and the credentials for it."""

    def refused(self, lab: Lab, **more: object) -> LabtrackError:
        with pytest.raises(LabtrackError) as raised:
            KeystoneKeys(login(lab, **more)).create_unnamed()
        assert raised.value.hint
        return raised.value

    def test_no_credentials(self, lab: Lab) -> None:
        lab.clouds_file.write_text("clouds: {nibi: {auth: {auth_url: x}}}")
        error = self.refused(lab)
        assert "No credentials found" in error.what and "'arbutus'" in error.what and "nibi" in error.what
        assert "--keys -" in error.hint and error.code == Exit.BAD_INPUT

    def test_incomplete_credentials(self, lab: Lab) -> None:
        auth(lab, password=None)
        error = self.refused(lab)
        assert "password" in error.what and error.code == Exit.BAD_INPUT

    @pytest.mark.parametrize(
        ("text", "what", "hint"),
        [
            ("clouds:\n\tarbutus: {}\n", "no YAML in line 2", "tabs"),
            (b"a: 1\nclouds: {arbutus: {auth: {username: \xe9}}}", "byte 0xe9 in line 2", "UTF-8"),
            ("clouds: [arbutus]", "no mapping of names", "clouds: {"),
            ("clouds:\n", "no mapping of names", "clouds: {"),
            ("clouds: {arbutus: }", "arbutus of", "clouds: {"),
            ("clouds: {arbutus: text}", "is no mapping", "clouds: {"),
            ("clouds: {arbutus: {auth: }}", "empty `auth`", "clouds: {"),
            ("clouds: {arbutus: {auth: {username: 12345}}}", "auth.username is a number", "quotes"),
            ("clouds: {arbutus: {auth: {password: 2026-11-26}}}", "auth.password is a date", "quotes"),
            ("clouds: {arbutus: {auth: {password: yes}}}", "auth.password is yes or no", "quotes"),
            ("clouds: {arbutus: {auth: {auth_url: '', username: a, password: b}}}", "not given: auth_url", "complete"),
            ("clouds: {arbutus: {auth: {auth_url: 'cloud:5000/v3', username: a, password: b}}}",
             "no address of Keystone: auth_url is 'cloud:5000/v3'", "https://"),
            ("clouds: {arbutus: {auth: {auth_url: 'https://cloud:5000/v2.0', username: a, password: b}}}",
             "version 2", "/v3"),
            ("clouds: {arbutus: {auth: {auth_url: 'https://c/v3', application_credential_id: a}}}",
             "does not say so", "auth_type"),
            ("clouds: {arbutus: {auth_type: v3applicationcredential, auth: {auth_url: 'https://c/v3', "
             "application_credential_id: a, project_name: p, project_domain_name: d}}}",
             "has its own", "take out project_domain_name, project_name"),
            ("clouds: {arbutus: {profile: 'https://127.0.0.1:1/x', auth: {username: a, password: b}}}",
             "profile that the entry names can't be looked up", "auth_url"),
        ],
    )  # fmt: skip
    def test_clouds_yaml_as_people_write_it(self, text: str | bytes, what: str, hint: str, lab: Lab) -> None:
        lab.clouds_file.write_bytes(text if isinstance(text, bytes) else text.encode())
        error = self.refused(lab)
        assert what in error.what and hint in error.hint and error.code == Exit.BAD_INPUT, str(error)

    def test_token_without_an_address(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        auth(lab, auth_url=None)
        monkeypatch.setenv("OS_TOKEN", "t")
        error = self.refused(lab)
        assert "has no auth_url" in error.what and error.code == Exit.BAD_INPUT

    def test_address_that_wants_a_login_before_it_answers(self, lab: Lab, cloud: FakeCloud) -> None:
        cloud.wants_login = True  # keystoneauth would wait for its own lock for ever
        error = self.refused(lab)
        assert "is not Keystone's address" in error.what and error.code == Exit.BAD_INPUT

    @pytest.mark.parametrize(("status", "code"), [(400, Exit.BAD_INPUT), (429, Exit.FAILED), (503, Exit.FAILED)])
    def test_what_keystone_answers_is_told(self, status: int, code: Exit, lab: Lab, cloud: FakeCloud) -> None:
        cloud.refuses = (status, "Expecting to find domain in user")
        error = self.refused(lab)
        assert f"answered {status}" in error.what and error.code == code
        assert ("in a minute" in error.hint) == (code == Exit.FAILED)
        assert "Expecting to find domain" in error.what or status != 400

    def test_wrong_password(self, lab: Lab) -> None:
        auth(lab, password="wrong")
        error = self.refused(lab)
        assert "401" in error.what and "wrong user name or password for labadmin" in error.what
        assert error.code == Exit.FAILED and "wrong" not in error.hint

    def test_project_without_a_role(self, lab: Lab, cloud: FakeCloud) -> None:
        cloud.has_role = False
        error = self.refused(lab)
        assert "has no role in the project 'climate'" in error.what and "`member`" in error.hint

    def test_no_project(self, lab: Lab) -> None:
        auth(lab, project_name=None, project_domain_name=None)
        assert "has no project" in self.refused(lab).what

    def test_a_key_that_is_none(self, lab: Lab) -> None:
        auth(lab, default_domain="default")
        error = self.refused(lab)
        assert "'default_domain'" in error.what and "`default_domain_id`" in error.hint
        assert error.code == Exit.BAD_INPUT

    @pytest.mark.parametrize(
        ("changed", "told"),
        [
            ({"cert": "/nowhere/me.pem"}, "The file /nowhere/me.pem is not there"),
            ({"verify": "false"}, "is the text 'false', and true or false is meant"),
            ({"networks": "public"}, "a setting of another kind"),
            ({"profile": 3}, "a setting of another kind"),
        ],
    )
    def test_settings_that_are_none(self, lab: Lab, changed: dict[str, object], told: str) -> None:
        clouds = yaml.safe_load(lab.clouds_file.read_text())
        clouds["clouds"][lab.cloud].update(changed)
        lab.clouds_file.write_text(yaml.safe_dump(clouds))
        error = self.refused(lab)
        assert told in error.what and error.hint and error.code == Exit.BAD_INPUT

    @pytest.mark.parametrize("url", ["http://[::1/v3", "http:///v3", "https://\u00fc..x/v3"])
    def test_an_address_without_a_host(self, lab: Lab, url: str) -> None:
        auth(lab, auth_url=url)
        error = self.refused(lab)
        assert "no name of a machine" in error.what and error.code == Exit.BAD_INPUT

    def test_unreachable(self, lab: Lab) -> None:
        auth(lab, auth_url="http://127.0.0.1:1/v3")
        error = self.refused(lab)
        assert "can't be reached" in error.what and error.code == Exit.FAILED

    def test_unknown_name(self, lab: Lab) -> None:
        auth(lab, auth_url="http://no-such-host.invalid:5000/v3")
        assert "can't be reached" in self.refused(lab).what

    def test_slow(self, lab: Lab, cloud: FakeCloud) -> None:
        cloud.delay = 1.0
        assert "does not answer in time" in self.refused(lab, timeout=0.2).what

    def test_broken(self, lab: Lab, cloud: FakeCloud) -> None:
        cloud.refuses = (500, "broken")
        assert "answered 500" in self.refused(lab).what

    def test_not_keystone(self, lab: Lab, cloud: FakeCloud) -> None:
        auth(lab, auth_url=f"{cloud.url}/v3/dashboard")
        assert "There is no Keystone" in self.refused(lab).what

    def test_unknown_ca(self, lab: Lab, cloud: FakeCloud, certificate: Path) -> None:
        server = FakeCloud().start(certificate)
        auth(lab, auth_url=f"https://127.0.0.1:{server.server_port}/v3")
        error = self.refused(lab)
        assert "certificate that is not trusted" in error.what and "cacert" in error.hint
        server.shutdown()

    def test_missing_ca_file(self, lab: Lab, monkeypatch: pytest.MonkeyPatch, cloud: FakeCloud) -> None:
        for name, value in {"AUTH_URL": cloud.url, "USERNAME": "a", "PASSWORD": "b", "CACERT": "/no/ca.pem"}.items():
            monkeypatch.setenv(f"OS_{name}", value)
        assert "/no/ca.pem" in self.refused(lab).what

    def test_application_credential(self, lab: Lab, cloud: FakeCloud) -> None:
        cloud.delegated = True
        entry = {"auth_url": f"{cloud.url}/v3", "application_credential_id": "i", "application_credential_secret": "s"}
        clouds = {"arbutus": {"auth_type": "v3applicationcredential", "auth": entry}}
        lab.clouds_file.write_text(yaml.safe_dump({"clouds": clouds}))
        error = self.refused(lab)
        assert "application credential (403)" in error.what
        for way in ("with a password", "OS_TOKEN", "--keys -"):
            assert way in error.hint

    def test_a_way_to_log_in_that_is_not_installed(self, lab: Lab) -> None:
        auth(lab, auth_type="v3unheardof")
        error = self.refused(lab)
        assert "'v3unheardof' is not installed" in error.what and "OS_TOKEN" in error.hint

    def test_expired_token(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OS_TOKEN", "expired")
        assert "token is wrong or has expired" in self.refused(lab).what


class TestWaysToLogIn:
    """Each way that works (the real Keystone is asked in tests/rehearsal)."""

    def test_token_alone_in_the_labs_project(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        auth(lab, username=None, password=None, user_domain_name=None)
        monkeypatch.setenv("OS_TOKEN", "right")
        assert login(lab).project_id == PROJECT

    def test_the_shell_wins_over_lab_yml(self, lab: Lab, cloud: FakeCloud, monkeypatch: pytest.MonkeyPatch) -> None:
        auth(lab, password="wrong")
        shell = {"AUTH_URL": f"{cloud.url}/v3", "USERNAME": "labadmin", "PASSWORD": "right", "PROJECT_NAME": "climate"}
        for name, value in {**shell, "USER_DOMAIN_NAME": "Default", "PROJECT_DOMAIN_NAME": "Default"}.items():
            monkeypatch.setenv(f"OS_{name}", value)
        assert login(lab).user_id == USER
        with pytest.raises(LabtrackError):
            login(lab, "arbutus")  # --cloud wins over the shell


class TestHandedIn:
    """A key made elsewhere."""

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("", "nothing"),
            ("| access | x |", "not JSON"),
            ("[]", "not one key"),
            ('{"access": "a"}', "no 'secret'"),
            ('{"access": "", "secret": "s"}', "no 'access'"),
        ],
    )
    def test_what_is_not_a_key(self, text: str, said: str) -> None:
        with pytest.raises(BadInputError, match=said) as raised:
            key.parse(text)
        assert "ec2 credentials create -f json" in raised.value.hint

    def test_taken_without_any_login(self, lab: Lab, cloud: FakeCloud, context) -> None:
        lab.clouds_file.unlink()
        cloud.keys["handed"] = "in"
        given = key.parse('{"access": "handed", "secret": "in", "project_id": "p", "user_id": "u", "links": {}}')
        with context() as opened:
            lifecycle.create(opened, "ada", handed_in=given)
            assert lifecycle.create(opened, "ada").changed == []
        assert read_envfile(lab.env_file("ada")).access == "handed"
        assert not any(request.startswith("POST /v3") for request in cloud.requests)

    def test_one_that_the_store_refuses_is_not_kept(self, lab: Lab, cloud: FakeCloud, context) -> None:
        with context() as opened, pytest.raises(LabtrackError, match="refuses the new key"):
            lifecycle.create(opened, "ada", handed_in=key.Key("unknown", "key"))
        assert nothing_was_made(lab, cloud)

    def test_one_key_for_two_people(self, lab: Lab, cloud: FakeCloud, context) -> None:
        cloud.keys["handed"] = "in"
        with context() as opened:
            lifecycle.create(opened, "ada", handed_in=key.Key("handed", "in"))
            with pytest.raises(LabtrackError, match="registered for ada already"):
                lifecycle.create(opened, "grace", handed_in=key.Key("handed", "in"))

    def test_the_replaced_one_that_can_not_be_deleted_is_told(self, lab: Lab, cloud: FakeCloud, context) -> None:
        lab.clouds_file.unlink()
        cloud.keys.update({"first": "1", "second": "2"})
        with context() as opened:
            lifecycle.create(opened, "ada", handed_in=key.Key("first", "1"))
            outcome = lifecycle.rotate(opened, "ada", handed_in=key.Key("second", "2"), grace=0)
        assert read_envfile(lab.env_file("ada")).access == "second"
        assert "openstack ec2 credentials delete first" in outcome.notes[0]


def test_standard_input_is_read_for_keys(lab_dir: Path) -> None:
    done = CliRunner().invoke(cli, ["env", "create", str(lab_dir), "ada", "--keys", "-"], input="nonsense")
    assert isinstance(done.exception, BadInputError) and "not JSON" in str(done.exception)
