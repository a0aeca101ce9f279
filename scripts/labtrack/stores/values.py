"""Configurations and values as people write them into YAML and JSON, and MLflow's params from them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

_SECONDS = 10**11  # a time below is in seconds, and else in milliseconds


class _Plain(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads objects of Python as the lists, maps and texts that they are written as; nothing is made from them."""


def _plainly(loader: Any, _: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return node.value


_Plain.add_multi_constructor("", _plainly)


def read_yaml(data: bytes) -> dict[str, Any]:
    """A configuration.  Raises ValueError where it is none."""
    try:
        found = yaml.load(data, Loader=_Plain) or {}  # noqa: S506  it makes nothing but plain data
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error) or "it is nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError("it is not a list of keys and values")
    return found


def flat(data: Mapping[Any, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Keys with dots and their values; a map in a list stays what it is."""
    for name, value in data.items():
        key = f"{above}{name}"
        if isinstance(value, dict) and value:
            yield from flat(value, f"{key}.")
        else:
            yield key, value


def params(config: Mapping[Any, Any]) -> dict[str, str]:
    """MLflow's params of a configuration."""
    return {key: text(value) for key, value in flat(config)}


def text(value: Any) -> str:
    """A value as a param: lists as JSON."""
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, (list, dict)) else str(value)


def is_number(value: Any) -> bool:
    """Whether it can be a metric's value; a bool can too, as MLflow logs it."""
    return isinstance(value, (int, float))


def milliseconds(seconds: float) -> int:
    """A time in seconds since 1970, with fractions, in whole milliseconds; 0 for none that can be meant."""
    try:
        return round(seconds * 1000)
    except (ValueError, OverflowError):
        return 0


def moment(value: float) -> int:
    """A time in seconds or milliseconds, whichever it can only be, in milliseconds."""
    return milliseconds(value) if value < _SECONDS else int(value)


def owner(path: Path) -> str:
    """Who owns a file, by name where that is known here."""
    try:
        return path.owner()
    except (KeyError, NotImplementedError, ImportError):  # a container without the cluster's accounts; Windows
        return str(path.stat().st_uid)
