"""What a client names as a location: only the lab's own storage, and there only what the account may read."""

from __future__ import annotations

import secrets

import pytest
from api import Api
from conftest import Secret

ELSEWHERE = [
    "/run/mlflow/x", "/dev/shm/x", "relative", "file:///etc", "file:/run/mlflow", "http://169.254.169.254/latest",
    "https://example.org/api/2.0/mlflow-artifacts/artifacts/1", "ftp://example.org/x", "sftp://example.org/x",
    "s3://another-bucket/artifacts/1", "gs://bucket/x", "hdfs://host/x", "dbfs:/x", "mlflow-artifacts://host/1",
    "{root}/../x", "{root}/1/%2e%2e/2", "{root}", "{root}/", "{root}x/1", "{root}/1?x=y", "{root}/1#x", "{root}//1",
    "mlflow-artifacts:/../x", "mlflow-artifacts:/", "mlflow-artifacts:///1", "S3://x/y", "{root}/1/a\\b",
    "{root}/1/\x00",
]  # fmt: skip


@pytest.fixture(scope="module")
def root(ann: Api) -> str:
    """Where the lab's artifacts are, as experiments say it."""
    where = ann.get(f"experiments/get?experiment_id={ann.new_experiment()}").json()["experiment"]["artifact_location"]
    return str(where).rpartition("/")[0]


@pytest.fixture(scope="module")
def registered(eve: Api) -> str:
    """A registered model of Eve's."""
    name = f"test-{secrets.token_hex(6)}"
    eve.done("registered-models/create", {"name": name})
    return name


def places(api: Api, secret: Secret) -> list[str]:
    """All ways to name what Ann keeps to herself."""
    run = api.get(f"runs/get?run_id={secret.run}").json()["run"]["info"]["artifact_uri"]
    model = api.get(f"logged-models/{secret.model}").json()["model"]["info"]["artifact_uri"]
    both = [run, model, f"{run}/model", f"{model}/MLmodel", run.rpartition("/")[0]]
    proxied = [f"mlflow-artifacts:/{place.partition('/artifacts/')[2]}" for place in both if place.startswith("s3:")]
    return [
        *both, *proxied, f"runs:/{secret.run}", f"runs:/{secret.run}/model", f"models:/{secret.model}",
        f"models:/{secret.name}/1",
    ]  # fmt: skip


@pytest.mark.parametrize("where", ELSEWHERE)
def test_experiments_create_elsewhere_is_refused_with_a_hint(eve: Api, root: str, where: str) -> None:
    body = {"name": f"test-{secrets.token_hex(6)}", "artifact_location": where.format(root=root)}
    for prefix in ("/api/2.0/mlflow/", "/ajax-api/2.0/mlflow/"):
        answer = eve.call(f"{prefix}experiments/create", body)
        assert (answer.status_code, answer.json()["error_code"]) == (400, "INVALID_PARAMETER_VALUE"), answer.text


def test_experiments_create_says_what_to_do(eve: Api) -> None:
    answer = eve.call("experiments/create", {"name": f"test-{secrets.token_hex(6)}", "artifact_location": "/dev/shm/x"})
    assert "To fix: leave the location out" in answer.json()["message"]


def test_experiments_create_in_or_around_another_s_experiment_is_refused(ann: Api, eve: Api, root: str) -> None:
    theirs = ann.new_experiment()  # readable by Eve, not writable
    for place in (f"{root}/{theirs}", f"{root}/{theirs}/", f"{root}/{theirs}/traces", f"mlflow-artifacts:/{theirs}"):
        body = {"name": f"test-{secrets.token_hex(6)}", "artifact_location": place}
        assert eve.call("experiments/create", body).status_code == 403, place
    ahead = {"name": f"test-{secrets.token_hex(6)}", "artifact_location": f"{root}/{int(theirs) + 100_000}"}
    assert eve.call("experiments/create", ahead).status_code == 400


def test_experiments_create_in_one_s_own_folder_works(ann: Api, root: str) -> None:
    own = ann.new_experiment()
    body = {"name": f"test-{secrets.token_hex(6)}", "artifact_location": f"{root}/{own}/inner"}
    made = ann.done("experiments/create", body)["experiment_id"]
    assert ann.new_run(made)


def test_model_versions_create_with_another_s_source_is_refused(
    ann: Api, eve: Api, secret: Secret, registered: str
) -> None:
    for source in places(ann, secret):
        for claim in ({}, {"run_id": eve.new_run()}, {"run_id": secret.run}, {"model_id": secret.model}):
            answer = eve.call("model-versions/create", {"name": registered, "source": source, **claim})
            assert answer.status_code in (400, 403), (source, claim, answer.text)
    assert eve.call("model-versions/search", None, "GET").status_code == 200
    assert eve.get(f"model-versions/get?name={registered}&version=1").status_code == 404


@pytest.mark.parametrize("where", ELSEWHERE)
def test_model_versions_create_elsewhere_is_refused(eve: Api, registered: str, root: str, where: str) -> None:
    run = eve.new_run()
    for claim in ({}, {"run_id": run}):
        body = {"name": registered, "source": where.format(root=root), **claim}
        answer = eve.call("model-versions/create", body)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error_code"] == "INVALID_PARAMETER_VALUE"


def test_model_versions_create_of_what_the_account_may_read_works(ann: Api, eve: Api, registered: str) -> None:
    experiment = ann.new_experiment()
    run = ann.new_run(experiment)
    model = ann.done("logged-models", {"experiment_id": experiment, "name": "m", "source_run_id": run})["model"]["info"]
    where = ann.get(f"runs/get?run_id={run}").json()["run"]["info"]["artifact_uri"]
    good = [
        {"source": f"{where}/model", "run_id": run},
        {"source": f"runs:/{run}/model", "run_id": run},
        {"source": f"models:/{model['model_id']}", "model_id": model["model_id"], "run_id": run},
        {"source": model["artifact_uri"], "model_id": model["model_id"]},
    ]
    for body in good:
        version = eve.done("model-versions/create", {"name": registered, **body})["model_version"]["version"]
    again = {"name": registered, "source": f"models:/{registered}/{version}"}
    assert eve.call("model-versions/create", again).status_code == 200
    wrong = {"name": registered, "source": f"{where}/model", "run_id": eve.new_run()}
    assert eve.call("model-versions/create", wrong).status_code == 400


def test_a_copied_version_needs_the_model_that_it_comes_from(eve: Api, secret: Secret, registered: str) -> None:
    """The client's copy_model_version, by version, alias and stage."""
    for name in (f"{secret.name}/1", f"{secret.name}@best", f"{secret.name}/Production", f"{secret.name}/latest"):
        answer = eve.call("model-versions/create", {"name": registered, "source": f"models:/{name}"})
        assert answer.status_code in (403, 404), answer.text
    for body in ({"name": secret.name, "alias": "best", "version": "1"},):
        assert eve.call("registered-models/alias", body).status_code == 403


def test_what_is_denied_is_not_read_by_any_route(eve: Api, secret: Secret) -> None:
    for path in (
        f"/get-artifact?run_id={secret.run}&path=x", f"/get-artifact?run_uuid={secret.run}&path=x",
        f"/model-versions/get-artifact?name={secret.name}&version=1&path=x",
        f"/ajax-api/2.0/mlflow/logged-models/{secret.model}/artifacts/files?artifact_file_path=x",
        f"artifacts/list?run_id={secret.run}", f"runs/get?run_id={secret.run}", f"logged-models/{secret.model}",
        f"experiments/get?experiment_id={secret.experiment}", f"registered-models/get?name={secret.name}",
        f"model-versions/get-download-uri?name={secret.name}&version=1",
    ):  # fmt: skip
        assert eve.get(path).status_code == 403, path
    question = {"query": f'{{mlflowGetRun(input: {{runId: "{secret.run}"}}) {{run {{info {{artifactUri}}}}}}}}'}
    assert secret.run + "/artifacts" not in eve.call("/graphql", question).text
    found = eve.done("runs/search", {"experiment_ids": [secret.experiment]})
    assert found.get("runs", []) == []


def test_create_promptlab_run_is_closed_with_a_sentence(eve: Api) -> None:
    answer = eve.call("/ajax-api/2.0/mlflow/runs/create-promptlab-run", {"experiment_id": eve.new_experiment()})
    assert answer.status_code == 404
    assert "does not offer the prompt lab. To fix" in answer.json()["message"]
