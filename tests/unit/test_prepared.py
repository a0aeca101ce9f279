"""What Terraform is given: the completed lab, and the login that was resolved, whatever the shell says."""

from __future__ import annotations

import dataclasses
import json
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from fake_services import FakeServices, ident
from fakes import FakeCloud

from labtrack import lab as labs
from labtrack.cloud import login as logins
from labtrack.cloud import preflight
from labtrack.cloud.login import login
from labtrack.doctor.result import Status
from labtrack.errors import LabtrackError
from labtrack.lab import Lab
from labtrack.provision import completed, prepare, session

ROOT = Path(__file__).resolve().parents[2]
NOTHING = dict.fromkeys(
    ("image", "flavor", "external_network", "external_network_name", "network", "router", "data_volume"), ""
)


class TestCompletedLab:
    """build/<lab>/lab.json."""

    @pytest.mark.parametrize("name", ["minimal", "everything"])
    def test_terraforms_tests_read_what_is_written(self, name: str) -> None:
        folder = ROOT / "terraform/tests/labs" / name
        written = json.loads((folder / "lab.json").read_text())
        assert set(written["found"]) == set(NOTHING)
        assert written == completed.complete(labs.load(folder), written["found"])

    def test_every_setting_is_there(self, lab: Lab) -> None:
        made = completed.complete(lab, NOTHING)
        assert made["lab_data_volume"] == "none" and made["lab_network_cidr"] == "10.20.0.0/24"
        assert made["lab_network"] is None and made["lab_bucket"] == lab.bucket

    def test_it_is_written_where_it_is_said(self, lab: Lab) -> None:
        file = completed.write(lab, NOTHING)
        assert file == lab.root / "build" / lab.name / "lab.json"
        assert json.loads(file.read_text())["found"] == NOTHING

    def test_keys_of_who_is_there_each_once_and_as_they_stand(self) -> None:
        keys = labs.load(ROOT / "terraform/tests/labs/minimal").public_keys
        assert [key.split()[-1] for key in keys] == ["ada", "ada@laptop", "ada@desktop"]


class TestLogin:
    """private/<lab>/terraform/clouds.yaml, and the environment that has it taken."""

    def entry(self, lab: Lab, **changed: Any) -> dict[str, Any]:
        if changed:
            clouds = yaml.safe_load(lab.clouds_file.read_text())
            clouds["clouds"][lab.cloud].update(changed)
            lab.clouds_file.write_text(yaml.safe_dump(clouds))
        return session.entry(login(lab))

    def test_ids_stand_in_place_of_names_and_domains(self, lab: Lab, cloud: FakeCloud) -> None:
        logged_in, made = login(lab), self.entry(lab)
        assert made["auth_type"] == "v3password"
        assert made["auth"] == {
            "auth_url": logged_in.url,
            "user_id": logged_in.user_id,
            "password": cloud.password,
            "project_id": logged_in.project_id,
        }

    def test_keys_that_others_do_not_read_mean_the_same(self, lab: Lab, cloud: FakeCloud) -> None:
        clouds = yaml.safe_load(lab.clouds_file.read_text())
        plain = session.entry(login(lab))
        auth = clouds["clouds"][lab.cloud].pop("auth")
        clouds["clouds"][lab.cloud].update(auth, auth={})
        lab.clouds_file.write_text(yaml.safe_dump(clouds))
        assert session.entry(login(lab)) == plain

    def test_the_shells_variables_are_not_passed_on(self, monkeypatch: pytest.MonkeyPatch, lab: Lab) -> None:
        monkeypatch.setenv("OS_PROJECT_ID", "another")
        monkeypatch.setenv("OS_REGION_NAME", "RegionTwo")
        made = session.environment(Path("/x/clouds.yaml"))
        assert made["OS_PROJECT_ID"] == made["OS_REGION_NAME"] == ""
        assert made["OS_CLOUD"] == session.ENTRY and made["OS_CLIENT_CONFIG_FILE"] == "/x/clouds.yaml"

    def test_a_token_is_passed_on_as_one(self, lab: Lab, cloud: FakeCloud, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OS_TOKEN", cloud.password)  # the one that the fake takes
        made = self.entry(lab)
        assert made["auth_type"] == "v3token" and made["auth"]["token"] and "password" not in made["auth"]

    def test_a_relative_ca_file_is_found_from_everywhere(
        self, lab: Lab, cloud: FakeCloud, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("ca.pem").write_text("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n")
        assert self.entry(lab, cacert="ca.pem", region_name="R")["cacert"] == str(tmp_path / "ca.pem")

    @pytest.mark.parametrize(("data", "what"), [(b"", "is empty"), (b"0\x82\x01\x00\x30", "is DER")])
    def test_a_ca_file_that_is_none_is_told_before_it_is_used(
        self, lab: Lab, cloud: FakeCloud, data: bytes, what: str
    ) -> None:
        (lab.root / "ca.pem").write_bytes(data)
        with pytest.raises(LabtrackError) as raised:
            self.entry(lab, cacert=str(lab.root / "ca.pem"))
        assert what in raised.value.what and str(lab.root / "ca.pem") in raised.value.what and raised.value.hint

    def test_only_the_admin_reads_it(self, lab: Lab, cloud: FakeCloud) -> None:
        file = session.write(lab, login(lab))
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert list(yaml.safe_load(file.read_text())["clouds"]) == [session.ENTRY]


# what of clouds.yaml Terraform's provider reads: clientconfig's Cloud and AuthInfo, as far as auth.Config takes them
READ = {"auth", "auth_type", "region_name", "verify", "cacert", "cert", "key"}
READ_IN_AUTH = {
    "auth_url", "token", "username", "user_id", "password", "application_credential_id",
    "application_credential_name", "application_credential_secret", "project_id",
}  # fmt: skip
TYPES = ("password", "v3password", "token", "v3token", "v3applicationcredential")  # its AuthType, and no other
READ_BY_OTHERS = {"interface"}  # of those tools that read it; preflight tells where it means something
PASSWORD = {
    "username": "ada", "password": "s", "user_domain_name": "d", "project_name": "p", "project_domain_name": "d",
}  # fmt: skip


class TestGophercloud:
    """The entry says all in keys that Terraform's provider reads."""

    def entry(self, lab: Lab, cloud: FakeCloud, kind: str, auth: dict[str, str], **more: Any) -> dict[str, Any]:
        """What is written for an entry, after Keystone has let it in; token: what it gave."""
        given = {"auth_type": kind, "auth": {"auth_url": f"{cloud.url}/v3", **auth}, **more}
        lab.clouds_file.write_text(yaml.safe_dump({"clouds": {lab.cloud: given}}))
        region, _ = logins._region(lab, None)
        plugin = region.get_auth()
        logins._settle_trust(region.config, region.get_requests_verify_args()[0])
        session_ = SimpleNamespace(auth=plugin, get_token=lambda: "of-keystone")
        made: Any = logins.Login(
            session_, f"{cloud.url}/v3", "u", "ada", "p", "climate", ("member",), "application" in kind, "", region
        )  # type: ignore[arg-type]
        written = session.entry(made)
        assert set(written) <= READ | READ_BY_OTHERS and set(written["auth"]) <= READ_IN_AUTH
        assert written["auth_type"] in TYPES and isinstance(written["verify"], bool)
        texts = [written.get(name, "") for name in READ - {"auth", "verify"}] + list(written["auth"].values())
        assert all(isinstance(text, str) for text in texts)
        return written

    @pytest.mark.parametrize(
        ("kind", "auth", "used"),
        [
            ("password", PASSWORD, {"user_id": "u", "password": "s", "project_id": "p"}),
            ("v3password", PASSWORD, {"user_id": "u", "password": "s", "project_id": "p"}),
            ("password", {**PASSWORD, "default_domain_id": "d"}, {"user_id": "u", "password": "s", "project_id": "p"}),
            ("v3token", {"token": "t", "project_id": "p"}, {"token": "of-keystone", "project_id": "p"}),
            ("v3applicationcredential", {"application_credential_id": "i", "application_credential_secret": "s"},
             {"application_credential_id": "i", "application_credential_secret": "s"}),
            ("v3applicationcredential", {"application_credential_name": "n", "application_credential_secret": "s",
             "username": "ada", "user_domain_name": "d"},
             {"application_credential_name": "n", "application_credential_secret": "s", "user_id": "u"}),
            ("v3oidcpassword", {"username": "ada", "password": "s", "project_id": "p", "identity_provider": "i",
             "protocol": "o", "client_id": "c", "client_secret": "x", "discovery_endpoint": "https://i/"},
             {"token": "of-keystone", "project_id": "p"}),
            ("v3oidcclientcredentials", {"identity_provider": "i", "protocol": "o", "client_id": "c",
             "client_secret": "x", "discovery_endpoint": "https://i/", "project_id": "p"},
             {"token": "of-keystone", "project_id": "p"}),
            ("v3totp", {"username": "ada", "user_domain_name": "d", "passcode": "1", "project_id": "p"},
             {"token": "of-keystone", "project_id": "p"}),
        ],
    )  # fmt: skip
    def test_ways_to_log_in(
        self, lab: Lab, cloud: FakeCloud, kind: str, auth: dict[str, str], used: dict[str, str]
    ) -> None:
        assert self.entry(lab, cloud, kind, auth)["auth"] == {"auth_url": f"{cloud.url}/v3", **used}

    def test_trust_in_certificates(
        self, lab: Lab, cloud: FakeCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bundle = tmp_path / "bundle.pem"
        bundle.touch()
        assert self.entry(lab, cloud, "password", PASSWORD)["verify"] is True
        for said in ({"verify": False}, {"insecure": True}):
            assert self.entry(lab, cloud, "password", PASSWORD, **said)["verify"] is False, said
        files = {"cert": "~/me.pem", "key": "~/me.key"}
        made = self.entry(lab, cloud, "password", PASSWORD, **files)
        assert {made["cert"], made["key"]} == {str(Path(name).expanduser()) for name in files.values()}
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
        assert self.entry(lab, cloud, "password", PASSWORD)["cacert"] == str(bundle)
        made = self.entry(lab, cloud, "password", PASSWORD, cacert=str(tmp_path / "own.pem"))
        assert made["cacert"] == str(tmp_path / "own.pem"), "which wins here, too"

    @pytest.mark.parametrize(
        "said",
        [
            {"region_name": "R1"},
            {"regions": ["R1"]},
            {"regions": [{"name": "R1", "values": {"interface": "public"}}, "R2"]},
            {"regions": ["R1", "R2"], "region_name": "R1"},
        ],
    )
    def test_regions(self, lab: Lab, cloud: FakeCloud, said: dict[str, Any]) -> None:
        assert self.entry(lab, cloud, "password", PASSWORD, **said)["region_name"] == "R1"

    @pytest.mark.parametrize("scope", [{"system_scope": "all"}, {"domain_name": "d"}, {"domain_id": "d"}])
    def test_no_project(self, lab: Lab, cloud: FakeCloud, scope: dict[str, str]) -> None:
        auth = {
            "auth_url": f"{cloud.url}/v3",
            "username": "ada",
            "user_domain_id": "default",
            "password": cloud.password,
        }
        lab.clouds_file.write_text(yaml.safe_dump({"clouds": {lab.cloud: {"auth": {**auth, **scope}}}}))
        with pytest.raises(LabtrackError, match="has no project"):
            login(lab)

    def test_what_it_does_not_read_is_told(self, lab: Lab, cloud: FakeCloud) -> None:
        assert list(preflight._ignored(login(lab))) == []
        clouds = yaml.safe_load(lab.clouds_file.read_text())
        clouds["clouds"][lab.cloud].update(interface="internal", network_endpoint_override="https://n.example.org")
        lab.clouds_file.write_text(yaml.safe_dump(clouds))
        (row,) = preflight._ignored(login(lab))
        assert row.status is Status.WARNING and "own-machine.md" in row.hint
        assert "interface: internal, network_endpoint_override of the login" in row.seen


class TestShell:
    """Variables that other tools would take."""

    def told(self, lab: Lab, monkeypatch: pytest.MonkeyPatch, **env: str) -> list[str]:
        logged_in = login(lab)
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        rows = list(preflight._unused(logged_in, lab.cloud))
        assert all(row.status is Status.WARNING and row.hint for row in rows)
        return [row.seen for row in rows]

    def test_what_would_lead_to_another_project(
        self, lab: Lab, cloud: FakeCloud, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (said,) = self.told(lab, monkeypatch, OS_PROJECT_ID="another", OS_REGION_NAME="RegionTwo")
        assert said.startswith("OS_PROJECT_ID, OS_REGION_NAME of the shell is not used")

    def test_what_says_the_same_is_no_trouble(
        self, lab: Lab, cloud: FakeCloud, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        logged_in = login(lab)
        same = {"OS_PROJECT_ID": logged_in.project_id, "OS_CLOUD": lab.cloud, "OS_AUTH_URL": ""}
        assert self.told(lab, monkeypatch, **same) == []

    def test_a_secret_is_not_shown(self, lab: Lab, cloud: FakeCloud, monkeypatch: pytest.MonkeyPatch) -> None:
        (said,) = self.told(lab, monkeypatch, OS_PASSWORD="hunter2")
        assert "hunter2" not in said


class TestLookedUp:
    """The ids that Terraform is given, of a project over HTTP."""

    def found(self, lab: Lab, *, lenient: bool = False, **wishes: Any) -> dict[str, str]:
        changed = dataclasses.replace(lab, machine=dataclasses.replace(lab.machine, **wishes))
        return prepare.looked_up(changed, login(changed), lenient=lenient)

    def test_names_and_ids_lead_to_the_same(self, there: Lab) -> None:
        by_name = self.found(there, network="def-net")
        ids = {"image": ident(6), "flavor": "f1", "external_network": ident(1), "network": ident(2)}
        assert by_name == {**NOTHING, **ids, "external_network_name": "Public", "data_volume": "none"}
        assert self.found(there, **ids) == by_name

    @pytest.mark.parametrize(
        ("wishes", "told"),
        [
            ({"image": "Debian-99"}, "image: there is no image 'Debian-99'"),
            ({"flavor": ""}, "flavor: lab_flavor is not set"),
            ({"external_network": "def-net"}, "external network: def-net is an internal network"),
            ({"router": "nobody's"}, "network: there is no router"),
        ],
    )
    def test_what_is_not_there_is_refused_unless_it_may_be_gone(
        self, there: Lab, wishes: dict[str, str], told: str
    ) -> None:
        with pytest.raises(LabtrackError) as raised:
            self.found(there, **wishes)
        assert told in raised.value.what and raised.value.hint
        ((kind, named),) = wishes.items()
        assert self.found(there, lenient=True, **wishes)[kind] == named

    def test_what_is_only_unwise_is_left_to_preflight(self, services: FakeServices, there: Lab) -> None:
        services.things["flavors"][0]["ram"] = 500
        assert self.found(there)["flavor"] == "f1"

    def test_a_service_in_trouble(self, services: FakeServices, there: Lab) -> None:
        services.answers["^/image/v2/"] = (503, {})
        with pytest.raises(LabtrackError, match=r"image \(Glance\) answers 503"):
            self.found(there)

    def test_the_lab_and_the_login_are_written(self, there: Lab) -> None:
        ready = prepare.prepare(there)
        assert json.loads(ready.lab_file.read_text())["found"]["image"] == ident(6)
        assert ready.environment["OS_CLIENT_CONFIG_FILE"] == str(ready.clouds_file)
