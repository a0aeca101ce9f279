"""The traces in a SQLite file of MLflow >= 2.14."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from typing import Any

from labtrack.stores.model import Trace
from labtrack.stores.numbers import floor, text
from labtrack.stores.tables import Tables

_PAGE = 200  # traces per statement
_INFO = (
    *("rowid", "request_id", "experiment_id", "timestamp_ms", "execution_time_ms", "status", "client_request_id"),
    *("request_preview", "response_preview", "trace_name", "session_id"),
)
_ASSESSMENT = (
    *("trace_id", "assessment_id", "name", "assessment_type", "value", "error", "created_timestamp"),
    *("last_updated_timestamp", "source_type", "source_id", "span_id", "rationale", "overrides", "valid"),
    "assessment_metadata",
)


def traces(tables: Tables, experiment_id: str | None = None) -> Iterator[Trace]:
    """The traces of one experiment, or of all."""
    condition, values, last = ("1", [], -1) if experiment_id is None else ("experiment_id = ?", [experiment_id], -1)
    while True:
        page = tables.select(
            "trace_info", _INFO, f"rowid > ? AND {condition} ORDER BY rowid LIMIT {_PAGE}", [last, *values]
        )
        ids = [row[1] for row in page]
        tags, metadata = (
            tables.texts(table, "request_id", only=ids) for table in ("trace_tags", "trace_request_metadata")
        )
        assessed, linked = _assessments(tables, ids), _linked(tables, ids)
        for row in page:
            last, one, experiment, time, duration, state, client, request, response, name, session = row
            # since 3.10 or so some of them are in columns of their own
            own = {"mlflow.traceName": text(name)} if name else {}
            about = {"mlflow.trace.session": text(session)} if session else {}
            yield Trace(
                text(one), text(experiment), floor(time), floor(duration), text(state) or "OK", text(client),
                text(request), text(response), {**own, **tags.get(one, {})}, {**about, **metadata.get(one, {})},
                tuple(assessed.get(one, ())), tuple(linked.get(one, ())),
            )  # fmt: skip
        if len(page) < _PAGE:
            return


def spans(tables: Tables, trace_id: str) -> bytes | None:
    """The spans of a trace as traces.json has them; None where they are not in the database."""
    rows = tables.select("spans", ("content",), "trace_id = ? ORDER BY start_time_unix_nano, rowid", [trace_id])
    found = [one for one in (_json(content) for (content,) in rows) if one is not None]
    if len(found) < len(rows):
        what = f"{len(rows) - len(found)} of the trace's {len(rows)} spans can't be read and were left out"
        tables.found.problem(trace_id, what, about="spans")
    return json.dumps({"spans": found}, ensure_ascii=False).encode() if found else None


def _linked(tables: Tables, ids: list[Any]) -> dict[Any, list[str]]:
    """The runs that traces were linked to after they were made."""
    found: dict[Any, list[str]] = defaultdict(list)
    where = f"source_type = 'trace' AND destination_type = 'run' AND source_id IN ({', '.join('?' * len(ids))})"
    where += " ORDER BY source_id, destination_id"
    for one, run_id in tables.select("entity_associations", ("source_id", "destination_id"), where, ids) if ids else ():
        found[one].append(text(run_id))
    return found


def _assessments(tables: Tables, ids: list[Any]) -> dict[Any, list[Mapping[str, Any]]]:
    found: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    marks = ", ".join("?" * len(ids))
    for row in tables.select("assessments", _ASSESSMENT, f"trace_id IN ({marks}) ORDER BY rowid", ids) if ids else ():
        found[row[0]].append(_assessment(dict(zip(_ASSESSMENT, row))))
    return found


def _assessment(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """As MLflow's REST interface has it."""
    value, kind = _json(row["value"]), text(row["assessment_type"])
    said: dict[str, Any] = {"value": value}
    if kind == "expectation" and isinstance(value, (dict, list)):
        said = {"serialized_value": {"serialization_format": "JSON_FORMAT", "value": json.dumps(value)}}
    if row["error"]:
        said["error"] = _json(row["error"])
    found = {
        "assessment_id": text(row["assessment_id"]), "assessment_name": text(row["name"]),
        "trace_id": text(row["trace_id"]), "create_time": moment(floor(row["created_timestamp"])),
        "last_update_time": moment(floor(row["last_updated_timestamp"])), kind: said,
        "source": {"source_type": text(row["source_type"]), "source_id": text(row["source_id"])},
        "span_id": text(row["span_id"]), "rationale": text(row["rationale"]), "overrides": text(row["overrides"]),
        "valid": bool(row["valid"]), "metadata": _json(row["assessment_metadata"]) or {},
    }  # fmt: skip
    return {key: value for key, value in found.items() if value not in ("", None, {})}


def moment(milliseconds: int | None) -> str | None:
    """A time as the interface has it: 2024-05-01T12:00:00.123Z."""
    if milliseconds is None:
        return None
    seconds, rest = divmod(milliseconds, 1000)
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%dT%H:%M:%S}.{rest:03d}Z"


def _json(value: Any) -> Any:
    try:
        return json.loads(text(value)) if value else None
    except ValueError:
        return None
