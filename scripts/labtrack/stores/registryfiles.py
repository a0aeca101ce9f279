"""The model registry of an `mlruns` folder: models/<name>/{meta.yaml,tags,aliases}, and version-<n>/ in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from labtrack.stores import numbers, tree
from labtrack.stores.model import ModelVersion, RegisteredModel
from labtrack.stores.plainfiles import BrokenFileError, read_meta, read_values

_VERSION = "version-"


def read(folder: Path, tells: tree.Tells) -> RegisteredModel:
    """One registered model.  Raises BrokenFileError where its meta.yaml is damaged; what else can't be read is told."""
    meta = read_meta(folder / "meta.yaml")
    name = str(meta.get("name") or folder.name)
    aliases = read_values(folder / "aliases", tells)
    found = [one.name[len(_VERSION) :] for one in tree.subfolders(folder, tells) if one.name.startswith(_VERSION)]
    versions = []
    for number in sorted(int(one) for one in found if one.isdecimal()):
        place = folder / f"{_VERSION}{number}"
        try:
            versions.append(_version(place, name, str(number), aliases, tells))
        except BrokenFileError as error:
            tells(place, f"the version was left out: {error}")
    return RegisteredModel(
        name,
        _text(meta.get("description")),
        numbers.floor(meta.get("creation_timestamp")),
        numbers.floor(meta.get("last_updated_timestamp")),
        read_values(folder / "tags", tells),
        tuple(versions),
    )


def _version(folder: Path, name: str, number: str, aliases: dict[str, str], tells: tree.Tells) -> ModelVersion:
    meta = read_meta(folder / "meta.yaml")
    if str(meta.get("version", number)) != number:
        raise BrokenFileError(f"{folder.name} says it is version {meta['version']}")
    source = _text(meta.get("source"))
    model_id = meta.get("model_id") or (source[len("models:/") :] if source.startswith("models:/m-") else None)
    return ModelVersion(
        name,
        number,
        meta.get("run_id") or None,
        model_id,
        source,
        _text(meta.get("current_stage")) or "None",
        _text(meta.get("status")) or "READY",
        _text(meta.get("description")),
        _text(meta.get("user_id")),
        numbers.floor(meta.get("creation_timestamp")),
        numbers.floor(meta.get("last_updated_timestamp")),
        tuple(sorted(alias for alias, version in aliases.items() if version.strip() == number)),
        read_values(folder / "tags", tells),
    )


def _text(value: Any) -> str:
    return "" if value is None else str(value)
