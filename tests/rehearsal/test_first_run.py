"""The first thing that a researcher types works, whoever else has used the name before, and not only in MLflow."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from api import Api

from labtrack.envfile import read_envfile

if TYPE_CHECKING:
    from conftest import Rehearsal

SHARED = ["Default", "lightning_logs", "anemoi-debug"]
PLAIN = """
import mlflow
with mlflow.start_run() as run:
    mlflow.log_metric("loss", 0.5)
    mlflow.log_text("hello", "note.txt")
"""
# One after the other, because each start of Python costs seconds: in one's own, in those that all use, in MLflow's own.
EVERYWHERE = f"""
import json, os
runs = {{}}
for name in (os.environ["MLFLOW_EXPERIMENT_NAME"], *{SHARED}, None):
    if name:
        os.environ["MLFLOW_EXPERIMENT_NAME"] = name
    else:
        del os.environ["MLFLOW_EXPERIMENT_NAME"]
    exec({PLAIN!r})
    runs[name or "none"] = run.info.run_id
print(json.dumps(runs))
"""
AUTOLOG = """
import json, mlflow, sklearn.datasets, sklearn.linear_model
mlflow.autolog()
x, y = sklearn.datasets.load_iris(return_X_y=True)
sklearn.linear_model.LogisticRegression(max_iter=300).fit(x, y)
print(json.dumps({"autolog": mlflow.last_active_run().info.run_id}))
"""
# As Anemoi's logger and its sync ask whether the server is there; and as other libraries do.
OTHERS = {
    "requests": "import os, requests; requests.get('URL').raise_for_status()",
    "urllib": "import os, urllib.request as r; r.urlopen('URL')",
    "httpx": "import os, httpx; httpx.get('URL').raise_for_status()",
    "curl": "curl -sS --fail URL >/dev/null",
}


@pytest.fixture(scope="module")
def admin(rehearsal: Rehearsal) -> Api:
    return Api(rehearsal.url, str(rehearsal.ca), ("admin", rehearsal.secrets["secret_mlflow_admin_password"]))


@pytest.fixture(scope="module", params=["ada", "grace"])
def person(rehearsal: Rehearsal, request: pytest.FixtureRequest) -> str:
    """A researcher with their file on the login node."""
    user = request.param
    rehearsal.hand_file(user)
    return user


def sourced(rehearsal: Rehearsal, user: str, command: str, before: str = ":") -> str:
    """What a command prints that a person runs with their file sourced."""
    script = f"cd && {before} && . ./mlflow_env.sh && {command}"
    return rehearsal.ssh("login", f"su {user} -c {shlex.quote(script)}", check=True).stdout


def python(rehearsal: Rehearsal, user: str, code: str) -> dict[str, str]:
    """The ids of the runs that a script makes, by what it calls them."""
    said = sourced(rehearsal, user, f"{rehearsal.PYTHON} -c {shlex.quote(code)}")
    return json.loads(next(line for line in said.splitlines() if line.startswith("{")))


def seen(admin: Api, run_id: str) -> tuple[dict[str, Any], str]:
    """A run, and the name of its experiment."""
    answer = admin.get(f"runs/get?run_id={run_id}")
    answer.raise_for_status()
    run = answer.json()["run"]
    found = admin.get(f"experiments/get?experiment_id={run['info']['experiment_id']}").json()["experiment"]
    return run, found["name"]


def test_runs_that_name_no_experiment_and_names_that_all_use(rehearsal: Rehearsal, admin: Api, person: str) -> None:
    runs = python(rehearsal, person, EVERYWHERE)
    assert list(runs) == [person, *SHARED, "none"]
    where = {}
    for name, run_id in runs.items():
        run, where[name] = seen(admin, run_id)
        assert (run["info"]["user_id"], run["info"]["status"]) == (person, "FINISHED")
        assert [metric["value"] for metric in run["data"]["metrics"]] == [0.5]
    assert where == {**{name: name for name in (person, *SHARED)}, "none": "Default"}

    variables = read_envfile(rehearsal.private / person / "mlflow_env.sh").variables
    api = Api(admin.url, admin.ca, (variables["MLFLOW_TRACKING_USERNAME"], variables["MLFLOW_TRACKING_PASSWORD"]))
    assert api.call("runs/delete", {"run_id": runs[person]}).status_code == 200, "one's own may be deleted"
    shared = admin.get("experiments/get-by-name?experiment_name=lightning_logs").json()["experiment"]["experiment_id"]
    assert api.call("experiments/delete", {"experiment_id": shared}).status_code == 403, "what all use may not"


def test_autolog_records(rehearsal: Rehearsal, admin: Api, person: str) -> None:
    if person != "ada":
        pytest.skip("one person's is enough")
    run, experiment = seen(admin, python(rehearsal, person, AUTOLOG)["autolog"])
    assert (experiment, run["info"]["status"]) == (person, "FINISHED")
    assert "training_accuracy_score" in {metric["key"] for metric in run["data"]["metrics"]}


def command(rehearsal: Rehearsal, library: str, url: str) -> str:
    """A shell command by which a library asks for an address, and fails when it does not trust it."""
    code = OTHERS[library].replace("URL", url)
    if library == "httpx":
        install = "apt-get update -qq && apt-get install -qq -y python3-httpx"  # a machine from an image has no lists
        rehearsal.ssh("login", f"dpkg -s python3-httpx >/dev/null 2>&1 || {{ {install}; }}", check=True)
        return f"/usr/bin/python3 -c {shlex.quote(code)}"
    return code if library == "curl" else f"{rehearsal.PYTHON} -c {shlex.quote(code)}"


@pytest.mark.parametrize("library", OTHERS)
def test_programs_beside_mlflow_trust_the_server(rehearsal: Rehearsal, person: str, library: str) -> None:
    ask = command(rehearsal, library, f"{rehearsal.url}/health")
    sourced(rehearsal, person, ask)
    for before in (ask, f"cd && . ./mlflow_env.sh && mlflow_env_off && {ask}"):
        without = rehearsal.ssh("login", f"su {person} -c {shlex.quote(before)}")
        assert without.returncode != 0, "it is trusted without the file"


@pytest.mark.parametrize(
    ("library", "variable"),
    [("requests", "REQUESTS_CA_BUNDLE"), ("urllib", "SSL_CERT_FILE"), ("curl", "CURL_CA_BUNDLE")],
)
def test_programs_trust_other_hosts_as_before(rehearsal: Rehearsal, person: str, library: str, variable: str) -> None:
    """Somebody else's server whose CA is in a bundle that the institute has handed out."""
    ca = Path(rehearsal.root / rehearsal.lab["lab_s3_ca_file"]).read_text()
    name = f"/tmp/institute-{person}.pem"
    rehearsal.ssh("login", f"cat >{name} && chmod 644 {name}", stdin=ca, check=True)
    ask = command(rehearsal, library, "https://cloud.rehearsal.test:5000/v3")
    sourced(rehearsal, person, f"{ask} && grep -q MII ${variable}", before=f"export {variable}={name}")
