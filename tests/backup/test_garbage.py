"""What was deleted long ago goes for good: MLflow's own store, PostgreSQL, and an S3 server that checks signatures."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow_lab import FILES, Lab

sys.path.insert(0, str(FILES))

from mlflow_garbage import outdated

GOES = ("old", "model old", "in the experiment", "model in the experiment")
STAYS = ("alive", "fresh", "named", "model alive", "model named", "elsewhere")


def test_what_was_deleted_long_ago_goes_with_its_artifacts(lab: Lab) -> None:
    made = lab.make("first")
    before, there = dict(lab.bucket), lab.there()

    code, dry = lab.gc("--dry-run")
    assert code == 0 and (dict(lab.bucket), lab.there()) == (before, there) and not (lab.folder / "gc.json").exists()

    code, done = lab.gc()
    counted = {"runs": 2, "models": 2, "experiments": 1, "objects": 10, "bytes": 10_000}
    assert code == 0 and done["failed"] == [] and {key: done[key] for key in counted} == counted
    assert {key: dry[key] for key in ("runs", "models", "experiments")} == {"runs": 2, "models": 2, "experiments": 1}
    assert json.loads((lab.folder / "gc.json").read_text()) == done
    assert there - lab.there() == {made[one][0] for one in GOES} | {f"experiment {made['experiment'][0]}"}
    assert all(lab.files(made[one][1]) == [] for one in (*GOES, "experiment"))
    assert all(lab.files(made[one][1]) == ["a", "b/c"] for one in STAYS if one != "elsewhere")
    assert lab.sql("SELECT count(*) FROM metrics WHERE run_uuid = :'run'", run=made["old"][0]) == ["0"]
    assert lab.sql("SELECT count(*) FROM trace_info WHERE experiment_id = :one", one=made["experiment"][0]) == ["0"]

    kept = {one["what"]: one["why"] for one in done["kept"]}
    assert set(kept) == {
        f"run {made['named'][0]}", f"model {made['model named'][0]}", f"run {made['elsewhere'][0]}"
    }  # fmt: skip
    assert "version 1 of the registered model first registered" in kept[f"run {made['named'][0]}"]
    assert "version 2" in kept[f"model {made['model named'][0]}"]
    assert "s3://another/place" in kept[f"run {made['elsewhere'][0]}"]

    code, again = lab.gc()
    assert code == 0 and (again["runs"], again["models"], again["experiments"], again["objects"]) == (0, 0, 0, 0)


def test_one_that_cannot_be_deleted_stops_no_other(lab: Lab) -> None:
    made = lab.make("second")
    hold = "CREATE TABLE holds (run varchar(32) REFERENCES runs (run_uuid)); INSERT INTO holds VALUES (:'run')"
    lab.sql(hold, run=made["old"][0])
    try:
        code, done = lab.gc()
        assert code == 1 and [one["what"] for one in done["failed"]] == [f"run {made['old'][0]}"]
        assert "holds" in done["failed"][0]["why"]
        assert (done["runs"], done["experiments"]) == (1, 1) and made["old"][0] in lab.there()
    finally:
        lab.sql("DROP TABLE holds")
    assert lab.gc()[0] == 0 and made["old"][0] not in lab.there()


def test_addresses_of_a_server_that_passes_artifacts_on(lab: Lab) -> None:
    made = lab.make("proxied")
    for table, column in (
        ("runs", "artifact_uri"),
        ("logged_models", "artifact_location"),
        ("model_versions", "source"),
    ):
        lab.sql(
            """UPDATE :"table" SET :"column" = replace(:"column", 's3://climate/artifacts', 'mlflow-artifacts:')""",
            table=table,
            column=column,
        )
    where = {"_MLFLOW_SERVER_ARTIFACT_DESTINATION": "s3://climate/artifacts"}
    code, done = lab.gc(_MLFLOW_SERVER_ARTIFACT_ROOT="mlflow-artifacts:/", **where)
    assert code == 0 and (done["runs"], done["models"], done["experiments"], done["objects"]) == (2, 2, 1, 10)
    assert lab.files(made["old"][1]) == [] and lab.files(made["named"][1]) == ["a", "b/c"]


def test_a_store_that_is_down_is_one_finding_and_loses_nothing(lab: Lab) -> None:
    made, there = lab.make("third"), lab.there()
    began = time.monotonic()
    code, done = lab.gc(MLFLOW_S3_ENDPOINT_URL="https://localhost:9")
    assert code == 1 and [one["what"] for one in done["failed"]] == ["the object store"]
    assert lab.there() == there and lab.files(made["old"][1]) == ["a", "b/c"] and time.monotonic() - began < 60


def test_a_store_that_goes_away_while_it_deletes_is_one_finding_too(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    made, there = lab.make("fourth"), lab.there()
    monkeypatch.setattr(
        lab.store.server.RequestHandlerClass, "do_DELETE", lambda handler: setattr(handler, "close_connection", True)
    )
    code, done = lab.gc()
    assert code == 1 and [one["what"] for one in done["failed"]] == ["the object store"], done
    monkeypatch.undo()
    assert lab.there() == there
    assert lab.gc()[0] == 0 and made["old"][0] not in lab.there()


def test_nothing_that_was_deleted_just_now_goes_by_a_slip(lab: Lab) -> None:
    for too_soon in (["--days", "0"], ["--versions", "0"], ["--days", "-1", "--versions", "9"], []):
        code, _, said = lab.python("gc", str(lab.folder), *too_soon)
        assert code == 2 and "--days or --versions has to be 1 or more" in said


T0 = datetime(2026, 1, 1, tzinfo=timezone.utc)


class Bucket:
    """A bucket with versions, which tells what it keeps as S3 does, in pages."""

    def __init__(self) -> None:
        self.kept: dict[str, list[dict[str, Any]]] = {}  # of each key, the oldest first

    def add(self, key: str, day: int, *, mark: bool) -> None:
        version = {"Key": key, "LastModified": T0 + timedelta(days=day), "VersionId": f"{key}{day}", "mark": mark}
        self.kept.setdefault(key, []).append(version)

    def pages(self, size: int) -> Iterator[dict[str, Any]]:
        every = [
            {**one, "IsLatest": one is self.kept[key][-1]} for key in sorted(self.kept) for one in self.kept[key][::-1]
        ]
        for start in range(0, len(every), size):
            page = every[start : start + size]
            yield {
                "Versions": [one for one in page if not one["mark"]],
                "DeleteMarkers": [one for one in page if one["mark"]],
            }

    def shown(self) -> dict[str, str]:
        """What somebody sees who knows of no versions."""
        return {key: found[-1]["VersionId"] for key, found in self.kept.items() if found and not found[-1]["mark"]}


@given(
    events=st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=25),
    size=st.integers(1, 6),
    before=st.integers(-1, 26),
    killed=st.integers(0, 30),
)
def test_the_versions_that_go_are_those_that_nobody_sees_any_more(
    events: list[tuple[str, bool]], size: int, before: int, killed: int
) -> None:
    bucket = Bucket()
    for day, (key, mark) in enumerate(events):
        bucket.add(key, day, mark=mark)
    shown, days = bucket.shown(), {key: [one["LastModified"] for one in found] for key, found in bucket.kept.items()}
    limit = T0 + timedelta(days=before)

    def collect(most: int) -> None:
        for one in islice(outdated(bucket.pages(size), limit), most):
            bucket.kept[one["Key"]] = [own for own in bucket.kept[one["Key"]] if own["VersionId"] != one["VersionId"]]
            assert bucket.shown() == shown  # at any moment: a call can be killed

    collect(killed)
    collect(1000)
    for key, times in days.items():
        # a version is old since the next one came; the last goes only if it is a mark that is alone and old itself
        stays = [at for at, newer in zip(times, [*times[1:], None]) if newer is None or newer >= limit]
        if len(stays) == 1 and key not in shown and stays[0] < limit:
            stays = []
        assert [one["LastModified"] for one in bucket.kept[key]] == stays
