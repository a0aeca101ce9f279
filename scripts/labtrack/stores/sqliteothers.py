"""What a SQLite file of MLflow has beside experiments, runs, models, the registry and traces."""

from __future__ import annotations

from labtrack.errors import BadInputError
from labtrack.stores.tables import Tables

_KINDS = {
    "evaluation_datasets": "evaluation datasets",
    "evaluation_dataset_records": "records of evaluation datasets",
    "scorers": "scorers",
    "scorer_versions": "versions of scorers",
    "issues": "issues",
    "label_schemas": "label schemas",
    "review_queues": "review queues",
    "review_queue_items": "items of review queues",
    "online_scoring_configs": "settings of online scoring",
    "entity_associations": "links of prompts, models and traces",
}
_SOME = {  # the others are made by MLflow, or read, or of what is counted
    "label_schemas": "NOT is_default",
    "entity_associations": (
        "NOT (source_type = 'trace' AND destination_type = 'run') "
        "AND 'evaluation_dataset' NOT IN (source_type, destination_type)"
    ),
}
_READ = (
    *("experiments", "experiment_tags", "runs", "metrics", "latest_metrics", "params", "tags", "datasets", "inputs"),
    *("input_tags", "logged_models", "logged_model_metrics", "logged_model_params", "logged_model_tags"),
    *("registered_models", "registered_model_tags", "registered_model_aliases", "model_versions", "model_version_tags"),
    *("trace_info", "trace_tags", "trace_request_metadata", "spans", "assessments"),
)
# what MLflow makes of other tables, parts of what is counted, and what is a server's own: nobody recorded it
_NOBODYS = (
    *("trace_metrics", "span_metrics", "evaluation_dataset_tags", "review_queue_users", "review_queue_label_schemas"),
    *("sql_trace_metric_daily_rollups", "sql_span_cost_daily_rollups", "sql_assessment_daily_rollups"),
    *("sql_trace_rollup_rebuild_queue", "webhooks", "webhook_events", "secrets", "endpoints", "endpoint_tags"),
    *("endpoint_bindings", "endpoint_model_mappings", "model_definitions", "jobs", "job_locks", "scheduler_leases"),
    *("workspaces", "budget_policies", "guardrails", "guardrail_configs", "mcp_servers", "mcp_server_versions"),
    *("mcp_server_tags", "mcp_server_version_tags", "mcp_server_aliases", "mcp_access_endpoints"),
)
_OTHERS = ("alembic_", "_alembic_", "sqlite_", "labtrack_")  # names that begin so


def counts(tables: Tables) -> dict[str, int]:
    """How many there are of each kind; also of what a later MLflow keeps in tables that are not known here."""
    found: dict[str, int] = {}
    for (table,) in tables.database.rows("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY rowid"):
        if table in (*_READ, *_NOBODYS) or table.startswith(_OTHERS):
            continue
        kind = _KINDS.get(table, f"rows of the table {table}")
        quoted, some = table.replace('"', '""'), _SOME.get(table, "1")
        try:
            ((count,),) = tables.database.rows(f'SELECT count(*) FROM "{quoted}" WHERE {some}')  # noqa: S608 quoted
        except BadInputError as error:
            tables.found.problem(tables.location, f"the table {table} can't be read: {error.what}")
            continue
        if count:
            found[kind] = count
    return found
