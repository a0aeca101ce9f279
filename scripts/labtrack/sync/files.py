"""Sending the files of a run or of a logged model."""

from __future__ import annotations

import io
from collections.abc import Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import BinaryIO, Callable

from labtrack.errors import LabtrackError
from labtrack.stores.model import RUNNING, Artifact, Owner
from labtrack.sync.artifacts import ChangedError, Target, target
from labtrack.sync.journal import fingerprint
from labtrack.sync.progress import Meter
from labtrack.sync.source import Source
from labtrack.tracking.http import ApiError, Http, ServerError


@dataclass
class Sent:
    """What was sent: files with the facts that tell whether they change, listed: all of the recording."""

    listed: list[Artifact] = field(default_factory=list)
    files: dict[str, tuple[int, int]] = field(default_factory=dict)
    bytes: int = 0
    failed: list[str] = field(default_factory=list)


class Sender:
    """Sends files to where the server wants them, several at once."""

    def __init__(self, source: Source, http: Http, env: Mapping[str, str], *, pool: Executor, meter: Meter) -> None:
        self._source, self._http, self._env = source, http, env
        self._pool, self._meter = pool, meter

    def start(self, owner: Owner, root: str, known: Mapping[str, tuple[int, int]], *, fresh: bool) -> Sending:
        """Begins to send what is not `known` to be there; fresh: nothing can be there yet."""
        listed = list(self._source.store.artifacts(owner))
        sending = Sending(self, owner, listed)
        missing = [one for one in listed if known.get(one.path) != facts(one)]
        if not missing:
            return sending
        sending.target = target(self._http, self._env, root)
        if not fresh and any(one.path not in known for one in missing):
            there = sending.target.sizes()
            for one in [one for one in missing if one.path not in known and there.get(one.path) == one.size]:
                sending.sent.files[one.path] = facts(one)
                missing.remove(one)
        sending.begin(missing)
        return sending

    def own(self, root: str, path: str, data: bytes, known: Mapping[str, tuple[int, int]]) -> Sent:
        """Sends a file of sync's own making."""
        sent = Sent()
        about = (len(data), int(fingerprint(data.decode()), 16))
        if known.get(path) != about:
            self.put(target(self._http, self._env, root), path, len(data), lambda: io.BytesIO(data))
            sent.files[path], sent.bytes = about, len(data)
        return sent

    def put(self, place: Target, path: str, size: int, opened: Callable[[], BinaryIO]) -> None:
        """Sends one file."""
        place.put(path, size, opened, self._meter.bytes)

    def opener(self, owner: Owner, one: Artifact) -> tuple[Callable[[], BinaryIO], bool]:
        """How a recorded file is opened, and whether any thread may do it."""
        local = self._source.store.local_path(owner, one.path)
        if local is not None:
            return (lambda: local.open("rb")), True
        return (lambda: self._source.store.open_artifact(owner, one.path)), False

    def submit(self, place: Target, path: str, size: int, opened: Callable[[], BinaryIO]) -> Future[None]:
        """Sends one file in the background."""
        return self._pool.submit(self.put, place, path, size, opened)


class Sending:
    """The files of one run or model on their way."""

    def __init__(self, sender: Sender, owner: Owner, listed: list[Artifact]) -> None:
        self._sender, self._owner = sender, owner
        self._under_way: list[tuple[Future[None], Artifact]] = []
        self._later: list[tuple[Artifact, Callable[[], BinaryIO]]] = []
        self.target: Target | None = None
        self.sent = Sent(listed)

    def begin(self, missing: list[Artifact]) -> None:
        """Hands files to the pool; a few are quicker sent by this thread."""
        assert self.target is not None  # noqa: S101 - set by start()
        few = len(missing) <= 2  # noqa: PLR2004
        for one in missing:
            opened, anywhere = self._sender.opener(self._owner, one)
            if few or not anywhere:
                self._later.append((one, opened))
            else:
                self._under_way.append((self._sender.submit(self.target, one.path, one.size, opened), one))

    def finish(self) -> Sent:
        """Waits for all, and looks at the sizes of what is there then."""
        for one, opened in self._later:
            assert self.target is not None  # noqa: S101
            self._result(one, lambda one=one, opened=opened: self._put(one, opened))  # type: ignore[misc]
        uploaded = bool(self._later)
        for future, one in self._under_way:
            uploaded = True
            self._result(one, future.result)
        if uploaded and self.target is not None:
            self._check(self.target.sizes())
        return self.sent

    def _put(self, one: Artifact, opened: Callable[[], BinaryIO]) -> None:
        assert self.target is not None  # noqa: S101
        self._sender.put(self.target, one.path, one.size, opened)

    def _result(self, one: Artifact, wait: Callable[[], None]) -> None:
        try:
            wait()
        except ServerError:
            raise
        except ChangedError:
            self._fail(one, "became shorter while it was being sent; the next sync sends it again")
        except OSError as error:
            self._fail(one, f"can't be read any more ({error.strerror or error}); is it still there?")
        except (ApiError, LabtrackError) as error:
            self._fail(one, str(error).replace("\n", " "))
        else:
            self.sent.files[one.path] = facts(one)
            self.sent.bytes += one.size

    def _check(self, there: Mapping[str, int]) -> None:
        for one in self.sent.listed:
            if one.path in self.sent.files and there.get(one.path) != one.size:
                del self.sent.files[one.path]
                self._fail(one, f"has {there.get(one.path, 0):,} bytes at the server instead of {one.size:,}")

    def _fail(self, one: Artifact, why: str) -> None:
        what = "artifact" if hasattr(self._owner, "status") and self._owner.status != RUNNING else "artifact (for now)"
        self.sent.failed.append(f"{what} {one.path} {why}")


def facts(one: Artifact) -> tuple[int, int]:
    """What tells whether a file has changed: size and time."""
    return one.size, one.modified or 0
