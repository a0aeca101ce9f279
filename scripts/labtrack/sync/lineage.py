"""References between runs: who is whose parent, what was resumed and what was forked.

MLflow nests runs by the tag `mlflow.parentRunId`.  Anemoi adds conventions of its own, in tags
(`resumedRun`, `forkedRun`, `forkedRunId`) and in params (`metadata.run_id`, `config.training.run_id`,
`config.training.fork_run_id`), and its sync keeps the old ids beside the new ones, which its training
reads again.  What Anemoi's sync writes is written here too, so that its tools find these runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from labtrack.stores.model import Run

PARENT, FORKED = "mlflow.parentRunId", "forkedRunId"
RESUMED_FLAG, FORKED_FLAG = "resumedRun", "forkedRun"
_TAGS = (PARENT, FORKED)
_PARAMS = (
    "metadata.run_id",
    "config.training.run_id",
    "config.training.fork_run_id",
    "training.run_id",
    "training.fork_run_id",
)
_HISTORY = "mlflow.log-model.history"
_ID = re.compile(r"[0-9a-f]{32}")

Resolve = Callable[[str], "str | None"]


@dataclass
class Linked:
    """A run's params and tags with the ids of the server.

    pending: what waits for a run that is not there yet: {"tags": {key: old id}, "params": {key: old id}}.
    notes: what is odd, in words.
    """

    params: dict[str, str]
    tags: dict[str, str]
    pending: dict[str, dict[str, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def pending_tag(self) -> str:
        """The pending references as a tag's value."""
        return json.dumps(self.pending, sort_keys=True)


def is_unique(run_id: str) -> bool:
    """Whether an id is one that MLflow made, which no other run anywhere has."""
    return _ID.fullmatch(run_id) is not None


def is_anemois(run: Run) -> bool:
    """Whether Anemoi's training recorded it."""
    return "metadata.run_id" in run.params or "config.training.run_id" in run.params


def references(run: Run) -> set[str]:
    """The ids of the runs that must be at the server before this one, itself never among them."""
    found = {run.tags.get(key, "") for key in _TAGS} | {run.params.get(key, "") for key in _PARAMS}
    return {one for one in found if one and one != run.id and (_ID.fullmatch(one) or one == run.parent_id)}


def link(run: Run, own: str, resolve: Resolve, kind: str) -> Linked:
    """Puts the server's ids in the place of the recording's.

    own: the run's id at the server.  resolve: a recorded id to the server's, None where it is not there.
    kind: `offline`, or `server2server` where the recording is a server, as Anemoi calls it.
    """
    found = Linked(dict(run.params), dict(run.tags))
    for key in _TAGS:
        old = run.tags.get(key)
        if not old:
            continue
        if old == run.id:
            del found.tags[key]
            found.notes.append(f"{key} named the run itself and was left out")
            continue
        _put(found, "tags", key, old, resolve(old))
        if is_anemois(run):
            found.tags[f"mlflow.{kind}.parentRunId" if key == PARENT else f"{kind}.{key}"] = old
    for key in _PARAMS:
        old = run.params.get(key, "")
        if _ID.fullmatch(old):
            _put(found, "params", key, old, own if old == run.id else resolve(old))
            section, _, name = key.rpartition(".")
            found.params[f"{section}.{kind}_{name}"] = old
    if is_anemois(run):
        found.tags["offlineRun" if kind == "offline" else kind] = "True"
        found.params.setdefault(f"metadata.{kind}_run_id", run.id)
        if run.tags.get(RESUMED_FLAG) and not run.tags.get(FORKED_FLAG):
            found.params[f"config.training.{kind}_self_run_id"] = run.id
    if _HISTORY in found.tags:
        found.tags[_HISTORY] = found.tags[_HISTORY].replace(run.id, own)
    return found


def _put(found: Linked, part: str, key: str, old: str, new: str | None) -> None:
    values = found.tags if part == "tags" else found.params
    if new is None:
        del values[key]  # a param can't be changed once it is there, and a tag would show a parent that isn't
        found.pending.setdefault(part, {})[key] = old
    else:
        values[key] = new


def pending_of(tag: str) -> dict[str, dict[str, str]]:
    """What a tag says that is pending; nothing where somebody else wrote something else into it."""
    try:
        said = json.loads(tag)
        return {
            part: {str(key): str(old) for key, old in said[part].items()}
            for part in ("tags", "params")
            if isinstance(said.get(part), dict)
        }
    except (ValueError, AttributeError):
        return {}


def generations(runs: Iterable[Run], also: Callable[[Run], set[str]] = lambda _: set()) -> Iterator[list[Run]]:
    """The runs in groups, each of which refers only to groups before it.  A ring is broken at its oldest run.

    also: what else a run has to wait for.
    """
    left: dict[str, Run] = {run.id: run for run in runs}
    waiting: Mapping[str, set[str]] = {run.id: references(run) | also(run) for run in left.values()}
    while left:
        ready = [run for run in left.values() if not any(one in left for one in waiting[run.id])]
        if not ready:
            ready = [min(left.values(), key=lambda run: (run.start_time or 0, run.id))]
        for run in ready:
            del left[run.id]
        yield ready
