"""A trace stays in its experiment, and its data where the experiment keeps them.

MLflow 3.17 takes a trace's number and tags from the client.  Starting a trace that exists moves it, spans can be added
to it from another experiment, and a tag says where its data are.  What is refused here is refused where the rows are
written, in the same transaction: so for every route (v2, v3, OTLP and what comes next), and without a race.
"""

import contextvars
import re
from http import HTTPStatus

from flask import Response
from mlflow.server import auth, handlers
from mlflow.store.tracking.dbmodels.models import (
    SqlAssessments,
    SqlExperiment,
    SqlTraceInfo,
    SqlTraceMetadata,
    SqlTraceTag,
)
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.tracing.constant import SpansLocation, TraceTagKey
from mlflow.utils.mlflow_tags import MLFLOW_ARTIFACT_LOCATION
from mlflow.utils.uri import append_to_uri_path
from sqlalchemy import event, inspect, select

from labtrack_server.answers import words
from labtrack_server.locations import denied, invalid
from labtrack_server.patching import replace, replace_in

# It becomes a folder's name.
TRACE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]*")
# The archive is off in a lab, so nobody but an attacker names one.
SPANS_MAY_BE = {SpansLocation.TRACKING_STORE.value, SpansLocation.ARTIFACT_REPO.value}
OF_THE_SERVER = frozenset({MLFLOW_ARTIFACT_LOCATION, TraceTagKey.SPANS_LOCATION, TraceTagKey.ARCHIVE_LOCATION})

_logged_into = contextvars.ContextVar("the experiment into which spans are being logged")


def location_of(connection, trace_id):
    """Where a trace's experiment keeps the trace's data."""
    root = connection.scalar(
        select(SqlExperiment.artifact_location)
        .join(SqlTraceInfo, SqlTraceInfo.experiment_id == SqlExperiment.experiment_id)
        .where(SqlTraceInfo.request_id == trace_id)
    )
    return root and append_to_uri_path(
        root, SqlAlchemyStore.TRACE_FOLDER_NAME, trace_id, SqlAlchemyStore.ARTIFACTS_FOLDER_NAME
    )


def _check_tag(_mapper, connection, row):
    if row.key == MLFLOW_ARTIFACT_LOCATION:
        allowed = row.value == location_of(connection, row.request_id)
    elif row.key == TraceTagKey.SPANS_LOCATION:
        allowed = row.value in SPANS_MAY_BE
    else:
        allowed = row.key != TraceTagKey.ARCHIVE_LOCATION
    if not allowed:
        raise invalid(f"'{row.key}' of a trace is set by the server. To fix: leave it out.")


def _check_id(_mapper, _connection, trace):
    if not TRACE_ID.fullmatch(trace.request_id):
        raise invalid(f"'{trace.request_id}' is not a trace's id: letters, digits and _ . : - are.")


def _check_stays(column):
    def check(_mapper, _connection, row):
        moved = inspect(row).attrs[column].history
        if moved.deleted and [str(value) for value in moved.deleted] != [str(value) for value in moved.added]:
            raise denied("This trace, or this assessment of a trace, exists already, and not in this experiment.")

    return check


def _get_trace(original):
    """Say 404 and not 500 for a trace whose spans are in the artifact storage: clients try a 500 again and again."""

    def answered():
        answer = original()
        if answer.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR and b"not stored in tracking store" in answer.data:
            said = "This trace's spans are in the artifact storage. To fix: read them with mlflow.get_trace()."
            return Response(words("RESOURCE_DOES_NOT_EXIST", said), 404, mimetype="application/json")
        return answer

    return answered


def install(app):
    """Refuse to move a trace, to write to one from another experiment, and to say where a trace's data are."""
    for kind in (SqlTraceTag, SqlTraceMetadata):
        for moment in ("before_insert", "before_update"):
            event.listen(kind, moment, _check_tag)
    event.listen(SqlTraceInfo, "before_insert", _check_id)
    # The old value is needed, even where nobody has read it.
    for kind, column in ((SqlTraceInfo, "experiment_id"), (SqlAssessments, "trace_id")):
        event.listen(getattr(kind, column), "set", lambda *_: None, active_history=True)
        event.listen(kind, "before_update", _check_stays(column))

    def log_spans(original):
        def noting(self, location, *more, **named):
            token = _logged_into.set(int(location))
            try:
                return original(self, location, *more, **named)
            finally:
                _logged_into.reset(token)

        return noting

    def advance(original):
        def checking(self, session, trace_ids):
            experiment = _logged_into.get(None)
            ids = list(trace_ids)
            if experiment is not None and ids:
                elsewhere = session.query(SqlTraceInfo.request_id).filter(
                    SqlTraceInfo.request_id.in_(ids), SqlTraceInfo.experiment_id != experiment
                )
                if elsewhere.first():
                    raise denied("A trace of these spans exists already, and not in this experiment.")
            return original(self, session, ids)

        return checking

    def delete_trace_tag(original):
        def checked(self, trace_id, key):
            if key in OF_THE_SERVER:
                raise invalid(f"'{key}' of a trace is set by the server and stays.")
            return original(self, trace_id, key)

        return checked

    replace(SqlAlchemyStore, "_log_spans_once", log_spans)
    replace(SqlAlchemyStore, "_advance_db_payload_generations_for_db_span_writes", advance)
    replace(SqlAlchemyStore, "delete_trace_tag", delete_trace_tag)

    def artifacts(original):
        def checked(trace_info):
            store = handlers._get_tracking_store()
            with store.ManagedSessionMaker(read_only=True) as session:
                expected = location_of(session.connection(), trace_info.trace_id)
            if trace_info.tags.get(MLFLOW_ARTIFACT_LOCATION) != expected:
                raise denied("The data of this trace are not where its experiment keeps them: they are not read.")
            return original(trace_info)

        return checked

    replace(handlers, "_get_trace_artifact_repo", artifacts)
    replace_in([app.view_functions], handlers._get_trace, _get_trace(handlers._get_trace))

    def no_archive(_original):
        def refused(_trace_info):
            raise denied("This trace says that its data are in an archive, and this lab has none.")

        return refused

    replace(handlers, "_get_trace_archive_repo", no_archive)

    def otlp(original):
        def validator_for(path):
            may_create = original(path)

            async def validator(username, request):
                if not await may_create(username, request):
                    return False
                # The traces are linked to that run, so this is a change of the run, which MLflow does not ask about.
                run_id = request.headers.get("x-mlflow-run-id")
                if not run_id:
                    return True
                resolved = auth._run_requirement(run_id, "update")
                return resolved is not None and auth.authorize(username, *resolved)

            return validator

        return validator_for

    replace(auth, "_get_otel_validator", otlp)
