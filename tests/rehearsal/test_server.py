"""The deployed server as it is seen from outside, and what it keeps closed."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import requests
from api import Api

STRAIGHT = "/api/2.0/mlflow/runs/log-metric"


# --- who may come in


def test_without_login_the_browser_is_asked_for_one(nobody: Api) -> None:
    answer = nobody.get("/")
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Basic")


@pytest.mark.parametrize("path", ["experiments/search", "runs/log-metric", "users/create", "/graphql"])
def test_without_login_nothing_is_answered(nobody: Api, path: str) -> None:
    assert nobody.call(path, {}).status_code == 401


def test_who_guesses_passwords_is_slowed_and_who_is_logged_in_does_not_notice(ann: Api) -> None:
    assert ann.get("users/current").status_code == 200
    seen = []
    for guess in range(25):
        wrong = Api(ann.url, ann.ca, (ann.login[0], f"wrong-{guess}"))
        seen.append(wrong.get("users/current").status_code)
        assert ann.get("users/current").status_code == 200
    assert seen[:5] == [401] * 5
    assert set(seen) == {401, 429}
    assert seen == sorted(seen)


def test_many_calls_with_the_right_password_are_not_slowed(ann: Api) -> None:
    assert {ann.get("users/current").status_code for _ in range(150)} == {200}


# --- what an account may do


def test_another_account_may_read_and_not_write(ann: Api, bob: Api) -> None:
    run = ann.new_run()
    assert bob.get(f"runs/get?run_id={run}").status_code == 200
    assert bob.log(run, 1).status_code == 403
    body = {"run_id": run, "metrics": [{"key": "x", "value": 1, "timestamp": 1, "step": 1}]}
    assert bob.call("runs/log-batch", body).status_code == 403
    assert ann.steps(run) == []


# --- who asks, and from which page


@pytest.mark.parametrize("path", ["/ajax-api/2.0/mlflow/experiments/search", STRAIGHT])
def test_the_page_s_own_posts_work_and_those_of_another_page_do_not(ann: Api, path: str) -> None:
    if path == STRAIGHT:
        body: dict[str, Any] = {"run_id": ann.new_run(), "key": "x", "value": 1, "timestamp": 1, "step": 1}
    else:
        body = {"max_results": 5}
    assert ann.call(path, body, headers={"Origin": ann.url}).status_code == 200
    assert ann.call(path, body, headers={"Origin": "https://elsewhere.example"}).status_code == 403


@pytest.mark.parametrize("path", ["/api/2.0/mlflow/experiments/search", STRAIGHT])
def test_a_forged_host_gets_nothing(ann: Api, path: str) -> None:
    try:
        answer = ann.call(path, {"max_results": 5}, headers={"Host": "elsewhere.example"})
    except requests.ConnectionError:
        return
    assert answer.status_code == 421
    assert "experiments" not in answer.text


@pytest.mark.parametrize("path", ["/api/2.0/mlflow/experiments/search", STRAIGHT])
def test_mlflow_itself_checks_host_origin_and_login_too(rehearsal: Any, path: str) -> None:
    def inside(*headers: str) -> str:
        more = " ".join(f"-H '{header}'" for header in ("Content-Type: application/json", *headers))
        ask = f"curl -s -o /dev/null -w '%{{http_code}}' --unix-socket /run/mlflow/1.sock -d '{{}}' {more}"
        return rehearsal.ssh("server", f"{ask} http://x{path}", check=True).stdout

    assert inside("Host: elsewhere.example") == "403"
    assert inside(f"Host: {rehearsal.fqdn}", "Origin: https://elsewhere.example") == "403"
    assert inside(f"Host: {rehearsal.fqdn}") == "401"
    assert inside(f"Host: {rehearsal.fqdn}", "Authorization: Basic YWRtaW46YWRtaW4=") == "401"


def test_a_client_cannot_pretend_to_come_from_the_server_itself(ann: Api) -> None:
    forged = {"X-Forwarded-For": "127.0.0.1", "X-Real-IP": "127.0.0.1", "Forwarded": "for=127.0.0.1"}
    answer = ann.call("/ajax-api/3.0/mlflow/assistant/config", {}, "PUT", headers=forged)
    assert answer.status_code == 404


def test_http_is_sent_on_to_https(rehearsal: Any) -> None:
    answer = requests.get(f"http://{rehearsal.fqdn}/some?where=1", allow_redirects=False, timeout=10)
    assert answer.status_code == 308
    assert answer.headers["Location"] == f"https://{rehearsal.fqdn}/some?where=1"


# --- which paths there are


@pytest.mark.parametrize(
    "path",
    [
        "/get-artifact?path=../../etc/passwd", "/get-artifact?path=..%2f..%2fetc%2fpasswd", "/static-files/../x",
        "/static-files/..%2f..%2f..%2fsettings.env", "/static-files/%2e%2e/%2e%2e/x", "/api/2.0/mlflow/runs/..;/users",
        "/static-files/..%5c..%5cx", "/static-files/%252e%252e%252fx", "/get-artifact?path=a%00b", "/%c0%ae%c0%ae/x",
    ],
)  # fmt: skip
def test_traversal_is_refused_in_every_spelling(rehearsal: Any, ann: Api, path: str) -> None:
    user, password = ann.login
    command = ["curl", "-s", "--path-as-is", "-o", "/dev/null", "-w", "%{http_code}", "--cacert", ann.ca, "-K", "-"]
    done = rehearsal.run(*command, ann.url + path, check=True, input=f'user = "{user}:{password}"\n')
    assert done.stdout == "400"


# --- limits, errors, headers


def test_too_large_a_request_is_refused_with_a_word(ann: Api) -> None:
    answer = ann.session.post(f"{ann.url}{STRAIGHT}", data=b"x" * 17 * 2**20, timeout=30)
    assert answer.status_code == 413
    assert "smaller batches" in answer.json()["message"]


def test_headers_are_on_every_answer(ann: Api, nobody: Api) -> None:
    answers = [ann.get("/"), nobody.get("/"), ann.get("/nowhere"), ann.get("users/current")]
    assert [answer.status_code for answer in answers] == [200, 401, 404, 200]
    for answer in answers:
        assert answer.headers["Strict-Transport-Security"] == "max-age=63072000"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["X-Frame-Options"] == "SAMEORIGIN"
        assert "frame-ancestors" in answer.headers["Content-Security-Policy"]
        assert not re.search(r"\d", answer.headers["Server"])


def test_what_people_upload_is_shown_without_the_right_to_run(ann: Api) -> None:
    answer = ann.get(f"/get-artifact?run_id={ann.new_run()}&path=page.html")
    assert answer.headers["Content-Security-Policy"].startswith("sandbox;")


# --- certificate


def openssl(rehearsal: Any, *arguments: str) -> str:
    done = rehearsal.run("openssl", *arguments, input="")
    return done.stdout + done.stderr


def test_the_authority_may_sign_for_this_name_only(rehearsal: Any) -> None:
    text = openssl(rehearsal, "x509", "-in", str(rehearsal.ca), "-noout", "-text")
    assert re.search(rf"Name Constraints: critical\s+Permitted:\s+DNS:{re.escape(rehearsal.fqdn)}\s+Excluded:", text)
    assert "CA:TRUE, pathlen:0" in text


def test_the_certificate_is_young_and_of_the_right_kind(rehearsal: Any) -> None:
    text = rehearsal.ssh("server", "openssl x509 -in /etc/ssl/labtrack/server.pem -noout -text", check=True).stdout
    assert "ASN1 OID: prime256v1" in text
    assert f"DNS:{rehearsal.fqdn}" in text
    days = rehearsal.ssh("server", "openssl x509 -in /etc/ssl/labtrack/server.pem -noout -checkend $((366*86400))")
    assert days.returncode == 1
    modes = rehearsal.ssh("server", "stat -c '%U %a' /etc/ssl/labtrack/*.key", check=True).stdout
    assert set(modes.splitlines()) == {"root 600"}


@pytest.mark.parametrize(("version", "works"), [("tls1_1", False), ("tls1_2", True), ("tls1_3", True)])
def test_old_tls_is_refused(rehearsal: Any, version: str, works: bool) -> None:
    ask = ["s_client", "-connect", f"{rehearsal.fqdn}:443", "-servername", rehearsal.fqdn, f"-{version}"]
    said = openssl(rehearsal, *ask, "-CAfile", str(rehearsal.ca), "-verify_return_error")
    assert ("no peer certificate available" not in said) is works
    assert "Verify return code: 0 (ok)" in said


def test_another_name_gets_no_certificate(rehearsal: Any) -> None:
    said = openssl(rehearsal, "s_client", "-connect", f"{rehearsal.fqdn}:443", "-servername", "elsewhere.example")
    assert "no peer certificate available" in said


# --- health


def test_health_looks_at_all_that_keeps_the_server_well(rehearsal: Any) -> None:
    done = rehearsal.ssh("server", "mlflowctl health --json")
    said = json.loads(done.stdout)
    assert done.returncode == {"ok": 0, "warning": 1, "failed": 2}[said["status"]] and said["version"] == 1
    rows = {row["check"]: row for row in said["results"]}
    well = ("database", "accounts", "connections", "store", "instances", "certificate", "inodes", "memory", "units")
    assert [rows[name] for name in well if rows[name]["status"] != "ok"] == []
    assert {"wal", "quota", "backup", "drill", "disk", "reboot", "clock"} <= set(rows)
    assert [row["check"] for row in rows.values() if row["status"] in ("warning", "failed") and not row["hint"]] == []


def test_health_leaves_nothing_in_the_bucket(rehearsal: Any) -> None:
    program = (
        "import sys; sys.path.insert(0, '/usr/local/lib/mlflowctl'); import mlflow_checks as checks\n"
        "client, name = checks.bucket()\n"
        "def left():\n"
        "    found = client.list_object_versions(Bucket=name, Prefix=checks.KEYS)\n"
        "    return {one['VersionId'] for kind in ('Versions', 'DeleteMarkers') for one in found.get(kind, [])}\n"
        "before = left()\n"
        "assert checks.row('store')['status'] == 'ok'\n"
        "print(left() - before)\n"
    )
    command = "/opt/mlflow/current/bin/python -W ignore -"
    assert rehearsal.ssh("server", command, stdin=program, check=True).stdout.strip() == "set()"


def test_status_shows_the_admin_the_same_table(rehearsal: Any) -> None:
    done = rehearsal.run("labtrack", "status", str(rehearsal.lab_dir), "--json")
    said = json.loads(done.stdout)
    assert done.returncode == {"ok": 0, "warning": 1, "failed": 2}[said["status"]]
    assert {"database", "store", "disk", "clock"} <= {row["check"] for row in said["results"]}


def test_health_says_what_is_wrong_while_mlflow_s_own_does_not(rehearsal: Any, nobody: Api) -> None:
    find = "systemctl list-units --plain --no-legend 'postgresql@*' | cut -d' ' -f1"
    unit = rehearsal.ssh("server", find, check=True).stdout.strip()
    rehearsal.ssh("server", f"systemctl stop {unit}", check=True)
    try:
        done = rehearsal.ssh("server", "mlflowctl health --json")
        assert nobody.get("/health").status_code == 200
    finally:
        rehearsal.ssh("server", f"systemctl start {unit}", check=True)
    rows = {row["check"]: row for row in json.loads(done.stdout)["results"]}
    failed = {"database", "accounts", "connections", "wal", "units"}
    assert {name for name, row in rows.items() if row["status"] == "failed"} - {"disk"} == failed
    assert f"{unit} is not running" in rows["units"]["seen"]
    assert done.returncode == 2
