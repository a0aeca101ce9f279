"""What makes a run, and what gives it another status, end or name: only where MLflow would take it as it is.

As in writes.py, None says nothing about a request: MLflow's own handler answers it.  So does it where a statement here
finds nothing: the experiment or the run is deleted, or a recorded id (identities.py) is taken.
"""

import re
from dataclasses import dataclass

from mlflow.store.tracking import sqlalchemy_store
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.utils import validation
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME
from mlflow.utils.uri import append_to_uri_path

from labtrack_server import identities
from labtrack_server.printing import STATUSES
from labtrack_server.writes import EXPERIMENT_ID, LAST, PAIR_FIELDS, RUN_FIELDS, is_name, is_text, run_of

LONGEST_NAME = 250  # characters of the columns name and user_id; MLflow's table has some more for the latter
CREATE_FIELDS = {"experiment_id", "user_id", "start_time", "tags", "run_name"}
CHANGE_FIELDS = {"status", "end_time", "run_name"}

PLAIN = re.compile(r"[^?#;\s]+")  # an address to which MLflow just appends
LOCATION = "SELECT artifact_location FROM experiments WHERE experiment_id = $1 AND lifecycle_stage = 'active'"
# Like those of database.py, it keeps what its row refers to from being deleted: PostgreSQL does not ask by itself.
# Nothing where the experiment is deleted or elsewhere meanwhile, or another run has the id.
CREATE = """
WITH run AS (
    INSERT INTO runs (run_uuid, name, user_id, start_time, artifact_uri, experiment_id, status, lifecycle_stage,
        source_type, source_name, entry_point_name, source_version)
    SELECT $1::text, $2::text, $3::text, $4::int8, $5::text, experiment_id, 'RUNNING', 'active', 'UNKNOWN', '', '', ''
    FROM experiments WHERE experiment_id = $6 AND lifecycle_stage = 'active' AND artifact_location = $7
    FOR KEY SHARE ON CONFLICT DO NOTHING RETURNING run_uuid),
named AS (INSERT INTO tags (key, value, run_uuid)
    SELECT new.*, run_uuid FROM run, unnest($8::text[], $9::text[]) AS new)
SELECT run_uuid FROM run"""
# Nothing, too, for a run that printing.info could not print afterwards.
CHANGE = """
WITH run AS (
    UPDATE runs SET status = coalesce($2::text, status), end_time = coalesce($3::int8, end_time),
        name = coalesce($4::text, name)
    WHERE run_uuid = $1 AND lifecycle_stage = 'active' AND user_id IS NOT NULL AND start_time IS NOT NULL
        AND experiment_id IS NOT NULL AND coalesce($2::text, status) = ANY($5::text[])
    RETURNING run_uuid, experiment_id, name, user_id, status, start_time, end_time, artifact_uri, lifecycle_stage),
named AS (
    INSERT INTO tags AS old (key, value, run_uuid) SELECT 'mlflow.runName', $4::text, run_uuid FROM run
    WHERE $4::text IS NOT NULL
    ON CONFLICT (key, run_uuid) DO UPDATE SET value = EXCLUDED.value WHERE old.value IS DISTINCT FROM EXCLUDED.value)
SELECT run.*, (SELECT value FROM tags WHERE tags.run_uuid = run.run_uuid AND key = 'mlflow.runName') AS name_tag
FROM run"""


@dataclass
class Change:
    """What is new about a run; None is what stays."""

    run_id: str
    status: str | None
    end_time: int | None
    name: str | None

    def values(self):
        """What belongs in the places of CHANGE."""
        return [self.run_id, self.status, self.end_time, self.name, list(STATUSES)]


@dataclass
class Run:
    """A run that begins.  tags: in the request's order, the name last where it is not among them."""

    run_id: str
    experiment_id: str
    name: str
    user_id: str
    start_time: int
    tags: dict

    def artifact_uri(self, location):
        """Where its artifacts are, in an experiment with that LOCATION."""
        return append_to_uri_path(location, self.run_id, SqlAlchemyStore.ARTIFACTS_FOLDER_NAME)

    def values(self, location):
        """What belongs in the places of CREATE."""
        own = [self.run_id, self.name, self.user_id, self.start_time, self.artifact_uri(location)]
        return [*own, int(self.experiment_id), location, list(self.tags), list(self.tags.values())]

    def row(self, location):
        """What is then in its table, for printing.info."""
        return {
            "run_uuid": self.run_id,
            "experiment_id": self.experiment_id,
            "name": self.name,
            "user_id": self.user_id,
            "status": "RUNNING",
            "start_time": self.start_time,
            "end_time": None,
            "artifact_uri": self.artifact_uri(location),
            "lifecycle_stage": "active",
        }


def update(document):
    """POST runs/update."""
    run_id = run_of(document, RUN_FIELDS | CHANGE_FIELDS)
    if run_id is None or not document.keys() & CHANGE_FIELDS:
        return None
    status, end, name = document.get("status", "RUNNING"), document.get("end_time", 0), document.get("run_name", "")
    if type(status) is not str or status not in STATUSES or not _is_time(end) or not is_text(name, LONGEST_NAME):
        return None
    # MLflow takes an empty name for none
    return Change(run_id, document.get("status"), document.get("end_time"), name or None)


def create(document):
    """POST runs/create."""
    if type(document) is not dict or not document.keys() <= CREATE_FIELDS:
        return None
    experiment_id, user_id = document.get("experiment_id"), document.get("user_id", "")
    start, name, tags = document.get("start_time", 0), document.get("run_name", ""), _tags(document.get("tags", []))
    if (
        type(experiment_id) is not str
        or not EXPERIMENT_ID.fullmatch(experiment_id)
        or not is_text(user_id, LONGEST_NAME)
        or not is_text(name, LONGEST_NAME)
        or not _is_time(start)
        or tags is None
    ):
        return None
    tagged = tags.get(MLFLOW_RUN_NAME)
    if tagged is not None and (not 0 < len(tagged) <= LONGEST_NAME or (name or tagged) != tagged):
        return None
    name = name or tagged or sqlalchemy_store._generate_random_name()
    kept = identities.recorded(tags, identities.RUN)
    run_id = kept[identities.RUN] if kept else sqlalchemy_store.uuid.uuid4().hex
    return Run(run_id, experiment_id, name, user_id, start, {**tags, MLFLOW_RUN_NAME: name})


def _is_time(value):
    return type(value) is int and 0 <= value <= LAST


def _tags(entries):
    if type(entries) is not list or len(entries) > validation.MAX_PARAMS_TAGS_PER_BATCH:
        return None
    tags = {}
    for entry in entries:
        if type(entry) is not dict or entry.keys() != PAIR_FIELDS:
            return None
        key, value = entry["key"], entry["value"]
        # the same tag twice is an error of MLflow's
        if not is_name(key) or key in tags or not is_text(value, validation.MAX_TAG_VAL_LENGTH):
            return None
        tags[key] = value
    return tags
