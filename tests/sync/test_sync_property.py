"""Whatever was recorded is what the server has."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sync_recording import Recording
from sync_server import TrackingServer, tag

from labtrack.sync import Options, sync

LARGEST = 1.7976931348623157e308
# what MLflow takes as a name; and texts that PostgreSQL keeps
NAMES = st.from_regex(r"[a-zé_][a-z0-9é_. :-]{0,12}(/[a-z0-9_]{1,8}){0,2}", fullmatch=True).filter(
    lambda one: not one.startswith("mlflow")
)
TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=40)
NUMBERS = st.floats(allow_subnormal=False)
POINTS = st.lists(st.tuples(NUMBERS, st.integers(0, 2**41), st.integers(-(2**31), 2**40)), max_size=8)
FILES = st.dictionaries(
    st.from_regex(r"[a-z]{1,5}(/[a-z]{1,5} ?[a-z]%?)?\.bin", fullmatch=True), st.binary(max_size=50), max_size=3
)
RUNS = st.fixed_dictionaries({
    "params": st.dictionaries(NAMES, TEXTS, max_size=4),
    "tags": st.dictionaries(NAMES, TEXTS, max_size=4),
    "points": st.dictionaries(NAMES, POINTS, max_size=3),
    "files": FILES,
    "status": st.sampled_from(["FINISHED", "FAILED", "KILLED", "RUNNING", "SCHEDULED"]),
    "stage": st.sampled_from(["active", "deleted"]),
    "start": st.integers(1, 2**41),
    "parent": st.integers(-1, 3),
})  # fmt: skip


def kept(points: list[tuple[float, int, int]]) -> list[str]:
    """As MLflow keeps them: exact repeats once, infinities as the largest number."""
    finite = [(time, step, math.copysign(LARGEST, one) if math.isinf(one) else one + 0.0) for one, time, step in points]
    return sorted({repr(one) for one in finite})


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(runs=st.lists(RUNS, min_size=1, max_size=4))
def test_what_was_recorded_is_there(server: TrackingServer, runs: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        recording = Recording(Path(folder) / "recording")
        ids: list[str] = []
        for number, one in enumerate(runs):
            tags = dict(one["tags"])
            if 0 <= one["parent"] < number:
                tags["mlflow.parentRunId"] = ids[one["parent"]]
            ids.append(recording.run(
                name=f"run {number}", params=one["params"], tags=tags, files=one["files"], status=one["status"],
                stage=one["stage"], start=one["start"],
            ))  # fmt: skip
            for key, points in one["points"].items():
                for value, time, step in points:
                    fact = (0.0, 1) if math.isnan(value) else (value, 0)
                    if math.isinf(value):
                        fact = (math.copysign(LARGEST, value), 0)
                    recording.insert("metrics", run_uuid=ids[-1], key=key, value=fact[0], timestamp=time, step=step,
                                     is_nan=fact[1])  # fmt: skip
        state = {"XDG_STATE_HOME": f"{folder}/state"}
        for _ in range(2):
            report = sync(recording.path, server.url, Options(deleted=True, env=state))
            assert report.exit_code == 0, report
        assert {one.todo for one in report.planned} == {"there"}
        found = {tag(one, "labtrack.source_run_id") or "": one for one in server.runs(recording.name)}
        assert sorted(found) == sorted(ids)
        for run_id, one in zip(ids, runs):
            compare(server, found, run_id, one, ids)


def compare(server: TrackingServer, found: dict[str, Any], run_id: str, one: dict[str, Any], ids: list[str]) -> None:
    info, data = found[run_id]["info"], found[run_id]["data"]
    facts = (info["status"], info["lifecycle_stage"], info["start_time"])
    assert facts == (one["status"], one["stage"], one["start"])
    assert {pair["key"]: pair.get("value", "") for pair in data.get("params", [])} == one["params"]
    tags = {pair["key"]: pair.get("value", "") for pair in data.get("tags", [])}
    assert {key: tags.get(key) for key in one["tags"]} == one["tags"]
    number = ids.index(run_id)
    parent = found[ids[one["parent"]]]["info"]["run_id"] if 0 <= one["parent"] < number else None
    assert tags.get("mlflow.parentRunId") == parent
    for key, points in one["points"].items():
        assert sorted({repr(point) for point in server.history(info["run_id"], key)}) == kept(points)
    assert server.files(info["artifact_uri"]) == one["files"]
