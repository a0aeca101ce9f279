"""A lab's bucket and its copy: the role's settings, MLflow's Python, and two keys of which each reaches one of them."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from backed_up import Machine
from s3_server import BEGAN, REGION, Content
from sync_server import mlflow_bin

LAB, COPIES = "climate", "climate-copies"
LAB_KEY, COPIES_KEY = ("1ab1ab1ab", "secretOfTheLab"), ("c0b1e5c0b1", "secretOfTheCopies")
OBJECTS, LISTINGS = "climate/artifacts/objects/", "climate/artifacts/listings/"
DAY = 86400  # seconds
STAMP = "%Y%m%dT%H%M%SZ"


class Artifacts:
    """Both buckets, empty; the program stays root, as nobody else can enter the folder that MLflow is in here."""

    def __init__(self, machine: Machine, folder: Path) -> None:
        self.machine, self.store, self.state = machine, machine.store, folder / "state"
        self.state.mkdir()
        self.store.buckets |= {LAB: {}, COPIES: {}}
        self.store.keys |= {LAB_KEY[0]: (LAB_KEY[1], (LAB,)), COPIES_KEY[0]: (COPIES_KEY[1], (COPIES,))}
        self.store.asked.clear()
        self.store.refuses.clear()
        self.store.forgets.clear()
        self.store.quotas.clear()
        self.store.uploads.clear()
        self.store.down_after = -1
        for name, (access, secret) in {"lab": LAB_KEY, "store": COPIES_KEY}.items():
            lines = f"# written\nAWS_ACCESS_KEY_ID='{access}'\nAWS_SECRET_ACCESS_KEY='{secret}'\n"
            (folder / f"{name}.env").write_text(lines)
        values = {
            "_MLFLOW_SERVER_ARTIFACT_ROOT": f"s3://{LAB}/artifacts", "MLFLOW_S3_ENDPOINT_URL": self.store.endpoint,
            "AWS_DEFAULT_REGION": REGION, "AWS_CA_BUNDLE": str(self.store.ca),
        }  # fmt: skip
        (folder / "settings.env").write_text("".join(f"{name}='{value}'\n" for name, value in values.items()))
        of_role = machine.settings["artifacts"]
        self.settings = of_role | {
            "account": "root", "state": str(self.state), "python": str(mlflow_bin() / "python"),
            "lab": str(folder / "settings.env"), "files": str(folder / "lab"),
            "keys": {name: str(folder / f"{name}.env") for name in ("lab", "store")},
            "store": of_role["store"] | {"bucket": COPIES},
        }  # fmt: skip
        self.more: dict[str, Any] = {}  # further settings that are others

    @property
    def lab(self) -> dict[str, bytes]:
        return self.store.buckets[LAB]

    @property
    def copies(self) -> dict[str, bytes]:
        return self.store.buckets.get(COPIES, {})

    def put(self, key: str, body: bytes, age: float = 3600, etag: str = "") -> str:
        """Somebody stores an object, so many seconds ago; its etag."""
        made = Content.of(body, {}, etag, datetime.fromtimestamp(int(time.time() - age), timezone.utc))
        self.lab[f"artifacts/{key}"] = made
        return etag or hashlib.md5(body).hexdigest()  # noqa: S324  as S3 does

    def __call__(self, *command: str, fails: bool | None = False, **changed: Any) -> str:
        return self.machine(*command, fails=fails, artifacts=self.settings | changed, **self.more)

    def night(self, *, fails: bool = False, **changed: Any) -> dict[str, Any]:
        """The nightly call, at least a second after the one before; its result."""
        self.long_ago(1 / DAY)
        said = self("artifacts", fails=fails, **changed)
        result: dict[str, Any] = json.loads((self.state / "artifacts.json").read_text())
        assert result["message"] in said and result["ok"] is not fails
        return result

    def copied(self) -> dict[str, bytes]:
        """What the backup has: contents by key and etag."""
        return {key.removeprefix(f"{OBJECTS}artifacts/"): bytes(body)
                for key, body in self.copies.items() if key.startswith(OBJECTS)}  # fmt: skip

    def listings(self) -> list[str]:
        return sorted(key.removeprefix(LISTINGS).partition(".")[0] for key in self.copies if key.startswith(LISTINGS))

    def listed(self, stamp: str = "") -> list[dict[str, Any]]:
        """What a listing is of, and its objects."""
        body = self.copies[f"{LISTINGS}{stamp or self.listings()[-1]}.jsonl.gz"]
        return [json.loads(line) for line in gzip.decompress(body).splitlines()]

    def writes(self) -> list[str]:
        """What was stored in either bucket since this was last asked, without the listings."""
        done = [key for method, _, key in self.store.asked if method in ("PUT", "POST") and ".jsonl" not in key]
        self.store.asked.clear()
        return done

    def long_ago(self, days: float) -> None:
        """All that the backup has is so many days older."""
        for key, body in list(self.copies.items()):
            at = getattr(body, "at", BEGAN) - timedelta(days)
            where, of = key, Content.of(body, dict(getattr(body, "headers", ())), getattr(body, "etag", ""), at)
            if key.startswith(LISTINGS):
                head, *rows = gzip.decompress(of).splitlines()
                known = json.loads(head)
                known["time"] = f"{datetime.strptime(known['time'], STAMP) - timedelta(days):{STAMP}}"
                where = f"{LISTINGS}{known['time']}.jsonl.gz"
                of = Content.of(gzip.compress(b"\n".join([json.dumps(known).encode(), *rows])), {}, at=at)
            del self.copies[key]
            self.copies[where] = of

    def close(self) -> None:
        for name in (LAB, COPIES):
            self.store.buckets.pop(name, None)
        shutil.rmtree(self.state)

    def time(self, number: int) -> str:
        """The time of a listing, as somebody writes it."""
        text = self.listings()[number]
        return f"{text[:4]}-{text[4:6]}-{text[6:8]} {text[9:11]}:{text[11:13]}:{text[13:15]}+00:00"
