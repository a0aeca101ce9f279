"""The analysis notebook on the deployed server, with Ada's login."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import TYPE_CHECKING

import notebook
from labtrack.envfile import read_envfile

if TYPE_CHECKING:
    from conftest import Rehearsal


def test_notebook_reads_the_deployed_server(rehearsal: Rehearsal, trained: str, tmp_path: Path) -> None:
    ada = read_envfile(rehearsal.private / "ada" / "mlflow_env.sh").variables
    login = {name: value for name, value in ada.items() if name.startswith("MLFLOW_TRACKING_")}
    # the certificate's path in Ada's file is that of the login node
    more = {"REQUESTS_CA_BUNDLE": str(rehearsal.ca), "XDG_CACHE_HOME": str(tmp_path), "LABTRACK_METRIC": "loss"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "AWS_"))}
    env = {**kept, **login, **more, "MLFLOW_TRACKING_SERVER_CERT_PATH": str(rehearsal.ca)}
    said = notebook.run(rehearsal.url, tmp_path, env)
    assert "could not be read" not in said
    rows = list(csv.DictReader((tmp_path / "leaderboard.csv").open()))
    assert trained in [row["run_id"] for row in rows]
