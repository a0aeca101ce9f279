"""The tracking server: login, version, and a run that is written and deleted."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from importlib import metadata
from typing import Any

import requests

from labtrack.doctor.context import Context
from labtrack.doctor.result import Result, failed, ok, skipped, warning
from labtrack.errors import WITHOUT_BOTO3, innermost
from labtrack.tracking import answers

FLOOR = (3, 17, 2)  # older servers have published exploits (field)
API = "/api/2.0/mlflow"
_LATER = "try again in a minute; if it stays, tell the lab's admin what is said here."


class _Answered(Exception):
    """The server did not do what was asked, or would not; the words are for the user."""

    def __init__(self, said: str, hint: str = _LATER) -> None:
        super().__init__(said)
        self.hint = hint


def _ask(context: Context, method: str, path: str, **more: Any) -> requests.Response:
    answer = context.transport.send(method, path, **more)
    with contextlib.suppress(KeyError, ValueError, TypeError):
        theirs = parsedate_to_datetime(answer.headers["Date"]).timestamp()
        context.dates.setdefault("server", (theirs, time.time() - answer.elapsed.total_seconds() / 2))
    return answer


def login(context: Context) -> Iterator[Result]:
    """Does the server know user and password?"""
    whom = context.credentials.whom
    try:
        answer = _ask(context, "GET", f"{API}/users/current")
        if answer.status_code == requests.codes.not_found:  # a server without accounts, or an older one
            answer = _ask(context, "POST", f"{API}/experiments/search", json={"max_results": 1})
    except requests.exceptions.RequestException as error:
        why = answers.unreached(error, context.uri) or answers.waits_for_tls(error, context.uri)
        yield failed("login", why.what if why else f"no answer: {innermost(error)}", why.hint if why else _LATER)
        return
    yield _login(answer, context.uri, whom, context.credentials.hint)


def _login(answer: requests.Response, uri: str, whom: str, hint: str) -> Result:
    status = answer.status_code
    why = answers.unusable(answer, uri, whom)
    if why is not None:
        return failed("login", why.what, why.hint)
    if answer.ok:
        return ok("login", f"accepted: {whom}")
    if status == requests.codes.unauthorized:
        return failed("login", f"the server refuses {whom} (401)", hint)
    if status == requests.codes.forbidden:
        hint = "use the server's own name in MLFLOW_TRACKING_URI, as your mlflow_env.sh has it."
        return failed("login", f"refused (403): {answers.code_and_words(answer)[1]}", hint)
    if status == requests.codes.too_many_requests:
        return failed("login", "too many logins from here (429)", "wait a minute; share one login between processes.")
    seen = f"the server answered {status}"
    hint = "nginx answers, but MLflow behind it does not: tell the lab's admin (`systemctl status 'mlflow@*'`)."
    if "Retry-After" in answer.headers:  # playbooks/close.yml
        said, _, hint = answers.code_and_words(answer)[1].partition(" To fix: ")
        seen = f"closed for now ({status}): {said}"
    return failed("login", seen, hint)


def version(context: Context) -> Iterator[Result]:
    """Is the server new enough, and does the client here fit?"""
    try:
        answer = _ask(context, "GET", "/version")
    except requests.exceptions.RequestException as error:
        yield failed("server version", f"no answer: {type(error).__name__}", _LATER)
        return
    said = answer.text.strip()
    if answer.status_code >= 300 or not said[:1].isdecimal():  # noqa: PLR2004  MLflow calls the number text/html
        yield skipped("server version", f"the server does not tell ({answer.status_code})")
        return
    numbers = tuple(int(part) for part in said.split(".")[:3] if part.isdecimal())
    client = _client()
    seen = f"MLflow {said}" + (f", here {client}" if client else ", none here")
    if numbers < FLOOR:
        hint = "the lab's admin should update it: older versions have published exploits."
        yield warning("server version", seen, hint)
    elif client and client.partition(".")[0] != said.partition(".")[0]:
        hint = f'pip install "mlflow=={said}" (or mlflow-skinny)'
        yield warning("server version", seen + ": another major version", hint)
    else:
        yield ok("server version", seen)


def _client() -> str:
    for name in ("mlflow", "mlflow-skinny"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return ""


def write(context: Context) -> Iterator[Result]:
    """Writes a run with a metric and an artifact, reads both back, and deletes them.

    Where a plain `mlflow.start_run()` would: see `_experiment`.
    """
    try:
        experiment, made = _experiment(context)
        wanted = {"experiment_id": experiment, "start_time": _now(), "run_name": "doctor"}
        run = _json(context, "POST", "runs/create", wanted)["run"]["info"]
    except (_Answered, requests.exceptions.RequestException) as error:
        yield failed("run", f"none could be made: {error}", getattr(error, "hint", _LATER))
        return
    try:
        yield _metric(context, run["run_id"])
        yield from _artifact(context, run["artifact_uri"])
        _json(context, "POST", "runs/update", {"run_id": run["run_id"], "status": "FINISHED", "end_time": _now()})
        _json(context, "POST", "runs/delete", {"run_id": run["run_id"]})
        if made:
            _json(context, "POST", "experiments/delete", {"experiment_id": experiment})
    except (_Answered, requests.exceptions.RequestException) as error:
        # who may write to a shared experiment may not delete there
        hint = "it is called doctor in the web page; its experiment's owner can delete it."
        yield warning("run", f"{run['run_id']} was written and not deleted: {error}", hint)


def _experiment(context: Context) -> tuple[str, bool]:
    """The id of the experiment that MLflow takes when the code names none, and whether it had to be made.

    As mlflow.tracking.fluent finds it: MLFLOW_EXPERIMENT_NAME, which is made if it is not there; else
    MLFLOW_EXPERIMENT_ID; else 0.
    """
    name, given = context.env.get("MLFLOW_EXPERIMENT_NAME"), context.env.get("MLFLOW_EXPERIMENT_ID")
    if not name:
        return given or "0", False
    answer = _ask(context, "GET", f"{API}/experiments/get-by-name", params={"experiment_name": name})
    if answer.status_code == requests.codes.not_found:
        return str(_json(context, "POST", "experiments/create", {"name": name})["experiment_id"]), True
    found = _body(answer)["experiment"]
    if given and given != found["experiment_id"]:
        said = f"MLFLOW_EXPERIMENT_ID is {given}, and MLFLOW_EXPERIMENT_NAME is {name}, whose id is another"
        raise _Answered(said, f"unset one: MLflow refuses the two together ({name} has {found['experiment_id']}).")
    if found["lifecycle_stage"] == "deleted":
        hint = f"restore it (mlflow experiments restore -x {found['experiment_id']}), or set_experiment() another."
        raise _Answered(f"the experiment {name} is deleted, and runs go there that name none", hint)
    return str(found["experiment_id"]), False


def _metric(context: Context, run_id: str) -> Result:
    try:
        metric = {"run_id": run_id, "key": "doctor", "value": 0.5, "timestamp": _now(), "step": 1}
        _json(context, "POST", "runs/log-metric", metric)
        data = _json(context, "GET", "runs/get", params={"run_id": run_id})["run"]["data"]
    except (_Answered, requests.exceptions.RequestException) as error:
        return failed("run", f"a metric could not be written: {error}", _LATER)
    if [(one["key"], one["value"]) for one in data.get("metrics", [])] != [("doctor", 0.5)]:
        return failed("run", "the metric that was written did not come back", "tell the lab's admin.")
    return ok("run", f"{run_id}: written, read back, deleted")


def _artifact(context: Context, uri: str) -> Iterator[Result]:
    scheme, _, rest = uri.partition(":/")
    if scheme == "mlflow-artifacts":
        yield _through_the_server(context, rest.strip("/"))
    elif scheme == "s3" and context.direct:
        yield _in_the_store(context, *rest.strip("/").partition("/")[::2])
    elif scheme == "s3":
        hint = "get a new mlflow_env.sh: the lab's artifacts are in a store, and this one has no key for it."
        yield failed("artifact", f"the server puts them to {uri}, and no key for it is set", hint)
    else:
        hint = "tell the lab's admin: artifacts would land in a folder of each machine."
        yield failed("artifact", f"the server puts them to {uri}", hint)


def _in_the_store(context: Context, bucket: str, prefix: str) -> Result:
    try:
        from labtrack.doctor import store
    except ModuleNotFoundError as error:
        return failed("artifact", f"it goes to s3://{bucket}, which needs {error.name}", WITHOUT_BOTO3)
    why = store.round_trip(context, bucket, f"{prefix}/doctor.txt")
    return why or ok("artifact", f"in s3://{bucket}: written, read back, deleted")


def _through_the_server(context: Context, path: str) -> Result:
    place = f"/api/2.0/mlflow-artifacts/artifacts/{path}/doctor.txt"
    body = uuid.uuid4().hex.encode()
    try:
        for method, more in (("PUT", {"data": body}), ("GET", {}), ("DELETE", {})):
            answer = _ask(context, method, place, **more)
            if answer.status_code >= 300:  # noqa: PLR2004
                seen = f"{method} through the server was answered {answer.status_code}"
                hint = "the server can't reach its store, or may not: tell the lab's admin."
                return failed("artifact", seen, hint)
            if method == "GET" and answer.content != body:
                return failed("artifact", "what was uploaded did not come back", "tell the lab's admin.")
    except requests.exceptions.RequestException as error:
        return failed("artifact", f"no answer: {type(error).__name__}", _LATER)
    return ok("artifact", "through the server: written, read back, deleted")


def _json(context: Context, method: str, path: str, body: Any = None, **more: Any) -> Any:
    return _body(_ask(context, method, f"{API}/{path}", json=body, **more))


def _body(answer: requests.Response) -> Any:
    if answer.status_code >= 300 or answers.is_page(answer):  # noqa: PLR2004
        said = answers.code_and_words(answer)[1]
        # the server's own words may say how to fix it
        said, _, hint = " ".join(said.split()).partition("To fix: ")
        if not hint and answer.status_code == requests.codes.forbidden:
            hint = "use an experiment of your own: mlflow.set_experiment(...), or unset MLFLOW_EXPERIMENT_ID and _NAME."
        raise _Answered(f"the server answered {answer.status_code} {said[:200]}".strip(), hint or _LATER)
    return answer.json()


def _now() -> int:
    return int(time.time() * 1000)
