"""The model registry: versions that belong to sent runs and models, for names that the server has registered, too.

A registered model is a name that a whole lab shares, so a sync makes none, and moves no alias or stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from labtrack.errors import LabtrackError
from labtrack.stores.model import ModelVersion
from labtrack.sync.duplicates import is_own
from labtrack.sync.faults import FAULTS, words
from labtrack.sync.lineage import Resolve
from labtrack.sync.source import Source
from labtrack.tracking import names
from labtrack.tracking.destination import LATER, MISSING, TRIES, Destination, pairs
from labtrack.tracking.http import ApiError, ServerError, UnclearError
from labtrack.tracking.parsing import plain

_MODEL = "models:/"
_PAGE = 200  # versions: few enough for servers of every age


@dataclass
class Registered:
    """The recording's registered versions.  made, there: how many.  left: "name version" to why it is not there."""

    made: int = 0
    there: int = 0
    left: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def link(
    source: Source, destination: Destination, copies: Mapping[str, str], model_copy: Resolve, *, look: bool = False
) -> Registered:
    """Registers the versions that are not there yet.

    copies: recorded run ids to the server's.  model_copy: the same for logged models.
    look: only look, for --verify: what would be registered is among those left.
    """
    found = Registered()
    try:
        recorded = source.store.registered_models()
    except ServerError:
        raise
    except FAULTS as error:
        found.failed["the model registry"] = f"can't be read in the recording: {words(error)}"
        return found
    for registered in recorded:
        ours = [one for one in registered.versions if one.run_id in copies or _model_of(one, model_copy)]
        if not ours:
            continue
        try:
            known = _there(destination, registered.name)
        except ServerError:
            raise
        except FAULTS as error:
            found.failed[f"model {registered.name}"] = f"its versions are not linked in the registry: {words(error)}"
            continue
        made = found.made
        for version in ours:
            try:
                _one(source, destination, version, copies, model_copy, known=known, found=found, look=look)
            except ServerError:
                raise
            except FAULTS as error:
                found.failed[name_of(version)] = f"is not linked in the registry: {words(error)}"
        if known is not None and not look:
            known = list(_versions(destination, registered.name)) if found.made > made else known
            _remove_duplicates(destination, registered.name, known, found)
    return found


def name_of(version: ModelVersion) -> str:
    """A registered version as people call it."""
    return f"model {version.name} version {version.version}"


def _one(
    source: Source,
    destination: Destination,
    version: ModelVersion,
    copies: Mapping[str, str],
    model_copy: Resolve,
    *,
    known: list[_Known] | None,
    found: Registered,
    look: bool,
) -> None:
    name = name_of(version)
    if known is None:
        found.left[name] = "the server has no such registered model: register the name there and sync again"
        return
    run_id = copies.get(version.run_id or "", "")
    place = _place(source, destination, version, copies, model_copy)
    if _is_there(known, version, run_id, place):
        found.there += 1
    elif look:
        found.left[name] = "is not registered at the server"
    else:
        _register(destination, version, place, run_id, source.identity)
        found.made += 1


@dataclass(frozen=True)
class _Known:
    """A version at the server that was registered by a sync.  aliased: whether a person has given it a name."""

    recorded: str
    run_id: str
    source: str
    version: str
    tags: Mapping[str, str]
    aliased: bool


def _remove_duplicates(destination: Destination, name: str, known: list[_Known], found: Registered) -> None:
    """Deletes second versions that a killed or cut-off sync of one's own has left; the lowest number is kept.

    A server carries out what it was sent, also when the next sync has looked before.
    """
    kept: set[tuple[str, str]] = set()
    for one in sorted(known, key=lambda one: (not one.aliased, int(one.version))):
        linked = one.recorded, one.run_id or one.source
        if linked not in kept:
            kept.add(linked)
        elif is_own(one.tags, destination.maker) and not one.aliased:
            try:
                destination.ask("DELETE", "model-versions/delete", {"name": name, "version": one.version})
            except ApiError as error:
                twice = f"model {name} has version {one.recorded} of the recording twice: delete version {one.version}"
                found.notes.append(f"{twice} ({words(error)})")


def _there(destination: Destination, name: str) -> list[_Known] | None:
    """The versions of a model that syncs have registered; None where there is no such model."""
    try:
        destination.ask("GET", "registered-models/get", {"name": name})
    except ApiError as error:
        if error.code == MISSING:
            return None
        raise
    return list(_versions(destination, name))


def _versions(destination: Destination, name: str) -> Iterator[_Known]:
    quote = "'" if "'" not in name else '"'
    asked = {"filter": f"name = {quote}{name}{quote}", "max_results": _PAGE}
    token = ""
    while True:
        page = destination.ask("GET", "model-versions/search", {**asked, **({"page_token": token} if token else {})})
        for one in page.get("model_versions", ()):
            tags = plain(one.get("tags", ()))
            recorded = tags.get(names.SOURCE_VERSION)
            if recorded:
                linked = one.get("run_id", ""), one.get("source", "")
                yield _Known(recorded, *linked, str(one.get("version", 0)), tags, bool(one.get("aliases")))
        token = page.get("next_page_token", "")
        if not token:
            return


def _is_there(known: list[_Known], version: ModelVersion, run_id: str, place: str) -> bool:
    """By what it is linked to: two recordings may have the same identity, and one may have had two."""
    return any(
        one.recorded == version.version and (one.run_id == run_id if run_id else one.source == place) for one in known
    )


def _register(destination: Destination, version: ModelVersion, place: str, run_id: str, store: str) -> None:
    """Registers a version, once: after a lost answer it is looked for before trying again."""
    tags = {**version.tags, **destination.version_tags(version.version, store)}
    data = {
        "name": version.name,
        "source": place,
        **({"run_id": run_id} if run_id else {}),
        **({"model_id": place[len(_MODEL) :]} if place.startswith(_MODEL) else {}),
        "tags": pairs(tags),
        "description": version.description,
    }
    for tried in range(TRIES):
        try:
            destination.ask("POST", "model-versions/create", data, once=True)
            return
        except UnclearError as error:
            said = error
        destination.http.stop.wait(0.1 * 2**tried)
        if _is_there(_there(destination, version.name) or [], version, run_id, place):
            return
    raise LabtrackError(
        f"{destination.http.base} lost {TRIES} answers while {version.name!r} was registered: {said}.", LATER
    )


def _model_of(version: ModelVersion, model_copy: Resolve) -> str | None:
    """The server's id of the logged model that a version is of."""
    recorded = version.model_id or version.source.partition(_MODEL)[2]
    return model_copy(recorded) if recorded else None


def _place(
    source: Source, destination: Destination, version: ModelVersion, copies: Mapping[str, str], model_copy: Resolve
) -> str:
    """Where the version's files are at the server: the recorded place, in the copy of its run or model."""
    model = _model_of(version, model_copy)
    if model:
        return f"{_MODEL}{model}"
    run = source.store.run(version.run_id or "")
    copy = destination.get_run(copies[run.id])
    root = copy.artifact_uri if copy else ""
    inside = version.source[len(run.artifact_uri) :] if version.source.startswith(run.artifact_uri) else ""
    return f"{root}/{inside.strip('/')}".rstrip("/")
