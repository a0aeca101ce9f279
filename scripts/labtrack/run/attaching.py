"""What belongs to a job, put to its run: the diff of the code, the output in portions."""

from __future__ import annotations

from pathlib import Path

from labtrack.run import console, recording
from labtrack.run.prepare import DIFF_FILE


class Attacher:
    """Attaches the files of one job's folder to the first run that the job made, each once."""

    def __init__(self, folder: Path, key: str, attempt: int | None) -> None:
        self._folder, self._key, self._attempt = folder, key, attempt
        self._place = recording.job_folder(folder, key)
        self._done: set[Path] = set()
        self._run = ""

    def attach(self, *, last: bool = False) -> None:
        """Attaches what is new.  last: also what was not finished.  Raises what reading and writing raise."""
        found = [(self._place / DIFF_FILE, "")] if (self._place / DIFF_FILE).exists() else []
        found += [(one, console.FOLDER) for one in console.portions(self._place / console.FOLDER, unfinished=last)]
        new = [(file, where) for file, where in found if file not in self._done]
        if not new or not recording.holds_recordings(self._folder):
            return
        if not self._run:
            with recording.opened(self._folder) as store:
                runs = recording.runs_of(store, self._key, self._attempt)
            if not runs:
                return
            self._run = runs[0].id
        for file, where in new:
            recording.attach(self._folder, self._run, file, where)
            self._done.add(file)
