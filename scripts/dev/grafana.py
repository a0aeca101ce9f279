"""The pages of roles/metrics as dashboards for a Grafana; `make docs` writes them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

ROLE = Path(__file__).resolve().parents[2] / "roles" / "metrics"
DASHBOARDS = ROLE / "files" / "grafana"
UNITS = {"number": "short", "bytes": "bytes", "seconds": "s", "share": "percentunit", "days": "d"}
SOURCE = {"type": "prometheus", "uid": "${source}"}
WIDE, HIGH, SMALL = 12, 8, 4  # of Grafana's 24 columns


def pages() -> list[dict[str, Any]]:
    """What is shown, as the consoles have it."""
    return list(yaml.safe_load((ROLE / "files" / "pages.yml").read_text(encoding="utf-8")))


def dashboard(page: dict[str, Any]) -> str:
    """A page as Grafana imports it; it asks for the data source then."""
    panels, x, y = [], 0, 0
    for number, panel in enumerate(sorted(page["panels"], key=lambda one: not one.get("now")), start=1):
        now = panel.get("now", False)
        width, height = (SMALL, SMALL) if now else (WIDE, HIGH)
        if x + width > 2 * WIDE or (x and not now and panels[-1]["type"] == "stat"):
            x, y = 0, y + panels[-1]["gridPos"]["h"]
        targets = [
            {
                "refId": chr(ord("A") + place), "datasource": SOURCE, "expr": query["expr"], "instant": now,
                "legendFormat": re.sub(r"\{(\w+)\}", r"{{\1}}", query.get("legend", "")),
            }
            for place, query in enumerate(panel["queries"])
        ]  # fmt: skip
        panels.append(
            {
                "id": number, "type": "stat" if now else "timeseries", "title": panel["title"], "datasource": SOURCE,
                "gridPos": {"x": x, "y": y, "w": width, "h": height}, "targets": targets,
                "fieldConfig": {"defaults": {"unit": UNITS[panel["unit"]], "min": 0}, "overrides": []},
            }
        )  # fmt: skip
        x += width
    source = {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    whole = {
        "uid": f"labtrack-{page['name']}", "title": f"labtrack: {page['title']}", "tags": ["labtrack"],
        "schemaVersion": 36, "version": 1, "editable": True, "refresh": "1m", "timezone": "",
        "time": {"from": "now-6h", "to": "now"}, "templating": {"list": [source]},
        "annotations": {"list": []}, "panels": panels,
    }  # fmt: skip
    return json.dumps(whole, indent=1) + "\n"


def files() -> dict[Path, str]:
    """Each dashboard's file, and what is in it."""
    return {DASHBOARDS / f"{page['name']}.json": dashboard(page) for page in pages()}
