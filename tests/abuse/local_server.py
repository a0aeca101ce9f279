"""The application alone on this machine, with the MLflow that LABTRACK_TEST_MLFLOW names, for attacks without machines.

What nginx, systemd and the firewall keep away comes in here: the application has to refuse it by itself.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import yaml
from api import Api
from sync_server import ROOT, postgresql, postgresql_bin

sys.path += [str(ROOT / "tests/differential"), str(ROOT / "tests/backup")]
from lab_server import ADMIN, LabServer
from s3_server import REGION, Store

SETTINGS = ROOT / "roles/mlflow/vars/main.yml"
SOURCES = "^(runs:/|models:/|mlflow-artifacts:/|s3://bucket/|(dummy-source|prompt-template)$)"


def settings() -> dict[str, str]:
    """The role's settings of the server, as far as they are the same in each lab."""
    role = yaml.safe_load(SETTINGS.read_text())["__mlflow_settings"]
    fixed = {name: value for name, value in role.items() if "{{" not in value and name.startswith(("MLFLOW_", "AWS_"))}
    return {**fixed, "MLFLOW_CREATE_MODEL_VERSION_SOURCE_VALIDATION_REGEX": SOURCES}


@pytest.fixture(scope="session")
def lab_server() -> Iterator[LabServer]:
    """With direct access to a store."""
    if postgresql_bin() is None:
        pytest.skip("PostgreSQL is not installed (apt install postgresql)")
    with postgresql("labtrack-abuse-") as postgres:
        folder = postgres.folder.parent
        store = Store(folder, "bucket")
        with store.serving():
            more = {
                **settings(), "MLFLOW_S3_ENDPOINT_URL": store.endpoint, "AWS_CA_BUNDLE": str(store.ca),
                "AWS_ACCESS_KEY_ID": store.access_key, "AWS_SECRET_ACCESS_KEY": store.secret_key,
                "AWS_DEFAULT_REGION": REGION,
            }  # fmt: skip
            server = LabServer(postgres, "abused", folder / "abused", more=more)
            try:
                server.prepare()
                yield server
            finally:
                server.kill()


@pytest.fixture(scope="module")
def admin(lab_server: LabServer) -> Api:
    """The admin of that server, not of the rehearsal's."""
    return Api(lab_server.url, "", ADMIN)
