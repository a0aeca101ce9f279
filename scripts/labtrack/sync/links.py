"""Finding the server's run for a recorded id, and mending references that had to wait."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from labtrack.sync import lineage
from labtrack.tracking import names
from labtrack.tracking.destination import Destination, has_tag
from labtrack.tracking.remote import RemoteRun


class Links:
    """copies: recorded run id to the server's, of this recording; it grows while runs are made.

    An id that is not there may be that of a run from another recording, or one at the server itself.
    """

    def __init__(self, destination: Destination, copies: dict[str, str], experiment_ids: Sequence[str]) -> None:
        self._destination, self.copies, self._experiment_ids = destination, copies, experiment_ids
        self._elsewhere: dict[str, str | None] = {}
        self._lock = threading.Lock()

    def resolve(self, recorded: str) -> str | None:
        """The server's id for a recorded one, None where it is not there yet."""
        if recorded in self.copies:
            return self.copies[recorded]
        with self._lock:
            if recorded not in self._elsewhere:
                self._elsewhere[recorded] = self._look(recorded)
            return self._elsewhere[recorded]

    def _look(self, recorded: str) -> str | None:
        found = list(self._destination.search(self._experiment_ids, has_tag(names.SOURCE_RUN, recorded)))
        if found:
            return min(found, key=lambda run: run.rank).id
        there = self._destination.get_run(recorded)
        return there.id if there else None

    def hint(self, copy: RemoteRun, waiting: Mapping[str, Mapping[str, str]]) -> bool:
        """Puts in what a copy waited for, where it is there now.  Whether anything was."""
        ready: dict[str, dict[str, str]] = {"tags": {}, "params": {}}
        left: dict[str, dict[str, str]] = {}
        for part, values in waiting.items():
            for key, old in values.items():
                new = self.resolve(old)
                if new is None or new == copy.id:
                    left.setdefault(part, {})[key] = old
                elif part == "tags" or key not in copy.params:
                    ready[part][key] = new
        if not any(ready.values()) and left:
            return False
        if left:
            ready["tags"][names.PENDING] = lineage.Linked({}, {}, left).pending_tag()
        self._destination.log_batch(copy.id, params=ready["params"], tags=ready["tags"])
        if not left:
            self._destination.delete_tag(copy.id, names.PENDING)
        return True
