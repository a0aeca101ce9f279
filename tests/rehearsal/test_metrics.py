"""lab_metrics: what the server does, told to its admins, kept from everybody else, and taken away without a trace."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any

import pytest
from eyes import WAIT, chromium
from playwright.sync_api import expect

import grafana

if TYPE_CHECKING:
    from pathlib import Path

    from api import Api
    from conftest import Rehearsal

SERVICES = ["prometheus", *(f"prometheus-{name}-exporter" for name in ("node", "postgres", "nginx", "blackbox"))]
PORTS = {"9090", "9100", "9113", "9115", "9145", "9187"}
PAGES = grafana.pages()
QUERIES = {
    target["expr"]: target["instant"]
    for text in grafana.files().values()
    for panel in json.loads(text)["panels"]
    for target in panel["targets"]
}
# Files, accounts, roles and listening ports of the metrics, wherever they may be.
TRACES = r"""
find /etc /usr /var /opt /home /root -xdev \( -path '/var/lib/labtrack-*' -o -path '/usr/share/*' \
    -o -path '/opt/mlflow/*' -o -path '/var/cache/apt/*' -o -path '/var/lib/apt/*' \) -prune \
    -o -iname '*prometheus*' -print -o -name 'labtrack-metrics*' -print
getent passwd prometheus
cd / && runuser -u postgres -- psql -XtAc "SELECT rolname FROM pg_roles WHERE rolname = 'prometheus'"
grep -n prometheus /etc/postgresql/*/main/pg_hba.conf
grep -n -e /metrics -e 9145 /etc/nginx/nginx.conf
ss -Hltn | grep -E '127.0.0.1:(9090|9100|9113|9115|9145|9187) '
systemctl list-units --all --plain --no-legend 'prometheus*'
dpkg-query -W -f '${db:Status-Status} ${Package}\n' 'prometheus*' | grep -v not-installed
grep -n '"prometheus"' /var/lib/labtrack-egress/rules.nft
"""


def ask(api: Api, query: str) -> list[dict[str, Any]]:
    """What Prometheus answers, asked as a page asks it."""
    answer = api.get("/metrics/api/v1/query", params={"query": query})
    assert answer.status_code == 200, (query, answer.status_code, answer.text)
    found: list[dict[str, Any]] = answer.json()["data"]["result"]
    return found


def points(api: Api) -> float:
    (found,) = ask(api, "sum(labtrack_metric_points_total)") or [{"value": [0, "0"]}]
    return float(found["value"][1])


@pytest.fixture(scope="module", autouse=True)
def logged(rehearsal: Rehearsal, admin: Api) -> float:
    """How many points the instances have counted: first of all, so that Prometheus is not waited for at the end."""
    run = admin.new_run()
    for step in range(20):
        assert admin.log(run, step).status_code == 200
    told = "for one in /run/mlflow/[0-9].sock; do curl -sf --unix-socket $one http://localhost/labtrack/metrics; done"
    text = rehearsal.ssh("server", told, check=True).stdout
    return sum(float(value) for value in re.findall(r"^labtrack_metric_points_total (\d+)$", text, re.MULTILINE))


def test_services_run_sandboxed_and_listen_to_the_machine_alone(rehearsal: Rehearsal) -> None:
    listening = rehearsal.ssh("server", "ss -Hltn", check=True).stdout
    ours = [place.rpartition(":") for place in (line.split()[3] for line in listening.splitlines())]
    assert {(host, port) for host, _, port in ours if port in PORTS} == {("127.0.0.1", port) for port in PORTS}
    for name in SERVICES:
        show = rehearsal.ssh("server", f"systemctl is-active {name}; systemctl is-enabled {name}", check=True).stdout
        assert show == "active\nenabled\n", name
        rated = rehearsal.ssh("server", f"systemd-analyze security --no-pager {name} | tail -1", check=True).stdout
        assert float(re.search(r": ([\d.]+) ", rated)[1]) <= 1.5, rated


def test_account_reaches_nothing_but_what_it_asks(rehearsal: Rehearsal) -> None:
    as_it = "cd / && runuser -u prometheus -- "
    outside = rehearsal.ssh("server", f"{as_it} curl -sS --max-time 5 https://cloud.rehearsal.test:5000")
    assert outside.returncode != 0
    rules = rehearsal.ssh(
        "server", "sed -n '/# prometheus/,/reject/p' /var/lib/labtrack-egress/rules.nft", check=True
    ).stdout
    assert "dport 53" not in rules and set(re.findall(r"daddr (\S+)", rules)) == {"127.0.0.1"}
    psql = f"{as_it} psql -XtAc"
    may = rehearsal.ssh("server", f"{psql} 'TABLE pg_stat_activity' mlflowdb | grep -c .", check=True)
    assert int(may.stdout) > 1
    for forbidden in ("SELECT 1 FROM runs", "SELECT 1 FROM metrics", "CREATE TABLE public.mine (x int)"):
        refused = rehearsal.ssh("server", f"{psql} '{forbidden}' mlflowdb")
        assert refused.returncode != 0 and "permission denied" in refused.stderr, forbidden
    assert rehearsal.ssh("server", f"{psql} 'SELECT 1' mlflow_auth").returncode != 0


@pytest.mark.parametrize("page", [page["name"] for page in PAGES])
def test_pages_are_for_admins(page: str, admin: Api, bob: Api, nobody: Api) -> None:
    for path in (f"/metrics/{page}", "/metrics/api/v1/query?query=up"):
        assert admin.get(path).status_code == 200
        assert nobody.get(path).status_code == 401
        refused = bob.get(path)
        assert refused.status_code == 403
        assert "for its admins. To fix: log in as an admin" in refused.json()["message"]
    shown = admin.get(f"/metrics/{page}")
    assert (
        shown.headers["Content-Type"].startswith("text/html")
        and "script-src" in shown.headers["Content-Security-Policy"]
    )
    title = next(one["title"] for one in PAGES if one["name"] == page)
    assert f"{title}</h1>" in shown.text


def test_nothing_else_of_it_is_outside(admin: Api, bob: Api) -> None:
    for path in ("/labtrack/metrics", "/mlflow/1", "/nginx", "/metrics/api/v1/status/config", "/metrics/api/v1/targets",
                 "/metrics/metrics", "/metrics/consoles/overview.html", "/metrics/-/healthy"):  # fmt: skip
        answer = admin.get(path)
        assert answer.status_code == 404, (path, answer.text[:200])
        assert "labtrack_requests_total" not in answer.text
    assert admin.call("/metrics/api/v1/query?query=up", method="DELETE").status_code == 403


def test_every_query_of_pages_and_dashboards_finds_something(rehearsal: Rehearsal, admin: Api) -> None:
    """After a deploy they are waited for: rates need two looks, and what is asked no more is shown for two."""
    deadline = time.monotonic() + 100
    wanting, down = list(QUERIES), ["not asked"]
    while (wanting or down) and time.monotonic() < deadline:
        wanting = [query for query in wanting if not ask(admin, query)]
        down = [found["metric"]["instance"] for found in ask(admin, "up == 0")]
        time.sleep(2 if wanting or down else 0)
    assert (wanting, down) == ([], [])
    assert {found["metric"]["instance"] for found in ask(admin, 'up{job="mlflow"}')} == {"mlflow@1", "mlflow@2"}
    (series,) = ask(admin, "sum(scrape_samples_post_metric_relabeling)")
    assert float(series["value"][1]) < 1500


def test_figures_and_configuration_are_what_prometheus_takes(rehearsal: Rehearsal) -> None:
    figures = "curl -sf --unix-socket /run/mlflow/1.sock http://localhost/labtrack/metrics"
    checked = rehearsal.ssh("server", f"{figures} | promtool check metrics")
    assert (checked.returncode, checked.stderr) == (0, "")
    rehearsal.ssh("server", "promtool check config /etc/labtrack-metrics/prometheus.yml", check=True)


def test_week_s_report_is_left_for_the_alarms_and_shown(rehearsal: Rehearsal) -> None:
    """By its sandboxed unit, as the timer starts it, and by the admin's command."""
    left = "systemctl start labtrack-report.service && cat /var/lib/labtrack-report/report.json"
    text = json.loads(rehearsal.ssh("server", left, check=True).stdout)["text"]
    assert re.search(r"^  runs +\d+ began, by \d+ people", text, re.MULTILINE), text
    assert "not known:" not in text
    shown = rehearsal.run("labtrack", "status", str(rehearsal.lab_dir), "--report", check=True).stdout
    assert re.search(r"^  database +[\d.]+ [KMG]iB, ", shown, re.MULTILINE), shown


def test_page_draws_its_curves_in_a_browser(rehearsal: Rehearsal, admin: Api, results: Path) -> None:
    user, password = admin.login
    with chromium(rehearsal.ca) as browser:
        context = browser.new_context(http_credentials={"username": user, "password": password})
        errors: list[str] = []
        for page in PAGES:
            shown = context.new_page()
            shown.on("pageerror", lambda error: errors.append(str(error)))
            shown.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
            shown.goto(f"{admin.url}/metrics/{page['name']}")
            curves = len([panel for panel in page["panels"] if not panel.get("now")])
            expect(shown.locator("figure svg path").first).to_be_attached(timeout=WAIT)
            expect(shown.locator("figure svg")).to_have_count(curves, timeout=WAIT)
            expect(shown.locator("figure .bad")).to_have_count(0)
            assert "-" not in [text.strip() for text in shown.locator(".now b").all_inner_texts()]
            shown.screenshot(path=results / f"metrics-{page['name']}.png", full_page=True)
            shown.close()
        assert errors == []


def test_points_that_were_logged_are_counted(admin: Api, logged: float) -> None:
    assert logged >= 20
    deadline = time.monotonic() + 60  # two looks
    while points(admin) != logged:
        assert time.monotonic() < deadline
        time.sleep(1)


@pytest.mark.long
def test_turned_off_leaves_no_trace_and_turned_on_again_works(rehearsal: Rehearsal, admin: Api) -> None:
    """Two deploys, and one more that changes nothing."""
    rehearsal.playbook("playbooks/deploy.yml", "-e", "lab_metrics=false", check=True)
    assert rehearsal.ssh("server", TRACES).stdout.split("\n") == [""]
    assert rehearsal.ssh("server", "ls -A /var/lib/labtrack-metrics", check=True).stdout != ""
    assert admin.get("/metrics/overview").status_code == 404
    again = rehearsal.playbook("playbooks/deploy.yml", "-e", "lab_metrics=false", check=True)
    assert re.search(r"server +: ok=\d+ +changed=0 ", again.stdout), again.stdout[-2000:]
    rehearsal.playbook("playbooks/deploy.yml", "-e", "lab_metrics=true", check=True)
    assert admin.get("/metrics/overview").status_code == 200
