"""What doctor and verify say, for faults that a healthy server does not have."""

from __future__ import annotations

import errno
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import certifi
import pytest
from click.testing import CliRunner
from conftest import CA
from fakes import FakeCloud

from labtrack.cli import cli
from labtrack.cloud import rules as security_rules
from labtrack.doctor import closed
from labtrack.doctor.context import Context, of_file
from labtrack.doctor.result import Result, Status
from labtrack.doctor.run import examine
from labtrack.envfile.render import Contents, render
from labtrack.lab import Lab
from labtrack.tracking.server import Server


@pytest.fixture
def answering() -> Iterator[dict]:
    """A server that answers whatever the test puts into `status`, `body` and `headers`."""
    said: dict = {"status": 200, "body": b"{}", "headers": {}}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response_only(said["status"])
            for name, value in {"Date": self.date_time_string(), **said["headers"]}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(said["body"])))
            self.end_headers()
            self.wfile.write(said["body"])

        do_POST = do_PUT = do_DELETE = do_GET

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield said | {"url": f"http://127.0.0.1:{server.server_port}", "said": said}
    server.shutdown()
    server.server_close()


def rows(uri: str, **more: str) -> dict[str, Result]:
    """The worst row of each check for a researcher with these variables."""
    env = {
        "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_TRACKING_USERNAME": "ada",
        "MLFLOW_TRACKING_PASSWORD": "p",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
        **more,
    }
    order, found = list(Status), {}
    for row in examine(Context({name: value for name, value in env.items() if value}, timeout=1.0)):
        if row.check not in found or order.index(row.status) > order.index(found[row.check].status):
            found[row.check] = row
    return found


def failed(found: dict[str, Result]) -> list[str]:
    return [name for name, row in found.items() if row.status is Status.FAILED]


IN_A_BUCKET = {
    "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "s", "MLFLOW_S3_ENDPOINT_URL": "http://127.0.0.1:9",
    "LABTRACK_BUCKET": "climate", "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
}  # fmt: skip


class TestVariables:
    """The variables, before anybody is asked."""

    @pytest.mark.parametrize(
        ("uri", "seen", "hint"),
        [
            ("", "MLFLOW_TRACKING_URI is not set", ". ./mlflow_env.sh"),
            ("203.0.113.5:5000", "without https:// in front", "MLFLOW_TRACKING_URI=https://203.0.113.5:5000 "),
            ("mlflow.example.org", "without https:// in front", "=https://mlflow.example.org "),
            ("sqlite:///mlflow.db", "recorded here, not on a server", "source"),
            ("./mlruns", "recorded here", "source"),
        ],
    )
    @pytest.mark.parametrize("store", [{}, IN_A_BUCKET, {**IN_A_BUCKET, "LABTRACK_BUCKET": ""}])
    def test_an_address_that_is_none(self, uri: str, seen: str, hint: str, store: dict[str, str]) -> None:
        found = rows(uri, **store)
        found.pop("store put", None)  # of a store that is not there
        assert failed(found) == ["variables"]
        assert seen in found["variables"].seen and hint in found["variables"].hint
        for name in ("DNS", "TCP", "TLS", "login", "server version", "run"):
            assert found[name].status is Status.SKIPPED and "variables" in found[name].seen

    @pytest.mark.parametrize(
        ("name", "value", "status", "seen"),
        [
            ("MLFLOW_TRACKING_PASSWORD", "", Status.FAILED, "MLFLOW_TRACKING_PASSWORD not set"),
            ("MLFLOW_TRACKING_USERNAME", "'ada'", Status.FAILED, "a stray quote"),
            ("MLFLOW_TRACKING_PASSWORD", "p\r", Status.FAILED, "line end in MLFLOW_TRACKING_PASSWORD"),
            ("MLFLOW_TRACKING_SERVER_CERT_PATH", "/no/ca.pem", Status.FAILED, "not on this machine"),
            ("MLFLOW_TRACKING_INSECURE_TLS", "true", Status.WARNING, "MLFLOW_TRACKING_INSECURE_TLS is set"),
            ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "", Status.WARNING, "4 minutes"),
            ("MLFLOW_REGISTRY_URI", "http://x", Status.WARNING, "models go to http://x"),
        ],
    )
    def test_one_that_is_odd(self, name: str, value: str, status: Status, seen: str) -> None:
        row = rows("http://127.0.0.1:1", **{name: value})["variables"]
        assert (row.status, seen in row.seen, bool(row.hint)) == (status, True, True)

    def test_a_store_that_is_half_set(self) -> None:
        found = rows("http://127.0.0.1:1", AWS_ACCESS_KEY_ID="a", MLFLOW_S3_ENDPOINT_URL="https://s3.example.org")
        assert "AWS_SECRET_ACCESS_KEY not set" in found["store variables"].seen
        assert found["store"].status is Status.SKIPPED

    def test_a_store_without_the_checksum_settings(self) -> None:
        keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "s", "LABTRACK_BUCKET": "b"}
        found = rows("http://127.0.0.1:1", MLFLOW_S3_ENDPOINT_URL="http://127.0.0.1:1", **keys)
        assert "when_required" in found["store variables"].hint
        assert "can't be reached" in found["store put"].seen and "login node" in found["store put"].hint


def test_a_server_that_is_closed_says_so_itself(answering: dict) -> None:
    said = {"error_code": "TEMPORARILY_UNAVAILABLE", "message": "This server takes no requests. To fix: wait."}
    answering["said"].update(status=503, body=json.dumps(said).encode(), headers={"Retry-After": "60"})
    row = rows(answering["url"])["login"]
    assert (row.seen, row.hint) == ("closed for now (503): This server takes no requests.", "wait.")


def test_a_file_of_before_the_lab_moved_is_told_apart_from_a_key_that_ended(answering: dict) -> None:
    store = {**IN_A_BUCKET, "MLFLOW_S3_ENDPOINT_URL": answering["url"]}
    # the store answers the same: what is no listing is no access
    answering["said"]["body"] = b'{"experiment": {"artifact_location": "s3://tundra/artifacts/0"}}'
    found = rows(answering["url"], **store)["store"]
    assert found.status is Status.FAILED
    assert "for s3://climate, and the server keeps artifacts in s3://tundra" in found.seen
    assert "newest mlflow_env.sh" in found.hint and "runs, metrics and parameters are recorded" in found.hint
    answering["said"]["body"] = b'{"experiment": {"artifact_location": "s3://climate/artifacts/0"}}'
    assert "store" not in rows(answering["url"], **store)


class TestWay:
    """The way to the server."""

    def test_a_name_that_does_not_resolve(self) -> None:
        found = rows("https://no-such-host.invalid")
        assert failed(found) == ["DNS"] and "getent hosts" in found["DNS"].hint

    def test_a_port_that_is_closed(self) -> None:
        found = rows("https://127.0.0.1:1")
        assert failed(found) == ["TCP"] and "refuses the connection" in found["TCP"].seen

    def test_a_server_that_does_not_speak_tls(self, answering: dict) -> None:
        found = rows(answering["url"].replace("http:", "https:"))
        assert failed(found) == ["TLS"]

    def test_a_certificate_of_another_ca(self, certificate: Path) -> None:
        server = FakeCloud().start(certificate)
        found = rows(f"https://localhost:{server.server_port}")
        assert failed(found) == ["TLS"] and "get a new mlflow_env.sh" in found["TLS"].hint
        trusted = {"MLFLOW_TRACKING_SERVER_CERT_PATH": str(certificate)}
        assert rows(f"https://localhost:{server.server_port}", **trusted)["TLS"].status is Status.OK
        found = rows(f"https://127.1:{server.server_port}", **trusted)
        assert failed(found) == ["TLS"] and "must be the server's name exactly" in found["TLS"].hint
        server.shutdown()

    def test_the_labs_ca_wins_over_the_one_of_the_site(
        self, certificate: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fake = FakeCloud()
        server = fake.start(certificate)
        url = fake.url.replace("127.0.0.1", "localhost")
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", certifi.where())
        assert Server(url, "admin", fake.accounts["admin"], certificate).login_works()
        mine = {"USERNAME": "admin", "PASSWORD": fake.accounts["admin"], "SERVER_CERT_PATH": str(certificate)}
        found = rows(url, **{f"MLFLOW_TRACKING_{name}": value for name, value in mine.items()})
        assert found["login"].status is Status.OK
        outside = closed._Outside("localhost", certificate, 1.0)
        assert outside.expect("x", {401}, "GET", f"{url}/api/2.0/mlflow/users/current", "").status is Status.OK
        server.shutdown()

    def test_a_proxy_in_between(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
        found = rows("https://mlflow.example.org")
        assert "the proxy http://127.0.0.1:1" in found["TCP"].seen and failed(found) == ["TCP"]


class TestLogin:
    """What the server answers to the login."""

    @pytest.mark.parametrize(
        ("status", "body", "seen", "hint"),
        [
            (401, b"no", "refuses the login of ada (401)", "newest mlflow_env.sh"),
            (403, b"Invalid Host header", "Invalid Host header", "the server's own name"),
            (429, b"", "too many logins", "wait a minute"),
            (502, b"", "answered 502", "systemctl status 'mlflow@*'"),
        ],
    )
    def test_refused(self, answering: dict, status: int, body: bytes, seen: str, hint: str) -> None:
        answering["said"].update(status=status, body=body)
        found = rows(answering["url"])
        assert failed(found) == ["login"] and seen in found["login"].seen and hint in found["login"].hint
        assert found["server version"].status is Status.SKIPPED

    def test_an_old_server(self, answering: dict) -> None:
        answering["said"]["body"] = b"2.9.2"
        found = rows(answering["url"])
        assert found["server version"].status is Status.WARNING and "exploits" in found["server version"].hint

    @pytest.mark.parametrize(
        ("date", "status"),
        [("Sat, 01 Jan 2000 00:00:00 GMT", Status.FAILED), (None, Status.OK), ("nonsense", Status.SKIPPED)],
    )
    def test_the_clock(self, answering: dict, date: str | None, status: Status) -> None:
        if date:
            answering["said"]["headers"] = {"Date": date}
        assert rows(answering["url"])["clock"].status is status


class TestCommand:
    """labtrack doctor and labtrack env check, as typed."""

    @pytest.fixture
    def file(self, lab: Lab, tmp_path: Path) -> Path:
        path = tmp_path / "mlflow_env.sh"
        path.write_bytes(render(Contents(lab, "ada", "it's $x", None, "2026-11-21T08:00:00Z")))
        path.chmod(0o600)
        return path

    def test_exit_codes_and_json(self, monkeypatch: pytest.MonkeyPatch, answering: dict) -> None:
        good = {"URI": answering["url"], "USERNAME": "ada", "PASSWORD": "p"}
        for name, value in good.items():
            monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        answering["said"]["body"] = b"3.17.2"
        assert CliRunner().invoke(cli, ["doctor"]).exit_code == 0
        monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES")
        assert CliRunner().invoke(cli, ["doctor"]).exit_code == 1
        answering["said"]["status"] = 401
        done = CliRunner().invoke(cli, ["doctor", "--json"])
        data = json.loads(done.output)
        assert (done.exit_code, data["status"]) == (2, "failed")
        login = next(row for row in data["results"] if row["check"] == "login")
        assert set(login) == {"check", "status", "seen", "hint"} and login["status"] == "failed"

    def test_a_file_is_used_as_a_shell_would(self, file: Path, tmp_path: Path) -> None:
        env = of_file(file, tmp_path / "certificates")
        assert env["MLFLOW_TRACKING_PASSWORD"] == "it's $x"
        assert Path(env["MLFLOW_TRACKING_SERVER_CERT_PATH"]).read_text() == CA

    def test_a_file_that_can_not_be_trusted_is_not_run(self, file: Path, tmp_path: Path) -> None:
        file.write_text(f"touch {tmp_path}/ran\n")
        file.chmod(0o600)
        done = CliRunner().invoke(cli, ["doctor", "--file", str(file)])
        assert done.exit_code == 2 and "truncated" in done.output and not (tmp_path / "ran").exists()

    @pytest.mark.parametrize(("damage", "code"), [("", 0), ("edited", 1), ("address", 2), ("mode", 2), ("gone", 2)])
    def test_env_check(self, file: Path, damage: str, code: int) -> None:
        if damage == "edited":
            file.write_bytes(b"# mine\n" + file.read_bytes())
        elif damage == "address":
            file.write_bytes(file.read_bytes().replace(b"https://mlflow.example.org", b"mlflow.example.org"))
        elif damage == "mode":
            file.chmod(0o644)
        elif damage == "gone":
            file.unlink()
        done = CliRunner().invoke(cli, ["env", "check", str(file)])
        assert done.exit_code == code, done.output
        assert ("To fix" in done.output) == bool(damage)

    def test_a_look_at_a_file_leaves_nothing_behind(self, file: Path, tmp_path: Path) -> None:
        before = sorted(tmp_path.rglob("*"))
        CliRunner().invoke(cli, ["doctor", "--file", str(file)])
        assert sorted(tmp_path.rglob("*")) == before

    def test_no_output_shows_the_password(self, file: Path) -> None:
        for command in (["doctor", "--file", str(file)], ["env", "check", str(file)]):
            for more in ([], ["--json"]):
                assert "it's $x" not in CliRunner().invoke(cli, [*command, *more]).output


class TestClosed:
    """verify, against a server that lets everybody in."""

    def test_what_is_open_is_failed(self, answering: dict, monkeypatch: pytest.MonkeyPatch) -> None:
        outside = closed._Outside("127.0.0.1", None, 1.0)
        outside.url = answering["url"]
        row = outside.expect("x", {401}, "POST", "/api/2.0/mlflow/experiments/search", "refused", json={})
        assert row.status is Status.FAILED and "answered 200, not 401" in row.seen and "deploy.yml" in row.hint
        port = int(answering["url"].rpartition(":")[2])
        assert closed._port("127.0.0.1", port, "MLflow", 1.0).status is Status.FAILED
        assert closed._port("127.0.0.1", 1, "MLflow", 1.0).status is Status.OK

    def test_a_server_that_can_not_be_reached_proves_nothing(self) -> None:
        found = list(closed.check("127.0.0.1", ("a", "b"), None, 0.5))
        tried = [row for row in found if not row.check.startswith("forged")]
        assert all(row.status is Status.FAILED and "could not be tried" in row.seen for row in tried)

    def test_a_name_that_does_not_resolve_is_a_failure(self) -> None:
        ports = next(closed.check("no-such-host.invalid", ("a", "b"), None, 0.5, every_port=True))
        assert (ports.check, ports.status) == ("ports", Status.FAILED)
        assert "no-such-host.invalid does not resolve" in ports.seen

    def test_a_port_that_can_not_be_tried_is_not_closed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def nothing_left(*_: object) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        monkeypatch.setattr(socket, "create_connection", nothing_left)
        assert closed._port("127.0.0.1", 1, "MLflow", 1.0).status is Status.FAILED

    def test_scan_finds_each_open_port(self, answering: dict) -> None:
        port = int(answering["url"].rpartition(":")[2])
        assert closed.scan("127.0.0.1", range(port - 20, port + 20)).count(port) == 1
        assert closed.scan("127.0.0.1", range(1, 8), 0.5) == []

    def test_scan_without_a_network_says_so(self) -> None:
        with pytest.raises(OSError):
            closed.scan("not an address", [80])


class TestRules:
    """The security group's rules, as Neutron shows them, against the lab's."""

    @pytest.mark.parametrize(
        ("found", "expected"),
        [
            ({"protocol": "tcp", "port_range_min": 443, "port_range_max": 443}, ("tcp", "443", "0.0.0.0/0")),
            ({"protocol": "6", "port_range_min": 1, "port_range_max": 9, "ether_type": "IPv6"}, ("tcp", "1-9", "::/0")),
            ({"protocol": None}, ("any", "all", "0.0.0.0/0")),
            ({"protocol": "udp", "remote_group_id": "abc"}, ("udp", "all", "the group abc")),
            ({"protocol": "tcp", "remote_address_group_id": "x"}, ("tcp", "all", "the address group x")),
        ],
    )
    def test_rule(self, found: dict, expected: tuple[str, str, str]) -> None:
        fields = dict.fromkeys(("port_range_min", "port_range_max", "remote_ip_prefix", "remote_group_id"))
        assert security_rules.rule(SimpleNamespace(**{**fields, "ether_type": "IPv4", **found})) == expected

    def test_wanted_rules_are_written_as_neutron_writes_them(self) -> None:
        assert ("tcp", "22", "10.0.0.0/8") in security_rules.wanted(("10.1.2.3/8",))
        assert len(security_rules.wanted(())) == 4

    def test_a_netrc_does_not_log_in_for_us(self, answering: dict, tmp_path: Path) -> None:
        (tmp_path / "home" / ".netrc").write_text("machine 127.0.0.1 login a password b\n")
        outside = closed._Outside("127.0.0.1", None, 1.0)
        answer = outside.session.request("GET", answering["url"], auth=closed._no_login, timeout=1)
        assert "Authorization" not in answer.request.headers
