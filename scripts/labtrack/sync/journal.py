"""What the server has acknowledged, kept on this machine so that the next sync sends only the rest.

One file of JSON lines for each recording and server, only ever appended to while a sync runs.  It makes a
sync quick, never right: it may be lost, torn or old.  An entry counts only for the copy it was written for
and while the state in that copy's tag is the one it knows; everything else is found out from the server.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from labtrack.errors import LabtrackError
from labtrack.files import home, make_private_folder, write_private
from labtrack.tracking.uploads import Uploads

FileFacts = tuple[int, int, str]  # size in bytes, time in ms, SHA-256 or nothing
_COMPACT = 4 * 2**20  # bytes: beyond that a file is written anew when it is opened


def state_folder(env: Mapping[str, str]) -> Path:
    """Where journals and locks are: $XDG_STATE_HOME/labtrack/sync."""
    base = env.get("XDG_STATE_HOME") or str(home(env) / ".local" / "state")
    return Path(base) / "labtrack" / "sync"


@dataclass
class Entry:
    """What is known of one run, or of one logged model.

    copy: the run's id at the server.  state: the tag that was last acknowledged, empty before the first.
    next: the tag that was about to be sent; a kill may have come between.
    points: acknowledged points of each metric.  artifacts: size, time and SHA-256 of each file that was sent.
    tags: a hash of each tag's recorded value when it was sent.
    """

    copy: str
    state: str = ""
    next: str = ""
    points: dict[str, int] = field(default_factory=dict)
    artifacts: dict[str, FileFacts] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def take(self, line: Mapping[str, Any]) -> None:
        """Adds what a line says."""
        self.state, self.next = line.get("state", self.state), line.get("next", self.next)
        self.points.update(line.get("points", {}))
        self.artifacts.update({path: _file_facts(*found) for path, found in line.get("artifacts", {}).items()})
        self.tags.update(line.get("tags", {}))

    def line(self, run_id: str) -> dict[str, Any]:
        """All of it as a line."""
        return {
            "run": run_id, "copy": self.copy, "state": self.state, "next": self.next, "points": self.points,
            "artifacts": self.artifacts, "tags": self.tags,
        }  # fmt: skip


def _file_facts(size: int, time: int, digest: str = "") -> FileFacts:
    return size, time, digest


class Journal:
    """The entries of one recording at one server.  May be written to by several threads.

    trouble: why it can't be written, once that has happened; the sync goes on without it.
    """

    def __init__(self, folder: Path, server: str, store: str) -> None:
        self.trouble = ""
        self._lock = threading.Lock()
        self._file: TextIO | None = None
        self._left = _COMPACT  # characters until it is written anew
        name = hashlib.sha256(f"{server}\n{store}".encode()).hexdigest()[:24]
        self.path = folder / f"{name}.jsonl"
        self.uploads = Uploads(self.path.with_suffix(".uploads"))  # in parts
        self._entries = _read(self.path)
        self._open()

    def entry(self, run_id: str, copy: str, state: str) -> Entry | None:
        """What is known of a run, if it is about this copy in this state."""
        found = self._entries.get(run_id)
        return found if found is not None and found.copy == copy and state in (found.state, found.next) else None

    def start(self, run_id: str, entry: Entry) -> None:
        """Puts an entry in the place of what was known of a run."""
        with self._lock:
            self._entries[run_id] = entry
            self._write({**entry.line(run_id), "new": True})

    def add(self, run_id: str, **more: Any) -> None:
        """Notes what was acknowledged: state, points, artifacts, tags."""
        with self._lock:
            entry = self._entries[run_id]
            # a run that is followed for days adds a line every few seconds
            for name in ("points", "artifacts", "tags"):
                known = getattr(entry, name)
                if name in more:
                    more[name] = {key: value for key, value in more[name].items() if known.get(key) != value}
            more = {name: value for name, value in more.items() if value or name in ("state", "next")}
            if more:
                entry.take(more)
                self._write({"run": run_id, "copy": entry.copy, **more})

    def close(self) -> None:
        """Lets go of the file."""
        with self._lock:
            if self._file is not None:
                with contextlib.suppress(OSError):
                    self._file.close()
                self._file = None

    def _open(self) -> None:
        try:
            make_private_folder(self.path.parent)
            if self.path.exists() and self.path.stat().st_size > _COMPACT:
                lines = "".join(json.dumps({**one.line(run), "new": True}) + "\n" for run, one in self._entries.items())
                write_private(self.path, lines.encode())
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0), 0o600)
            self._file = os.fdopen(descriptor, "w", encoding="utf-8", buffering=1)
            size = self.path.stat().st_size
            self._left = max(_COMPACT, size)
            if size:
                self._file.write("\n")  # ends a torn line
        except LabtrackError as error:
            self._give_up(error.what)
        except OSError as error:
            self._give_up(error.strerror)

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._file is None:
            return
        try:
            self._left -= self._file.write(json.dumps(line, separators=(",", ":")) + "\n")
            if self._left < 0:  # as much again as there was: once more without what has been overtaken
                self._file.close()
                self._file = None
                self._open()
        except OSError as error:
            self._give_up(error.strerror)

    def _give_up(self, why: str | None) -> None:
        self._file = None
        self.trouble = (
            f"The journal {self.path} can't be written ({why}); the sync goes on without it, and after an "
            f"interruption asks the server what it has.  To fix: free some space (`df -h {self.path.parent}`), "
            "or export XDG_STATE_HOME=a folder that you may write to."
        )


def acknowledged(folder: Path) -> dict[str, list[Entry]]:
    """What the journals in a folder know of each run, one entry for each server that it was sent to."""
    found: dict[str, list[Entry]] = {}
    for path in folder.glob("*.jsonl"):
        for run_id, entry in _read(path).items():
            found.setdefault(run_id, []).append(entry)
    return found


def _read(path: Path) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    with contextlib.suppress(OSError), path.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            # a torn line of a killed call, or anything else: what it said is asked of the server
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                line = json.loads(text)
                known = entries.get(line["run"])
                if line.get("new") or known is None or known.copy != line["copy"]:
                    known = entries[line["run"]] = Entry(line["copy"])
                known.take(line)
    return entries


def fingerprint(text: str) -> str:
    """A hash that tells whether a value has changed."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
