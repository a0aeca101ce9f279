"""The model registry: names, with what belongs to them, and their versions.

A registered model is a name that a whole lab shares.  One that the server does not have is made, with description,
tags and aliases; one that somebody else has made gets versions and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from labtrack.errors import BadInputError, LabtrackError
from labtrack.stores.model import ModelVersion, RegisteredModel
from labtrack.sync import limits
from labtrack.sync.duplicates import is_own
from labtrack.sync.faults import FAULTS, words
from labtrack.sync.lineage import Resolve
from labtrack.sync.plan import Plan
from labtrack.sync.push import Context
from labtrack.sync.source import Source
from labtrack.tracking import names
from labtrack.tracking.destination import LATER, MISSING, TRIES, Destination, pairs
from labtrack.tracking.http import ApiError, ServerError, UnclearError
from labtrack.tracking.parsing import PROMPT, plain, quoted

_MODEL, _RUN = "models:/", "runs:/"
_PAGE = 200  # versions: few enough for servers of every age
_THERE = "RESOURCE_ALREADY_EXISTS"
_PROMPT_RUNS = "mlflow.prompt.run_ids"
_PROMPT_EXPERIMENTS = "_mlflow_experiment_ids"


@dataclass
class Registered:
    """The recording's registry.  made, there: how many versions.  names: how many names were made.

    left: what is left out on purpose, and why.  lost: versions whose files are not in the recording.
    missing: with `look`, what is not at the server, or is different there; seen: which names were looked at, and as
    what they are at the server.
    """

    made: int = 0
    there: int = 0
    names: int = 0
    left: dict[str, str] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    missing: dict[str, list[str]] = field(default_factory=dict)
    seen: dict[str, str | None] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Links:
    """How what the registry names is called at the server.

    runs, experiments: recorded ids to the server's.  model: the same for logged models.
    """

    runs: Mapping[str, str]
    experiments: Mapping[str, str]
    model: Resolve


def links(context: Context, plan: Plan, experiment: str | None, copies: Mapping[str, str] | None = None) -> Links:
    """How the registry's runs, experiments and models are called at the server.

    experiment: as in `plan.make`.  copies: recorded run ids to the server's, where they are not the context's.
    """
    places = {key: plan.experiments.get(experiment or one.name) for key, one in plan.fitted.items()}
    there = {key: one.id for key, one in places.items() if one}
    return Links(copies or context.copies, there, context.models.copy_of)


def link(
    source: Source,
    destination: Destination,
    links: Links,
    *,
    look: bool = False,
    narrowed: bool = False,
    repair: bool = False,
) -> Registered:
    """Registers the names and versions that are not there yet.

    look: only look, for --verify.  narrowed: only some runs were asked for, so only their versions are registered.
    repair: what is different at the server is set again, in names that this recording has made.
    """
    found = Registered()
    try:
        recorded = source.store.registered_models()
    except ServerError:
        raise
    except FAULTS as error:
        found.failed["the model registry"] = f"can't be read in the recording: {words(error)}"
        return found
    skipped = 0
    for registered in recorded:
        linking = _Linking(source, destination, links, registered, found, look=look, repair=repair)
        if narrowed and not linking.of_runs:
            skipped += 1
            continue
        try:
            linking.all(only_of_runs=narrowed)
        except ServerError:
            raise
        except FAULTS as error:
            found.failed[linking.called] = f"can't be registered: {words(error)}"
    if skipped and not look:
        found.notes.append(
            f"{skipped} registered names without a version of these runs are not sent with -r or a filter"
        )
    return found


class _Linking:
    """One registered model on its way."""

    def __init__(
        self,
        source: Source,
        destination: Destination,
        links: Links,
        registered: RegisteredModel,
        found: Registered,
        *,
        look: bool,
        repair: bool,
    ) -> None:
        self._source, self._destination, self._links = source, destination, links
        self._registered, self._found, self._look, self._repair = limits.fit_registered(registered), found, look, repair
        self._prompt = registered.tags.get(PROMPT, "").lower() == "true"
        self.called = f"{'prompt' if self._prompt else 'model'} {registered.name}"
        self.of_runs = [one for one in self._registered.versions if one.run_id in links.runs or self._model_of(one)]

    def all(self, *, only_of_runs: bool) -> None:
        """The name, its versions, its aliases."""
        name, found = self._registered.name, self._found
        there = self._get()
        found.seen[self.called] = name if there else None
        if there is None:
            if self._look:
                found.missing[self.called] = ["is not registered at the server"]
                return
            there = self._create()
        known = list(_versions(self._destination, name, prompt=self._prompt))
        made = found.made
        for version in self.of_runs if only_of_runs else self._registered.versions:
            try:
                self._one(version, known)
            except ServerError:
                raise
            except FAULTS as error:
                found.failed[f"{self.called} version {version.version}"] = f"is not registered: {words(error)}"
        if not self._look:
            if found.made > made:
                known = list(_versions(self._destination, name, prompt=self._prompt))
            _remove_duplicates(self._destination, name, known, found)
        if there.store == self._source.identity:
            self._complete(there, known)

    def _get(self) -> _Name | None:
        try:
            found = self._destination.ask("GET", "registered-models/get", {"name": self._registered.name})
        except ApiError as error:
            if error.code == MISSING:
                return None
            raise
        data = found["registered_model"]
        aliases = {one["alias"]: str(one["version"]) for one in data.get("aliases", ())}
        return _Name(data.get("description", ""), plain(data.get("tags", ())), aliases)

    def _create(self) -> _Name:
        """Makes the name with all that belongs to it but aliases.  A name can't be made twice."""
        one, tags = self._registered, {**self._tags(), **self._destination.name_tags(self._source.identity)}
        data = {"name": one.name, "description": one.description, "tags": pairs(tags)}
        try:
            self._destination.ask("POST", "registered-models/create", data)
        except ApiError as error:
            there = self._get() if error.code == _THERE else None  # an answer was lost, or somebody was quicker
            if there is None:
                raise
            self._found.names += there.store == self._source.identity
            return there
        self._found.names += 1
        self._changed(self.called, self._registered)
        return _Name(one.description, tags, {})

    def _changed(self, called: str, one: RegisteredModel | ModelVersion) -> None:
        """Tells what had to be changed for the server."""
        self._found.notes += [f"{called}: {one.tags[names.OVERFLOW]}"] if names.OVERFLOW in one.tags else []

    def _tags(self) -> dict[str, str]:
        """The recorded tags; a prompt's experiments have other ids here."""
        return self._translated(dict(self._registered.tags), _PROMPT_EXPERIMENTS, self._links.experiments, around=",")

    @staticmethod
    def _translated(tags: dict[str, str], key: str, ids: Mapping[str, str], around: str = "") -> dict[str, str]:
        if key in tags:
            new = [ids[one] for one in tags[key].strip(",").split(",") if one in ids]
            tags[key] = around + ",".join(new) + around if new else ""
        return {one: value for one, value in tags.items() if one != key or value}

    def _complete(self, there: _Name, known: list[_Known]) -> None:
        """What belongs to a name that this recording has made: what is missing there is added.

        What somebody has changed at the server stays so, unless it is to be repaired.
        """
        wrong = []
        for key, value in self._tags().items():
            if there.tags.get(key) != value:
                wrong.append(f"tag {key} is {there.tags.get(key)!r} at the server, {value[:60]!r} in the recording")
                if not self._look and (self._repair or key not in there.tags):
                    self._set(f"tag {key}", "set-tag", key=key, value=value)
        said = self._registered.description
        if said and there.description != said:
            wrong.append("the description is another at the server")
            if not self._look and (self._repair or not there.description):
                self._set("description", "update", "PATCH", description=said)
        for version in self._registered.versions:
            copies = {one.version for one in known if one.recorded == version.version and self._is(one, version)}
            for alias in version.aliases if copies else ():
                if there.aliases.get(alias) not in copies:
                    wrong.append(f"alias {alias} is not that of version {version.version}")
                    if not self._look and (self._repair or alias not in there.aliases):
                        self._set(f"alias {alias}", "alias", alias=alias, version=min(copies, key=int))
        if wrong and self._look:
            self._found.missing[self.called] = wrong

    def _set(self, what: str, path: str, method: str = "POST", **data: str) -> None:
        try:
            self._destination.ask(method, f"registered-models/{path}", {"name": self._registered.name, **data})
        except ServerError:
            raise
        except FAULTS as error:
            self._found.failed[f"{self.called}, {what}"] = f"can't be set: {words(error)}"

    def _one(self, version: ModelVersion, known: list[_Known]) -> None:
        called, found = f"{self.called} version {version.version}", self._found
        if version not in self.of_runs and not self._stands_alone(version, called):
            return
        if any(one.recorded == version.version and self._is(one, version) for one in known):
            found.there += 1
        elif self._look:
            found.missing[called] = ["is not registered at the server"]
        else:
            self._register(version)
            self._changed(called, version)
            found.made += 1

    def _stands_alone(self, version: ModelVersion, called: str) -> bool:
        """Whether a version that is of nothing that was sent can be registered, as a prompt's can."""
        owner = self._owner(version)
        if owner:
            self._found.left[called] = f"{owner}, which it is of, is not at the server"
        elif not self._prompt and "://" not in version.source:
            self._found.lost.append(f"{called}: it is of no run or model in the recording, so its files are not there")
            return False
        return not owner

    def _owner(self, version: ModelVersion) -> str:
        """The run or logged model in the recording that a version is of."""
        if version.model_id and version.model_id in self._source.models.by_id:
            return f"model {version.model_id}"
        try:
            return f"run {self._source.store.run(version.run_id).id}" if version.run_id else ""
        except BadInputError:
            return ""

    def _is(self, one: _Known, version: ModelVersion) -> bool:
        """By what it is linked to: two recordings may have the same identity, and one may have had two."""
        run_id = self._links.runs.get(version.run_id or "", "")
        if run_id:
            return one.run_id == run_id
        if not self._model_of(version):  # of nothing but itself
            return one.store == self._source.identity
        return one.source == self._place(version)

    def _model_of(self, version: ModelVersion) -> str | None:
        """The server's id of the logged model that a version is of."""
        recorded = version.model_id or version.source.partition(_MODEL)[2]
        return self._links.model(recorded) if recorded else None

    def _place(self, version: ModelVersion) -> str:
        """Where the version's files are at the server: the recorded place, in the copy of its run or model."""
        model = self._model_of(version)
        if model:
            return f"{_MODEL}{model}"
        if version.run_id not in self._links.runs:
            return version.source
        run = self._source.store.run(version.run_id or "")
        copy = self._destination.get_run(self._links.runs[run.id])
        root, recorded = copy.artifact_uri if copy else "", version.source
        if recorded.startswith(f"{_RUN}{run.id}"):
            inside = recorded[len(_RUN) + len(run.id) :]
        elif recorded.startswith(run.artifact_uri):
            inside = recorded[len(run.artifact_uri) :]
        else:  # the recording was moved since
            inside = recorded.partition(f"/{run.id}/artifacts/")[2]
        return f"{root}/{inside.strip('/')}".rstrip("/")

    def _register(self, version: ModelVersion) -> None:
        """Registers a version, once: after a lost answer it is looked for before trying again."""
        destination, place = self._destination, self._place(version)
        run_id = self._links.runs.get(version.run_id or "", "")
        recorded = self._translated(dict(version.tags), _PROMPT_RUNS, self._links.runs)
        data = {
            "name": version.name,
            "source": place,
            **({"run_id": run_id} if run_id else {}),
            **({"model_id": place[len(_MODEL) :]} if place.startswith(_MODEL) else {}),
            "tags": pairs({**recorded, **destination.version_tags(version.version, self._source.identity)}),
            "description": version.description,
        }
        for tried in range(TRIES):
            try:
                destination.ask("POST", "model-versions/create", data, once=True)
                return
            except UnclearError as error:
                said = error
            destination.http.stop.wait(0.1 * 2**tried)
            known = _versions(destination, version.name, prompt=self._prompt)
            if any(one.recorded == version.version and self._is(one, version) for one in known):
                return
        raise LabtrackError(
            f"{destination.http.base} lost {TRIES} answers while {version.name!r} was registered: {said}.", LATER
        )


@dataclass(frozen=True)
class _Name:
    """A registered model at the server.  aliases: each to its version."""

    description: str
    tags: Mapping[str, str]
    aliases: Mapping[str, str]

    @property
    def store(self) -> str:
        """The recording that made it; empty where it was no sync."""
        return self.tags.get(names.SOURCE_STORE, "")


@dataclass(frozen=True)
class _Known:
    """A version at the server that was registered by a sync.  aliased: whether a person has given it a name."""

    recorded: str
    run_id: str
    source: str
    version: str
    tags: Mapping[str, str]
    aliased: bool

    @property
    def store(self) -> str:
        """The recording that it came from."""
        return self.tags.get(names.SOURCE_STORE, "")


def _remove_duplicates(destination: Destination, name: str, known: list[_Known], found: Registered) -> None:
    """Deletes second versions that a killed or cut-off sync of one's own has left; the lowest number is kept.

    A server carries out what it was sent, also when the next sync has looked before.
    """
    kept: set[tuple[str, str]] = set()
    for one in sorted(known, key=lambda one: (not one.aliased, int(one.version))):
        linked = one.recorded, one.run_id or f"{one.source} {one.store}"
        if linked not in kept:
            kept.add(linked)
        elif is_own(one.tags, destination.maker) and not one.aliased:
            try:
                destination.ask("DELETE", "model-versions/delete", {"name": name, "version": one.version})
            except ApiError as error:
                twice = f"model {name} has version {one.recorded} of the recording twice: delete version {one.version}"
                found.notes.append(f"{twice} ({words(error)})")


def _versions(destination: Destination, name: str, *, prompt: bool) -> Iterator[_Known]:
    """The versions of a model that syncs have registered.  MLflow finds those of a prompt only if asked for them."""
    where = f"name = {quoted(name)}" + f" AND tags.`{PROMPT}` = 'true'" * prompt
    asked = {"filter": where, "max_results": _PAGE}
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
