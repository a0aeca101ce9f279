"""An S3 store over TLS: buckets in memory, and every request's signature checked (version 4)."""

from __future__ import annotations

import hashlib
import hmac
import http.server
import re
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from xml.sax.saxutils import escape

REGION = "RegionOne"


class Store:
    """The store: its buckets, and the keys that own them."""

    def __init__(self, folder: Path, *buckets: str) -> None:
        self.access_key, self.secret_key = "4f1c0e7d9b", "5bd2f0cc61a14a4f"
        self.buckets: dict[str, dict[str, bytes]] = {name: {} for name in buckets}
        self.parts: dict[str, dict[int, bytes]] = {}
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

    def signature(self, method: str, target: str, headers: Any) -> str:
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
        key = f"AWS4{self.secret_key}".encode()
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

    def handle_one(self) -> None:
        self.store.answering.wait()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        given = self.headers.get("Authorization", "")
        if f"Credential={self.store.access_key}/" not in given:
            return self.refuse(403, "InvalidAccessKeyId")
        if not given.endswith(f"Signature={self.store.signature(self.command, self.path, self.headers)}"):
            return self.refuse(403, "SignatureDoesNotMatch")
        if hashlib.sha256(body).hexdigest() != self.headers["x-amz-content-sha256"]:
            return self.refuse(400, "XAmzContentSHA256Mismatch")
        parts = urlsplit(self.path)
        _, name, *rest = unquote(parts.path).split("/", 2)
        bucket, key = self.store.buckets.get(name), "".join(rest)
        if bucket is None:
            return self.refuse(404, "NoSuchBucket")
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        return getattr(self, f"on_{self.command.lower()}")(bucket, key, query, body)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_one

    def on_get(self, bucket: dict[str, bytes], key: str, query: dict[str, str], _: bytes) -> None:
        if not key:
            return self.on_list(bucket, query)
        if key not in bucket:
            return self.refuse(404, "NoSuchKey")
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted:
            end = int(wanted[2]) + 1 if wanted[2] else None
            return self.answer(206, bucket[key][int(wanted[1]) : end])
        return self.answer(200, bucket[key])

    def on_head(self, bucket: dict[str, bytes], key: str, query: dict[str, str], _: bytes) -> None:
        if key not in bucket:
            return self.refuse(404, "NoSuchKey")
        when = {"Last-Modified": "Thu, 26 Nov 2026 00:00:00 GMT"}
        return self.answer(200, length=str(len(bucket[key])), **when)

    def on_list(self, bucket: dict[str, bytes], query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        found, folders = [], set()
        for key in sorted(key for key in bucket if key.startswith(prefix)):
            head, cut, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            if cut:
                folders.add(prefix + head + cut)
                continue
            when = "<LastModified>2026-11-26T00:00:00.000Z</LastModified>"
            found.append(f"<Contents><Key>{escape(key)}</Key>{when}<Size>{len(bucket[key])}</Size></Contents>")
        common = "".join(f"<CommonPrefixes><Prefix>{escape(one)}</Prefix></CommonPrefixes>" for one in sorted(folders))
        listed = f"<IsTruncated>false</IsTruncated>{''.join(found)}{common}"
        self.answer(200, f"<?xml version='1.0'?><ListBucketResult>{listed}</ListBucketResult>".encode())

    def on_put(self, bucket: dict[str, bytes], key: str, query: dict[str, str], body: bytes) -> None:
        if "uploadId" in query:
            self.store.parts[query["uploadId"]][int(query["partNumber"])] = body
        else:
            bucket[key] = body
        self.answer(200, ETag=f'"{hashlib.md5(body).hexdigest()}"')  # noqa: S324  as S3 does

    def on_post(self, bucket: dict[str, bytes], key: str, query: dict[str, str], body: bytes) -> None:
        if "delete" in query:
            for gone in re.findall(r"<Key>(.*?)</Key>", body.decode()):
                bucket.pop(gone, None)
            return self.answer(200, b"<?xml version='1.0'?><DeleteResult></DeleteResult>")
        if "uploads" in query:
            upload = f"upload{len(self.store.parts)}"
            self.store.parts[upload] = {}
            named = f"<UploadId>{upload}</UploadId>"
        else:
            parts = self.store.parts[query["uploadId"]]
            bucket[key] = b"".join(parts[number] for number in sorted(parts))
            self.store.multipart += 1
            named = '<ETag>"x"</ETag>'
        return self.answer(200, f"<?xml version='1.0'?><Result>{named}</Result>".encode())

    def on_delete(self, bucket: dict[str, bytes], key: str, query: dict[str, str], _: bytes) -> None:
        bucket.pop(key, None)
        self.answer(204)
