"""Large files on their way through the server, in parts."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from test_tracking_way import Way

from labtrack.sync.artifacts import Proxied
from labtrack.tracking.http import Http


class Store(Way):
    """A server that hands out addresses for parts, of which the first time none arrives."""

    def __init__(self, *, complete: bool = True) -> None:
        super().__init__()
        store, handler = self, self.server.RequestHandlerClass
        self.parts: dict[str, bytes] = {}
        self.made: list[Any] = []
        self.complete, self.broken = complete, 0

        class Handler(handler):  # type: ignore[valid-type,misc]
            def do_POST(self) -> None:
                data = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
                what = self.path.split("/")[-2 if "/mpu/" in self.path else -1]
                store.seen.append(("POST", self.path, self.headers.get("Authorization", ""), 0))
                store.made.append(data)
                given = {}
                if "/mpu/create/" in self.path:
                    links = [{"url": f"{store.url}/part/{one}", "part_number": one + 1, "headers": {}}
                             for one in reversed(range(data["num_parts"]))]  # fmt: skip
                    given = {"upload_id": "u1", "credentials": links}
                status = 501 if "/mpu/complete/" in self.path and not store.complete else 200
                self.answer(status, json.dumps(given if what else {}).encode())

            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                store.seen.append(("PUT", self.path, self.headers.get("Authorization", ""), len(body)))
                if self.path.startswith("/part/") and store.broken < 2:
                    store.broken += 1
                    self.answer(503, b"")
                    return
                store.parts[self.path] = body
                self.answer(200, b"")

            def answer(self, status: int, data: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.send_header("ETag", f"tag of {self.path}")
                self.end_headers()
                self.wfile.write(data)

        self.server.RequestHandlerClass = Handler


PARTS = {"MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "true", "MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE": "1000"}
MIB = 2**20


def put(store: Store, size: int, **env: str) -> bytes:
    data = bytes(range(256)) * (size // 256)
    http = Http(store.url, {"MLFLOW_TRACKING_TOKEN": "tok", **env})
    http.stop.wait = lambda _=None: False  # type: ignore[method-assign,assignment]
    place = Proxied(http, "mlflow-artifacts:/1/run/artifacts")
    place.put("a/w b.bin", len(data), lambda: io.BytesIO(data), lambda _: None)
    store.server.shutdown()
    store.server.server_close()
    return data


def test_a_large_file_goes_in_parts_which_are_sent_again_one_by_one() -> None:
    store = Store()
    data = put(store, 23 * MIB, **PARTS)
    assert b"".join(store.parts[f"/part/{one}"] for one in range(3)) == data and store.broken == 2
    assert store.made[0] == {"path": "w b.bin", "num_parts": 3}
    assert [one["etag"] for one in store.made[1]["parts"]] == [f"tag of /part/{one}" for one in range(3)]
    assert [one[1].rpartition("mpu/")[2] for one in store.seen if one[0] == "POST"] == [
        "create/1/run/artifacts/a", "complete/1/run/artifacts/a",
    ]  # fmt: skip
    assert {one[2] for one in store.seen if one[1].startswith("/part/")} == {""}, "the login is the server's alone"


@pytest.mark.parametrize(("complete", "env"), [(False, PARTS), (True, {})])
def test_a_large_file_goes_whole_where_it_can_not_go_in_parts(complete: bool, env: dict[str, str]) -> None:
    store = Store(complete=complete)
    data = put(store, 11 * MIB, **env)
    assert store.parts["/api/2.0/mlflow-artifacts/artifacts/1/run/artifacts/a/w%20b.bin"] == data
    assert any("/mpu/abort/" in one[1] for one in store.seen) is bool(env)
