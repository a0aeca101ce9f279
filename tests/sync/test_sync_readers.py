"""Recordings as people really have them, at the server."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sync_recording import T0, Recording
from sync_server import TrackingServer, tag

from labtrack.sync import Report
from labtrack.sync.limits import fit_path

Send = Callable[..., Report]
UUID = "0f0e0d0c-0000-4000-8000-123456789abc"
NAMES = [
    "a b.txt", "100%.txt", "a%20b.txt", "x%2Fy.txt", "%2e%2e.txt", "a%2520b.txt", "a#b.txt", "a?b.txt", "a?", "a;",
    "new\nline.txt", "newline.txt", "cr\rx.txt", "tab\t.txt", "tab.txt", "back\\slash.txt",
    "a+b.txt", "C:\\data\\x.txt", ".DS_Store",
    "~tmp~", "epoch=0-step=151.ckpt", "d#e/f%41.txt", "d_e/f_41.txt", "é.txt", "日本語.txt", "empty.bin",
    f"images/pred%step%20%timestamp%1700000000000%{UUID}.png", f"images/pred%step%5%timestamp%1700000000000%{UUID}.png",
    f"images/train#pred%step%20%timestamp%1700000000000%{UUID}%compressed.webp",
]  # fmt: skip


def state(run: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(tag(run, "labtrack.sync_state") or "{}")
    return found


def overflow(server: TrackingServer, run: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(server.files(run["info"]["artifact_uri"])["labtrack/overflow.json"])
    return found


def points(recording: Recording, run_id: str, key: str, rows: list[tuple[float, Any, Any]]) -> None:
    """Rows of (value, time, step), of any type."""
    recording.many(
        "INSERT INTO metrics (key, value, timestamp, step, run_uuid, is_nan) VALUES (?, ?, ?, ?, ?, 0)",
        [(key, *row, run_id) for row in rows],
    )


def test_half_epochs(recording: Recording, server: TrackingServer, send: Send) -> None:
    """MLflow's interface answers 200, and drops a point with a fractional step and all behind it."""
    run_id = recording.run(params={"lr": "0.1"}, status="RUNNING")
    points(recording, run_id, "loss", [(1.0 / (i + 1), T0, i / 2) for i in range(5)])
    assert send().exit_code == 0
    points(recording, run_id, "loss", [(1.0 / (i + 1), T0, i / 2) for i in range(5, 10)])
    recording.end(run_id)
    report = send()
    assert report.exit_code == 0 and any("steps are no whole numbers" in one for one in report.outcomes[0].cuts)
    (run,) = server.runs(recording.name)
    found = server.history(run["info"]["run_id"], "loss")
    assert sorted(one[1] for one in found) == list(range(10))
    assert run["data"]["params"] == [{"key": "lr", "value": "0.1"}]
    assert state(run)["state"] == "complete" and state(run)["points"] == 10
    steps = overflow(server, run)["steps"]["loss"]["value"]
    assert steps == [[i, i / 2] for i in range(1, 10)], "also of the first sync"
    assert send().planned[0].todo == "there"


def test_steps_as_blobs(recording: Recording, server: TrackingServer, send: Send) -> None:
    run_id = recording.run(name="numpy")
    points(recording, run_id, "loss", [(0.5 * i, T0 + i, struct.pack("<q", i)) for i in range(20)])
    for number in range(3):
        recording.run(name=f"other {number}", metrics={"m": [float(number)]})
    assert send().exit_code == 0
    runs = {one["info"]["run_name"]: one for one in server.runs(recording.name)}
    assert len(runs) == 4
    found = server.history(runs["numpy"]["info"]["run_id"], "loss")
    assert sorted((one[1], one[2]) for one in found) == [(i, 0.5 * i) for i in range(20)]


def test_times_in_seconds_and_nanoseconds_are_told(recording: Recording, server: TrackingServer, send: Send) -> None:
    run_id = recording.run()
    points(recording, run_id, "s", [(1.0, 1_650_542_345, 0), (2.0, 1_650_542_346.5, 1)])
    points(recording, run_id, "ns", [(1.0, 1_700_000_000_000_000_000, 0)])
    report = send()
    assert report.exit_code == 0
    said = "\n".join(report.notes)
    assert "the times of s look like seconds" in said and "the times of ns look like nanoseconds" in said
    (run,) = server.runs(recording.name)
    assert sorted(one[0] for one in server.history(run["info"]["run_id"], "s")) == [1_650_542_345, 1_650_542_346]
    assert [one[0] for one in server.history(run["info"]["run_id"], "ns")] == [1_700_000_000_000_000_000]
    assert overflow(server, run)["times"]["s"]["value"] == [[1, 1_650_542_346.5]]


def test_names_that_the_server_cannot_keep(recording: Recording, server: TrackingServer, send: Send) -> None:
    files = {name: b"" if name == "empty.bin" else name.encode() for name in NAMES}
    recording.run(files=files)
    report = send()
    assert report.exit_code == 0, report.failed
    (run,) = server.runs(recording.name)
    assert state(run)["state"] == "complete" and state(run)["artifacts"] == len(NAMES)
    there = server.files(run["info"]["artifact_uri"])
    changed = {sent: one["key"] for sent, one in overflow(server, run)["artifacts"].items()}
    there.pop("labtrack/overflow.json")
    assert {changed.get(name, name): data for name, data in there.items()} == files
    assert not {"100%.txt", "é.txt", "C:\\data\\x.txt", ".DS_Store", "newline.txt"} & set(changed.values())
    image = f"images/train~pred+step+20+timestamp+1700000000000+{UUID}+compressed.webp"
    assert changed[image] == f"images/train#pred%step%20%timestamp%1700000000000%{UUID}%compressed.webp"
    assert send().planned[0].todo == "there"


def test_a_name_that_looks_like_a_safe_one(recording: Recording, server: TrackingServer, send: Send) -> None:
    odd, safe = "a#b.txt", fit_path("a#b.txt")
    old = f"pred%step%20%timestamp%1700000000000%{UUID}.png"
    new = old.replace("%", "+")
    assert fit_path(old) == new
    files = {name: name.encode() for name in (odd, safe, old, new)}
    recording.run(files=files)
    assert send().exit_code == 0
    (run,) = server.runs(recording.name)
    there = server.files(run["info"]["artifact_uri"])
    assert sorted(there.pop(name) for name in list(there) if "overflow" not in name) == sorted(files.values())


def test_what_cannot_be_read_of_one_run_keeps_no_other_away(
    recording: Recording, server: TrackingServer, send: Send, tmp_path: Path
) -> None:
    for number in range(2):
        run_id = recording.run(name=f"run {number}", metrics={"loss": [1.0]}, files={"a.txt": b"a"})
    (recording.folder / "artifacts" / "1" / run_id / "artifacts" / "last.ckpt").symlink_to("nowhere")
    recording.sql("UPDATE runs SET experiment_id = 77 WHERE run_uuid = ?", run_id)
    recording.sql("UPDATE experiments SET creation_time = '2024-05-01 12:00:00' WHERE experiment_id = 1")
    report = send()
    assert len(report.outcomes) == 2
    told = str(report)
    assert "its name is lost" in told and "the artifact last.ckpt can't be read" in told
    assert len(server.runs(recording.name)) == 1
