"""What was deleted long ago goes for good: MLflow's own store, PostgreSQL, and an S3 server that checks signatures."""

from __future__ import annotations

import json
import time

import pytest
from mlflow_lab import Lab

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
    code, _, said = lab.python("gc", str(lab.folder), "--days", "0")
    assert code == 2 and "--days has to be 1 or more" in said
