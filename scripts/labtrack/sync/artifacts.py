"""Files to where the server keeps artifacts: through the server, straight into S3, or into a folder."""

from __future__ import annotations

import contextlib
import hashlib
import os
import posixpath
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from urllib.parse import quote, unquote, urlsplit

from labtrack.errors import WITHOUT_BOTO3, BadInputError, LabtrackError
from labtrack.tracking import multipart
from labtrack.tracking.http import Http
from labtrack.tracking.multipart import NoPartsError
from labtrack.tracking.parsing import proxied
from labtrack.tracking.uploads import Upload, Uploads

_PROXY = "/api/2.0/mlflow-artifacts/artifacts"
_HANDED = "mlflow-artifacts:/"
_FORGOTTEN = ("NoSuchUpload", "InvalidPart", "404")
CHUNK = 2**20  # bytes
_PART = ".labtrack-part"  # a file that is still being written
Open = Callable[[], BinaryIO]


class ChangedError(Exception):
    """The file became shorter while it was being sent."""


class UnreadableError(Exception):
    """The recorded file can't be read."""


class StoreDownError(LabtrackError):
    """The place where the server keeps artifacts does not answer: no other file would fare better."""


class Body:
    """Exactly `size` bytes of a file, though a job may be writing to it: the length is sent before the bytes."""

    def __init__(self, file: BinaryIO, size: int, sent: Callable[[int], None]) -> None:
        self._file, self._left, self._size, self._sent = file, size, size, sent

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        while self._left:
            yield self.read(CHUNK)

    def read(self, count: int = -1) -> bytes:
        """The next bytes.  Raises ChangedError where the file has ended too early."""
        try:
            data = self._file.read(self._left if count < 0 else min(count, self._left))
        except OSError as error:  # told apart from the connection's own
            raise UnreadableError(error.strerror or str(error)) from None
        if not data and self._left:
            raise ChangedError
        self._left -= len(data)
        self._sent(len(data))
        return data

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class Target(Protocol):
    """Where one run's, or one logged model's, artifacts are."""

    def sizes(self) -> dict[str, int]:
        """What is there: path to size in bytes."""

    def put(self, path: str, size: int, opened: Open, sent: Callable[[int], None]) -> bool:
        """Puts a file there, whole or not at all.  Whether the answer tells that these very bytes are there now."""

    def digest(self, path: str) -> str:
        """The SHA-256 of a file that is there, by reading it back."""


class Proxied:
    """Through the server, which keeps the store's key to itself (`mlflow-artifacts:`)."""

    def __init__(self, http: Http, root: str, uploads: Uploads | None = None) -> None:
        self._http, self._root = http, unquote(urlsplit(root).path).strip("/")
        self._uploads = uploads or Uploads()

    def sizes(self) -> dict[str, int]:
        return dict(proxied(self._http.call, self._root))

    def put(self, path: str, size: int, opened: Open, sent: Callable[[int], None]) -> bool:
        parts, headers = self._http.parts, {"Content-Type": "application/octet-stream"}
        if parts.proxied is not None and size >= parts.proxied:
            with contextlib.suppress(NoPartsError):
                multipart.send(
                    multipart.Handed(self._http, posixpath.join(self._root, path)), self._uploads,
                    f"{_HANDED}{posixpath.join(self._root, path)}", lambda: Body(opened(), size, sent),
                    length=size, size=parts.size_for(size), stop=self._http.stop,
                )  # fmt: skip
                return False
        self._http.call("PUT", self._url(path), body=lambda: Body(opened(), size, sent), headers=headers)
        return False

    def digest(self, path: str) -> str:
        with self._http.call("GET", self._url(path), stream=True) as answer:
            return _sha256(answer.iter_content(CHUNK))

    def _url(self, path: str) -> str:
        return f"{_PROXY}/{quote(posixpath.join(self._root, path))}"


class S3:
    """Straight into the object store, with the key of the environment; multipart for what is big."""

    def __init__(self, http: Http, env: Mapping[str, str], root: str, uploads: Uploads | None = None) -> None:
        place = urlsplit(root)
        self._bucket, self._prefix = place.netloc, unquote(place.path).strip("/")
        self._client = _s3_client(env)
        self._http, self._uploads = http, uploads or Uploads()

    def sizes(self) -> dict[str, int]:
        with _said(self._bucket):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._key(""))
            return {one["Key"][len(self._key("")) :]: one["Size"] for page in pages for one in page.get("Contents", ())}

    def put(self, path: str, size: int, opened: Open, sent: Callable[[int], None]) -> bool:
        parts = self._http.parts
        with _said(self._bucket):
            if size >= parts.direct:
                with contextlib.suppress(NoPartsError):
                    multipart.send(
                        S3Parts(self._client, self._bucket, self._key(path)), self._uploads,
                        f"s3://{self._bucket}/{self._key(path)}", lambda: Body(opened(), size, sent),
                        length=size, size=parts.size_for(size), stop=self._http.stop,
                    )  # fmt: skip
                    return False
            with contextlib.closing(Body(opened(), size, sent)) as body:
                if size > CHUNK:
                    self._client.upload_fileobj(body, self._bucket, self._key(path))
                    return False
                data = b"".join(body)
                there = self._client.put_object(Bucket=self._bucket, Key=self._key(path), Body=data)
        # Amazon's, Swift's and Ceph's name of an object that came in one piece, unless it is encrypted by a key of KMS
        return bool(there.get("ETag", "").strip('"') == hashlib.md5(data, usedforsecurity=False).hexdigest())

    def digest(self, path: str) -> str:
        with _said(self._bucket):
            return _sha256(self._client.get_object(Bucket=self._bucket, Key=self._key(path))["Body"].iter_chunks(CHUNK))

    def _key(self, path: str) -> str:
        return f"{self._prefix}/{path}"


class S3Parts:
    """An object of a store that is spoken to, in parts."""

    at_once = 3

    def __init__(self, client: Any, bucket: str, key: str) -> None:
        self._client, self._object = client, {"Bucket": bucket, "Key": key}

    def create(self, count: int) -> tuple[str, None]:
        """Begins an upload."""
        return str(self._client.create_multipart_upload(**self._object)["UploadId"]), None

    def there(self, upload: Upload) -> dict[int, str] | None:
        """The parts that the store has; a key that may not ask believes what it remembers."""
        try:
            with self._known():
                pages = self._client.get_paginator("list_parts").paginate(**self._object, UploadId=upload.id)
                return {one["PartNumber"]: one["ETag"] for page in pages for one in page.get("Parts", ())}
        except self._client.exceptions.ClientError as error:
            if _code(error) in ("AccessDenied", "NotImplemented", "403", "501"):
                return None
            raise

    def part(self, upload: Upload, number: int, data: bytes) -> str:
        """Sends a part."""
        with self._known():
            sent = self._client.upload_part(**self._object, UploadId=upload.id, PartNumber=number, Body=data)
            return str(sent["ETag"])

    def complete(self, upload: Upload, etags: Sequence[str]) -> None:
        """Puts the parts together.  An upload that is gone may have been, by a call whose answer was lost."""
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, 1)]
        try:
            with self._known():
                self._client.complete_multipart_upload(
                    **self._object, UploadId=upload.id, MultipartUpload={"Parts": parts}
                )
        except NoPartsError:
            if not self._is_whole(upload, etags):
                raise

    def abort(self, upload: Upload) -> None:
        """Gives an upload up."""
        self._client.abort_multipart_upload(**self._object, UploadId=upload.id)

    def _is_whole(self, upload: Upload, etags: Sequence[str]) -> bool:
        """Whether the object is what these parts make, by what S3 says of its parts."""
        try:
            found = self._client.head_object(**self._object)
            joined = hashlib.md5(b"".join(bytes.fromhex(one.strip('"')) for one in etags), usedforsecurity=False)
        except (self._client.exceptions.ClientError, ValueError):
            return False
        expected = f"{joined.hexdigest()}-{len(etags)}"
        return bool(found["ContentLength"] == upload.length and found["ETag"].strip('"') == expected)

    @contextlib.contextmanager
    def _known(self) -> Iterator[None]:
        try:
            yield
        except self._client.exceptions.ClientError as error:
            if _code(error) in _FORGOTTEN:
                raise NoPartsError(str(error)) from None
            raise


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


_s3_lock = threading.Lock()
_s3_clients: dict[tuple[str, ...], Any] = {}


def _s3_client(env: Mapping[str, str]) -> Any:
    """One client for all threads: making one takes longer than a small upload."""
    try:
        from labtrack.objectstore import Store
    except ModuleNotFoundError:
        raise BadInputError("Artifacts go straight to S3, which needs boto3.", WITHOUT_BOTO3) from None
    missing = [name for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY") if not env.get(name)]
    if missing:
        raise BadInputError(
            f"The server keeps artifacts in S3 and {', '.join(missing)} is not set.", "source your mlflow_env.sh."
        )
    region = env.get("AWS_DEFAULT_REGION") or "us-east-1"
    endpoint = env.get("MLFLOW_S3_ENDPOINT_URL") or f"https://s3.{region}.amazonaws.com"
    given = (endpoint, region, env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"], env.get("AWS_CA_BUNDLE", ""))
    with _s3_lock:
        if given not in _s3_clients:
            ca_file = Path(given[4]) if given[4] else None
            _s3_clients[given] = Store(endpoint, region, "", given[2], given[3], ca_file).client()
        return _s3_clients[given]


@contextlib.contextmanager
def _said(bucket: str) -> Iterator[None]:
    """A store's refusal in words."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    from labtrack.objectstore import refusal

    try:
        yield
    except (BotoCoreError, ClientError, Boto3Error) as error:
        cause = error.__cause__ or error.__context__ or error
        why = refusal(cause if isinstance(cause, (BotoCoreError, ClientError)) else error)
        if why.kind == "unreachable":
            raise StoreDownError(f"The store of s3://{bucket} is down: {why}.", "sync again when it answers.") from None
        raise LabtrackError(f"The store refuses on s3://{bucket}: {why}", "`labtrack doctor` looks closer.") from None


class Folder:
    """A folder that the server and this machine share."""

    def __init__(self, root: str) -> None:
        self._root = Path(unquote(urlsplit(root).path) if root.startswith("file:") else root)

    def sizes(self) -> dict[str, int]:
        found = (Path(folder) / name for folder, _, files in os.walk(self._root) for name in files)
        whole = (file for file in found if file.suffix != _PART)
        return {file.relative_to(self._root).as_posix(): file.stat().st_size for file in whole}

    def put(self, path: str, size: int, opened: Open, sent: Callable[[int], None]) -> bool:
        place = self._root / path
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            temporary = place.with_name(f".{place.name}.{os.getpid()}{_PART}")
            with contextlib.closing(Body(opened(), size, sent)) as body, temporary.open("wb") as file:
                shutil.copyfileobj(body, file, CHUNK)
            temporary.replace(place)
        except OSError as error:
            raise LabtrackError(
                f"The server keeps artifacts in {self._root}, which can't be written here: {error.strerror}.",
                "run the sync on the server's machine, or ask its admin to serve artifacts (--serve-artifacts).",
            ) from None
        return False

    def digest(self, path: str) -> str:
        with (self._root / path).open("rb") as file:
            return _sha256(iter(lambda: file.read(CHUNK), b""))


def target(http: Http, env: Mapping[str, str], root: str, uploads: Uploads | None = None) -> Target:
    """The place that the server names as a run's artifact URI.  uploads: those that earlier syncs have begun."""
    scheme = urlsplit(root).scheme
    if scheme == "mlflow-artifacts":
        return Proxied(http, root, uploads)
    if scheme == "s3":
        return S3(http, env, root, uploads)
    if scheme in ("file", "") and root:
        return Folder(root)
    raise LabtrackError(
        f"The server keeps artifacts at {root!r}, a kind of place that labtrack can't write to.",
        "ask its admin to serve artifacts itself (--serve-artifacts), or to use S3.",
    )


def give_up(http: Http, env: Mapping[str, str], upload: Upload) -> None:
    """Tells the store that an upload in parts will not be completed."""
    if upload.place.startswith(_HANDED):
        multipart.Handed(http, upload.place[len(_HANDED) :]).abort(upload)
    else:
        place = urlsplit(upload.place)
        S3Parts(_s3_client(env), place.netloc, upload.place.partition("://")[2].partition("/")[2]).abort(upload)


def digest_of(opened: Open) -> str:
    """The SHA-256 of a recorded file."""
    with opened() as file:
        return _sha256(iter(lambda: file.read(CHUNK), b""))


def _sha256(chunks: Iterator[bytes]) -> str:
    found = hashlib.sha256()
    for chunk in chunks:
        found.update(chunk)
    return found.hexdigest()
