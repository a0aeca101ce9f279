"""Paths that lead out of what is served, in every spelling, and honest names that only look like one."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from api import Api
from wire import Answer, get, get_all

DOTS = (
    "..",
    "%2e%2e",
    ".%2e",
    "%2E.",
    "%252e%252e",
    "%25252e%25252e",
    "%c0%ae%c0%ae",
    "%e0%80%ae%e0%80%ae",
    "..;",
    "..%00",
)
SLASHES = ("/", "%2f", "%252f", "\\", "%5c", "%255c", "%c0%af", "//", "/./")
BELOW = (
    "/static-files/", "/api/2.0/mlflow-artifacts/artifacts/", "/api/2.0/mlflow/runs/",
    "/ajax-api/2.0/mlflow/artifacts/", "/model-versions/", "/",
)  # fmt: skip
# Of nuclei's templates for MLflow and what came after them.
PUBLISHED = (
    "/static-files/C:/windows/win.ini", "/static-files/C:%5cwindows%5cwin.ini", "/static-files//etc/passwd",
    "/static-files/%2fetc%2fpasswd", "//etc/passwd", "/%2fetc/passwd", "/etc/passwd", "/static-files/file:///etc/passwd",
    "/api/2.0/mlflow-artifacts/artifacts/%2fetc%2fpasswd", "/api/2.0/mlflow-artifacts/artifacts//etc/passwd",
    "/api/2.0/mlflow-artifacts/artifacts/C:/windows/win.ini", "/static-files/#/../../etc/passwd",
    "/static-files/a%00/../../etc/passwd", "/static-files/....//....//etc/passwd", "/static-files/..%ff/etc/passwd",
)  # fmt: skip
QUERIES = (
    "../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd", "%252e%252e%252fetc/passwd",
    "/etc/passwd", "%2fetc%2fpasswd", "C:/windows/win.ini", "C:%5cwindows%5cwin.ini", "file:///etc/passwd",
    "a/../../b", "model/..", "%25252e%25252e/x", "..%23", "%2e%2e%2f",
)  # fmt: skip


def attempts() -> Iterator[str]:
    """Each way to leave a folder by four steps, from each place."""
    for below, dots, slash in itertools.product(BELOW, DOTS, SLASHES):
        yield f"{below}{(dots + slash) * 4}etc{slash}passwd"
    yield from PUBLISHED


def by_nginx(answer: Answer) -> bool:
    """Refused by nginx itself: in its own words, and without the content of a file."""
    return answer.status in {400, 404} and "error_code" in answer.body and "root:" not in answer.body


def test_traversal_is_refused_by_nginx_in_every_spelling(rehearsal: Any, ann: Api) -> None:
    before = rehearsal.ssh("server", "wc -l < /var/log/nginx/access.log", check=True).stdout
    paths = list(attempts())
    assert len(paths) > 500
    answers = get_all(ann, paths)
    assert [(path, answer) for path, answer in zip(paths, answers, strict=True) if not by_nginx(answer)] == []
    # nginx writes its log within two seconds; the last column is the time that MLflow took: none was asked
    log = rehearsal.ssh("server", f"sleep 2.2; tail -n +{int(before) + 1} /var/log/nginx/access.log", check=True).stdout
    ours = [line for line in log.splitlines() if f" {ann.login[0]} " in line]
    assert len(ours) > 100
    assert [line for line in ours if line.split()[-1] != "-"] == []


@pytest.fixture(scope="module")
def places(ann: Api) -> list[str]:
    """Where MLflow gives out artifacts: of a run, and of a version of a model."""
    run, name = ann.new_run(), f"test-{secrets.token_hex(6)}"
    ann.done("registered-models/create", {"name": name})
    ann.done("model-versions/create", {"name": name, "source": f"runs:/{run}/model", "run_id": run})
    return [f"/get-artifact?run_id={run}&path=", f"/model-versions/get-artifact?name={name}&version=1&path="]


@pytest.mark.parametrize("path", QUERIES)
def test_traversal_in_a_query_is_refused_by_mlflow(ann: Api, places: list[str], path: str) -> None:
    for place in places:
        answer = get(ann, place + path)
        assert answer.status == 400, (place, answer)
        assert "Invalid path" in answer.body


@pytest.mark.parametrize("path", ["..%5c..%5cetc", r"..\..\etc", "a..b", "100%25", "c:d", "%2500"])
def test_name_that_only_looks_like_traversal_is_looked_for_in_the_store(ann: Api, places: list[str], path: str) -> None:
    """There is none of that name, and that is what is said."""
    for place in places:
        answer = get(ann, place + path)
        assert answer.status == 404 or "does not exist" in answer.body, (place, answer)


@pytest.mark.parametrize(
    "name", ["00", "2f", "5c", "a..b", "..", "100%", "50%2e", r"back\slash", "%00", "ü%c0", "a/../b"]
)
def test_search_by_an_honest_name(ann: Api, name: str) -> None:
    for path in ("registered-models/search", "model-versions/search", "experiments/search"):
        escaped = name.replace("'", "''")
        answer = ann.get(path, params={"filter": f"name LIKE '%{escaped}%'", "max_results": 10})
        assert answer.status_code == 200, (path, answer.status_code, answer.text)


@pytest.mark.parametrize("name", ["a..b", "100%", r"back\slash", "c%2fd", "..hidden", "dots..", "%00", "é ü"])
def test_get_by_an_honest_name(ann: Api, name: str) -> None:
    whole = f"{name}-{secrets.token_hex(4)}"
    made = ann.call("experiments/create", {"name": whole})
    assert made.status_code == 200, made.text
    found = ann.get(f"experiments/get-by-name?experiment_name={quote(whole, safe='')}")
    assert found.json()["experiment"]["name"] == whole
