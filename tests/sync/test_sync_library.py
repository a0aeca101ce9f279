"""labtrack as a library, against a real server."""

from __future__ import annotations

import signal

from sync_recording import Recording
from sync_server import TrackingServer

import labtrack


def test_library_sends_compares_and_leaves_signals_alone(recording: Recording, server: TrackingServer) -> None:
    recording.run()
    handlers = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    options = labtrack.Options(experiment="library")
    before = labtrack.verify(recording.path, server.url, options)
    assert before.differences or before.verified == 0
    report = labtrack.sync(recording.path, server.url, options)
    assert (report.exit_code, len(report.outcomes)) == (labtrack.Exit.OK, 1)
    after = labtrack.verify(recording.path, server.url, options)
    assert (after.verified, after.differences, after.outcomes) == (1, {}, [])
    assert {one: signal.getsignal(one) for one in handlers} == handlers
