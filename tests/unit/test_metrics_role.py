"""What the role metrics writes: taken by Prometheus, and the same in the pages and the dashboards."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

import grafana

ROLE = ROOT / "roles/metrics"
PLAY = f"""
- hosts: localhost
  gather_facts: false
  vars: {{role_path: {ROLE}, metrics_fqdn: mlflow.example.org, __metrics_folder: "{{{{ folder }}}}"}}
  vars_files: [{ROLE}/defaults/main.yml, {ROLE}/vars/main.yml]
  tasks:
    - template: {{src: "{ROLE}/templates/{{{{ item }}}}.j2", dest: "{{{{ folder }}}}/{{{{ item }}}}"}}
      loop: [prometheus.yml, blackbox.yml, labtrack.lib]
    - template: {{src: {ROLE}/templates/page.html.j2, dest: "{{{{ folder }}}}/{{{{ item.name }}}}.html"}}
      loop: "{{{{ __metrics_pages }}}}"
    - template: {{src: {ROLE}/templates/unit.conf.j2, dest: "{{{{ folder }}}}/{{{{ item }}}}.service"}}
      loop: "{{{{ __metrics_names }}}}"
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what the role writes."""
    folder = tmp_path_factory.mktemp("metrics")
    (folder / "play.yml").write_text(PLAY)
    program = Path(sys.executable).with_name("ansible-playbook")
    command = [program, "-i", "localhost,", "-c", "local", "-e", f"folder={folder}", folder / "play.yml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_all_that_is_asked_is_on_the_machine_itself(written: Path) -> None:
    asked = yaml.safe_load((written / "prometheus.yml").read_text())
    places = [place for job in asked["scrape_configs"] for one in job["static_configs"] for place in one["targets"]]
    assert len(places) == 7
    assert {place.partition(":")[0] for place in places} == {"127.0.0.1"}
    assert [job["params"]["target"] for job in asked["scrape_configs"] if "params" in job] == [
        ["https://127.0.0.1/health"]
    ]
    instances = [
        one["labels"] for job in asked["scrape_configs"] if job["job_name"] == "mlflow" for one in job["static_configs"]
    ]
    assert [(one["__metrics_path__"], one["instance"]) for one in instances] == [
        ("/mlflow/1", "mlflow@1"), ("/mlflow/2", "mlflow@2"),
    ]  # fmt: skip


def test_services_listen_to_the_machine_alone(written: Path) -> None:
    units = sorted(written.glob("*.service"))
    assert len(units) == 5
    for unit in units:
        text = unit.read_text()
        assert re.search(
            r"^ExecStart=\n^ExecStart=/usr/bin/\S+ --web.listen-address=127[.]0[.]0[.]1:\d+ ", text, re.MULTILINE
        )
        assert {"IPAddressDeny=any", "IPAddressAllow=localhost", "NoNewPrivileges=true"} <= set(text.splitlines())
        assert re.search(r"^MemoryMax=\d+M$", text, re.MULTILINE)


@pytest.mark.parametrize("page", grafana.pages(), ids=lambda page: str(page["name"]))
def test_page_asks_what_its_list_says(page: dict, written: Path) -> None:
    text = (written / f"{page['name']}.html").read_text()
    asked = [json.loads(html.unescape(found)) for found in re.findall(r'data-queries="([^"]*)"', text)]
    assert asked == [panel["queries"] for panel in page["panels"] if not panel.get("now")]
    assert text.count("{{ with query") == len([panel for panel in page["panels"] if panel.get("now")])


@pytest.mark.parametrize(("file", "text"), grafana.files().items(), ids=lambda one: getattr(one, "name", ""))
def test_dashboard_is_current(file: Path, text: str) -> None:
    assert file.read_text() == text, f"{file.relative_to(ROOT)} is old: run `make docs`"
    panels = json.loads(text)["panels"]
    page = next(page for page in grafana.pages() if page["name"] == file.stem)
    assert sorted(panel["title"] for panel in panels) == sorted(panel["title"] for panel in page["panels"])
    taken = [(x, y) for panel in panels for x, y in cells(panel["gridPos"])]
    assert len(taken) == len(set(taken)), "two panels are in one place"


def cells(place: dict[str, int]) -> list[tuple[int, int]]:
    columns, rows = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
    return [(x, y) for x in columns for y in rows]
