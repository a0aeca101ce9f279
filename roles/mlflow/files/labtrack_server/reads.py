"""What a client asks of runs, as one statement: only where MLflow would answer it with the same.

Filters and orders are MLflow's language, so MLflow parses them and makes the condition of them (its store's own
functions, compiled for asyncpg, and kept for the next time).  It has no duplicates to remove: only conditions about
datasets make some, and they are MLflow's.  None says nothing about a request: MLflow's own handler answers it.
"""

import functools
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from mlflow.entities import LifecycleStage, ViewType
from mlflow.exceptions import MlflowException
from mlflow.server.handlers import MAX_RESULTS_PER_RUN, MAX_RUNS_GET_METRIC_HISTORY_BULK
from mlflow.store.db.db_types import POSTGRES
from mlflow.store.tracking import GET_METRIC_HISTORY_MAX_RESULTS, sqlalchemy_store
from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlRun
from mlflow.utils.search_utils import SearchUtils
from sqlalchemy import BigInteger, Integer, String, any_, bindparam, false, func, literal, select
from sqlalchemy.dialects.postgresql import ARRAY, asyncpg
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from labtrack_server import printing
from labtrack_server.printing import Unknown
from labtrack_server.writes import EXPERIMENT_ID, LAST, RUN_ID, is_text

EXPERIMENTS = 100  # of one search
FILTER = 300  # characters: a hostile one of these keeps MLflow's parser busy for some 20 ms
CLAUSES = 10  # of a filter
ORDERS = 5
MOST = 1_000  # runs of an answer
LINES = 50_000  # metrics, parameters and tags of an answer: more are MLflow's, which prints in a thread
OFFSET = 2**40
NEAREST = 3_000  # numbers of a metric, the highest or lowest of all experiments, in which a page is looked for
BEGINNING = 100  # characters of a value in the indexes of mlflow_databases.py
STEP = re.compile(r"0|-?[1-9][0-9]{0,8}")
VIEWS = {"ACTIVE_ONLY": ViewType.ACTIVE_ONLY, "DELETED_ONLY": ViewType.DELETED_ONLY, "ALL": ViewType.ALL}
SEARCH_FIELDS = {"experiment_ids", "filter", "run_view_type", "max_results", "order_by", "page_token"}
# What MLflow's parser says of a filter, and what it does not expect.
UNEXPECTED = (
    MlflowException,
    Unknown,
    SQLAlchemyError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    RecursionError,
)

# The runs that {found} gives, in its order, each with all that belongs to it.  MLflow lists the latter as they lie in
# their tables, and so does an index on the run.  With more than LINES of it the statement fails, before it is sent.
RUNS = """
SELECT * FROM (SELECT
    runs.run_uuid, experiment_id, name, user_id, status, start_time, end_time, artifact_uri, lifecycle_stage,
    m.*, p.*, t.*, made.*, used.*,
    EXISTS (SELECT FROM inputs WHERE destination_type = 'RUN' AND destination_id = runs.run_uuid) AS has_datasets,
    sum(coalesce(cardinality(metrics), 0) + coalesce(cardinality(params), 0) + coalesce(cardinality(tags), 0)) OVER ()
        AS lines, place
FROM unnest(ARRAY(SELECT found_id FROM ({found}) AS ordered)) WITH ORDINALITY AS found (run_id, place)
JOIN runs ON run_uuid = run_id
CROSS JOIN LATERAL (SELECT array_agg(key) AS metrics, array_agg(timestamp) AS times, array_agg(step) AS steps,
    array_agg(value) AS metric_values, array_agg(is_nan) AS nans FROM latest_metrics WHERE run_uuid = run_id) AS m
CROSS JOIN LATERAL (SELECT array_agg(key) AS params, array_agg(value) AS param_values
    FROM params WHERE run_uuid = run_id) AS p
CROSS JOIN LATERAL (SELECT array_agg(key) AS tags, array_agg(value) AS tag_values
    FROM tags WHERE run_uuid = run_id) AS t
CROSS JOIN LATERAL (SELECT array_agg(destination_id) AS models, array_agg(step) AS model_steps FROM inputs
    WHERE source_type = 'RUN_OUTPUT' AND source_id = run_id AND destination_type = 'MODEL_OUTPUT') AS made
CROSS JOIN LATERAL (SELECT array_agg(destination_id) AS used_models FROM inputs
    WHERE source_type = 'RUN_INPUT' AND source_id = run_id AND destination_type = 'MODEL_INPUT') AS used
) AS whole WHERE CASE WHEN lines > {lines} THEN 1 / (lines - lines) > 0 ELSE true END ORDER BY place"""
RUN = RUNS.format(found="SELECT $1::varchar AS found_id", lines=LINES)
# One row where there is such a run, also for a metric that it has not.
HISTORY = """
SELECT m.* FROM runs CROSS JOIN LATERAL (SELECT array_agg(key) AS keys, array_agg(timestamp) AS times,
    array_agg(step) AS steps, array_agg(value) AS metric_values, array_agg(is_nan) AS nans
    FROM (SELECT * FROM metrics WHERE run_uuid = $1 AND key = $2
        ORDER BY timestamp, step, value OFFSET $3 LIMIT $4) AS page) AS m
WHERE runs.run_uuid = $1"""

# Of each run the points that MLflow's page draws: in order of step, time and value the first of each of $3 parts of the
# same size, and the last of all in the place of the last part's first.  The first parts have one more where it doesn't
# go up.
CURVES = """
SELECT run_id, m.* FROM unnest($1::varchar[]) WITH ORDINALITY AS asked (run_id, place) JOIN runs ON run_uuid = run_id
CROSS JOIN LATERAL (
    SELECT array_agg(key) AS keys, array_agg(timestamp ORDER BY at) AS times, array_agg(step ORDER BY at) AS steps,
        array_agg(value ORDER BY at) AS metric_values, array_agg(is_nan ORDER BY at) AS nans
    FROM (SELECT *, total / $3 AS size, total % $3 AS longer FROM (
        SELECT *, row_number() OVER (ORDER BY step, timestamp, value, is_nan) - 1 AS at, count(*) OVER () AS total
        FROM metrics WHERE metrics.run_uuid = run_id AND key = $2 AND step BETWEEN $4 AND $5) AS points) AS parts
    WHERE total <= $3 OR at = total - 1 OR at < total - size AND CASE WHEN at < longer * (size + 1)
        THEN at % (size + 1) ELSE (at - longer * (size + 1)) % size END = 0) AS m
ORDER BY place"""


@dataclass
class Question:
    """What is asked, of which runs and experiments, and how the rows are printed.

    answer: (the rows, whether the account may see which models runs have made) -> the answer's JSON, awaited.  Raises
    Unknown where MLflow is to be asked.  runs: that are asked for one by one, curves: those that are in one request,
    which MLflow checks in another way.  quick: statements with their values that have said all if they give MOST rows.
    planned: for their values; see Database.read.
    """

    sql: str
    values: list
    answer: Callable
    runs: list = field(default_factory=list)
    experiments: list = field(default_factory=list)
    curves: list = field(default_factory=list)
    quick: list = field(default_factory=list)
    most: int = 0
    planned: bool = False


@functools.lru_cache(maxsize=500)
def found(condition, order, view, several):
    """How to find runs: pairs of SQL and what belongs in its places, which are values, and names of what a request has.

    The last one finds them in any case.  One before it reads the first of many runs in the order of an index, and has
    said all where it finds as many runs as were asked for: those with a number in the metric that they are ordered by,
    which come before those with NaN and those without.  The index has the numbers of all experiments, and where those
    of others come first it would be read to its end: so only what comes before the NEAREST-th number is looked at.
    """
    with Session() as session:
        cases, orders, joins = sqlalchemy_store._get_orderby_clauses(list(order), session)
        about_run, whole = [], select(SqlRun.run_uuid.label("found_id"), *cases).select_from(SqlRun)
        for one in SearchUtils.parse_search_filter(condition):
            about, conditions, datasets = sqlalchemy_store._get_sqlalchemy_filter_clauses([one], session, POSTGRES)
            if datasets:
                raise Unknown("datasets")
            about_run += about
            for rows in conditions:
                whole = whole.join(_by_index(rows, one))
        statements = [functools.reduce(lambda before, one: before.outerjoin(one), joins, whole).order_by(*orders)]
        kind, key, ascending = SearchUtils.parse_order_by_for_search_runs(order[0]) if order else (None, None, None)
        if order and SearchUtils.is_metric(kind, "="):
            values, *others = joins
            quick = functools.reduce(lambda before, one: before.outerjoin(one), others, whole.join(values))
            quick = quick.where(values.c.is_nan == false(), _before_nearest(values.c.value, key, ascending))
            statements.insert(0, quick.order_by(*orders[1:]))
        return [_compiled(one, about_run, view, several) for one in statements]


def _by_index(rows, comparison):
    """ROWS that meet a COMPARISON, such that an index finds those with a value of a parameter or tag."""
    value = rows.c.value
    if comparison["comparator"] != "=" or not isinstance(value.type, String):
        return rows
    beginning = func.left(value, BEGINNING) == func.left(comparison["value"], BEGINNING)
    return select(rows).where(beginning).subquery()


def _before_nearest(value, key, ascending):
    """That VALUE comes before the NEAREST-th number of a metric: of equal ones all do, or none does."""
    number = SqlLatestMetric.value
    last = select(number).where(SqlLatestMetric.key == key, SqlLatestMetric.is_nan == false())
    last = last.order_by(number if ascending else number.desc()).offset(literal(NEAREST)).limit(literal(1))
    if ascending:
        return value < func.coalesce(last.scalar_subquery(), float("inf"))
    return value > func.coalesce(last.scalar_subquery(), float("-inf"))


def _compiled(statement, about_run, view, several):
    # an index gives the runs of one experiment in their order, and those of several not
    experiment = any_(bindparam("experiments", None, ARRAY(Integer))) if several else bindparam("one", None, Integer)
    stages = SqlRun.lifecycle_stage.in_(LifecycleStage.view_type_to_stages(view))
    statement = statement.where(SqlRun.experiment_id == experiment, stages, *about_run)
    statement = statement.offset(bindparam("first", None, BigInteger)).limit(bindparam("most", None, Integer))
    compiled = statement.compile(dialect=asyncpg.dialect(), compile_kwargs={"render_postcompile": True})
    own = {"experiments", "one", "first", "most"}
    return RUNS.format(found=compiled, lines=LINES), [
        (None, name) if name in own else (compiled.params[name], None) for name in compiled.positiontup
    ]


def search(document):
    """POST runs/search."""
    if type(document) is not dict or not document.keys() <= SEARCH_FIELDS:
        return None
    experiments, order = document.get("experiment_ids"), document.get("order_by", [])
    condition, view = document.get("filter", ""), document.get("run_view_type", "ACTIVE_ONLY")
    most = document.get("max_results", 1_000)
    offset = _offset(document.get("page_token"))
    if (
        not _texts(experiments, EXPERIMENTS)
        or not experiments
        or not all(EXPERIMENT_ID.fullmatch(one) for one in experiments)
        or not _texts(order, ORDERS)
        or not is_text(condition, FILTER)
        or condition.upper().count("AND") >= CLAUSES
        or not is_text(view, FILTER)
        or view not in VIEWS
        or type(most) is not int
        or not 0 < most <= sqlalchemy_store.SEARCH_MAX_RESULTS_THRESHOLD
        or offset is None
    ):
        return None
    try:
        statements = found(condition, tuple(order), VIEWS[view], len(experiments) > 1)
    except UNEXPECTED:
        return None
    numbers = [int(one) for one in experiments]
    own = {"experiments": numbers, "one": numbers[0], "first": offset, "most": min(most, MOST) + 1}

    async def answer(rows, models):
        if len(rows) > MOST:
            raise Unknown("many runs")
        token = _token(offset + most) if len(rows) > most else None
        return await printing.page("runs", (_run(row, models, "\n    ") for row in rows[:most]), token)

    *quick, whole = [(sql, [own[name] if name else value for value, name in places]) for sql, places in statements]
    quick = quick if offset + own["most"] <= NEAREST else []
    return Question(*whole, answer, experiments=experiments, quick=quick, most=own["most"], planned=bool(condition))


def get(query):
    """GET runs/get."""
    if (run_id := _run_id(query)) is None or query:
        return None

    async def answer(rows, models):
        (row,) = rows or [None]
        if row is None:
            raise Unknown("no such run any more")
        # MLflow names the models that a run has used here, and not in a search
        printed = _run(row, models, "\n  ", row["used_models"] or ())
        return printing.whole([f'"run": {printed}'], "\n").encode()

    return Question(RUN, [run_id], answer, runs=[run_id])


def history(query):
    """GET metrics/get-history."""
    run_id, key, token = _run_id(query), query.pop("metric_key", None), query.pop("page_token", None)
    most, offset = query.pop("max_results", None), _offset(token)
    if query or run_id is None or not key or not is_text(key, FILTER) or offset is None:
        return None
    if most is not None and not re.fullmatch(r"[1-9][0-9]{0,4}", most):
        return None
    limit = int(most or GET_METRIC_HISTORY_MAX_RESULTS)
    if limit > GET_METRIC_HISTORY_MAX_RESULTS:
        return None

    async def answer(rows, _models):
        if not rows:
            raise Unknown("no such run any more")
        keys, times, *rest = (column or [] for column in rows[0].values())
        more = len(keys) > limit
        if None in times or (more and most is None):
            raise Unknown("a point without a time, or all of a long history")
        columns = [column[:limit] for column in (keys, times, *rest)]
        return await printing.page("metrics", printing.points(columns, "\n    "), more and _token(offset + limit))

    return Question(HISTORY, [run_id, key, offset, limit + 1], answer, runs=[run_id])


def curves(query):
    """GET metrics/get-history-bulk-interval."""
    runs, key, most = query.pop("run_ids", []), query.pop("metric_key", None), query.pop("max_results", None)
    most = str(MAX_RESULTS_PER_RUN) if most is None else most
    first, last = query.pop("start_step", None), query.pop("end_step", None)
    if query or not 0 < len(runs) <= MAX_RUNS_GET_METRIC_HISTORY_BULK or not key or not is_text(key, FILTER):
        return None
    if not all(RUN_ID.fullmatch(one) for one in runs) or not re.fullmatch(r"[1-9][0-9]{0,3}", most):
        return None
    most, steps = int(most), (-LAST - 1, LAST)
    if first is not None or last is not None:
        if not all(one is not None and STEP.fullmatch(one) for one in (first, last)):
            return None
        steps = int(first), int(last)
    if most > MAX_RESULTS_PER_RUN or most * len(runs) > LINES or steps[0] > steps[1]:
        return None

    async def answer(rows, _models):
        if len(rows) < len(runs):
            raise Unknown("no such run any more")
        entries = (
            printing.points([column or [] for column in columns], "\n    ", run_id)
            for run_id, *columns in map(tuple, rows)
        )
        return await printing.page("metrics", itertools.chain.from_iterable(entries), None)

    return Question(CURVES, [runs, key, most, *steps], answer, curves=runs)


def _texts(values, most):
    return type(values) is list and len(values) <= most and all(is_text(one, FILTER) for one in values)


def _offset(token):
    """Where a page begins; None where MLflow has something to say about its TOKEN."""
    if token is not None and not is_text(token, FILTER):
        return None
    try:
        offset = SearchUtils.parse_start_offset_from_page_token(token)
    except UNEXPECTED:
        return None
    return offset if type(offset) is int and 0 <= offset < OFFSET else None


def _token(offset):
    return SearchUtils.create_page_token(offset).decode()


def _run_id(query):
    """The run that a query names, taken out of it."""
    run_id = query.pop("run_id", None)
    if run_id is None or not RUN_ID.fullmatch(run_id) or query.pop("run_uuid", run_id) != run_id:
        return None
    return run_id


def _run(row, models, start, used=()):
    if row["has_datasets"] or ((row["models"] or used) and not models):
        raise Unknown("datasets, or models that the account may not see, or that nobody has asked about")
    return printing.run(row, start, used)
