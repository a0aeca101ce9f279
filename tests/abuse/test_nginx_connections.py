"""Many clients at once, each with a connection to nginx that it keeps."""

from __future__ import annotations

import contextlib
import resource
import ssl
from concurrent.futures import ThreadPoolExecutor

from api import Api
from wire import connect, request

IDLE = 1900  # the firewall lets an address have 2,000 connections: tests/abuse/test_egress.py


def test_1900_clients_that_keep_their_connection_leave_room_for_others(ann: Api) -> None:
    """Jobs keep their connection between two epochs; a cluster's nodes often come from one address."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    whole = request(ann, "/api/2.0/mlflow/users/current").replace(b"Connection: close", b"Connection: keep-alive")
    with contextlib.ExitStack() as ends:
        ends.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))

        def client(_: int) -> tuple[bytes, ssl.SSLSocket]:
            tls = connect(ann)
            tls.sendall(whole)
            return tls.recv(65536)[:15], tls

        with ThreadPoolExecutor(16) as pool:
            idle = list(pool.map(client, range(IDLE)))
        for _, tls in idle:
            ends.enter_context(tls)
        assert {answer for answer, _ in idle} == {b"HTTP/1.1 200 OK"}
        run = ann.new_run(ann.new_experiment())
        for step in range(20):
            ann.done("runs/log-metric", {"run_id": run, "key": "loss", "value": 1, "timestamp": step, "step": step})
        # those that have kept it may go on, the first as the last
        for _, tls in (idle[0], idle[-1]):
            tls.sendall(whole)
            assert tls.recv(65536).startswith(b"HTTP/1.1 200 OK")
