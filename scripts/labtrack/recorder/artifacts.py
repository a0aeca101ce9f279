"""Artifacts beside the recordings, as files; what the file system does is never the training's trouble."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from labtrack.recorder import tracking
from labtrack.recorder.live import Live
from labtrack.recorder.place import shortened

_PATIENCE = 30.0  # seconds that files may take before the training goes on, and as much longer as they are big
_SLOWEST = 5e6  # bytes in a second
_STUCK = 10.0  # seconds for which the journal, in the same folder, can't be written: then the copy can't be either


def repository(address: str) -> Any:
    """The artifacts at an address that the recorder has given."""
    address = shortened(address)
    for live in list(tracking._lives.values()):
        if address.startswith(live.base):
            return RecordingArtifacts(live, address, f"{live.root}/{address[len(live.base) :]}")
    path = unquote(urlsplit(address).path)
    root = path.partition("/artifacts/")[0]
    return RecordingArtifacts(tracking.live_of(f"labtrack://{root}"), address, path)


class RecordingArtifacts(LocalArtifactRepository):  # type: ignore[misc]
    """MLflow's artifacts in a folder; not kept is what can't be written, and a tag of the run says so."""

    def __init__(self, live: Live, address: str, path: str) -> None:
        super().__init__(path)
        self.artifact_uri, self._artifact_dir = address, path
        self._live = live

    def log_artifact(self, local_file: Any, artifact_path: Any = None) -> None:
        """Copies a file.  Raises what MLflow raises where there is no such file."""
        Path(local_file).stat()
        self._kept(super().log_artifact, local_file, artifact_path)

    def log_artifacts(self, local_dir: Any, artifact_path: Any = None) -> None:
        """Copies a folder."""
        list(Path(local_dir).iterdir())
        self._kept(super().log_artifacts, local_dir, artifact_path)

    def _kept(self, copy: Callable[..., None], source: Any, artifact_path: Any) -> None:
        live = self._live
        if live.settings.silent:
            return
        name = "/".join(filter(None, (artifact_path, Path(source).name)))
        if live.copying is not None and live.copying.is_alive():
            self._lost(name, "the file system hangs")
            return
        failed: list[BaseException] = []

        def work() -> None:
            try:
                copy(source, artifact_path)
            except BaseException as error:  # told or raised below
                failed.append(error)

        thread = threading.Thread(target=work, name="labtrack-artifact", daemon=True)
        thread.start()
        end = time.monotonic() + _PATIENCE + _bytes(Path(source)) / _SLOWEST
        while thread.is_alive() and time.monotonic() < end and live.writer.stuck_for < _STUCK:
            thread.join(0.2)
        if thread.is_alive():
            live.copying = thread
            self._lost(name, "the file system hangs")
        elif failed:
            if not isinstance(failed[0], OSError):
                raise failed[0]
            self._lost(name, failed[0].strerror or str(failed[0]))

    def _lost(self, name: str, why: str) -> None:
        live = self._live
        live.writer.warn(f"artifact {why}", f"labtrack: the artifact {name} was not kept ({why}); the training goes on")
        run_id = next((part for part in Path(self._artifact_dir).parts if part in live.writer.runs), "")
        if run_id:
            live.writer.lose(run_id, f"the artifact {name}", why)


def _bytes(path: Path) -> int:
    """The size of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(one.stat().st_size for one in files if one.is_file())
