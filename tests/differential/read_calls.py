"""Questions about runs, good and bad: filters and orders from a grammar, pages, and what is none of these."""

from __future__ import annotations

import base64
import json
import urllib.parse
from dataclasses import dataclass, field
from typing import Any

from equal_calls import NOBODY, mostly
from hypothesis import strategies as st

SEARCH, GET, HISTORY = "runs/search", "runs/get", "metrics/get-history"
CURVES = "metrics/get-history-bulk-interval"
# Not one of a plain client's headers: with it the answer is MLflow's own.
MLFLOW_S = {"X-Not-Plain": "1"}
# What MLflow's page sends beside what the browser adds.
OF_A_PAGE = {"Content-Type": "application/json; charset=utf-8"}

QUOTED = st.sampled_from(
    ["'v'", '"v"', "'w'", "'%v%'", "'V%'", "''", "'it''s'", "'grün'", "'FINISHED'", "'first'", "'_'"]
)
NUMBER = st.sampled_from(["0", "1", "-1", "0.5", "1e300", "-0.0", "2", "1700000000000", "9223372036854775807", "1e-7"])
ODD_VALUE = st.sampled_from(
    ["v", "NaN", "inf", "'", "`a`", "1.2.3", "--", "9" * 30, "('v', 'w')", "(1)", "()", "NULL", ""]
)
TEXT_KEYS = [
    "params.loss",
    "params.`x y:z`",
    "tags.loss",
    "tags.made",
    "tag.`a/b`",
    'params."grün"',
    "attributes.status",
    "status",
    "run_name",
    "attributes.run_name",
    "attributes.`Run name`",
    "attributes.user_id",
    "artifact_uri",
    "tags.`mlflow.runName`",
    "parameter.acc",
    "run_id",
]
TEXT_KEY = st.sampled_from(TEXT_KEYS)
NUMBER_KEYS = [
    "metrics.loss",
    "metric.acc",
    "metrics.`a/b`",
    "metrics.`x y:z`",
    "start_time",
    "attributes.end_time",
    "attributes.Created",
    "attributes.start_time",
]
NUMBER_KEY = st.sampled_from(NUMBER_KEYS)
ODD_KEY = st.sampled_from(
    [
        "datasets.name",
        "dataset.context",
        "nope.x",
        "attributes.nope",
        "attributes.lifecycle_stage",
        "loss",
        "",
        "metrics",
        "metrics.",
        "params.'",
        "attributes.experiment_id",
        "metrics.``",
    ]
)
COMPARED = st.sampled_from(["=", "!=", ">", ">=", "<", "<="])
LIKE = st.sampled_from(["=", "!=", "LIKE", "like", "ILIKE", "ilike", "="])
ODD_COMPARED = st.sampled_from(["==", "RLIKE", "<>", "~", "", "IS", "NOT LIKE", "IN"])


def joined(*parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.tuples(*parts).map(" ".join).map(str.strip)


COMPARISON = mostly(
    st.one_of(
        joined(TEXT_KEY, LIKE, QUOTED),
        joined(NUMBER_KEY, COMPARED, NUMBER),
        joined(st.sampled_from(["params.loss", "tags.`a/b`"]), st.sampled_from(["IS NULL", "IS NOT NULL", "is null"])),
        joined(st.just("run_id"), st.sampled_from(["IN", "NOT IN"]), st.sampled_from(["('a', 'b')", "('RUN')"])),
    ),
    joined(
        st.one_of(TEXT_KEY, NUMBER_KEY, ODD_KEY),
        st.one_of(LIKE, COMPARED, ODD_COMPARED, st.just("IS NULL")),
        st.one_of(QUOTED, NUMBER, ODD_VALUE),
    ),
)
AND = st.sampled_from([" AND ", " and ", "  AND\n"])
FILTERS = mostly(
    st.one_of(
        st.just(""),
        COMPARISON,
        st.tuples(COMPARISON, AND, COMPARISON).map("".join),
        st.lists(COMPARISON, min_size=3, max_size=5).map(" AND ".join),
    ),
    st.sampled_from(
        [
            None,
            5,
            [],
            "'",
            "`",
            "(",
            "((((",
            "metrics.loss > 1 OR 1 = 1",
            "metrics.loss > 1; DROP TABLE runs",
            "a" * 900,
            "params.loss = 'x' AND",
            "AND",
            "params.loss = 'a\x00b'",
            "params.loss = '\ud800'",
            "😀",
            "--",
            "/* x */",
            "metrics.loss > 1 " + "AND metrics.loss > 1 " * 60,
            "(metrics.loss > 1)",
            "params.loss = 'v' params.loss = 'v'",
            "tags.made = 'by a test' AND (params.loss = 'v')",
            " ",
            "\n",
            "params.loss LIKE '\\'",
            "params.loss = '%s'",
            "params.loss = ':x'",
            "params.loss = '$1'",
            "params.loss = '{found}'",
        ]
    ),
)
ORDER = mostly(
    joined(st.one_of(TEXT_KEY, NUMBER_KEY), st.sampled_from(["", "ASC", "DESC", "asc", "desc"])),
    st.sampled_from(
        [
            "",
            "nope",
            "metrics.loss SIDEWAYS",
            "metrics.loss DESC, x",
            "'",
            5,
            None,
            "a b c",
            "datasets.name",
            "metrics.loss; DROP TABLE runs",
            "metrics.`loss",
            "\x00",
            "x" * 900,
        ]
    ),
)
ORDERS = mostly(
    st.lists(ORDER, max_size=3), st.sampled_from(["start_time", None, {}, ["start_time"] * 2, ["start_time"] * 60])
)


def token(of: Any) -> str:
    return base64.b64encode(json.dumps(of).encode()).decode()


TOKENS = mostly(
    st.one_of(st.none(), st.integers(0, 5).map(lambda first: token({"offset": first}))),
    st.sampled_from(
        [
            "",
            "x",
            "====",
            token([]),
            token({"offset": -1}),
            token({"offset": "2"}),
            token({"offset": 2**70}),
            token({"offset": 1.5}),
            token({"offset": None}),
            token({}),
            "e30",
            "\x00",
            "grün",
            5,
            token(5),
        ]
    ),
)
MOST = mostly(
    st.integers(1, 5), st.sampled_from([0, -1, 1000, 50_000, 50_001, "3", 1.5, 2.0, True, None, 2**31, "x", []])
)
VIEWS = mostly(
    st.sampled_from(["ACTIVE_ONLY", "ACTIVE_ONLY", "ALL", "DELETED_ONLY"]), st.sampled_from([1, "x", None, "all", []])
)
# "own" is the experiment's id, "other" that of another one.
PLACES = mostly(
    st.sampled_from([["own"], ["own"], ["own", "other"]]),
    st.sampled_from(
        [
            [],
            None,
            "own",
            ["own"] * 3,
            ["0"],
            ["01"],
            ["999999"],
            ["x"],
            [1],
            [""],
            ["-1"],
            ["9" * 12],
            ["own "],
            ["own"] * 200,
        ]
    ),
)
LOGINS = mostly(st.just("ada"), st.sampled_from(["bob", "admin", "none", "wrong"]))
HEADERS = mostly(
    st.sampled_from([{}, {}, {"Origin": "https://lab.example.org", "Sec-Fetch-Site": "same-origin"}, OF_A_PAGE]),
    st.sampled_from(
        [
            {"Origin": "https://evil.example.org"},
            {"Host": "evil.example.org"},
            {"Content-Type": "text/plain"},
            {"Origin": "http://localhost:3000"},
            {"Content-Type": "application/json; charset=utf-16"},
            {"Cookie": "a=b"},
            {"X-MLFLOW-WORKSPACE": "w"},
        ]
    ),
)


@dataclass(frozen=True)
class Question:
    """query: (name, value) of a GET; document: of a POST.  run, many: which of the runs, or what stands for one."""

    path: str
    document: Any = None
    query: tuple[tuple[str, str], ...] = ()
    run: int | str | None = None
    login: str = "ada"
    headers: dict[str, str] = field(default_factory=dict)
    prefix: str = "/api/2.0/mlflow/"
    tail: str = ""
    many: tuple[int | str, ...] = ()

    def address(self, runs: list[str]) -> str:
        """Path and query; the query names the run twice, as MLflow's client does, or once."""
        fields = [("run_ids", runs[one] if isinstance(one, int) else one) for one in self.many] + list(self.query)
        if self.run is not None:
            fields.insert(0, ("run_id", runs[self.run] if isinstance(self.run, int) else self.run))
        asked = urllib.parse.urlencode(fields) + self.tail
        return self.prefix + self.path + ("?" + asked if asked else "")


PREFIXES = st.sampled_from(["/api/2.0/mlflow/", "/ajax-api/2.0/mlflow/"])
ABOUT_RUN = mostly(st.integers(0, 2), st.sampled_from([NOBODY, "x", "", None, "A" * 32, "0" * 33]))
TAILS = mostly(
    st.sampled_from(["", ""]),
    st.sampled_from(["&run_id=x", "&", "&other=1", "&run_uuid=x", "&a", ";", "#x", "&%ff=1", "&="]),
)
SEARCHES = st.builds(
    Question,
    st.just(SEARCH),
    mostly(
        st.fixed_dictionaries(
            {"experiment_ids": PLACES},
            optional={
                "filter": FILTERS,
                "order_by": ORDERS,
                "page_token": TOKENS,
                "max_results": MOST,
                "run_view_type": VIEWS,
            },
        ),
        st.sampled_from([None, [], "x", {}, {"experiment_ids": ["own"], "other": 1}, {"experimentIds": ["own"]}]),
    ),
    login=LOGINS,
    headers=HEADERS,
    prefix=PREFIXES,
)
GETS = st.builds(Question, st.just(GET), run=ABOUT_RUN, login=LOGINS, headers=HEADERS, prefix=PREFIXES, tail=TAILS)
KEYS = mostly(
    st.sampled_from(["loss", "acc", "a/b", "grün", "x y:z", "nope"]),
    st.sampled_from(["", "../x", "\x00", "%", "k" * 251]),
)
HISTORIES = st.builds(
    lambda key, most, page, **more: Question(
        HISTORY,
        query=tuple(
            (name, str(value))
            for name, value in (("metric_key", key), ("max_results", most), ("page_token", page))
            if value is not None
        ),
        **more,
    ),
    KEYS,
    st.one_of(st.none(), MOST),
    TOKENS,
    run=ABOUT_RUN,
    login=LOGINS,
    headers=HEADERS,
    prefix=PREFIXES,
    tail=TAILS,
)
STEP = mostly(st.integers(-2, 3), st.sampled_from(["", "x", "1.5", 2**31, 2**63, "-0", " 1", "01", "+1"]))
STEPS = st.one_of(
    st.just(()),
    st.tuples(STEP, STEP).map(lambda both: (("start_step", str(both[0])), ("end_step", str(both[1])))),
    STEP.map(lambda one: (("start_step", str(one)),)),
)
BULKS = st.builds(
    lambda key, most, steps, **more: Question(
        CURVES,
        query=(
            *((("metric_key", key),) if key is not None else ()),
            *((("max_results", str(most)),) if most is not None else ()),
            *steps,
        ),
        **more,
    ),
    mostly(KEYS, st.none()),
    st.one_of(
        st.none(), mostly(st.integers(1, 5), st.sampled_from([0, -1, 2500, 2501, "x", "1.5", " 1", "01", 10**6]))
    ),
    STEPS,
    many=mostly(
        st.lists(st.integers(0, 2), min_size=1, max_size=4).map(tuple),
        st.sampled_from([(), (NOBODY,), (0, NOBODY), ("x",), ("",), (0,) * 101]),
    ),
    login=LOGINS,
    headers=HEADERS,
    prefix=PREFIXES,
    tail=TAILS,
)
QUESTIONS = st.one_of(SEARCHES, SEARCHES, SEARCHES, GETS, HISTORIES, BULKS)
