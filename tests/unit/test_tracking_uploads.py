"""Large files of a sync that was killed between parts: what arrived is not sent again, and no file is made of two."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from labtrack.stores.model import Artifact, Run
from labtrack.sync.artifacts import ChangedError, Target, give_up, target
from labtrack.sync.files import Sender
from labtrack.sync.progress import Meter
from labtrack.tracking.http import Http
from labtrack.tracking.uploads import Uploads

PART = 5 * 2**20
SIZE = 4 * PART + 1000

KILLED = """
import sys
from pathlib import Path
from labtrack.sync.artifacts import target
from labtrack.tracking.http import Http
from labtrack.tracking.uploads import Uploads
import os
url, root, file, kept = sys.argv[1:]
target(Http(url, os.environ), os.environ, root, Uploads(Path(kept))).put(
    "big file.bin", Path(file).stat().st_size, lambda: open(file, "rb"), lambda _: None
)
"""


class Store:
    """S3's multipart calls, and MLflow's through the proxy, whose addresses lead here too.

    got: each part that came.  open: the connections.  holds: the part at which nothing more is answered, until it is 0.
    """

    def __init__(self) -> None:
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.objects: dict[str, bytes] = {}
        self.got: list[int] = []
        self.aborted: list[str] = []
        self.holds = 0
        self.open: list[Any] = []
        self.held, self.lists, self.loses = threading.Event(), True, False
        self.tag, self.keeps, self.listed = "", True, 0  # of objects in one piece; how often somebody looked
        self.expects: list[tuple[str, str | None]] = []  # method and header of each request
        store = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle(self) -> None:
                store.open.append(self)
                try:
                    super().handle()
                finally:
                    store.open.remove(self)

            def any(self) -> None:
                store.expects.append((self.command, self.headers.get("Expect")))
                length = int(self.headers.get("Content-Length") or 0)
                if len(body := self.rfile.read(length)) < length:
                    self.close_connection = True
                    return
                status, data, etag = store.answer(self.command, self.path, body)
                if not status:
                    self.close_connection = True
                    return
                self.send_response(status)
                self.send_header("ETag", etag)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = any

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, method: str, address: str, body: bytes) -> tuple[int, bytes, str]:  # noqa: PLR0911 - one for each call
        place, asked = unquote(urlsplit(address).path), parse_qs(urlsplit(address).query, keep_blank_values=True)
        if "/mpu/" in place:
            return self.handed(place, body)
        upload = asked.get("uploadId", [""])[0]
        if upload and upload not in self.uploads:
            return 404, b"<Error><Code>NoSuchUpload</Code></Error>", ""
        if method == "POST" and "uploads" in asked:
            made = f"u{len(self.uploads) + len(self.aborted) + len(self.objects)}"
            self.uploads[made] = {}
            return (
                200,
                f"<InitiateMultipartUploadResult><UploadId>{made}</UploadId></InitiateMultipartUploadResult>".encode(),
                "",
            )
        if method == "PUT" and upload:
            number = int(asked["partNumber"][0])
            if number == self.holds:
                self.held.set()
                return 0, b"", ""
            self.uploads[upload][number] = body
            self.got.append(number)
            return 200, b"", etag_of(body)
        if method == "GET" and upload:
            if not self.lists:
                return 403, b"<Error><Code>AccessDenied</Code></Error>", ""
            parts = "".join(f"<Part><PartNumber>{number}</PartNumber><ETag>{etag_of(data)}</ETag></Part>"
                            for number, data in self.uploads[upload].items())  # fmt: skip
            return 200, f"<ListPartsResult>{parts}</ListPartsResult>".encode(), ""
        if method == "POST":
            self.complete(upload, place, re.findall(r"<ETag>(.*?)</ETag>", body.decode().replace("&quot;", '"')))
            return (0, b"", "") if self.loses else (200, b"<CompleteMultipartUploadResult/>", "")
        if method == "DELETE":
            self.abort(upload)
            return 204, b"", ""
        if method == "PUT":
            if self.keeps:
                self.objects[place] = body
            return 200, b"", self.tag or etag_of(body)
        if "list-type" in asked:
            self.listed += 1
            found = "".join(f"<Contents><Key>{place.split('/', 2)[2]}</Key><Size>{len(data)}</Size></Contents>"
                            for place, data in self.objects.items())  # fmt: skip
            return 200, f"<ListBucketResult>{found}</ListBucketResult>".encode(), ""
        there = self.objects.get(place)
        return (404, b"", "") if there is None else (200, there, self.whole)

    def handed(self, place: str, body: bytes) -> tuple[int, bytes, str]:
        data = json.loads(body)
        what, _, folder = place.partition("/mpu/")[2].partition("/")
        name = f"{folder}/{data['path']}"
        if what == "create":
            _, made, _ = self.answer("POST", f"/{name}?uploads", b"")
            upload = re.findall(r"Id>(u\d+)<", made.decode())[0]
            links = [{"url": f"{self.url}/x?partNumber={one}&uploadId={upload}", "part_number": one, "headers": {}}
                     for one in range(1, data["num_parts"] + 1)]  # fmt: skip
            return 200, json.dumps({"upload_id": upload, "credentials": links}).encode(), ""
        if what == "abort":
            self.abort(data["upload_id"])
        else:
            self.complete(data["upload_id"], name, [one["etag"] for one in data["parts"]])
        return 200, b"{}", ""

    def complete(self, upload: str, place: str, etags: list[str]) -> None:
        parts = self.uploads.pop(upload)
        assert [etag_of(parts[number]) for number in range(1, len(etags) + 1)] == etags
        self.objects[place] = b"".join(parts[number] for number in sorted(parts))
        joined = hashlib.md5(b"".join(bytes.fromhex(one.strip('"')) for one in etags)).hexdigest()  # noqa: S324
        self.whole = f'"{joined}-{len(etags)}"'

    def abort(self, upload: str) -> None:
        self.uploads.pop(upload, None)
        self.aborted.append(upload)


def etag_of(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'  # noqa: S324


class Case:
    """A file, and the way it takes.  The ways: straight to the store, and by addresses that a server hands out."""

    def __init__(self, folder: Path, root: str, store: Store) -> None:
        self.folder, self.root, self.store = folder, root, store
        self.data = os.urandom(SIZE)
        self.kept = folder / "state" / "x.uploads"
        self.env = {
            "AWS_ACCESS_KEY_ID": "of a test", "AWS_SECRET_ACCESS_KEY": f"{folder}", "MLFLOW_S3_ENDPOINT_URL": store.url,
            "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "true", "MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE": str(PART),
            "MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE": str(PART), "PATH": os.environ["PATH"],
        }  # fmt: skip

    def killed(self, at: int = 3) -> None:
        """Sends it with a process that is killed when a part is under way."""
        (self.folder / "big").write_bytes(self.data)
        self.store.holds = at
        own = set(self.store.open)  # this process keeps connections for the next request
        command = [sys.executable, "-c", KILLED, self.store.url, self.root, self.folder / "big", self.kept]
        process = subprocess.Popen([str(one) for one in command], env=self.env)
        assert self.store.held.wait(60)
        while not self.noted() >= set(range(1, at)):  # several are under way at once
            time.sleep(0.01)
            assert process.poll() is None
        process.kill()
        process.wait()
        while set(self.store.open) - own:  # what was under way arrives or does not, before anything else is sent
            time.sleep(0.01)
        self.store.holds = 0
        self.store.held.clear()

    def noted(self) -> set[int]:
        """The parts that the record has."""
        lines = [line for file in self.kept.glob("*.jsonl") for line in file.read_text().splitlines()[1:]]
        return {json.loads(line)[0] for line in lines if line.endswith("]")}

    def place(self) -> Target:
        self.http = Http(self.store.url, self.env)
        self.remembered = Uploads(self.kept)
        return target(self.http, self.env, self.root, self.remembered)

    def send(self) -> list[int]:
        """Sends it; gives the parts that were sent for that."""
        before = len(self.store.got)
        self.place().put("big file.bin", len(self.data), lambda: io.BytesIO(self.data), lambda _: None)
        assert list(self.store.objects.values()) == [self.data] and not self.store.uploads
        assert not list(self.kept.glob("*"))
        return sorted(self.store.got[before:])


WAYS = {"direct": "s3://bucket/1/run/artifacts", "handed": "mlflow-artifacts:/1/run/artifacts"}
DIRECT = pytest.mark.parametrize("case", ["direct"], indirect=True)


@pytest.fixture(params=WAYS)
def case(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Case]:
    store = Store()
    threading.Thread(target=store.server.serve_forever, args=(0.01,), daemon=True).start()
    yield Case(tmp_path, WAYS[request.param], store)
    store.server.shutdown()
    store.server.server_close()


def test_parts_that_arrived_before_a_kill_are_not_sent_again(case: Case) -> None:
    case.killed()
    (record,) = case.kept.iterdir()
    assert record.stat().st_mode & 0o777 == 0o600 and case.kept.stat().st_mode & 0o777 == 0o700
    noted = case.noted()
    assert {1, 2} <= noted <= set(case.store.got) and 3 not in noted
    assert case.send() == sorted({1, 2, 3, 4, 5} - noted)
    assert case.store.aborted == []


def test_parts_of_a_file_that_has_changed_since(case: Case) -> None:
    case.killed()
    case.data = case.data[:7] + b"changed" + case.data[14:]
    assert 1 in case.send()  # and send() compares the whole
    case.killed(at=2)
    case.store.objects.clear()
    case.data = os.urandom(SIZE + PART)
    assert case.send() == [1, 2, 3, 4, 5, 6] and len(case.store.aborted) == 1


@pytest.mark.parametrize("damage", ["torn", "empty", "gone", "other", "forgotten"])
def test_uploads_of_which_the_record_is_damaged(case: Case, damage: str) -> None:
    case.killed()
    (record,) = case.kept.iterdir()
    text = record.read_text()
    if damage == "torn":
        record.write_text(text + '\n[5,"tag","dig')
    elif damage == "gone":
        record.unlink()
        case.store.uploads.clear()
    elif damage == "forgotten":
        case.store.uploads.clear()
    else:
        record.write_text("" if damage == "empty" else '{"place": 3}\n[1, 2]\n')
        case.store.uploads.clear()
    sent = case.send()
    assert 3 in sent and (1 in sent) is (damage != "torn")


@DIRECT
def test_uploads_of_which_the_store_lost_parts(case: Case) -> None:
    case.killed()
    (parts,) = case.store.uploads.values()
    parts[1] = b"another's"
    assert {1, 3} <= set(case.send())
    case.store.objects.clear()
    case.killed()
    case.store.lists = False  # a key that may not ask
    assert 1 not in case.send()


@DIRECT
def test_an_upload_whose_last_answer_is_lost(case: Case) -> None:
    case.store.loses = True
    assert case.send() == [1, 2, 3, 4, 5]
    assert ("PUT", "100-continue") in case.store.expects, "5 MiB are not sent to be refused"


def test_an_upload_that_nothing_needs_any_more_is_ended(case: Case) -> None:
    case.killed()
    case.place()
    (upload,) = case.store.uploads
    case.remembered.abandon(lambda one: give_up(case.http, case.env, one))
    assert case.store.aborted == [upload] and not list(case.kept.iterdir())


def test_an_upload_that_can_not_be_noted_is_ended(case: Case, tmp_path: Path) -> None:
    case.kept = tmp_path / "a file"
    case.kept.write_text("")
    reads = iter([case.data[:PART], case.data[PART : 2 * PART]])

    class Ends(io.BytesIO):
        def read(self, count: int | None = -1) -> bytes:
            return next(reads, b"")

    with pytest.raises(ChangedError):
        case.place().put("big file.bin", SIZE, Ends, lambda _: None)
    assert len(case.store.aborted) == 1


@DIRECT
@pytest.mark.parametrize(
    ("tag", "keeps", "looks", "failed"),
    [
        ("", True, 0, []),
        ('"made with a key of KMS"', True, 1, []),
        ('"of other bytes"', False, 1, ["artifact a.txt has 0 bytes at the server instead of 5"]),
    ],
)
def test_a_file_is_looked_for_where_the_answer_does_not_tell_that_it_is_there(
    case: Case, tag: str, keeps: bool, looks: int, failed: list[str]
) -> None:
    case.store.tag, case.store.keeps = tag, keeps
    (case.folder / "a.txt").write_bytes(b"12345")
    recorded = SimpleNamespace(
        artifacts=lambda _: [Artifact("a.txt", 5, 7)], local_path=lambda _, path: case.folder / path
    )
    source: Any = SimpleNamespace(store=recorded)
    with ThreadPoolExecutor() as pool:
        sender = Sender(
            source,
            Http(case.store.url, case.env),
            case.env,
            Uploads(),
            pool=pool,
            meter=Meter(SimpleNamespace(update=lambda *_: None)),
        )
        sent = sender.start(Run(id="r", experiment_id="1"), case.root, {}, fresh=True).finish()
    assert (case.store.listed, sent.failed, sent.count) == (looks, failed, 1)
    assert ("PUT", None) in case.store.expects and ("PUT", "100-continue") not in case.store.expects
    known = {} if failed else {"a.txt": (5, 7, hashlib.sha256(b"12345").hexdigest())}
    assert sent.files == known


def test_a_damaged_line_of_a_record_is_not_believed(tmp_path: Path) -> None:
    kept = Uploads(tmp_path)
    for odd in ('{"place": "p", "length": 10, "size": 0, "id": "u"}', "[]", "\x00", '{"place": "p", "length": "x"}',
                '{"place": "p", "length": 1000000000, "size": 1, "id": "u"}'):  # fmt: skip
        kept._file("p").write_text(odd)
        assert kept.known("p") is None
    kept._file("p").write_text(
        '{"place": "p", "length": 9, "size": 5, "id": "u"}\n[1,"e","d"]\n[7,"e","d"]\n[2,"e"\n{}\n'
    )
    found: Any = kept.known("p")
    assert list(found.parts) == [1]
