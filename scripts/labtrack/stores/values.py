"""Configurations and values as people write them into YAML and JSON, and MLflow's params from them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_TRUTH = {"True": 1.0, "False": 0.0}
_DEEPEST = 30  # levels of a configuration that become keys
QUIET = 3600.0  # seconds without a point, after which a run with no recorded end is taken for over
_LARGEST = 2**63
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


def read_json(data: bytes) -> dict[str, Any]:
    """An object, with the words for infinities and nan that JSON has not.  Raises ValueError where it is none."""
    try:
        found = json.loads(data)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError("it is not an object with keys and values")
    return found


def flat(
    data: Mapping[Any, Any], above: str = "", joint: str = ".", deepest: int = _DEEPEST
) -> Iterator[tuple[str, Any]]:
    """Keys, joined by dots, and their values; a map in a list stays what it is."""
    for name, value in data.items():
        key = f"{above}{name}"
        if isinstance(value, dict) and value and deepest:
            yield from flat(value, f"{key}{joint}", joint, deepest - 1)
        else:
            yield key, value


def params(config: Mapping[Any, Any]) -> dict[str, str]:
    """MLflow's params of a configuration."""
    return {key: text(value) for key, value in flat(config)}


def text(value: Any) -> str:
    """A value as a param: lists as JSON."""
    if not isinstance(value, (list, dict)):
        return str(value)
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError):  # keys that are no texts; rings that YAML can make; too deep
        return f"a {type(value).__name__} that can't be written as JSON"


def is_number(value: Any) -> bool:
    """Whether it can be a metric's value; a bool can too, as MLflow logs it."""
    return isinstance(value, (int, float))


def number_in(value: Any) -> float | None:
    """A metric's value as JSON has it, with the words for what it has no numbers for; None where it is none."""
    if isinstance(value, str):
        return _WORDS.get(value)
    try:
        return float(value) if is_number(value) else None
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def number_written(text: str) -> float | None:
    """A metric's value in a table; None where it is none."""
    if text in _TRUTH:
        return _TRUTH[text]
    try:
        return float(text) if "_" not in text else None
    except ValueError:
        return None


def milliseconds(seconds: float) -> int:
    """A time in seconds since 1970, with fractions, in whole milliseconds; 0 for none that can be meant."""
    try:
        found = round(seconds * 1000)
    except (ValueError, OverflowError):
        return 0
    return found if -_LARGEST <= found < _LARGEST else 0


def moment(value: float) -> int:
    """A time in seconds or milliseconds, whichever it can only be, in milliseconds."""
    return milliseconds(value) if value < _SECONDS else int(value)


def owner(path: Path) -> str:
    """Who owns a file, by name where that is known here; empty where the file is gone."""
    try:
        return path.owner()
    except (KeyError, NotImplementedError, ImportError):  # a container without the cluster's accounts; Windows
        return str(path.stat().st_uid)
    except OSError:
        return ""
