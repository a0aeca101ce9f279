"""An S3 store over TLS: buckets in memory, and every request's signature checked (version 4)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.server
import re
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from email.utils import format_datetime, parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from xml.sax.saxutils import escape

REGION = "RegionOne"


BEGAN = datetime(2026, 11, 26, tzinfo=timezone.utc)  # of objects that a test has put there
HEADERS = ("content-type", "content-encoding")  # that an object is given back with, beside x-amz-meta-*


class Content(bytes):
    """An object, and what the store knows of it."""

    etag, at, headers = "", BEGAN, ()

    @classmethod
    def of(cls, body: bytes, given: Any, etag: str = "", at: datetime | None = None) -> Content:
        """given: the headers that it was sent with."""
        made = cls(body)
        made.etag, made.at = etag, at or datetime.now(timezone.utc)
        names = [name for name in given if name.lower() in HEADERS or name.lower().startswith("x-amz-meta-")]
        made.headers = tuple((name, given[name]) for name in names)
        return made


def about(body: bytes) -> dict[str, str]:
    """What the store says of an object."""
    known = body if isinstance(body, Content) else Content(body)
    etag = known.etag or hashlib.md5(body).hexdigest()  # noqa: S324  as S3 does
    return {"ETag": f'"{etag}"', "Last-Modified": format_datetime(known.at, usegmt=True), **dict(known.headers)}


class Store:
    """The store: its buckets, and the keys that own them."""

    def __init__(self, folder: Path, *buckets: str) -> None:
        self.access_key, self.secret_key = "4f1c0e7d9b", "5bd2f0cc61a14a4f"
        # of each access key: its secret, and the only buckets that it reaches, where not all
        self.keys: dict[str, tuple[str, tuple[str, ...]]] = {self.access_key: (self.secret_key, ())}
        self.page = 1000  # objects in an answer to a listing
        self.asked: list[tuple[str, str, str]] = []  # method, bucket and key of each request that had a right to it
        self.forgets: set[str] = set()  # keys of objects that it takes and does not keep
        self.refuses: dict[tuple[str, str], tuple[int, str]] = {}  # of these methods and keys: status and code
        self.quotas: dict[str, int] = {}  # bytes that a bucket may have; else it says what OpenStack's Swift does
        self.down_after = -1  # requests, after which each is answered as Swift's proxy does without its servers
        self.buckets: dict[str, dict[str, bytes]] = {name: {} for name in buckets}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.uploads: dict[str, tuple[str, Any]] = {}  # key and headers of each upload in parts that is under way
        self.multipart = 0  # uploads in parts that were completed
        self.answering = threading.Event()
        self.answering.set()
        self.ca = folder / "store.pem"
        key = folder / "store.key"
        make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
        subprocess.run([*make, *name, "-keyout", key, "-out", self.ca], check=True, capture_output=True)
        self.ca.chmod(0o644)
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"store": self}))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.ca, key)
        # the handshake in the request's own thread
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
        self.endpoint = f"https://localhost:{self.server.server_port}"

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Answers, for as long as the context lasts."""
        thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield
        finally:
            self.server.shutdown()
            thread.join()
            self.server.server_close()

    @contextmanager
    def cut_off(self) -> Iterator[None]:
        """Answers nobody, as behind a closed firewall."""
        self.answering.clear()
        try:
            yield
        finally:
            self.answering.set()

    def signature(self, secret: str, method: str, target: str, headers: Any) -> str:
        """What the signature of a request has to be."""
        signed = re.search(r"Credential=([^,]+), ?SignedHeaders=([^,]+)", headers["Authorization"])
        assert signed, headers["Authorization"]
        _, day, region, service, _ = signed[1].split("/")
        parts = urlsplit(target)
        query = "&".join(
            f"{quote(key, safe='-_.~')}={quote(value, safe='-_.~')}"
            for key, value in sorted(parse_qsl(parts.query, keep_blank_values=True))
        )
        lines = [f"{name}:{' '.join(headers[name].split())}\n" for name in signed[2].split(";")]
        request = [method, parts.path, query, "".join(lines), signed[2], headers["x-amz-content-sha256"]]
        told = hashlib.sha256("\n".join(request).encode()).hexdigest()
        text = "\n".join(["AWS4-HMAC-SHA256", headers["x-amz-date"], f"{day}/{region}/{service}/aws4_request", told])
        key = f"AWS4{secret}".encode()
        for part in (day, REGION, service, "aws4_request"):
            key = hmac.new(key, part.encode(), "sha256").digest()
        return hmac.new(key, text.encode(), "sha256").hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    store: Store

    def handle(self) -> None:
        self.store.answering.wait()
        super().handle()

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", headers.pop("length", str(len(body))))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str) -> None:
        self.answer(status, f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode())

    def wrong(self, body: bytes) -> str:
        """What is wrong with the key or the sums of a request; empty when nothing is."""
        given = self.headers.get("Authorization", "")
        access = re.search("Credential=([^/]+)/", given)
        if access is None or access[1] not in self.store.keys:
            return "InvalidAccessKeyId"
        signature = self.store.signature(self.store.keys[access[1]][0], self.command, self.path, self.headers)
        if not given.endswith(f"Signature={signature}"):
            return "SignatureDoesNotMatch"
        if self.headers["x-amz-content-sha256"] not in (hashlib.sha256(body).hexdigest(), "UNSIGNED-PAYLOAD"):
            return "XAmzContentSHA256Mismatch"
        digest = base64.b64encode(hashlib.md5(body).digest()).decode()  # noqa: S324
        if self.headers.get("Content-MD5", digest) != digest:
            return "BadDigest"
        _, name, *_ = unquote(urlsplit(self.path).path).split("/", 2)
        own = self.store.keys[access[1]][1]
        return "AccessDenied" if own and name not in own else ""

    def handle_one(self) -> None:
        self.store.answering.wait()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if wrong := self.wrong(body):
            return self.refuse(400 if wrong in ("BadDigest", "XAmzContentSHA256Mismatch") else 403, wrong)
        parts = urlsplit(self.path)
        _, name, *rest = unquote(parts.path).split("/", 2)
        bucket, key = self.store.buckets.get(name), "".join(rest)
        if bucket is None:
            return self.refuse(404, "NoSuchBucket")
        if self.store.down_after == 0:
            return self.refuse(503, "ServiceUnavailable")
        self.store.down_after -= 1
        self.store.asked.append((self.command, name, key))
        if (self.command, key) in self.store.refuses:
            return self.refuse(*self.store.refuses[self.command, key])
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        return getattr(self, f"on_{self.command.lower()}")(bucket, key, query, body)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_one

    def on_get(self, bucket: dict[str, bytes], key: str, query: dict[str, str], _: bytes) -> None:
        if not key:
            return self.on_uploads(query) if "uploads" in query else self.on_list(bucket, query)
        if key not in bucket:
            return self.refuse(404, "NoSuchKey")
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted:
            end = int(wanted[2]) + 1 if wanted[2] else None
            return self.answer(206, bucket[key][int(wanted[1]) : end])
        return self.answer(200, bucket[key], **about(bucket[key]))

    def on_head(self, bucket: dict[str, bytes], key: str, query: dict[str, str], _: bytes) -> None:
        if key not in bucket:
            return self.refuse(404, "NoSuchKey")
        return self.answer(200, length=str(len(bucket[key])), **about(bucket[key]))

    def on_uploads(self, query: dict[str, str]) -> None:
        under = [(key, upload) for upload, (key, _) in self.store.uploads.items()]
        listed = "".join(
            f"<Upload><Key>{escape(key)}</Key><UploadId>{upload}</UploadId></Upload>"
            for key, upload in sorted(under) if key.startswith(query.get("prefix", ""))
        )  # fmt: skip
        self.answer(
            200, f"<?xml version='1.0'?><ListMultipartUploadsResult>{listed}</ListMultipartUploadsResult>".encode()
        )

    def on_list(self, bucket: dict[str, bytes], query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        told = partial(quote, safe="/") if "encoding-type" in query else escape
        found, folders, more = [], set(), ""
        last = after = query.get("continuation-token", "")
        for key in sorted(key for key in list(bucket) if key.startswith(prefix) and key > after):
            head, cut, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            if cut:
                folders.add(prefix + head + cut)
                continue
            if len(found) == self.store.page:
                more = f"<NextContinuationToken>{escape(last)}</NextContinuationToken>"
                break
            body, last = bucket[key], key
            known = about(body)
            when = parsedate_to_datetime(known["Last-Modified"]).strftime("%Y-%m-%dT%H:%M:%S.000Z")
            of = f"<LastModified>{when}</LastModified><ETag>{escape(known['ETag'])}</ETag><Size>{len(body)}</Size>"
            found.append(f"<Contents><Key>{told(key)}</Key>{of}</Contents>")
        common = "".join(f"<CommonPrefixes><Prefix>{told(one)}</Prefix></CommonPrefixes>" for one in sorted(folders))
        encoded = "<EncodingType>url</EncodingType>" if "encoding-type" in query else ""
        listed = f"{encoded}<IsTruncated>{'true' if more else 'false'}</IsTruncated>{more}{''.join(found)}{common}"
        self.answer(200, f"<?xml version='1.0'?><ListBucketResult>{listed}</ListBucketResult>".encode())

    def on_put(self, bucket: dict[str, bytes], key: str, query: dict[str, str], body: bytes) -> None:
        name = unquote(urlsplit(self.path).path).split("/", 2)[1]
        if sum(map(len, bucket.values())) + len(body) > self.store.quotas.get(name, 2**60):
            return self.refuse(400, "EntityTooLarge")
        if "uploadId" in query:
            self.store.parts[query["uploadId"]][int(query["partNumber"])] = body
        elif key not in self.store.forgets:
            bucket[key] = Content.of(body, self.headers)
        return self.answer(200, ETag=about(body)["ETag"])

    def on_post(self, bucket: dict[str, bytes], key: str, query: dict[str, str], body: bytes) -> None:
        if "delete" in query:
            for gone in re.findall(r"<Key>(.*?)</Key>", body.decode()):
                bucket.pop(gone, None)
            return self.answer(200, b"<?xml version='1.0'?><DeleteResult></DeleteResult>")
        if "uploads" in query:
            upload = f"upload{len(self.store.parts)}"
            self.store.parts[upload] = {}
            self.store.uploads[upload] = (key, self.headers)
            named = f"<UploadId>{upload}</UploadId>"
        else:
            parts = [part for _, part in sorted(self.store.parts[query["uploadId"]].items())]
            sums = b"".join(hashlib.md5(part).digest() for part in parts)  # noqa: S324
            etag = f"{hashlib.md5(sums).hexdigest()}-{len(parts)}"  # noqa: S324
            bucket[key] = Content.of(b"".join(parts), self.store.uploads.pop(query["uploadId"])[1], etag)
            self.store.multipart += 1
            named = f'<ETag>"{etag}"</ETag>'
        return self.answer(200, f"<?xml version='1.0'?><Result>{named}</Result>".encode())

    def on_delete(self, bucket: dict[str, bytes], key: str, query: dict[str, str], _: bytes) -> None:
        if "uploadId" in query:
            self.store.uploads.pop(query["uploadId"], None)
        else:
            bucket.pop(key, None)
        self.answer(204)
