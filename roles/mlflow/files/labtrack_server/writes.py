"""What a training loop sends, as columns for the database: only where MLflow would take it as it is.

Each function takes a request's parsed JSON and gives a Batch, or None for whatever is not known for certain: fields of
logged models and datasets, numbers in quotes, values to be cut, names that MLflow refuses.  None says nothing about the
request: MLflow's own handler answers it.
"""

import functools
import math
import re
from dataclasses import dataclass

from mlflow.utils import validation
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME

RUN_ID = re.compile(r"[0-9a-f]{32}")
EXPERIMENT_ID = re.compile(r"0|[1-9][0-9]{0,8}")  # as MLflow prints it; a role may know another spelling
RUN_FIELDS = {"run_id", "run_uuid"}
POINT_FIELDS = {"key", "value", "timestamp", "step"}
PAIR_FIELDS = {"key", "value"}
LAST = 2**63 - 1  # a step's or a time's
EXACT = 2**53  # up to here an integer is the same as a float
LARGEST = 1.7976931348623157e308  # what MLflow stores for an infinity
# As protobuf's JSON spells them: (what is stored, whether it stands for NaN).
SPELLED = {"NaN": (0.0, True), "Infinity": (LARGEST, False), "-Infinity": (-LARGEST, False)}


@dataclass
class Batch:
    """What is to be written to a run.

    points: (key, timestamp, step, value, is NaN), each once, in the request's order.  latest: the last of each key.
    """

    run_id: str
    points: list
    latest: list
    params: dict
    tags: dict


@functools.lru_cache(maxsize=10_000)
def _is_name(text):
    return bool(validation.validate_param_and_metric_name(text)) and not validation.path_not_unique(text)


def is_name(text):
    """Is TEXT a name that MLflow takes for a metric, a parameter or a tag?"""
    return type(text) is str and 0 < len(text) <= validation.MAX_ENTITY_KEY_LENGTH and _is_name(text)


def is_text(value, longest):
    """Is VALUE text that is stored as it is?  PostgreSQL takes no NUL, UTF-8 no half of a pair."""
    return (
        type(value) is str
        and len(value) <= longest
        and "\x00" not in value
        and (value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value))
    )


def number(value):
    """A metric's value as MLflow stores it: (number, whether it stands for NaN); None where that is not certain."""
    if type(value) is float:
        return (value, False) if math.isfinite(value) else None
    if type(value) is int:
        return (float(value), False) if -EXACT <= value <= EXACT else None
    return SPELLED.get(value) if type(value) is str else None


def point(entry):
    """(key, timestamp, step, value, is NaN) of a metric; None where that is not certain."""
    key, timestamp, step = entry.get("key"), entry.get("timestamp"), entry.get("step", 0)
    stored = number(entry.get("value"))
    if (
        stored is None
        or type(timestamp) is not int
        or not 0 <= timestamp <= LAST
        or type(step) is not int
        or not -LAST <= step <= LAST
        or not is_name(key)
    ):
        return None
    return key, timestamp, step, *stored


def last_of_each(points):
    """Of each key the point that MLflow takes for the latest: by step, then time, then value; of equals the first."""
    latest = {}
    for one in points:
        known = latest.get(one[0])
        if known is None or (one[2], one[1], one[3]) > (known[2], known[1], known[3]):
            latest[one[0]] = one
    return [latest[key] for key in sorted(latest)]  # rows are locked in one order by all


def run_of(document, allowed):
    """The run that a request names, where it has no fields but ALLOWED; else None."""
    if type(document) is not dict or not document.keys() <= allowed:
        return None
    run_id = document.get("run_id")
    if type(run_id) is not str or not RUN_ID.fullmatch(run_id):
        return None
    # MLflow's client sends both, and MLflow's checks each look at one of them.
    return run_id if document.get("run_uuid", run_id) == run_id else None


def log_metric(document):
    """One point."""
    run_id = run_of(document, RUN_FIELDS | POINT_FIELDS)
    if run_id is None or (one := point(document)) is None:
        return None
    return Batch(run_id, [one], [one], {}, {})


def log_parameter(document):
    """One parameter."""
    run_id = run_of(document, RUN_FIELDS | PAIR_FIELDS)
    params = run_id and _params([document])
    return Batch(run_id, [], [], params, {}) if params else None


def set_tag(document):
    """One tag."""
    run_id = run_of(document, RUN_FIELDS | PAIR_FIELDS)
    tags = run_id and _tags([document])
    return Batch(run_id, [], [], {}, tags) if tags else None


def log_batch(document):
    """Points, parameters and tags."""
    run_id = run_of(document, {"run_id", "metrics", "params", "tags"})
    if run_id is None:
        return None
    given = [document.get(kind, []) for kind in ("metrics", "params", "tags")]
    if not all(type(one) is list and all(type(entry) is dict for entry in one) for one in given):
        return None
    metrics, params, tags = given
    if (
        not 0 < len(metrics) + len(params) + len(tags) <= validation.MAX_ENTITIES_PER_BATCH
        or max(len(params), len(tags)) > validation.MAX_PARAMS_TAGS_PER_BATCH
        or not all(entry.keys() <= PAIR_FIELDS for entry in params + tags)
    ):
        return None
    points, params, tags = _points(run_id, metrics), _params(params), _tags(tags)
    if points is None or params is None or tags is None:
        return None
    return Batch(run_id, points, last_of_each(points), params, tags)


def _points(run_id, metrics):
    points = {}
    for entry in metrics:
        # MLflow's client names the run in each point, too.
        if not entry.keys() <= POINT_FIELDS and (
            not entry.keys() <= POINT_FIELDS | {"run_id"} or entry["run_id"] != run_id
        ):
            return None
        if (one := point(entry)) is None:
            return None
        points.setdefault(one)
    return list(points)


def _params(entries):
    params = {}
    for entry in entries:
        key, value = entry.get("key"), entry.get("value")
        # the same parameter twice is an error of MLflow's
        if key in params or not is_name(key) or not is_text(value, validation.MAX_PARAM_VAL_LENGTH):
            return None
        params[key] = value
    return params


def _tags(entries):
    tags = {}
    for entry in entries:
        key, value = entry.get("key"), entry.get("value")
        # the run's name is in the run, too
        if key == MLFLOW_RUN_NAME or not is_name(key) or not is_text(value, validation.MAX_TAG_VAL_LENGTH):
            return None
        tags[key] = value
    return tags
