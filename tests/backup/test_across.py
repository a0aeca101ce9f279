"""All of one bucket into another, by the program that a moving lab's new server runs: two keys, each for one bucket."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from s3_server import REGION, Content, Store
from sync_server import mlflow_bin

PROGRAM = Path(__file__).resolve().parents[2] / "roles/backup/files/labtrack_across.py"
KEYS = {"climate": ("01d01d01d", "secretOfTheOld"), "tundra": ("4e34e34e3", "secretOfTheNew")}
MARK = ("x-amz-meta-labtrack-copy-of",)
LARGE = b"0123456789abcdef" * 2**20 + b"and more"  # sent in two parts
OF_PARTS = "0123456789abcdef0123456789abcdef-3"


class Across:
    """Both buckets, and the program."""

    def __init__(self, store: Store) -> None:
        self.store = store
        store.keys |= {access: (secret, (name,)) for name, (access, secret) in KEYS.items()}
        self.old, self.new = store.buckets["climate"], store.buckets["tundra"]

    def where(self, name: str, **other: str) -> dict[str, str]:
        access, secret = KEYS[name]
        known = {"endpoint": self.store.endpoint, "bucket": name, "region": REGION, "ca": str(self.store.ca)}
        return {**known, "access": access, "secret": secret, **other}

    def __call__(self, *, fails: bool = False, **new: str) -> dict[str, Any]:
        """Its result; its keys are on standard input only."""
        self.store.asked.clear()
        given = {"from": self.where("climate"), "to": self.where("tundra", **new)}
        done = subprocess.run(
            [mlflow_bin() / "python", "-I", PROGRAM],
            input=json.dumps(given),
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode != 0) is fails, done.stdout + done.stderr
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        assert not any(secret in done.stdout + done.stderr for _, secret in KEYS.values())
        return found

    def written(self) -> set[str]:
        return {
            key for method, name, key in self.store.asked if method in ("PUT", "POST", "DELETE") and name == "tundra"
        }


@pytest.fixture
def across() -> Iterator[Across]:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder), *KEYS)
        store.page = 3
        with store.serving():
            made = Across(store)
            made.old |= {f"artifacts/1/run/{name}": name.encode() for name in ("a", "b/c", "Ü ?#%.txt")}
            made.old["artifacts/1/run/typed"] = Content.of(
                b"{}", {"content-type": "application/json", "x-amz-meta-by": "ada"}
            )
            made.old["artifacts/1/run/empty"] = b""
            made.old["artifacts/1/run/large"] = Content.of(LARGE, {}, OF_PARTS)
            made.old[".labtrack-probe/1"] = b"lives for a second"
            yield made


def test_all_of_a_bucket_is_in_the_other_and_then_nothing_is_copied_again(across: Across) -> None:
    done = across()
    assert done["objects"] == done["copied"] == 6
    assert {key: bytes(body) for key, body in across.new.items()} == {
        key: bytes(body) for key, body in across.old.items() if not key.startswith(".")
    }
    headers = dict(getattr(across.new["artifacts/1/run/typed"], "headers", ()))
    assert {name.lower(): value for name, value in headers.items() if name.lower() not in MARK} == {
        "content-type": "application/json", "x-amz-meta-by": "ada"
    }  # fmt: skip
    assert across()["copied"] == 0 and across.written() == set()


def test_only_what_is_new_or_was_written_over_in_the_old_one_is_copied_later(across: Across) -> None:
    across()
    across.old["artifacts/1/run/new"] = b"new"
    across.old["artifacts/1/run/a"] = b"another a"
    across.old["artifacts/1/run/large"] = Content.of(LARGE[::-1], {}, OF_PARTS.replace("-3", "-4"))
    assert across()["copied"] == 3
    assert across.written() == {"artifacts/1/run/new", "artifacts/1/run/a", "artifacts/1/run/large"}
    assert across.new["artifacts/1/run/large"] == LARGE[::-1] and across.new["artifacts/1/run/a"] == b"another a"


def test_what_somebody_has_written_in_the_new_one_is_left(across: Across) -> None:
    across()
    across.new["artifacts/1/run/a"] = b"of a job that goes on there"
    across.new["artifacts/1/run/own"] = b"own"
    done = across()
    assert (done["copied"], done["left"]) == (0, 1) and "1 were left" in done["message"]
    assert across.new["artifacts/1/run/a"] == b"of a job that goes on there" and "artifacts/1/run/own" in across.new


def test_an_interrupted_call_is_gone_on_with(across: Across) -> None:
    across.store.down_after = 22
    said = across(fails=True)
    assert "To fix" not in said["error"] and said["fix"]
    had = set(across.new)
    across.store.down_after = -1
    across()
    assert had and had.isdisjoint(across.written()) and len(across.new) == 6


def test_the_same_bucket_is_refused(across: Across) -> None:
    access, secret = KEYS["climate"]
    said = across(fails=True, bucket="climate", access=access, secret=secret)
    assert said["error"] == "Both labs have the same bucket, climate." and "lab_bucket" in said["fix"]
    assert len(across.old) == 7


def test_a_key_that_is_refused_is_told(across: Across) -> None:
    said = across(fails=True, secret="another")
    assert "The key is refused by the new lab's store" in said["error"] and across.new == {}


def test_an_object_that_can_t_be_read_is_named_and_stops_no_other(across: Across) -> None:
    across.store.refuses["GET", "artifacts/1/run/a"] = (403, "AccessDenied")
    said = across(fails=True)
    assert "artifacts/1/run/a" in said["error"] and len(across.new) == 5
