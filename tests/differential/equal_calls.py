"""Calls of the native routes, good and bad, and what two servers make of them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

import requests
from hypothesis import strategies as st
from lab_server import ADA, ADMIN, BOB, LabServer

NOBODY = "0" * 32
DRAWN = re.compile(r"\b[0-9a-f]{32}\b|\b[a-z]+-[a-z]+-\d+\b")  # a run's id, and a name that MLflow chooses
HALF_READ = "nothing was logged"
LOGINS = {"ada": ADA, "bob": BOB, "admin": ADMIN, "wrong": ("ada", "no word at all"), "none": None}

# Of each kind: what MLflow takes, and what lies at its edges or beyond.  Good ones come more often.
NAMES = st.sampled_from(["loss", "acc", "a/b", "grün", "x y:z", "k" * 250])
ODD_NAMES = st.sampled_from(
    [
        "",
        "../x",
        "/a",
        "a//b",
        ".",
        "a\n",
        "a\nb",
        "k" * 251,
        "a\x00",
        "😀",
        "a%",
        "\ud800",
        "mlflow.runName",
        None,
        5,
        True,
    ]
)
NUMBERS = st.one_of(
    st.sampled_from([0, -0.0, 0.0, 1, -1, 0.5, "NaN", "Infinity", "-Infinity", 5e-324, 1.7976931348623157e308, 2**53]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-5, 5),
)
ODD_NUMBERS = st.sampled_from(
    ["nan", "1.5", "abc", "", None, True, [], {}, 2**53 + 1, 10**400, float("nan"), float("inf"), "inf", " 1"]
)
TIMES = st.one_of(st.integers(0, 3), st.sampled_from([2**63 - 1, 1_700_000_000_000]))
ODD_TIMES = st.sampled_from([-1, 2**63, -(2**63), "5", 1.0, 1.5, None, True, "x", [], ""])
STEPS = st.one_of(st.integers(-2, 3), st.sampled_from([2**63 - 1, -(2**63) + 1, 10**6]))
ODD_STEPS = st.sampled_from([-(2**63), 2**63, "5", 2.0, 2.5, None, True, "x", {}, 1e300])
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=8),
    st.sampled_from(["", "v", "w", "t" * 6000, "'; DROP TABLE runs --", "😀"]),
)
ODD_TEXTS = st.sampled_from(["t" * 6001, "t" * 8001, "a\x00b", "\ud800", None, 1, 1.5, True, [], {}])


def mostly(good: st.SearchStrategy[Any], odd: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.integers(0, 24).flatmap(lambda chance: odd if chance == 0 else good)


def entry(**kinds: tuple[st.SearchStrategy[Any], st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """An object with these fields, now and then without one of them or with one more."""
    whole = st.fixed_dictionaries({name: mostly(*kind) for name, kind in kinds.items()})
    less = st.sampled_from(sorted(kinds)).flatmap(
        lambda gone: whole.map(lambda one: {name: value for name, value in one.items() if name != gone})
    )
    more = st.tuples(whole, st.sampled_from([
        {"model_id": "m-" + NOBODY}, {"model_id": ""}, {"dataset_name": "d"},
        {"dataset_name": "d", "dataset_digest": "e"}, {"other": 1}, {"Key": "x"}, {"run_id": NOBODY},
        {"model_id": None}, {"runId": NOBODY},
    ])).map(lambda both: {**both[0], **both[1]})  # fmt: skip
    return st.integers(0, 19).flatmap(lambda chance: {0: less, 1: more}.get(chance, whole))


POINT = entry(
    key=(NAMES, ODD_NAMES), value=(NUMBERS, ODD_NUMBERS), timestamp=(TIMES, ODD_TIMES), step=(STEPS, ODD_STEPS)
)
PAIR = entry(key=(NAMES, ODD_NAMES), value=(TEXTS, ODD_TEXTS))


def many(of: st.SearchStrategy[Any], most: int) -> st.SearchStrategy[Any]:
    return mostly(st.lists(of, max_size=8), st.one_of(
        st.sampled_from([None, {}, "x", 5, [None], [[]], [5]]),
        of.map(lambda one: [one] * 3), of.map(lambda one: [one] * (most + 1)),
    ))  # fmt: skip


BATCH = st.fixed_dictionaries(
    {}, optional={"metrics": many(POINT, 1000), "params": many(PAIR, 100), "tags": many(PAIR, 100)}
)
# Of a run itself.
STATUS = (st.sampled_from(["RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"]), st.sampled_from(
    ["finished", "NOPE", "", 3, 99, None, [], True]
))  # fmt: skip
RUN_NAME = (
    st.one_of(NAMES, TEXTS.filter(lambda text: len(text) < 9)),
    st.sampled_from(["k" * 251, "t" * 6000, "a\x00b", "\ud800", None, 5, [], " "]),
)
TIME = (TIMES, ODD_TIMES)
UPDATE = st.fixed_dictionaries(
    {}, optional={"status": mostly(*STATUS), "end_time": mostly(*TIME), "run_name": mostly(*RUN_NAME)}
)
NAME_TAG = st.builds(lambda name: {"key": "mlflow.runName", "value": name}, mostly(*RUN_NAME))
# Of one recording in all calls of a sequence: the second create gives what the first has made.
RECORDED_ID = st.builds(
    lambda drawn, last: drawn.hex[:-1] + last, st.shared(st.uuids(), key="recorded"), st.sampled_from("01")
)
RECORDED = mostly(RECORDED_ID, st.sampled_from(["AB" * 16, "", "x"])).map(
    lambda number: [
        {"key": "labtrack.source_run_id", "value": number},
        {"key": "labtrack.source_store", "value": "a recording"},
    ]
)
CREATE = st.fixed_dictionaries(
    {},
    optional={
        "run_name": mostly(*RUN_NAME),
        "user_id": mostly(RUN_NAME[0], RUN_NAME[1]),
        "start_time": mostly(*TIME),
        "tags": st.one_of(many(PAIR, 100), st.lists(st.one_of(PAIR, NAME_TAG), max_size=3), RECORDED),
        "experiment_id": mostly(
            st.just("own"), st.sampled_from(["", "0", "01", " 1", "999999", "9" * 12, "x", None, 1, [], True])
        ),
    },
)


@dataclass(frozen=True)
class Call:
    """run: its place, or what stands for one.  body: instead of the document.  Printed as it is when a test fails."""

    path: str
    document: Any = None
    run: int | str | None = 0
    login: str = "ada"
    headers: dict[str, str] = field(default_factory=dict)
    query: str = ""
    body: bytes | None = None
    twice: str = ""


def to_a_run(path: str, documents: st.SearchStrategy[Any]) -> st.SearchStrategy[Call]:
    usual = st.builds(Call, st.just(path), documents, st.integers(-1, 1), twice=st.sampled_from(["", "", "run_uuid"]))
    odd = st.one_of(
        st.builds(Call, st.just(path), documents, st.sampled_from([NOBODY, "x", "", None, "A" * 32, "0" * 33])),
        st.builds(Call, st.just(path), documents, login=st.sampled_from(["bob", "admin", "none", "wrong"])),
        st.builds(Call, st.just(path), documents, headers=st.sampled_from([
            {"Content-Type": "application/json; charset=utf-8"}, {"Content-Type": "text/plain"}, {"Content-Type": ""},
            {"Origin": "https://evil.example.org"}, {"Origin": "https://lab.example.org"}, {"Host": "evil.example.org"},
            {"Content-Encoding": "gzip"}, {"X-MLFLOW-WORKSPACE": "w"}, {"Authorization": "Bearer x"}, {"Cookie": "a=b"},
        ])),
        st.builds(Call, st.just(path), documents, query=st.sampled_from(["?a=b", "?run_id=x"])),
        st.builds(Call, st.just(path), documents, twice=st.sampled_from(["runId", "other", "run_uuid only"])),
        st.builds(Call, st.just(path), body=st.sampled_from([
            b"", b"{", b"[]", b"null", b'"{}"', b"5", b"[" * 3000, '{"run_id": "x"}'.encode("utf-16"), b"\xff",
            b'{"a": NaN}',
        ])),
    )  # fmt: skip
    return mostly(usual, odd)


CREATES = mostly(
    st.builds(Call, st.just("runs/create"), CREATE, st.none()),
    st.one_of(
        st.builds(Call, st.just("runs/create"), CREATE, st.none(), st.sampled_from(["bob", "admin", "none", "wrong"])),
        st.builds(Call, st.just("runs/create"), CREATE.map(lambda one: {**one, "other": 1}), st.none()),
        st.builds(Call, st.just("runs/create"), CREATE, st.none(), query=st.just("?experiment_id=0")),
        st.builds(Call, st.just("runs/create"), run=st.none(), body=st.sampled_from([b"", b"{}", b"[]", b"null"])),
    ),
)
EXPERIMENTS = st.builds(
    Call, st.sampled_from(["experiments/delete", "experiments/restore", "experiments/restore"]), st.just({}), st.none()
)
STATES = st.builds(
    Call,
    st.sampled_from(["runs/delete", "runs/restore", "runs/restore", "runs/restore"]),
    st.just({}),
    st.integers(0, 1),
)
ENDS = st.builds(
    Call,
    st.just("runs/update"),
    st.fixed_dictionaries({"status": st.just("FINISHED"), "end_time": TIMES}),
    st.integers(0, 1),
)
CALLS = st.one_of(
    to_a_run("runs/log-metric", POINT),
    to_a_run("runs/log-batch", BATCH),
    to_a_run("runs/log-batch", BATCH),
    to_a_run("runs/log-parameter", PAIR),
    to_a_run("runs/set-tag", PAIR),
    to_a_run("runs/update", UPDATE),
    CREATES,
    CREATES,
    st.one_of(STATES, STATES, ENDS, ENDS, EXPERIMENTS),
)


def send(server: LabServer, call: Call, experiment: str, runs: list[str]) -> requests.Response:
    """The call, about the experiment or one of its RUNS."""
    body = call.body
    if body is None:
        run_id = runs[call.run] if isinstance(call.run, int) else call.run
        document = {"experiment_id": experiment} if call.path.startswith("experiments/") else dict(call.document)
        if call.path == "runs/create" and document.get("experiment_id", "own") == "own":
            document["experiment_id"] = experiment
        if call.twice == "run_uuid only":
            document["run_uuid"] = run_id
        elif run_id is not None:
            document.setdefault("run_id", run_id)
        if call.twice in ("run_uuid", "runId"):
            document[call.twice] = run_id
        elif call.twice == "other":
            document["run_uuid"] = runs[1]
        body = json.dumps(document).encode()
    return server.send(call.path + call.query, body, LOGINS[call.login], **call.headers)


def said(answer: requests.Response, runs: list[str]) -> tuple[int, str, list[tuple[str, str]]]:
    """Status, body and headers, with the runs' places for their ids."""
    text = answer.text
    for place, run_id in enumerate(runs):
        text = text.replace(run_id, f"<{place}>")
    text = re.sub(r"0x[0-9a-f]+|\(id \d+\)|(?<=experiment_id=)\d+", "...", text)
    text = re.sub(r"(?<=/artifacts/)\d+(?=/)|(?<=\"experiment_id\": \")\d+", "...", DRAWN.sub("drawn", text))
    # of an error of the database's: the statement, shortened according to how long a name was drawn
    text = re.sub(r"\[SQL: .*", "...", text, flags=re.DOTALL)
    headers = [(name.lower(), value) for name, value in answer.headers.items()]
    return answer.status_code, text, sorted(one for one in headers if one[0] not in ("date", "content-length"))


def tables(server: LabServer, runs: list[str]) -> dict[str, list[str]]:
    """All that the database has about the runs, in a fixed order."""
    found = {}
    for table in ("metrics", "latest_metrics", "params", "tags", "runs", "logged_model_metrics"):
        column = "run_id" if table == "logged_model_metrics" else "run_uuid"
        left_out = " - 'artifact_uri' - 'experiment_id' - 'deleted_time'"
        rows = server.sql(
            f"SELECT to_jsonb(t){left_out} FROM {table} t WHERE {column} IN ({', '.join(repr(one) for one in runs)})"
        )
        for place, run_id in enumerate(runs):
            rows = [row.replace(run_id, f"<{place}>") for row in rows]
        found[table] = sorted(DRAWN.sub("drawn", row) for row in rows)
    return found
