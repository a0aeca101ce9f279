"""Artifacts through the server: streamed, shown without the right to run, and never imported."""

from __future__ import annotations

import shlex
import time
from typing import Any

import pytest
import requests
from api import Api

PAGE = b"<script>document.title = 'ran'</script><svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"
BIG = 100  # MiB
# What the server's temporary folders hold now; the unit's are private, so the processes' own view is asked.
PROCESSES = "$(systemctl show -p MainPID --value mlflow@1 mlflow@2)"
TEMPORARY = f"for p in {PROCESSES}; do du -sxk /proc/$p/root/var/tmp; done"


class Store:
    """The object store, as the server sees it."""

    def __init__(self, rehearsal: Any) -> None:
        self.rehearsal = rehearsal

    def put(self, uri: str, body: str) -> None:
        """Write an object; BODY is the Python expression that gives its content."""
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        program = (
            "import io, os, sys; sys.path.append('/usr/local/lib/mlflowctl'); from mlflow_databases import settings\n"
            "values = settings(); os.environ.update({k: v for k, v in values.items() if k.startswith('AWS_')})\n"
            "import boto3; from botocore.config import Config\n"
            "s3 = boto3.client('s3', endpoint_url=values['MLFLOW_S3_ENDPOINT_URL'],"
            " config=Config(s3={'addressing_style': 'path'}))\n"
            f"s3.upload_fileobj(io.BytesIO({body}), {bucket!r}, {key!r})\n"
        )
        self.rehearsal.ssh("server", "/opt/mlflow/current/bin/python -W ignore -", stdin=program, check=True)


@pytest.fixture(scope="module")
def files(rehearsal: Any, ann: Api) -> tuple[str, str]:
    """A run of Ann's with a page that has a script, a short text and a large file; and where it keeps them."""
    run = ann.new_run()
    uri = ann.get(f"runs/get?run_id={run}").json()["run"]["info"]["artifact_uri"]
    if uri.startswith("mlflow-artifacts:"):
        pytest.skip("a lab with direct access is asked here; tests/rehearsal/test_proxied.py asks the other")
    store = Store(rehearsal)
    store.put(f"{uri}/page.html", repr(PAGE))
    store.put(f"{uri}/notes/été.txt", "b'0123456789'")
    store.put(f"{uri}/big.bin", f"bytes({BIG} * 2**20)")
    return run, uri


def fetched(api: Api, run: str, path: str, **more: Any) -> requests.Response:
    return api.get(f"/get-artifact?run_id={run}", params={"path": path}, **more)


def test_a_large_artifact_is_streamed_and_not_copied_to_the_disk(
    rehearsal: Any, ann: Api, files: tuple[str, str]
) -> None:
    def used() -> int:
        said = rehearsal.ssh("server", TEMPORARY, check=True).stdout
        return sum(int(line.split()[0]) for line in said.splitlines())

    before, start = used(), time.monotonic()
    with fetched(ann, files[0], "big.bin", stream=True) as answer:
        assert answer.status_code == 200
        assert int(answer.headers["Content-Length"]) == BIG * 2**20
        first = next(answer.iter_content(2**20))
        assert time.monotonic() - start < 20
        assert used() - before < 1024  # KiB
        assert len(first) + sum(len(piece) for piece in answer.iter_content(2**20)) == BIG * 2**20


def test_a_reader_who_goes_away_leaves_nothing_behind(rehearsal: Any, ann: Api, files: tuple[str, str]) -> None:
    def memory() -> int:
        said = rehearsal.ssh("server", f"for p in {PROCESSES}; do grep VmRSS /proc/$p/status; done", check=True).stdout
        return sum(int(line.split()[1]) for line in said.splitlines())

    before = memory()
    for _ in range(6):
        with fetched(ann, files[0], "big.bin", stream=True) as answer:
            next(answer.iter_content(1024))
    assert fetched(ann, files[0], "notes/été.txt").content == b"0123456789"
    assert memory() - before < 200 * 1024  # KiB, of 600 MiB that were asked for


def test_a_part_of_an_artifact_can_be_read(ann: Api, files: tuple[str, str]) -> None:
    answer = fetched(ann, files[0], "notes/été.txt", headers={"Range": "bytes=2-4"})
    assert (answer.status_code, answer.content, answer.headers["Content-Range"]) == (206, b"234", "bytes 2-4/10")
    assert fetched(ann, files[0], "notes/été.txt", headers={"Range": "bytes=50-60"}).status_code == 400


@pytest.mark.parametrize("path", ["absent.txt", "notes"])
def test_what_is_no_artifact_is_404_with_its_name(ann: Api, files: tuple[str, str], path: str) -> None:
    answer = fetched(ann, files[0], path)
    assert (answer.status_code, answer.json()["error_code"]) == (404, "RESOURCE_DOES_NOT_EXIST")
    assert path in answer.json()["message"]


def test_a_page_with_a_script_is_an_attachment_in_a_sandbox(ann: Api, files: tuple[str, str]) -> None:
    answer = fetched(ann, files[0], "page.html")
    assert answer.content == PAGE
    assert answer.headers["Content-Disposition"].startswith("attachment")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Content-Security-Policy"].startswith("sandbox")


def test_a_model_s_code_is_never_imported(rehearsal: Any, ann: Api, files: tuple[str, str]) -> None:
    """A model that leaves a mark when it is loaded: looked at in every way that the server has."""
    run, uri = files
    mark = f"/var/lib/mlflow/mark-{time.time_ns()}"
    store = Store(rehearsal)
    described = (
        f"artifact_path: model\nflavors: {{python_function: {{loader_module: evil, code: code}}}}\nrun_id: {run}\n"
    )
    store.put(f"{uri}/model/MLmodel", repr(described.encode()))
    store.put(f"{uri}/model/code/evil.py", repr(f"open({mark!r}, 'w')".encode()))
    store.put(f"{uri}/model/model.pkl", repr(f"cposix\nsystem\n(S'touch {mark}'\ntR.".encode()))
    name = f"test-{time.time_ns()}"
    ann.done("registered-models/create", {"name": name})
    ann.done("model-versions/create", {"name": name, "source": f"runs:/{run}/model", "run_id": run})
    for path in ("MLmodel", "code/evil.py", "model.pkl"):
        assert fetched(ann, run, f"model/{path}").status_code == 200
    for path in (
        f"model-versions/get?name={name}&version=1", f"artifacts/list?run_id={run}&path=model",
        f"model-versions/get-download-uri?name={name}&version=1", f"registered-models/get?name={name}",
        f"runs/get?run_id={run}",
    ):  # fmt: skip
        assert ann.get(path).status_code == 200, path
    look = f"for p in {PROCESSES}; do test ! -e /proc/$p/root{mark} || exit 1; done"
    rehearsal.ssh("server", f"test ! -e {shlex.quote(mark)} && {look}", check=True)
