"""What a researcher does with the file, from the machine that plays the cluster's login node."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config

if TYPE_CHECKING:
    from conftest import Rehearsal


def rest(rehearsal: Rehearsal, path: str, **query: str) -> dict:
    """What the REST interface answers to curl with nothing but the file's variables."""
    parameters = " ".join(f"--data-urlencode {shlex.quote(f'{k}={v}')}" for k, v in query.items())
    return json.loads(
        rehearsal.as_ada(
            'curl -sS --fail-with-body --get --cacert "$MLFLOW_TRACKING_SERVER_CERT_PATH" '
            '-u "$MLFLOW_TRACKING_USERNAME:$MLFLOW_TRACKING_PASSWORD" '
            f'"$MLFLOW_TRACKING_URI/api/2.0/mlflow/{path}" {parameters}',
        )
    )


def test_a_script_that_knows_nothing_of_the_kit_logs_a_whole_run(rehearsal: Rehearsal, trained: str) -> None:
    run = rest(rehearsal, "runs/get", run_id=trained)["run"]
    assert run["info"]["status"] == "FINISHED"
    assert run["info"]["user_id"] == "ada"
    assert {p["key"]: p["value"] for p in run["data"]["params"]} == {
        "epochs": "20", "learning_rate": "0.001", "model": "SGDClassifier"
    }  # fmt: skip

    history = rest(rehearsal, "metrics/get-history", run_id=trained, metric_key="loss")["metrics"]
    assert [m["step"] for m in history] == list(range(20))
    assert history[0]["value"] > history[-1]["value"] > 0

    files = {f["path"] for f in rest(rehearsal, "artifacts/list", run_id=trained)["files"]}
    assert {"figures", "report.txt"} <= files

    version = rest(rehearsal, "registered-models/get", name="digits")["registered_model"]
    assert version["latest_versions"][0]["run_id"] == trained


def test_the_registered_model_comes_back_and_predicts(rehearsal: Rehearsal, trained: str) -> None:
    code = (
        "import mlflow, sklearn.datasets as d; x, y = d.load_digits(return_X_y=True);"
        "m = mlflow.sklearn.load_model('models:/digits/latest'); print('score', m.score(x / 16, y))"
    )
    said = rehearsal.as_ada(f"{rehearsal.PYTHON} -c {shlex.quote(code)}")
    assert float(said.split("score")[1]) > 0.5


def test_the_artifacts_are_objects_in_swift(rehearsal: Rehearsal, trained: str) -> None:
    lab, secrets = rehearsal.lab, rehearsal.secrets
    store = boto3.client(
        "s3",
        endpoint_url=lab["lab_s3_endpoint"],
        region_name=lab["lab_s3_region"],
        verify=str(rehearsal.root / lab["lab_s3_ca_file"]),
        aws_access_key_id=secrets["secret_s3_access_key_id"],
        aws_secret_access_key=secrets["secret_s3_secret_access_key"],
        config=Config(
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
    uri = rest(rehearsal, "runs/get", run_id=trained)["run"]["info"]["artifact_uri"]
    prefix = f"s3://{lab['lab_bucket']}/"
    assert uri.startswith(prefix), "in direct mode, runs name the bucket"
    report = store.get_object(Bucket=lab["lab_bucket"], Key=f"{uri.removeprefix(prefix)}/report.txt")["Body"].read()
    assert b"precision" in report


def test_a_dead_server_costs_a_job_seconds_not_minutes(rehearsal: Rehearsal) -> None:
    code = (
        "import time, mlflow; t = time.monotonic()\n"
        "try: mlflow.set_experiment('x')\n"
        "except Exception as error: print(type(error).__name__, round(time.monotonic() - t, 1))"
    )
    dead = f"MLFLOW_TRACKING_URI=https://10.99.0.1:9 {rehearsal.PYTHON} -c {shlex.quote(code)}"
    name, seconds = rehearsal.as_ada(dead).split()[-2:]
    assert name == "MlflowException"
    assert float(seconds) < 60
