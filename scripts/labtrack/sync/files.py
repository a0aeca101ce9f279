"""Sending the files of a run or of a logged model."""

from __future__ import annotations

import contextlib
import hashlib
import io
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Callable, NamedTuple

import requests

from labtrack.errors import LabtrackError
from labtrack.stores.model import RUNNING, Artifact, Owner
from labtrack.sync.artifacts import (
    ChangedError,
    StoreDownError,
    Target,
    UnreadableError,
    digest_of,
    give_up,
    target,
)
from labtrack.sync.faults import FAULTS, words
from labtrack.sync.journal import FileFacts, fingerprint
from labtrack.sync.progress import Meter
from labtrack.sync.source import Source
from labtrack.tracking.http import ApiError, Http, ServerError
from labtrack.tracking.uploads import Upload, Uploads

_IN_A_ROW = 3  # files that the server could not take, after which none is tried any more
_ASK = "/api/2.0/mlflow/experiments/search"


@dataclass
class Sent:
    """What was sent, or found there already.

    listed: all of the recording.  files: those that are there, with the facts that tell whether they change.
    failed: what could not be sent.  damaged: what could not be read.
    """

    listed: list[Artifact] = field(default_factory=list)
    files: dict[str, FileFacts] = field(default_factory=dict)
    count: int = 0
    bytes: int = 0
    failed: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


class Put(NamedTuple):
    """A file that was sent.  digest: its SHA-256.  proven: whether the answer has told that these bytes are there."""

    digest: str
    proven: bool


class Sender:
    """Sends files to where the server wants them, several at once.

    down: why no file can be sent at all, once that is known: it is told once, and not waited for again.
    """

    def __init__(
        self, source: Source, http: Http, env: Mapping[str, str], uploads: Uploads, *, pool: Executor, meter: Meter
    ) -> None:
        self._source, self._http, self._env, self._uploads = source, http, env, uploads
        self._pool, self._meter = pool, meter
        self._lock = threading.Lock()
        self._refused_in_a_row = 0
        self.down = ""

    def start(
        self, owner: Owner, root: str, known: Mapping[str, FileFacts], *, fresh: bool, compare: bool = False
    ) -> Sending:
        """Begins to send what is not `known` to be there.

        fresh: nothing can be there yet.  compare: what is known may be wrong, so the bytes there are read.
        """
        unlisted = ""
        try:
            listed = list(self._source.store.artifacts(owner))
        except ServerError:
            raise
        except FAULTS as error:
            listed, unlisted = [], f"the artifacts can't be listed: {words(error)}"
        sending = Sending(self, owner, listed)
        sending.sent.damaged += [unlisted] if unlisted else []
        missing = [one for one in listed if compare or not is_known(one, known)]
        if not missing:
            return sending
        try:
            sending.target = self.place(root)
        except LabtrackError as error:  # without a place for files there is one for points
            sending.sent.failed.append(f"artifacts are not sent: {one_line(error)}")
            return sending
        # another size than last time: no need to look at what is there
        doubtful = [one for one in missing if compare or known.get(one.path, (one.size,))[0] == one.size]
        if doubtful and not fresh:
            there = self._sizes(sending.target)
            for one in [one for one in doubtful if there.get(one.path) == one.size]:
                digest = self._same(sending.target, owner, one)
                if digest:
                    sending.sent.files[one.path] = facts(one, digest)
                    missing.remove(one)
        sending.begin(missing)
        return sending

    def place(self, root: str) -> Target:
        """Where the server keeps the artifacts of one run or model."""
        return target(self._http, self._env, root, self._uploads)

    def abandon(self, *, unless: bool) -> None:
        """Ends uploads in parts that earlier syncs have begun, and nothing needs any more; `unless` some may be."""

        def told(upload: Upload) -> None:
            with contextlib.suppress(Exception):  # the store's own rule takes away what is left
                give_up(self._http, self._env, upload)

        if not unless:
            self._uploads.abandon(told)

    def _sizes(self, place: Target) -> dict[str, int]:
        try:
            return place.sizes()
        except StoreDownError as error:
            self.down = str(error)
            return {}

    def _same(self, place: Target, owner: Owner, one: Artifact) -> str:
        """The hash of a file that has the same bytes on both sides; empty where it has not."""
        try:
            recorded = digest_of(lambda: self._source.store.open_artifact(owner, one.path))
            return recorded if place.digest(one.path) == recorded else ""
        except (OSError, LabtrackError, ApiError):
            return ""  # what is wrong shows when it is sent

    def own(self, root: str, path: str, data: bytes, known: Mapping[str, FileFacts], *, compare: bool = False) -> Sent:
        """Sends a file of sync's own making."""
        sent = Sent()
        about = (len(data), int(fingerprint(data.decode()), 16), "")
        if compare or known.get(path) != about:
            try:
                self.put(self.place(root), path, len(data), lambda: io.BytesIO(data))
            except ServerError:
                raise
            except (ApiError, LabtrackError) as error:
                sent.failed.append(f"artifact {path} is not sent: {one_line(error)}")
            else:
                sent.files[path], sent.bytes, sent.count = about, len(data), 1
        return sent

    def put(self, place: Target, path: str, size: int, opened: Callable[[], BinaryIO]) -> Put:
        """Sends one file.

        Raises StoreDownError where no file can be sent, ApiError where this one can't.
        """
        hashed, proven = _Hashed(opened), False
        for again in (True, False):
            if self.down:
                raise StoreDownError(self.down)
            try:
                proven = place.put(path, size, hashed.open, self._meter.bytes)
            except StoreDownError as error:
                self.down = str(error)
                raise
            except ApiError as error:
                if error.status < requests.codes.server_error:
                    raise
                # the server may have been restarted; or it, or a proxy, chokes on this file alone
                self._http.call("GET", _ASK, params={"max_results": 1})
                if not again:
                    if self._arrived(place, path, size, hashed.digest):  # it took longer than the proxy waits
                        break
                    self._count_refusal(error)
                    raise
            else:
                break
        with self._lock:
            self._refused_in_a_row = 0
        return Put(hashed.digest, proven)

    @staticmethod
    def _arrived(place: Target, path: str, size: int, digest: str) -> bool:
        try:
            return place.sizes().get(path) == size and place.digest(path) == digest
        except (ApiError, LabtrackError):
            return False

    def _count_refusal(self, error: ApiError) -> None:
        with self._lock:
            self._refused_in_a_row += 1
            if self._refused_in_a_row >= _IN_A_ROW:
                self.down = f"{self._http.base} answers, but takes no files: {error}"

    def opener(self, owner: Owner, one: Artifact) -> tuple[Callable[[], BinaryIO], bool]:
        """How a recorded file is opened, and whether any thread may do it."""
        local = self._source.store.local_path(owner, one.path)
        if local is not None:
            return (lambda: local.open("rb")), True
        return (lambda: self._source.store.open_artifact(owner, one.path)), False

    def submit(self, place: Target, path: str, size: int, opened: Callable[[], BinaryIO]) -> Future[Put]:
        """Sends one file in the background."""
        return self._pool.submit(self.put, place, path, size, opened)


class Sending:
    """The files of one run or model on their way."""

    def __init__(self, sender: Sender, owner: Owner, listed: list[Artifact]) -> None:
        self._sender, self._owner = sender, owner
        self._under_way: list[tuple[Future[Put], Artifact]] = []
        self._later: list[tuple[Artifact, Callable[[], BinaryIO]]] = []
        self._not_tried = 0
        self._doubtful = False
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
        """Waits for all, and looks at the sizes of what is there then, where no answer has told that it is."""
        for one, opened in self._later:
            assert self.target is not None  # noqa: S101
            self._result(one, lambda one=one, opened=opened: self._put(one, opened))  # type: ignore[misc]
        for future, one in self._under_way:
            self._result(one, future.result)
        if self._not_tried:
            self.sent.failed.append(f"artifacts are not sent: {one_line(self._sender.down)}")
        if self._doubtful and self.target is not None:
            with contextlib.suppress(StoreDownError):  # between the last file and now: the next sync looks
                self._check(self.target.sizes())
        return self.sent

    def _put(self, one: Artifact, opened: Callable[[], BinaryIO]) -> Put:
        assert self.target is not None  # noqa: S101
        return self._sender.put(self.target, one.path, one.size, opened)

    def _result(self, one: Artifact, wait: Callable[[], Put]) -> None:
        try:
            put = wait()
        except ServerError:
            raise
        except StoreDownError:
            self._not_tried += 1
        except ChangedError:
            self._fail(one, "became shorter while it was being sent; the next sync sends it again")
        except (UnreadableError, OSError) as error:
            said = error.strerror or str(error) if isinstance(error, OSError) else str(error)
            self.sent.damaged.append(f"{self._named(one)} can't be read ({said})")
        except (ApiError, LabtrackError) as error:
            self._fail(one, f"can't be sent: {one_line(error)}")
        else:
            self.sent.files[one.path] = facts(one, put.digest)
            self._doubtful = self._doubtful or not put.proven
            self.sent.count += 1
            self.sent.bytes += one.size

    def _check(self, there: Mapping[str, int]) -> None:
        for one in self.sent.listed:
            if one.path in self.sent.files and there.get(one.path) != one.size:
                del self.sent.files[one.path]
                self._fail(one, f"has {there.get(one.path, 0):,} bytes at the server instead of {one.size:,}")

    def _fail(self, one: Artifact, why: str) -> None:
        self.sent.failed.append(f"{self._named(one)} {why}")

    def _named(self, one: Artifact) -> str:
        still = getattr(self._owner, "status", "") == RUNNING
        return f"artifact{' (for now)' * still} {one.path}"


class _Hashed:
    """Opens a file, and knows the SHA-256 of what was read of it since it was opened last."""

    def __init__(self, opened: Callable[[], BinaryIO]) -> None:
        self._opened = opened
        self._sum = hashlib.sha256()

    def open(self) -> BinaryIO:
        """The file, from its beginning."""
        self._sum = hashlib.sha256()
        return _Reader(self._opened(), self._sum)  # type: ignore[return-value]

    @property
    def digest(self) -> str:
        """The hash so far."""
        return self._sum.hexdigest()


class _Reader:
    """A file that is read once from its beginning to its end."""

    def __init__(self, file: BinaryIO, seen: Any) -> None:
        self._file, self._seen = file, seen

    def read(self, count: int = -1) -> bytes:
        data = self._file.read(count)
        self._seen.update(data)
        return data

    def close(self) -> None:
        self._file.close()


def facts(one: Artifact, digest: str = "") -> FileFacts:
    """What tells whether a file has changed: size, time, and the SHA-256 of its bytes where it is known."""
    return one.size, one.modified or 0, digest


def is_known(one: Artifact, known: Mapping[str, FileFacts]) -> bool:
    """Whether a file is as it was when it was sent, by its size and time."""
    found = known.get(one.path)
    return found is not None and found[:2] == facts(one)[:2]


def contents(files: Iterable[tuple[str, str]]) -> str:
    """One hash of files' paths and hashes."""
    text = "\n".join(f"{digest} {path}" for path, digest in sorted(files))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]


def one_line(error: object) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split())
