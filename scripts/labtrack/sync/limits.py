"""What MLflow takes, and how what is longer gets there all the same.

A value that is too long is cut, a key that is too long or not allowed is shortened and marked, and the
whole of both goes into one artifact of the run.  Limits: mlflow/utils/validation.py of MLflow 3.17.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import posixpath
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from labtrack.stores.model import DatasetInput, LoggedModel, MetricPoint, RegisteredModel
from labtrack.tracking import names

KEY, PARAM, TAG, NAME = 250, 6000, 8000, 250  # characters
REGISTERED, VERSION_TAG = 5000, 100_000  # characters: a registered model's description or tag, a version's tag
OTHERS = 100  # params or tags of a call
BODY = 900_000  # bytes of a call: nginx takes a mebibyte where nobody told it otherwise
_ALLOWED = re.compile(r"[/\w.\- :]*")
_REFUSED = re.compile(r"[^/\w.\- :]")
_NOT_IN_MODELS = re.compile("[/:.%\"']")
_NOT_REGISTERED = re.compile(r"[/:]|^\.(?=\.|$)")
_NOT_ALIASES = re.compile(r"[^\w\-]|^(?=(?i:latest|v\d+)$)")
_DATASET = {"name": 500, "digest": 36, "source_type": 36, "source": 65_535, "schema": 1_048_575, "profile": 16_777_215}
_INPUT_KEY, _INPUT_VALUE = 255, 500
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")  # PostgreSQL keeps no NUL, UTF-8 no half of a pair
_RUN_NAME = "mlflow.runName"
_MARK = 9  # characters of a sign and a hash
_USUAL = (10**11, 10**14)  # ms: 1973 to 5138
_SECONDS = 10**9  # 2001; below are counters and made-up times
_UNITS = ((10**11, "seconds"), (10**14, ""), (10**17, "microseconds"), (2**63, "nanoseconds"))
_UNKEPT = re.compile(r"[\x00-\x1f\x7f#]|%(?=[0-9A-Fa-f]{2})|;(?=\?)|[;?]+(?=/|$)")
_MADE = re.compile(r"~[0-9a-f]{12}(?=\.[^./]*(?:/|$)|/|$)")  # the mark of `fit_path`
_IMAGE = re.compile(r"(.+)%step%(\d+)%timestamp%(\d+)%([0-9a-f-]{36})(%compressed)?(\.\w+)", re.DOTALL)
_KIND, _FILE_NAME = 20, 255  # characters of an ending, bytes of a name


@dataclass
class Fit:
    """What of a run is sent, and what of it had to be changed for that.

    overflow: by kind (params, tags, metrics, steps, times, datasets, artifacts, models), the sent key to the original
    key and value; whoever changes something else for the server's sake adds it with `note`.
    notes: what is kept as recorded, though it can't be meant so.
    """

    params: dict[str, str]
    tags: dict[str, str]
    datasets: tuple[DatasetInput, ...] = ()
    overflow: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    cuts: list[str] = field(default_factory=list)
    _keys: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _times: dict[str, list[list[Any]]] = field(default_factory=dict)
    _steps: dict[str, list[list[Any]]] = field(default_factory=dict)
    _units: dict[str, set[str]] = field(default_factory=dict)

    def metric(self, key: str) -> str:
        """The key under which a metric is sent."""
        known = self._keys.get(key)
        if known is None:
            known = self._keys[key] = fit_key(key)
            if known != key:
                self.note("metrics", known, key, None, "name changed")
        return known

    def point(self, one: MetricPoint) -> MetricPoint:
        """A point as it is sent: MLflow takes no time before 1970; what was recorded for step and time is kept."""
        time = one.timestamp
        if one.recorded is None and (_USUAL[0] <= time < _USUAL[1] or 0 <= time < _SECONDS):
            return one
        if one.recorded is not None or time < 0:
            recorded, step = one.recorded or (time, one.step)
            if recorded != time or time < 0:
                self._times.setdefault(one.key, []).append([one.step, _plain(recorded)])
            if step != one.step:
                self._steps.setdefault(one.key, []).append([one.step, _plain(step)])
        if time >= _SECONDS:
            unit = next((name for most, name in _UNITS if time < most), "")
            if unit:
                self._units.setdefault(unit, set()).add(one.key)
        return one._replace(timestamp=0) if time < 0 else one

    def settle(self, points: Callable[[], Iterable[MetricPoint]] | None = None, *, again: bool = False) -> None:
        """Adds to the list of changes what only showed while the points went by.

        points: all of the run, which are looked at where some of them were changed by this sync or (`again`) by
        earlier ones, since the document is of all of them.
        """
        if points is not None and (again or self._times or self._steps):
            self._times, self._steps = {}, {}
            for one in points():
                self.point(one)
        for key, found in self._times.items():
            self.note("times", self.metric(key), key, found, f"{len(found)} times are no whole ms since 1970")
        for key, found in self._steps.items():
            self.note("steps", self.metric(key), key, found, f"{len(found)} steps are no whole numbers")
        for unit, keys in sorted(self._units.items()):
            some = ", ".join(sorted(keys)[:3]) + ", ..." * (len(keys) > 3)  # noqa: PLR2004
            self.notes.append(f"the times of {some} look like {unit}, not milliseconds; they are kept as recorded")
        self._times, self._steps, self._units = {}, {}, {}

    def files(self, renamed: Mapping[str, str]) -> None:
        """Notes the names of artifacts that are sent under another one.  renamed: sent to recorded."""
        for sent, recorded in renamed.items():
            self.note("artifacts", sent, recorded, None, "name changed")

    def document(self) -> bytes:
        """The artifact with everything that was changed."""
        about = "Values and names as recorded, which MLflow's limits did not let through; by the name sent."
        return json.dumps({"about": about, **self.overflow}, indent=1, sort_keys=True).encode()

    def summary(self) -> str:
        """The tag: what was changed, in words."""
        text = f"{len(self.cuts)} changed, whole in artifact labtrack/overflow.json: {'; '.join(self.cuts)}"
        return text if len(text) <= OTHERS * 5 else text[: OTHERS * 5 - 1] + "…"

    def note(self, kind: str, sent: str, key: str, value: Any, why: str) -> None:
        """Keeps the original of something that had to be changed, and says so."""
        original: dict[str, Any] = {"key": key} if value is None else {"key": key, "value": value}
        self.overflow.setdefault(kind, {})[sent] = original
        self.cuts.append(f"{kind[:-1]} {sent[:60]} ({why})")

    def _values(self, kind: str, values: Mapping[str, str], limit: int) -> dict[str, str]:
        sent: dict[str, str] = {}
        for key, value in values.items():
            most = NAME if key == _RUN_NAME else limit  # it becomes the run's name, too
            name, text = fit_key(key), fit_text(value, most)
            if text != value or name != key:
                size = f"{len(value):,} characters" if len(value) > most else "changed"
                self.note(kind, name, key, value, size if text != value else "name changed")
            sent[name] = text
        return sent

    def _dataset(self, one: DatasetInput) -> DatasetInput:
        facts = {name: getattr(one, name) for name in _DATASET}
        # another digest for what was cut: the server takes the first of two with the same name and digest
        cut = {
            name: fit_text(value, _DATASET[name]) if name not in ("name", "digest") else _short(value, _DATASET[name])
            for name, value in facts.items()
            if value is not None
        }
        tags = {_short(key, _INPUT_KEY): fit_text(value, _INPUT_VALUE) for key, value in one.tags.items()}
        sent = dataclasses.replace(one, **{**facts, **cut}, tags=tags)
        if any(facts[name] != cut[name] for name in cut) or tags != dict(one.tags):
            value = {**facts, "tags": dict(one.tags)}
            self.note("datasets", f"{sent.name}@{sent.digest}", one.name, value, "too long")
        return sent


def fit(params: Mapping[str, str], tags: Mapping[str, str], datasets: tuple[DatasetInput, ...] = ()) -> Fit:
    """Makes a run's params, tags and datasets fit."""
    found = Fit({}, {})
    found.params = found._values("params", params, PARAM)
    found.tags = found._values("tags", tags, TAG)
    found.datasets = tuple(found._dataset(one) for one in datasets)
    return found


def fit_model(model: LoggedModel) -> tuple[str, Fit]:
    """The name of a logged model as the server takes it, and its params and tags; one without a name gets its id."""
    found = fit(model.params, {key: one for key, one in model.tags.items() if key not in names.OWN})
    name = _fit_name(model.name, _NOT_IN_MODELS) if model.name else model.id
    if model.name not in ("", name):
        found.note("models", name, model.name, None, "name changed")
    return name, found


def fit_registered(one: RegisteredModel) -> RegisteredModel:
    """A registered model with its versions as the server takes them; the originals are in tags of each.

    It has no artifacts, so there is no other place for them.
    """
    changed: dict[str, Any] = {}
    name = _fit_name(one.name, _NOT_REGISTERED)
    if name != one.name:
        changed["name"] = one.name
    versions = []
    for version in one.versions:
        aliases = {_fit_name(alias, _NOT_ALIASES, "-"): alias for alias in version.aliases}
        changed.update({f"alias {sent}": alias for sent, alias in aliases.items() if sent != alias})
        text, tags = _fit_said(version.description, version.tags, VERSION_TAG, {})
        versions.append(
            dataclasses.replace(version, name=name, description=text, tags=tags, aliases=tuple(sorted(aliases)))
        )
    text, tags = _fit_said(one.description, one.tags, REGISTERED, changed)
    return dataclasses.replace(one, name=name, description=text, tags=tags, versions=tuple(versions))


def _fit_said(
    description: str, tags: Mapping[str, str], most: int, changed: dict[str, Any]
) -> tuple[str, dict[str, str]]:
    """Description and tags as the registry takes them, and tags with what was changed.  most: of a tag's value."""
    sent = {}
    for key, value in tags.items():
        if key in names.OWN or key.startswith(f"{names.OVERFLOW}."):
            continue
        fitted, text = fit_key(key), fit_text(value, most)
        sent[fitted] = text
        if (fitted, text) != (key, value):
            changed[f"tag {fitted}"] = {"key": key, "value": value}
    said = fit_text(description, REGISTERED)
    if said != description:
        changed["description"] = description
    if changed:
        whole = json.dumps(changed, sort_keys=True)
        parts = [whole[start : start + REGISTERED] for start in range(0, len(whole), REGISTERED)]
        sent.update({f"{names.OVERFLOW}.{number:02}": part for number, part in enumerate(parts)})
        listed = "; ".join(sorted(changed))[: OTHERS * 4]
        sent[names.OVERFLOW] = f"{len(changed)} changed, whole as JSON in the tags {names.OVERFLOW}.00 on: {listed}"
    return said, sent


def _fit_name(name: str, refused: re.Pattern[str], sign: str = "~") -> str:
    plain = refused.sub("_", fit_text(name, len(name)))
    if plain == name and name.strip() and len(name) <= NAME:
        return name
    return f"{plain[: NAME - _MARK].strip()}{sign}{hash_of(name)}"


def fit_text(text: str, limit: int) -> str:
    """A text as the server can keep it."""
    return _UNSTORABLE.sub("\ufffd", text)[:limit]


def fit_key(key: str) -> str:
    """A key as the server takes it: shortened, with a hash of the whole where it was changed."""
    if len(key) <= KEY and _ALLOWED.fullmatch(key) and _is_path(key) and not _UNSTORABLE.search(key):
        return key
    plain = _REFUSED.sub("_", key).strip("/").replace("//", "/_/")
    plain = "/".join(part if part not in (".", "..") else "_" for part in plain.split("/"))[: KEY - _MARK]
    return f"{plain.rstrip('/')}:{hash_of(key)}"


def fit_path(path: str, taken: Container[str] = ()) -> str:
    """An artifact's path as the server keeps it; the same for each path, and never one for two.

    MLflow's server decodes %XX again and again, drops tabs and line ends, refuses '#', and loses a ';' or '?' at
    the end.  A name with one of these gets '_' for it and a hash of the whole; so does a name that looks like one
    that was made here.

    taken: the run's other paths.  An image of MLflow 2.16's `log_image` gets the name that later versions give it,
    by which the server's pages find it, where that is not taken.
    """
    if not _UNKEPT.search(path) and not _MADE.search(path):
        return path
    image = _IMAGE.fullmatch(path)
    if image:
        key, step, time, number, small, kind = image.groups("")
        named = "+".join(
            [key.replace("#", "~"), "step", step, "timestamp", time, number + small.replace("%", "+") + kind]
        )
        if named not in taken and not _UNKEPT.search(named):
            return named
    return "/".join(map(_kept_name, path.split("/")))


def _kept_name(name: str) -> str:
    if not _UNKEPT.search(name) and not _MADE.search(name):
        return name
    plain = _UNKEPT.sub("_", name)
    stem, dot, kind = plain.rpartition(".")
    if not stem or len(kind) > _KIND:
        stem, dot, kind = plain, "", ""
    mark = f"~{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}{dot}{kind}"
    while len((stem + mark).encode()) > _FILE_NAME:
        stem = stem[:-1]
    return stem + mark


def _plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, bytes):
        return f"0x{value.hex()}"
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _is_path(key: str) -> bool:
    """MLflow takes a key only where it is its own normal path, as files are called after it."""
    norm = posixpath.normpath(key)
    return norm == key and norm != "." and not norm.startswith(("..", "/"))


def _short(text: str, limit: int) -> str:
    text = fit_text(text, len(text))
    return text if len(text) <= limit else f"{text[: limit - _MARK]}~{hash_of(text)}"


def hash_of(text: str) -> str:
    """A short hash of a whole name, to mark what stands for it."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[: _MARK - 1]


def portions(params: Mapping[str, str], tags: Mapping[str, str]) -> Iterator[tuple[dict[str, str], dict[str, str]]]:
    """Params and tags in calls of at most 99 of each and of a size that every proxy takes."""
    some_params: dict[str, str] = {}
    some_tags: dict[str, str] = {}
    size = 0
    for target, values in ((some_params, params), (some_tags, tags)):
        for key, value in values.items():
            more = len(json.dumps([key, value])) + 20
            if len(target) >= OTHERS - 1 or size + more > BODY // 2:
                yield dict(some_params), dict(some_tags)
                some_params.clear()
                some_tags.clear()
                size = 0
            target[key] = value
            size += more
    if some_params or some_tags:
        yield some_params, some_tags
