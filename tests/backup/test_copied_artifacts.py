"""The artifacts of a lab, copied each night into another project's bucket."""

from __future__ import annotations

import fcntl
import importlib
import os
import signal
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from artifact_copies import COPIES, COPIES_KEY, LAB, LAB_KEY, LISTINGS, OBJECTS, Artifacts
from backed_up import PROGRAM
from s3_server import Content

MIB = 2**20


def test_what_is_new_is_copied_and_what_was_overwritten_or_deleted_stays(artifacts: Artifacts) -> None:
    old = artifacts.put("1/r/artifacts/model.pkl", b"old")
    names = ("ä & <b>.txt", "two\nlines\t", "100%41+?#=;", "a/../b", "a//b", "\x1b[2J'\"\\")
    odd = {f"1/r/artifacts/{name}": artifacts.put(f"1/r/artifacts/{name}", name.encode()) for name in names}
    long = artifacts.put(f"1/r/{'x' * 900}", b"long")
    empty = artifacts.put("1/r/empty", b"")
    for number in range(8):
        artifacts.put(f"2/{number}", b"x" * number)
    artifacts.lab["elsewhere"] = b"not MLflow's"
    first = artifacts.night()
    assert (first["objects"], first["copied"], first["missing"]) == (17, 17, 0)
    copied = artifacts.copied()
    assert copied[f"1/r/artifacts/model.pkl/{old}"] == b"old"
    assert {key: copied[f"{key}/{etag}"].decode() for key, etag in odd.items()} == dict(zip(odd, names, strict=True))
    assert b"long" in copied.values() and copied[f"1/r/empty/{empty}"] == b"" and len(copied) == 17
    head, *rows = artifacts.listed()
    assert (head["objects"], head["root"], head["time"]) == (17, "s3://climate/artifacts", first["listing"])
    assert {row["key"] for row in rows} == {key for key in artifacts.lab if key != "elsewhere"}
    assert [row["etag"] for row in rows if row["key"].endswith("x" * 900)] == [long]

    artifacts.writes()
    assert artifacts.night()["copied"] == 0 and artifacts.writes() == [], "nothing is copied twice"

    new = artifacts.put("1/r/artifacts/model.pkl", b"new")
    del artifacts.lab["artifacts/2/7"]
    assert artifacts.night()["copied"] == 1
    copied = artifacts.copied()
    assert copied[f"1/r/artifacts/model.pkl/{old}"] == b"old" and copied[f"1/r/artifacts/model.pkl/{new}"] == b"new"
    assert any(key.startswith("2/7/") for key in copied)
    _, *rows = artifacts.listed()
    assert not [row for row in rows if row["key"] == "artifacts/2/7"]

    there = dict(artifacts.lab)
    artifacts.lab.clear()
    said = artifacts("artifacts-restore", "latest")
    assert artifacts.lab == {key: body for key, body in there.items() if key != "elsewhere"}
    assert r"put back: \"artifacts/1/r/artifacts/two\nlines\t\"" in said.replace('"', r"\"") and "\x1b" not in said


def test_who_may_read_what_it_leaves(artifacts: Artifacts) -> None:
    artifacts.put("1/a", b"a")
    artifacts.night()
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in artifacts.state.iterdir()}
    assert modes == {"artifacts.json": 0o644, "listing.jsonl.gz": 0o640, "lock": 0o600}
    left = (
        b"".join(file.read_bytes() for file in artifacts.state.iterdir()) + artifacts.machine.settings_file.read_bytes()
    )
    assert not any(key[1].encode() in left for key in (LAB_KEY, COPIES_KEY))


def test_a_large_object_goes_in_parts_both_ways_and_is_the_same_after(artifacts: Artifacts) -> None:
    body = os.urandom(MIB) * 17 + b"end"
    artifacts.put("1/large", body)
    etag = artifacts.put("1/parts", b"y" * 9 * MIB, etag="0123456789abcdef0123456789abcdef-2")
    before = artifacts.store.multipart
    assert artifacts.night()["copied"] == 2 and artifacts.store.multipart == before + 1
    assert body in artifacts.copied().values() and f"1/parts/{etag}" in artifacts.copied()

    artifacts.lab.clear()
    # of a call that was killed, and of somebody else
    artifacts.store.uploads |= {"killed": ("artifacts/1/large", {}), "other": ("artifacts/1/large.pt", {})}
    said = artifacts("artifacts-restore", "latest")
    assert list(artifacts.store.uploads) == ["other"]
    assert "2 of 2 objects (26.0 MiB)" in said and artifacts.lab["artifacts/1/large"] == body
    assert isinstance(artifacts.lab["artifacts/1/large"], Content) and "-2" in artifacts.lab["artifacts/1/large"].etag
    artifacts.writes()
    assert "0 of 2 objects" in artifacts("artifacts-restore", "latest", "--overwrite"), "though their etags are others"
    assert artifacts.night()["copied"] == 0 and artifacts.writes() == []


def test_the_parts_of_large_objects_fit_into_stores_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PROGRAM.parent))
    buckets = importlib.import_module("labtrack_buckets")
    for size in (17 * MIB, 6 * 1024 * MIB, buckets.LARGEST):
        part = buckets.part_size(size)
        assert 16 * MIB <= part < 300 * MIB and part * 1000 > size
    keys = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "x")
    bucket = buckets.Bucket("a store", "", "name", keys, endpoint="https://localhost:9", region="", ca="")
    with pytest.raises(buckets.DamagedError, match="it has 300 GiB, and 256 are the most"):
        bucket.put("key", None, 300 * 2**30, "")


def test_no_key_of_the_lab_can_pass_another_content_off_as_the_copied_one(artifacts: Artifacts) -> None:
    old = artifacts.put("1/model", b"good", etag="0123456789abcdef0123456789abcdef-2")
    artifacts.night()
    # as one who has the lab's key would store it
    for number, body in enumerate((b"evil", b"worse")):
        new = artifacts.put("1/model", body, etag=f"{number}123456789abcdef0123456789abcdee-2")
        artifacts.lab["artifacts/1/model"].headers = (("x-amz-meta-labtrack-etag", old),)  # type: ignore[attr-defined]
        artifacts.night()
        assert artifacts.copied()[f"1/model/{old}"] == b"good" and artifacts.copied()[f"1/model/{new}"] == body
    artifacts("artifacts-restore", artifacts.time(0), "--overwrite")
    assert artifacts.lab["artifacts/1/model"] == b"good"


def test_a_store_that_is_full_is_one_finding_and_room_is_made(artifacts: Artifacts) -> None:
    artifacts.put("1/deleted", b"d" * 1000)
    artifacts.night()
    artifacts.long_ago(40)
    del artifacts.lab["artifacts/1/deleted"]
    artifacts.night()
    for number in range(30):
        artifacts.put(f"1/{number:02}", b"x" * 10_000)
    artifacts.store.quotas[COPIES] = sum(map(len, artifacts.copies.values())) + 9000
    artifacts.writes()
    result = artifacts.night(fails=True)
    assert "1 need a look:\n  The store of the backups is full (EntityTooLarge). 30 objects" in result["message"]
    assert len([key for key in artifacts.writes() if "/objects/" in key]) <= 8, "the others were not tried"
    assert "1 pruned" in result["message"] and artifacts.copied() == {} and artifacts.listed()[0]["missing"] == 30
    artifacts.store.quotas[COPIES] = sum(map(len, artifacts.copies.values())) + 10
    assert "is full (EntityTooLarge).\nTo fix: raise its quota" in artifacts.night(fails=True)["message"]
    artifacts.store.quotas.clear()
    assert artifacts.night()["copied"] == 30


def test_a_store_that_goes_away_in_the_middle_is_told_soon_and_the_next_night_goes_on(artifacts: Artifacts) -> None:
    artifacts.store.page = 1000
    for number in range(100):
        artifacts.put(f"1/{number}", b"x")
    artifacts.store.down_after = 60
    artifacts.store.asked.clear()
    began = time.monotonic()
    message = artifacts.night(fails=True)["message"]
    assert "A store gave no answer many times over" in message and time.monotonic() - began < 60
    artifacts.store.down_after = -1
    copied = len(artifacts.copied())
    assert 0 < copied < 60 and artifacts.listings() == []
    assert artifacts.night()["copied"] == 100 - copied


def test_an_object_that_is_deleted_or_changed_before_it_is_read(
    artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifacts.put("1/gone", b"gone")
    artifacts.put("1/other", b"before")
    of_store = artifacts.store.server.RequestHandlerClass
    get = of_store.on_get

    def meanwhile(handler: Any, bucket: Any, key: str, query: Any, body: bytes) -> None:
        if key.startswith("artifacts/1/"):
            artifacts.lab.pop("artifacts/1/gone", None)
            if artifacts.lab["artifacts/1/other"] == b"before":
                artifacts.put("1/other", b"after all")
        get(handler, bucket, key, query, body)

    monkeypatch.setattr(of_store, "on_get", meanwhile)
    result = artifacts.night()
    assert (result["objects"], result["bytes"], result["missing"]) == (1, 9, 0)
    assert list(artifacts.copied().values()) == [b"after all"]
    _, row = artifacts.listed()
    assert f"1/other/{row['etag']}" in artifacts.copied()


def test_the_bucket_of_the_lab_is_not_its_own_backup(artifacts: Artifacts) -> None:
    artifacts.put("1/a", b"a")
    artifacts.store.keys[COPIES_KEY[0]] = (COPIES_KEY[1], (COPIES, LAB))
    there = dict(artifacts.lab)
    message = artifacts.night(fails=True, store=artifacts.settings["store"] | {"bucket": LAB})["message"]
    assert "would go into the lab's own bucket, climate.\nTo fix: name another bucket" in message
    assert artifacts.lab == there


def test_a_damaged_listing_is_named(artifacts: Artifacts) -> None:
    artifacts.put("1/a", b"a")
    artifacts.night()
    place = f"{LISTINGS}{artifacts.listings()[0]}.jsonl.gz"
    artifacts.copies[place] = artifacts.copies[place][:-20]
    said = artifacts("artifacts-restore", "latest", fails=True)
    assert "is damaged" in said and f"To fix: delete {place} in" in said


def test_one_that_cannot_be_copied_stops_no_other_and_is_marked(artifacts: Artifacts) -> None:
    for name in "abc":
        artifacts.put(f"1/{name}", name.encode())
    artifacts.put("1/damaged", b"damaged", etag="0" * 32)
    artifacts.store.refuses["GET", "artifacts/1/b"] = (403, "AccessDenied")
    result = artifacts.night(fails=True)
    assert "2 need a look" in result["message"]
    assert "artifacts/1/b: An error occurred (AccessDenied)" in result["message"]
    assert "artifacts/1/damaged: its content has the MD5" in result["message"]
    assert sorted(artifacts.copied().values()) == [b"a", b"c"]
    head, *rows = artifacts.listed()
    assert head["missing"] == 2 and {row["key"][-1] for row in rows if not row.get("stored", True)} == {"b", "d"}

    artifacts.store.refuses.clear()
    artifacts.put("1/damaged", b"mended")
    assert artifacts.night()["copied"] == 2
    assert '"artifacts": {' in artifacts("status", fails=True)


def test_a_copy_that_the_store_took_and_does_not_have_is_told(artifacts: Artifacts) -> None:
    artifacts.put("1/a", b"a")
    lost = artifacts.put("1/b", b"b")
    artifacts.store.forgets = {f"{OBJECTS}artifacts/1/b/{lost}"}
    message = artifacts.night(fails=True)["message"]
    assert "1 need a look:\n  artifacts/1/b: is not in the backup, though it was copied" in message
    assert [row.get("stored", True) for row in artifacts.listed()[1:]] == [True, False]


def test_a_copy_that_is_not_as_it_was_is_made_anew(artifacts: Artifacts) -> None:
    etag = artifacts.put("1/a", b"whole")
    artifacts.night()
    artifacts.copies[f"{OBJECTS}artifacts/1/a/{etag}"] = b"who"
    assert artifacts.night()["copied"] == 1 and list(artifacts.copied().values()) == [b"whole"]


def test_a_store_that_can_not_be_used_is_one_finding_and_there_is_no_listing(artifacts: Artifacts) -> None:
    artifacts.put("1/a", b"a")
    other = artifacts.settings["store"]

    def said(**store: str) -> str:
        message: str = artifacts.night(fails=True, store=other | store)["message"]
        return message

    assert "no answer from the store of the backups" in said(endpoint="https://localhost:9")
    assert "The CA of the store of the backups is not known" in said(ca="")
    assert "The key is refused by the store of the backups (AccessDenied)" in said(bucket=LAB)
    copies = artifacts.store.buckets.pop(COPIES)
    assert "The bucket of the store of the backups is not there: climate-copies" in said()
    artifacts.store.buckets[COPIES] = copies
    settings = Path(artifacts.settings["lab"])
    settings.write_text(settings.read_text().replace(artifacts.store.endpoint, "https://localhost:9"))
    result = artifacts.night(fails=True)
    assert "no answer from the lab's store" in result["message"] and "To fix: see lab_s3_endpoint" in result["message"]
    assert artifacts.listings() == [] and artifacts.copied() == {}


def test_a_server_whose_mlflow_is_gone(artifacts: Artifacts) -> None:
    said = artifacts("artifacts", fails=True, python="/opt/mlflow/none/bin/python")
    assert "/opt/mlflow/none/bin/python is not there" in said and "To fix: run playbooks/deploy.yml" in said
    assert "MLflow's release has no boto" in artifacts("artifacts", fails=True, python="/usr/bin/python3")


def test_the_unit_is_given_its_keys_by_systemd(artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    artifacts.put("1/a", b"a")
    given = artifacts.state / "given"
    given.mkdir()
    for name in ("lab", "store"):
        Path(artifacts.settings["keys"][name]).rename(given / name)
    assert "is not there.\nTo fix: run playbooks/deploy.yml" in artifacts("artifacts", fails=True)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(given))
    assert artifacts.night()["copied"] == 1


@pytest.mark.parametrize(("after", "by"), [(3, signal.SIGKILL), (20, signal.SIGKILL), (3, signal.SIGTERM)])
def test_a_killed_night_is_finished_by_the_next(artifacts: Artifacts, after: int, by: int) -> None:
    for number in range(30):
        artifacts.put(f"1/{number}", bytes([number]) * 1000)
    artifacts.put("1/large", os.urandom(MIB) * 40)
    environment = artifacts.machine.environment({"artifacts": artifacts.settings})
    with subprocess.Popen(["/usr/bin/python3", PROGRAM, "artifacts"], env=environment) as process:
        end = time.monotonic() + 60
        while len(artifacts.copied()) < after:
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.001)
        process.send_signal(by)
    assert process.returncode != 0 and artifacts.listings() == []
    done = len(artifacts.copied())
    artifacts.store.uploads["uploadOld"] = (f"{OBJECTS}artifacts/1/large/x", {})
    result = artifacts.night()
    assert result["objects"] == 31 and result["copied"] <= 31 - done + 8 and len(artifacts.copied()) == 31
    assert artifacts.store.uploads == {}, "and parts that never became an object are given up"


def test_a_call_beside_another_says_that_it_waits(artifacts: Artifacts) -> None:
    artifacts.put("1/a", b"a")
    environment = artifacts.machine.environment({"artifacts": artifacts.settings})
    with (artifacts.state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = ["/usr/bin/python3", PROGRAM, "artifacts"]
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        assert process.stderr and "this one waits until it has ended" in process.stderr.readline()
        assert artifacts.copied() == {}
    assert process.wait(60) == 0 and list(artifacts.copied().values()) == [b"a"]
    process.stderr.close()


def test_what_no_listing_names_any_more_is_pruned_and_nothing_else(artifacts: Artifacts) -> None:
    artifacts.put("1/stays", b"stays")
    artifacts.put("1/changes", b"before")
    artifacts.put("1/goes", b"goes")
    artifacts.night()
    artifacts.long_ago(40)
    del artifacts.lab["artifacts/1/goes"]
    artifacts.put("1/changes", b"between")
    assert artifacts.night()["pruned"] == 0, "the last listing before a long time without stays for another night"
    assert artifacts.night()["pruned"] == 2
    assert sorted(artifacts.copied().values()) == [b"between", b"stays"], "only the first listing had them"
    assert len(artifacts.listings()) == 2

    artifacts.long_ago(20)  # within the time that listings are kept
    artifacts.put("1/changes", b"after")
    assert artifacts.night()["pruned"] == 0
    assert sorted(artifacts.copied().values()) == [b"after", b"between", b"stays"]
    artifacts.long_ago(20)
    assert artifacts.night()["pruned"] == 1
    assert sorted(artifacts.copied().values()) == [b"after", b"stays"] and len(artifacts.listings()) == 2


def test_a_bucket_that_has_lost_half_is_told_and_nothing_is_pruned(artifacts: Artifacts) -> None:
    for number in range(12):
        artifacts.put(f"1/{number}", bytes([number]))
    artifacts.night()
    artifacts.long_ago(40)
    artifacts.lab.clear()
    message = artifacts.night(fails=True)["message"]
    assert "the bucket has 0 objects, and had 12 on" in message
    assert len(artifacts.copied()) == 12 and len(artifacts.listings()) == 2
    assert "12 of 12 objects" in artifacts("artifacts-restore", artifacts.time(0)) and len(artifacts.lab) == 12
