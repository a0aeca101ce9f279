"""Where artifacts may be, and whose they are: what a client names as a location is looked up before MLflow takes it.

MLflow reads and writes a location with the server's own key, which reaches the whole bucket, and asks only whether the
account may read the thing that names the location.  So an experiment or a model version that names somebody else's
artifacts hands them out.  Here the two methods of MLflow's stores that take a location, whatever the route was, first
find out to which run, logged model or experiment it belongs, and ask whether the account may do that with the owner.
"""

import contextlib
import os
import re
import urllib.parse

from flask import has_request_context
from mlflow.exceptions import MlflowException
from mlflow.prompt.constants import _PROMPT_SOURCE_PLACEHOLDERS
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, PERMISSION_DENIED
from mlflow.server import ARTIFACT_ROOT_ENV_VAR, ARTIFACTS_DESTINATION_ENV_VAR, auth, handlers
from mlflow.store.artifact.runs_artifact_repo import RunsArtifactRepository
from mlflow.store.artifact.utils.models import _parse_model_uri
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as Registry
from mlflow.store.tracking.dbmodels.models import SqlExperiment
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as Tracking

from labtrack_server.patching import replace

PROXY = "mlflow-artifacts"
RUN_ID = re.compile(r"[0-9a-f]{32}")
MODEL_ID = re.compile(r"m-[0-9a-f]{32}")
# What ends a path in an address, what no key has, and what other software takes for a separator.
NEVER = re.compile(r"[\x00-\x1f\x7f\\?#]")


def invalid(message):
    return MlflowException(message, error_code=INVALID_PARAMETER_VALUE)


def denied(message):
    return MlflowException(message, error_code=PERMISSION_DENIED)


class Storage:
    """The one place where a lab's artifacts are: ROOT is s3://BUCKET/PREFIX."""

    def __init__(self, root):
        parts = urllib.parse.urlsplit(root)
        if parts.scheme != "s3" or not parts.netloc or not parts.path.strip("/"):
            raise ValueError(f"the artifacts' root must be s3://BUCKET/PREFIX, not {root}")
        self.root = f"s3://{parts.netloc}/{parts.path.strip('/')}"

    def key(self, location):
        """The path of LOCATION below the root.  Raises MlflowException (400) for any other place."""
        proxied = f"{PROXY}:/"
        if location.startswith(self.root + "/"):
            path = location[len(self.root) + 1 :]
        elif location.startswith(proxied) and not location.startswith(proxied + "/"):
            path = location[len(proxied) :]
        else:
            path = None
        if path is not None:
            segments = path.rstrip("/").split("/")
            plain = [_unquote(segment) for segment in segments]
            if not NEVER.search(path) and all(
                part not in ("", ".", "..") and "/" not in part and not NEVER.search(part) for part in plain
            ):
                return "/".join(segments)
        raise invalid(
            f"'{location}' is not a place in this lab's artifact storage ({self.root}/...). "
            "To fix: leave the location out, and the server chooses one."
        )

    def spellings(self, key):
        """The ways to write the location whose path is KEY."""
        return f"{self.root}/{key}", f"{PROXY}:/{key}"


def _unquote(text):
    while (plain := urllib.parse.unquote(text)) != text:
        text = plain
    return text


def storage():
    """The lab's storage, from the server's own settings: where it is in proxied access, else where clients write."""
    return Storage(os.environ.get(ARTIFACTS_DESTINATION_ENV_VAR) or os.environ[ARTIFACT_ROOT_ENV_VAR])


def inside(key, folder):
    """Is the path KEY in FOLDER or equal to it?"""
    return key == folder or key.startswith(folder + "/")


def asker():
    """The name of the account that asks; None for an admin, who may do all."""
    if not has_request_context():
        raise denied("A location can only be named in a request.")
    return None if auth.sender_is_admin() else auth.authenticate_request().username


def _overlapping(store, where, key):
    """The numbers of the experiments in whose folder KEY is, or that are in the folder KEY."""
    parts = key.split("/")
    above = ["/".join(parts[: count + 1]) for count in range(len(parts))]
    exact = [spelling + end for path in above for spelling in where.spellings(path) for end in ("", "/")]
    column = SqlExperiment.artifact_location
    below = [column.startswith(f"{spelling}/", autoescape=True) for spelling in where.spellings(key)]
    with store.ManagedSessionMaker(read_only=True) as session:
        found = session.query(SqlExperiment.experiment_id).filter(column.in_(exact) | below[0] | below[1])
        return {str(number) for (number,) in found}


def experiment_location(store, location):
    """LOCATION as a new experiment may have it.

    Raises MlflowException: 400 for a place that is none, or that another experiment will have; 403 for a place in an
    experiment (or around one) in which the account may not write.
    """
    where = storage()
    key = where.key(location)
    owners = _overlapping(store, where, key)
    folder = key.split("/")[0]
    if folder.isdecimal() and not owners:
        raise invalid(f"'{location}' is kept for the experiment of that number. To fix: leave the location out.")
    if not owners and handlers._is_serving_proxied_artifacts():
        raise invalid(
            f"'{location}': in this lab the server chooses where an experiment's artifacts are, because it "
            "finds out by the place who may read them. To fix: leave the location out."
        )
    username = asker()
    if username and not all(auth._get_experiment_permission(owner, username).can_update for owner in owners):
        raise denied(f"'{location}' belongs to another account's experiment. To fix: leave the location out.")
    scheme_is_proxy = location.startswith(PROXY)
    return where.spellings(key)[scheme_is_proxy]


def owner_of(location):
    """The run or the logged model in whose folder LOCATION is: ("run" or "model", the entity); or None."""
    where = storage()
    key = where.key(location)
    store = handlers._get_tracking_store()
    kinds = (
        ("run", RUN_ID, store.get_run, lambda run: run.info.artifact_uri),
        ("model", MODEL_ID, store.get_logged_model, lambda model: model.artifact_location),
    )
    for segment in key.split("/"):
        for kind, pattern, fetch, location_of in kinds:
            if pattern.fullmatch(segment) and (entity := auth._fetch_or_none(fetch, segment)):
                with contextlib.suppress(MlflowException):  # made before locations were looked at
                    if inside(key, where.key(location_of(entity))):
                        return kind, entity
    return None


def check_source(source, run_id, model_id):
    """See that a model version's SOURCE is something that the account may read.

    Raises MlflowException: 400 for a source that is no run's and no model's or contradicts RUN_ID or MODEL_ID, 403 for
    one that the account may not read.  What does not exist is answered as what may not be read.
    """
    if source in _PROMPT_SOURCE_PLACEHOLDERS:
        return  # names no place: MLflow takes it for prompts only
    username = asker()
    scheme = urllib.parse.urlsplit(source).scheme
    if scheme == "runs":
        may = _may_read("run", RunsArtifactRepository.parse_runs_uri(source)[0], username)
    elif scheme == "models":
        parsed = _parse_model_uri(source)
        may = (
            _may_read("model", parsed.model_id, username) if parsed.model_id else _may_read_named(parsed.name, username)
        )
    else:
        owner = owner_of(source)
        if owner is None:
            raise invalid(
                f"The source '{source}' is in no run and in no logged model of this server. To fix: name it as "
                "runs:/RUN_ID/PATH, models:/MODEL_ID or models:/NAME/VERSION."
            )
        kind, entity = owner
        own_id = entity.info.run_id if kind == "run" else entity.model_id
        claimed = run_id if kind == "run" else model_id
        if claimed and claimed != own_id:
            raise invalid(f"The source '{source}' belongs to {kind} {own_id}, not to {kind} {claimed}.")
        may = _may_read(kind, own_id, username)
    if not may:
        raise denied(
            f"The source '{source}' is not one that this account may read. To fix: ask its owner for READ, or register "
            "a model of your own."
        )


def _may_read(kind, own_id, username):
    if username is None:
        return True
    return auth._authorize_run_id(own_id, "read") if kind == "run" else auth._authorize_logged_model_id(own_id, "read")


def _may_read_named(name, username):
    if username is None:
        return True
    return auth._can_read_model_version_source(auth._get_registered_model_or_prompt_permission, name)


def install():
    """Look at each location before MLflow's stores take it."""
    storage()  # said at the start, not at the first request

    def create_experiment(original):
        def checked(self, name, artifact_location=None, tags=None):
            if artifact_location:
                artifact_location = experiment_location(self, artifact_location)
            return original(self, name, artifact_location, tags)

        return checked

    def create_model_version(original):
        def checked(self, name, source, run_id=None, *more, model_id=None, **named):
            check_source(source, run_id, model_id)
            return original(self, name, source, run_id, *more, model_id=model_id, **named)

        return checked

    replace(Tracking, "create_experiment", create_experiment)
    replace(Registry, "create_model_version", create_model_version)
