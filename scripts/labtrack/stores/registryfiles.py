"""The model registry of an `mlruns` folder: models/<name>/{meta.yaml,tags,aliases}, and version-<n>/ in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from labtrack.stores.model import ModelVersion, RegisteredModel
from labtrack.stores.plainfiles import BrokenFileError, read_meta, read_values

_VERSION = "version-"


def read(folder: Path) -> RegisteredModel:
    """One registered model.  Raises BrokenFileError where a file of it is damaged."""
    meta = read_meta(folder / "meta.yaml")
    name = str(meta.get("name") or folder.name)
    aliases = read_values(folder / "aliases")
    numbers = sorted(int(one.name[len(_VERSION) :]) for one in folder.glob(f"{_VERSION}*") if one.is_dir())
    return RegisteredModel(
        name,
        _text(meta.get("description")),
        meta.get("creation_timestamp"),
        meta.get("last_updated_timestamp"),
        read_values(folder / "tags"),
        tuple(_version(folder / f"{_VERSION}{number}", name, str(number), aliases) for number in numbers),
    )


def _version(folder: Path, name: str, number: str, aliases: dict[str, str]) -> ModelVersion:
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
        meta.get("creation_timestamp"),
        meta.get("last_updated_timestamp"),
        tuple(sorted(alias for alias, version in aliases.items() if version.strip() == number)),
        read_values(folder / "tags"),
    )


def _text(value: Any) -> str:
    return "" if value is None else str(value)
