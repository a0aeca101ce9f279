"""The model registry: versions that belong to sent runs, for models that the server has registered, too.

A registered model is a name that a whole lab shares, so a sync makes none, and moves no alias or stage.
"""

from __future__ import annotations

from collections.abc import Mapping

from labtrack.errors import LabtrackError
from labtrack.stores.model import ModelVersion
from labtrack.sync.lineage import Resolve
from labtrack.sync.source import Source
from labtrack.tracking import names
from labtrack.tracking.destination import LATER, MISSING, PAGE, TRIES, Destination, has_tag, pairs
from labtrack.tracking.http import ApiError, UnclearError
from labtrack.tracking.parsing import plain


def link(
    source: Source, destination: Destination, copies: Mapping[str, str], model_copy: Resolve, notes: list[str]
) -> int:
    """Registers the versions that are not there yet; gives how many.

    copies: recorded run ids to the server's.  model_copy: the same for logged models.
    notes: takes what was left out.
    """
    made = 0
    for registered in source.store.registered_models():
        ours = [one for one in registered.versions if one.run_id in copies]
        if not ours:
            continue
        try:
            there = _there(destination, registered.name, source.identity)
            if there is None:
                notes.append(
                    f"{len(ours)} versions of model {registered.name!r} are not registered: the server has no such "
                    "model. Register the name there and sync again, if it should"
                )
                continue
            for version in [one for one in ours if one.version not in there]:
                place = _place(source, destination, version, copies, model_copy)
                _register(destination, version, place, copies[version.run_id or ""], source.identity)
                made += 1
        except ApiError as error:
            notes.append(f"model {registered.name!r} is not linked in the registry: {error}")
    return made


def _there(destination: Destination, name: str, store: str) -> set[str] | None:
    """The recorded numbers of a model's versions that came from this recording; None where there is no such model."""
    try:
        destination.ask("GET", "registered-models/get", {"name": name})
    except ApiError as error:
        if error.code == MISSING:
            return None
        raise
    quote = "'" if "'" not in name else '"'
    where = f"name = {quote}{name}{quote} AND {has_tag(names.SOURCE_STORE, store)}"
    found = destination.ask("GET", "model-versions/search", {"filter": where, "max_results": PAGE})
    marks = [plain(one.get("tags", ())) for one in found.get("model_versions", ())]
    return {one[names.SOURCE_VERSION] for one in marks if names.SOURCE_VERSION in one}


def _register(destination: Destination, version: ModelVersion, place: str, run_id: str, store: str) -> None:
    """Registers a version, once: after a lost answer it is looked for before trying again."""
    tags = {**version.tags, names.SOURCE_STORE: store, names.SOURCE_VERSION: version.version}
    data = {
        "name": version.name,
        "source": place,
        "run_id": run_id,
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
        if version.version in (_there(destination, version.name, store) or ()):
            return
    raise LabtrackError(
        f"{destination.http.base} lost {TRIES} answers while {version.name!r} was registered: {said}.", LATER
    )


def _place(
    source: Source, destination: Destination, version: ModelVersion, copies: Mapping[str, str], model_copy: Resolve
) -> str:
    """Where the version's files are at the server: the recorded place, in the copy of its run or model."""
    model = model_copy(version.model_id or version.source.partition("models:/")[2])
    if model:
        return f"models:/{model}"
    run = source.store.run(version.run_id or "")
    copy = destination.get_run(copies[run.id])
    root = copy.artifact_uri if copy else ""
    inside = version.source[len(run.artifact_uri) :] if version.source.startswith(run.artifact_uri) else ""
    return f"{root}/{inside.strip('/')}".rstrip("/")
