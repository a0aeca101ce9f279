"""Every route of the pinned MLflow, asked by everybody: what is open to whom is in routes.golden.

A new MLflow shows its new routes as a difference of that file.  If the difference is wanted, copy
test-results/routes.golden over tests/abuse/routes.golden.
"""

from __future__ import annotations

import difflib
import json
import re
import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from api import Api, account
from conftest import Secret

GOLDEN = Path(__file__).with_name("routes.golden")
COLUMNS = ("nobody", "denied", "reader", "editor", "admin")
CLIENTS = 8
LIST = """
import json, os
os.environ.update(_MLFLOW_SGI_NAME="uvicorn", MLFLOW_FLASK_SERVER_SECRET_KEY="x")
from mlflow.server import app, auth
from mlflow.server.auth import routes
from mlflow.server.fastapi_app import create_fastapi_app

def flat(these, prefix=""):
    for route in these:
        router = getattr(route, "original_router", None)
        if router:
            yield from flat(router.routes, prefix + route.include_context.prefix)
        elif getattr(route, "path", ""):
            for method in getattr(route, "methods", None) or ():
                yield method, prefix + route.path

found = {(method, str(rule)) for rule in app.url_map.iter_rules() for method in rule.methods}
found |= set(flat(create_fastapi_app().routes))
# Those of the accounts are added when the application is made, which needs its databases.
found |= {(method, path) for path, method in auth.BEFORE_REQUEST_VALIDATORS}
known = {path for _, path in found}
found |= {(method, path) for name, path in vars(routes).items() if name.isupper() and isinstance(path, str)
          and path not in known for method in ("GET", "POST")}
print(json.dumps(sorted(pair for pair in found if pair[0] not in ("HEAD", "OPTIONS"))))
"""


def seen(answer: Any) -> str:
    """An answer's word in the table."""
    if answer.status_code in (401, 403):
        return str(answer.status_code)
    if answer.status_code == 404 and re.search("does not (offer|serve)", answer.text):
        return "closed"
    return "open" if answer.status_code < 500 else str(answer.status_code)


def ask(api: Api, method: str, path: str, known: dict[str, str]) -> str:
    """What one account gets from one route, with everything in the request that routes ask for."""
    some = "manifest.json" if path.startswith("/static-files") else "x"
    path = re.sub(r"[<{](?:\w+:)?(\w+)(?::\w+)?[>}]", lambda part: known.get(part[1], some), path)
    if method == "GET":
        return seen(api.call(path, None, method, params=known))
    return seen(api.call(path, {**known, "experiment_ids": [known["experiment_id"]]}, method))


@pytest.fixture(scope="module")
def table(rehearsal: Any, admin: Api, ann: Api, eve: Api, *, nobody: Api, secret: Secret) -> list[str]:
    """The table as this server gives it."""
    listed = rehearsal.ssh("server", "/opt/mlflow/current/bin/python - 2>/dev/null", stdin=LIST, check=True).stdout
    routes = [(method, path) for method, path in json.loads(listed.splitlines()[-1])]
    assert len(routes) > 500
    known = {
        "experiment_id": secret.experiment, "run_id": secret.run, "run_uuid": secret.run, "model_id": secret.model,
        "trace_id": secret.trace, "request_id": secret.trace, "name": secret.name, "version": "1", "path": "x",
        "artifact_file_path": "x", "username": ann.login[0], "key": "x", "value": "x", "experiment_name": "x",
    }  # fmt: skip
    # An admin may do anything, so it is asked about what is not there.
    absent = {name: secrets.token_hex(16) for name in known} | {"experiment_id": "999999999", "version": "1"}
    with account(admin) as reader, account(admin) as editor:
        for kind, identity in (("experiment", secret.experiment), ("registered_model", secret.name)):
            ann.grant(editor, kind, identity, "EDIT")
        asking = [(nobody, known), (eve, known), (reader, known), (editor, known), (admin, absent)]

        def row(route: tuple[str, str]) -> str:
            words = [ask(api, *route, values) for api, values in asking]
            return f"{route[0]:<7}{route[1]:<88}" + "".join(f"{word:<7}" for word in words).rstrip()

        with ThreadPoolExecutor(CLIENTS) as pool:
            rows = list(pool.map(row, routes))
    admin.call("registered-models/delete", {"name": absent["name"]}, "DELETE")
    return sorted(rows, key=lambda line: (line[7:].split()[0], line))


def test_every_route_is_open_or_closed_on_purpose(table: list[str], results: Path) -> None:
    head = f"{'':<95}" + "".join(f"{column:<7}" for column in COLUMNS).rstrip()
    text = "\n".join([head, *table]) + "\n"
    (results / GOLDEN.name).write_text(text)
    changes = difflib.unified_diff(
        GOLDEN.read_text().splitlines(), text.splitlines(), "golden", "now", lineterm="", n=0
    )
    assert list(changes) == [], f"if this is wanted: cp test-results/{GOLDEN.name} {GOLDEN}"


def test_no_route_is_open_without_a_login(table: list[str]) -> None:
    public = {line[7:].split()[0] for line in table if line[95:].split()[0] not in ("401", "closed")}
    assert public <= {"/health", "/static-files/<path:path>"}, public


def test_no_route_answers_with_an_error_of_the_server(table: list[str]) -> None:
    failing = {line[7:].split()[0] for line in table if re.search(r"\b5\d\d\b", line[95:])}
    # MLflow's own, of a request without a query, or without a status
    assert failing <= {"/graphql", *(f"/{api}/2.0/mlflow/traces/<request_id>" for api in ("api", "ajax-api"))}


def test_a_denied_account_gets_no_further_than_others(table: list[str]) -> None:
    rank = {"401": 0, "closed": 0, "403": 1, "open": 2}
    for line in table:
        _, denied, reader, editor, admin = (rank.get(word, 2) for word in line[95:].split())
        assert denied <= reader <= editor <= admin, line
