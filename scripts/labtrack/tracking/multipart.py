"""A large file in parts: those that arrived are not sent again, by this sync or by the next.

A part is only taken for the file's if the bytes that were sent are those that the file has now, so no object is ever
put together of two files.  The store is asked, where it can be, which parts it has.
"""

from __future__ import annotations

import contextlib
import hashlib
import posixpath
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

import requests

from labtrack.errors import BadInputError, LabtrackError, innermost
from labtrack.tracking.answers import ApiError, Stopped
from labtrack.tracking.uploads import MOST_PARTS, Part, Upload, Uploads

_PLACE = "/api/2.0/mlflow-artifacts/mpu"
_TRIES = 8  # of a part
_LONGEST_PAUSE = 30.0
_LARGE = 64 * 2**20  # bytes: what is sent by parts that a later sync goes on with, where the store is spoken to


class Body(Protocol):
    """What is read from: exactly as many bytes as were told."""

    def read(self, count: int = -1, /) -> bytes:
        """The next bytes."""

    def close(self) -> None:
        """Closes what it reads from."""


class Calls(Protocol):
    """`tracking.http.Http`, as far as it is needed here."""

    base: str
    stop: threading.Event

    def call(self, method: str, path: str, **more: Any) -> requests.Response:
        """A call to the server."""

    def elsewhere(self, url: str, data: bytes, headers: Mapping[str, str]) -> requests.Response:
        """Bytes to an address that the server gave."""


class NoPartsError(Exception):
    """The file can't be sent in parts, or not in these; it may still be sent whole."""


class PartStore(Protocol):
    """What takes a file in parts.  All raise NoPartsError where it won't.  at_once: parts under way at once."""

    at_once: int

    def create(self, count: int) -> tuple[str, Any]:
        """Begins an upload; gives its id, and what else is needed for it."""

    def there(self, upload: Upload) -> Mapping[int, str] | None:
        """The parts that the store has, each with its etag; None where it can't be asked."""

    def part(self, upload: Upload, number: int, data: bytes) -> str:
        """Sends a part; gives its etag."""

    def complete(self, upload: Upload, etags: Sequence[str]) -> None:
        """Puts the parts together."""

    def abort(self, upload: Upload) -> None:
        """Gives an upload up."""


class Parts:
    """Which files are sent in parts, as the variables that MLflow reads have it.

    proxied: bytes from which on a file is sent so by addresses that the server hands out; None for never.  direct: the
    same for a store that is spoken to.  size: bytes of a part.
    """

    def __init__(self, env: Mapping[str, str]) -> None:
        # only who sets it knows that the store can be reached from here
        wanted = env.get("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "").lower() in ("true", "1")
        smallest = "MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE"
        self.proxied = max(1, _bytes(env, smallest, 500 * 2**20)) if wanted else None
        self.direct = max(1, _bytes(env, smallest, _LARGE))
        self.size = max(5 * 2**20, _bytes(env, "MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE", 10 * 2**20))  # S3's smallest

    def size_for(self, length: int) -> int:
        """Bytes of a part of a file."""
        return max(self.size, -(-length // MOST_PARTS))


def send(
    store: PartStore,
    uploads: Uploads,
    place: str,
    opened: Callable[[], Body],
    *,
    length: int,
    size: int,
    stop: threading.Event,
) -> None:
    """Sends the `length` bytes of a file to a place, in parts of `size`, beginning with what is there already.

    Raises NoPartsError; what was sent is then undone.  What else is raised leaves the parts for the next sync.
    """
    upload = uploads.known(place)
    if upload is not None and upload.length != length:  # of what the file was before
        _give_up(store, uploads, upload)
        upload = None
    while True:
        resumed = upload is not None
        if upload is None:
            upload = uploads.begin(Upload(place, length, size, *store.create(-(-length // size))))
        try:
            with contextlib.closing(opened()) as body:
                store.complete(upload, _all(store, uploads, upload, body, stop))
        except NoPartsError:
            _give_up(store, uploads, upload)
            if not resumed:
                raise
            upload = None  # the store has forgotten it: once more from the beginning
        except BaseException:
            if not uploads.is_kept(upload):
                _give_up(store, uploads, upload)
            raise
        else:
            uploads.forget(upload)
            return


def _give_up(store: PartStore, uploads: Uploads, upload: Upload) -> None:
    with contextlib.suppress(Exception):  # the store's own rule takes away what is left
        store.abort(upload)
    uploads.forget(upload)


def _all(store: PartStore, uploads: Uploads, upload: Upload, body: Body, stop: threading.Event) -> list[str]:
    """Sends the parts that are not there; gives the etags of all."""
    there = store.there(upload) if upload.parts else {}
    known = {number: one for number, one in upload.parts.items() if there is None or there.get(number) == one.etag}
    etags: dict[int, str] = {}

    def one(number: int, data: bytes, digest: str) -> None:
        if stop.is_set():
            raise Stopped
        etags[number] = store.part(upload, number, data)
        uploads.arrived(upload, number, Part(etags[number], digest))

    with ThreadPoolExecutor(store.at_once) as pool:
        under_way: deque[Future[None]] = deque()
        for number in range(1, upload.count + 1):
            data = _exactly(body, min(upload.size, upload.length - upload.size * (number - 1)))
            digest = hashlib.sha256(data).hexdigest()
            if number in known and known[number].digest == digest:
                etags[number] = known[number].etag
                continue
            under_way.append(pool.submit(one, number, data, digest))
            while len(under_way) >= store.at_once:
                under_way.popleft().result()
        for future in under_way:
            future.result()
    return [etags[number] for number in sorted(etags)]


class Handed:
    """A store behind a server that hands out addresses for parts: MLflow's multipart upload through the proxy.

    A part that breaks off is sent again by itself, so a line that never lasts for a whole file is good enough.
    """

    at_once = 1

    def __init__(self, http: Calls, path: str) -> None:
        self._http, (self._folder, self._name) = http, posixpath.split(path)

    def create(self, count: int) -> tuple[str, Any]:
        made = self._ask("create", {"path": self._name, "num_parts": count})
        found = sorted(made.get("credentials") or (), key=lambda one: int(one["part_number"]))
        if len(found) != count:
            raise NoPartsError("the server gave no addresses for parts")
        return str(made.get("upload_id")), found

    def there(self, upload: Upload) -> None:
        """MLflow's interface does not tell."""

    def part(self, upload: Upload, number: int, data: bytes) -> str:
        """Sends one part, again where it broke off."""
        said, credential = "", self._credential(upload, number)
        for tried in range(_TRIES):
            try:
                answer = self._http.elsewhere(str(credential["url"]), data, credential.get("headers") or {})
            except requests.exceptions.RequestException as error:
                said = innermost(error)
            else:
                if answer.ok:
                    return str(answer.headers.get("ETag", ""))
                said = f"the store answered {answer.status_code}"
                if answer.status_code < requests.codes.server_error:  # an address that has run out, for one
                    raise NoPartsError(said)
            if self._http.stop.wait(min(_LONGEST_PAUSE, 0.5 * 2**tried)):
                raise Stopped
        if not upload.parts:
            raise NoPartsError(said)
        host = urlsplit(str(credential["url"])).netloc
        what = f"{len(upload.parts)} of {upload.count} parts arrived at {host}, and no more do: {said}."
        raise LabtrackError(what, "sync again: it goes on with the next part.")

    def complete(self, upload: Upload, etags: Sequence[str]) -> None:
        numbered = enumerate(etags, 1)
        parts = [
            {"part_number": number, "etag": etag, "url": self._credential(upload, number)["url"]}
            for number, etag in numbered
        ]
        self._ask("complete", {"path": self._name, "upload_id": upload.id, "parts": parts})

    def abort(self, upload: Upload) -> None:
        self._ask("abort", {"path": self._name, "upload_id": upload.id})

    @staticmethod
    def _credential(upload: Upload, number: int) -> Mapping[str, Any]:
        try:
            found = upload.given[number - 1]
            if found["url"] and isinstance(found, dict):
                return found
        except (LookupError, TypeError):
            pass
        raise NoPartsError("the record of the upload is damaged")

    def _ask(self, what: str, data: Mapping[str, Any]) -> dict[str, Any]:
        try:
            found = self._http.call("POST", f"{_PLACE}/{what}/{quote(self._folder)}", json=data).json()
        except (ApiError, BadInputError, ValueError) as error:  # it can't, or may not
            raise NoPartsError(str(error)) from None
        return found if isinstance(found, dict) else {}


def _exactly(body: Body, count: int) -> bytes:
    """The next `count` bytes: a file may give fewer at once."""
    found = bytearray()
    while len(found) < count:
        found += body.read(count - len(found))
    return bytes(found)


def _bytes(env: Mapping[str, str], name: str, otherwise: int) -> int:
    said = env.get(name, "")
    if said and not said.isdecimal():
        raise BadInputError(f"{name} is {said!r}, not a number of bytes.", f"unset {name}")
    return int(said) if said else otherwise
