"""Which runs are wanted: `--only-experiment`, `--exclude-experiment`, and `--filter`.

`--filter` is a part of MLflow's search language, for recordings.
Comparisons joined by AND.  On the left: `params.x`, `tags.x`, `metrics.x` (the last value), or an attribute
(`status`, `name`, `user_id`, `run_id`, `start_time`, `end_time`, with `attributes.` in front or not); names
with other than letters, digits, _ . - / are quoted with ` or ".  On the right: 'a string' or a number.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from labtrack.errors import BadInputError
from labtrack.stores.model import Having, Run, Store
from labtrack.stores.summary import LAST

_ATTRIBUTES: dict[str, Callable[[Run], Any]] = {
    "status": lambda run: run.status,
    "name": lambda run: run.name,
    "run_name": lambda run: run.name,
    "user_id": lambda run: run.user_id,
    "run_id": lambda run: run.id,
    "start_time": lambda run: run.start_time,
    "end_time": lambda run: run.end_time,
}
_NUMBERS = ("start_time", "end_time")
_COMPARISON = re.compile(
    r"""\s*(?:(?P<kind>[A-Za-z]+)\.)?(?P<name>`[^`]+`|"[^"]+"|[\w./-]+)\s*
    (?P<sign><=|>=|!=|=|<|>|\bI?LIKE\b)\s*
    (?P<value>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*""",
    re.VERBOSE | re.IGNORECASE,
)
_AND = re.compile(r"AND\b", re.IGNORECASE)
_KINDS = {
    "params": "params", "param": "params", "parameters": "params", "tags": "tags", "tag": "tags",
    "metrics": "metrics", "metric": "metrics", "attributes": "attributes", "attribute": "attributes",
}  # fmt: skip
_EXAMPLE = "for example: --filter \"params.model = 'unet' AND metrics.loss < 0.5 AND status = 'FINISHED'\""


@dataclass(frozen=True)
class _Comparison:
    kind: str
    name: str
    sign: str
    value: Any

    def holds(self, store: Store, run: Run) -> bool:
        found = self._left(store, run)
        if found is None:
            return False
        if self.sign in ("LIKE", "ILIKE"):
            pattern = re.escape(self.value).replace("%", ".*").replace("_", ".")
            flags = re.DOTALL | (re.IGNORECASE if self.sign == "ILIKE" else 0)
            return re.fullmatch(pattern, str(found), flags) is not None
        return bool(_SIGNS[self.sign](found, self.value))

    def _left(self, store: Store, run: Run) -> Any:
        if self.kind == "params":
            return run.params.get(self.name)
        if self.kind == "tags":
            return run.tags.get(self.name)
        if self.kind == "attributes":
            return _ATTRIBUTES[self.name](run)
        found = store.summaries([run.id], [self.name], {LAST})[run.id].get(self.name)
        return found.last if found else None


Wanted = Callable[[Store, Run], bool]


@dataclass(frozen=True)
class Every:
    """Whether all of some conditions hold.  having: what a run must have for it, which a store can look up."""

    conditions: tuple[Wanted, ...]
    having: Having = ()

    def __call__(self, store: Store, run: Run) -> bool:
        return all(one(store, run) for one in self.conditions)


def having(wanted: Wanted | None) -> Having:
    """What the runs that are wanted have for sure."""
    return wanted.having if isinstance(wanted, Every) else ()


def both(one: Wanted | None, other: Wanted | None) -> Wanted | None:
    """What two people want; None where neither wants anything in particular."""
    if one is None or other is None:
        return one or other
    return Every((one, other), having(one) + having(other))


def chosen(expression: str | None, only: Sequence[str] = (), exclude: Sequence[str] = ()) -> Wanted | None:
    """Whether a run is one that the user wants; None where he wants all.

    expression: of --filter.  only, exclude: names of experiments, or patterns as the shell has them.
    Raises BadInputError for an expression that can't be read.
    """
    return both(parse(expression) if expression else None, _by_experiment(only, exclude) if only or exclude else None)


def _by_experiment(only: Sequence[str], exclude: Sequence[str]) -> Wanted:
    known: dict[str, dict[str, str]] = {}  # per recording, an experiment's name by its id

    def wanted(store: Store, run: Run) -> bool:
        names = known.setdefault(store.location, {})
        if run.experiment_id not in names:
            names.update({one.id: one.name for one in store.experiments(deleted=True)})
        name = names.get(run.experiment_id, run.experiment_id)
        return (not only or _is_one_of(name, only)) and not _is_one_of(name, exclude)

    return wanted


def _is_one_of(name: str, patterns: Sequence[str]) -> bool:
    return any(name == one or fnmatch.fnmatchcase(name, one) for one in patterns)


_SIGNS: dict[str, Callable[[Any, Any], bool]] = {
    "=": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


def parse(expression: str) -> Wanted:
    """Whether a run is like this.  Raises BadInputError that shows where the expression can't be read."""
    comparisons, place = [], 0
    while True:
        found = _COMPARISON.match(expression, place)
        if found is None:
            raise _unreadable(expression, place)
        comparisons.append(_comparison(expression, found))
        place = found.end()
        if place == len(expression):
            equal = [one for one in comparisons if one.kind in ("params", "tags") and one.sign == "="]
            return Every(
                tuple(one.holds for one in comparisons), tuple((one.kind, one.name, one.value) for one in equal)
            )
        joined = _AND.match(expression, place)
        if joined is None:
            raise _unreadable(expression, place)
        place = joined.end()


def _comparison(expression: str, found: re.Match[str]) -> _Comparison:
    name, sign = found["name"].strip('`"'), found["sign"].upper()
    kind = _KINDS.get((found["kind"] or "attributes").lower())
    if kind is None or (kind == "attributes" and name not in _ATTRIBUTES):
        known = ", ".join(("params.NAME", "tags.NAME", "metrics.NAME", *_ATTRIBUTES))
        asked = f"{found['kind']}.{name}" if found["kind"] else name
        raise BadInputError(f"--filter asks for {asked}, which there is not.", f"use {known}.")
    quoted = found["value"][0] in "'\""
    value: Any = re.sub(r"\\(.)", r"\1", found["value"][1:-1]) if quoted else float(found["value"])
    number = kind == "metrics" or (kind == "attributes" and name in _NUMBERS)
    if number == quoted or (number and "LIKE" in sign):
        what = "a number" if number else "a string in quotes"
        raise BadInputError(f"--filter compares {found[0].strip()!r}, which takes {what}.", _EXAMPLE)
    if not number and sign not in ("=", "!=", "LIKE", "ILIKE"):
        raise BadInputError(f"--filter: {found[0].strip()!r} compares texts, which takes =, !=, LIKE, ILIKE.", _EXAMPLE)
    return _Comparison(kind, name, sign, value)


def _unreadable(expression: str, place: int) -> BadInputError:
    said = expression[place : place + 30] or "its end"
    return BadInputError(f"--filter can't be read from {said!r} on (character {place + 1}).", _EXAMPLE)
