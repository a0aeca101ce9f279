"""The grammar of columns: what a cell of a table is.

    f1                    the last value (MLflow's: by step, time, value)
    max:f1  min:val_loss  last:  first:  mean:  count:
    f1@min:val_loss       f1 at the step where val_loss was smallest
    step@max:f1           the step of that
    params.lr  tags.dataset  attr.duration  metrics.f1
    ... as NAME           the heading

Names with other than letters, digits and _ . - / are quoted with " or `, in which a doubled quote is one quote.
A name without anything in front is a metric; where no run has such a metric, an attribute, a tag or a parameter.
"""

from __future__ import annotations

import difflib
import fnmatch
import math
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from labtrack.errors import BadInputError
from labtrack.stores.summary import FIRST, LAST, MEAN, RANGE, STEPS, Summary

if TYPE_CHECKING:
    from labtrack.analysis.rows import Row

METRIC, PARAM, TAG, ATTRIBUTE, BARE = "metrics", "params", "tags", "attr", ""
_KINDS = {
    "params": PARAM, "param": PARAM, "tags": TAG, "tag": TAG, "attr": ATTRIBUTE, "attribute": ATTRIBUTE,
    "attributes": ATTRIBUTE, "metrics": METRIC, "metric": METRIC,
}  # fmt: skip
AGGREGATES = ("max", "min", "last", "first", "mean", "count")
_PARTS = {"max": RANGE, "min": RANGE, "count": RANGE, "last": LAST, "first": FIRST, "mean": MEAN}
_QUOTED = r'"(?:[^"]|"")+"|`(?:[^`]|``)+`'
_PLAIN = r"[^\s:@,\"`]+"
_NAME = rf"(?:(?:[A-Za-z]+\.)?(?:{_QUOTED})|{_PLAIN})"
_COLUMN = re.compile(
    rf"""\s*(?:(?P<step>step)@(?P<step_how>max|min):(?P<of_step>{_NAME})
    |(?:(?P<how>{"|".join(AGGREGATES)}):)?(?P<name>{_NAME})(?:@(?P<at_how>max|min):(?P<at>{_NAME}))?)
    (?:\s+as\s+(?P<label>"(?:[^"]|"")+"|'[^']+'|`(?:[^`]|``)+`|[^,]+?))?\s*(?=,|$)""",
    re.VERBOSE | re.IGNORECASE,
)
_PREFIXED = re.compile(rf"(?P<kind>{'|'.join(_KINDS)})\.(?P<rest>.+)", re.IGNORECASE | re.DOTALL)
LARGEST = 1.7976931348623157e308  # what MLflow's tables have for infinity


@dataclass(frozen=True)
class Column:
    """One column.  Make it with `parse`.

    kind: metrics, params, tags or attr, or empty for a bare name, until `resolve` has looked.
    how: which value of a metric.  at: (max or min, a metric): at the step where that was best.
    step: the step itself is meant.
    """

    kind: str
    name: str
    label: str
    how: str = "last"
    at: tuple[str, str] | None = None
    step: bool = False

    @property
    def keys(self) -> set[str]:
        """The metrics that it needs."""
        own = {self.name} if self.kind in (METRIC, BARE) and not self.step else set()
        return own | ({self.at[1]} if self.at else set())

    @property
    def parts(self) -> set[str]:
        """The parts of the metrics' summaries that it needs."""
        if self.at:
            return {RANGE, STEPS}
        return {_PARTS[self.how]} if self.kind in (METRIC, BARE) else set()

    def value(self, row: Row) -> Any:
        """What a run has there; None where it has nothing."""
        if self.kind == PARAM:
            return row.run.params.get(self.name)
        if self.kind == TAG:
            return row.run.tags.get(self.name)
        if self.kind == ATTRIBUTE:
            return ATTRIBUTES[self.name](row)
        if self.at:
            found = row.metrics.get(self.at[1])
            where = best_step(found, self.at[0]) if found else None
            return where if self.step or where is None else row.values_at.get((self.name, where))
        summary = row.metrics.get(self.name)
        return None if summary is None else real(getattr(summary, "points" if self.how == "count" else self.how))


def real(value: Any) -> Any:
    """A metric's value with the largest number of MLflow's tables read as what it stands for."""
    if isinstance(value, float) and abs(value) >= LARGEST:
        return math.copysign(math.inf, value)
    return value


def best_step(summary: Summary, how: str) -> int | None:
    """The step at which a metric was largest or smallest."""
    return summary.max_step if how == "max" else summary.min_step


def parse(text: str) -> Column:
    """One column.  Raises BadInputError that shows where it can't be read."""
    found = parse_list(text)
    if len(found) != 1:
        raise BadInputError(f"{text!r} is {len(found)} columns, and one is meant.", 'a comma in a name: "a,b"')
    return found[0]


def parse_list(*texts: str) -> list[Column]:
    """Columns with commas between them.  Raises BadInputError that shows where they can't be read."""
    columns = []
    for text in texts:
        place = 0
        while True:
            found = _COLUMN.match(text, place)
            if found is None:
                said = text[place : place + 30].strip() or "its end"
                raise BadInputError(
                    f"The column {text!r} can't be read from {said!r} on.",
                    "f1, max:f1, f1@min:val_loss, step@max:f1, params.lr, tags.dataset, attr.duration, max:f1 as best; "
                    'names with spaces, colons, commas or @ in double quotes: max:"val loss".',
                )
            columns.append(_column(found))
            place = found.end()
            if place >= len(text):
                break
            place += 1
    return columns


def _column(found: re.Match[str]) -> Column:
    label = _unquoted((found["label"] or "").strip())
    written = found[0].strip()
    heading = label or _heading(written)
    if found["step"]:
        best = _metric(found["of_step"], written)
        return Column(METRIC, "step", heading, at=(found["step_how"].lower(), best), step=True)
    at = (found["at_how"].lower(), _metric(found["at"], written)) if found["at"] else None
    how = (found["how"] or "last").lower()
    if found["how"] and at:
        raise BadInputError(
            f"{written!r} asks for two values: {how}: and @{at[0]}:.", "leave out what stands in front of the name."
        )
    kind, name = _kind(found["name"])
    if kind in (PARAM, TAG, ATTRIBUTE) and (found["how"] or at):
        raise BadInputError(f"{written!r}: only a metric has a {how if not at else at[0]} value.", f"{kind}.{name}")
    if found["how"] or at:
        kind = METRIC
    if kind == ATTRIBUTE and name not in ATTRIBUTES:
        raise unknown(f"attr.{name}", [f"attr.{one}" for one in ATTRIBUTES])
    return Column(kind, name, heading, how, at)


def _heading(written: str) -> str:
    """A column's heading: as it was written, without quotes where it is one name."""
    return _unquoted(written)


def _metric(text: str, written: str) -> str:
    kind, name = _kind(text)
    if kind not in (METRIC, BARE):
        raise BadInputError(f"{written!r}: {text} is no metric.", "after max: and min: stands a metric's name.")
    return name


def _kind(text: str) -> tuple[str, str]:
    if text[0] in '"`':
        return BARE, _unquoted(text)
    found = _PREFIXED.fullmatch(text)
    return (_KINDS[found["kind"].lower()], _unquoted(found["rest"])) if found else (BARE, text)


def _unquoted(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"`'":
        inside = text[1:-1]
        if text[0] not in inside.replace(text[0] * 2, ""):
            return inside.replace(text[0] * 2, text[0])
    return text


def resolve(columns: Sequence[Column], rows: Sequence[Row], metrics: Callable[[], Collection[str]]) -> list[Column]:
    """Columns whose bare names have become metrics, attributes, tags or parameters, by what some runs have.

    metrics: all metrics' names, asked only where a name is unknown.  Without runs a name is taken for a metric.
    Raises BadInputError that names near ones.
    """
    return [_resolved(one, rows, metrics) for one in columns]


def _resolved(column: Column, rows: Sequence[Row], metrics: Callable[[], Collection[str]]) -> Column:
    if column.kind == ATTRIBUTE:
        return column
    if not rows:
        return replace(column, kind=METRIC) if column.kind == BARE else column
    if column.kind in (METRIC, BARE):
        missing = {one for one in column.keys if not any(one in row.metrics for row in rows)}
        if not missing:
            return replace(column, kind=METRIC)
        name = min(missing)
        if column.kind == METRIC or column.at:
            raise unknown(name, sorted(metrics()))
    if column.kind == BARE and column.name in ATTRIBUTES:
        return replace(column, kind=ATTRIBUTE)
    for kind in (TAG, PARAM):
        if column.kind in (kind, BARE) and any(column.name in getattr(row.run, kind) for row in rows):
            return replace(column, kind=kind)
    known = {f"{kind}.{name}" for kind in (TAG, PARAM) for row in rows for name in getattr(row.run, kind)}
    if column.kind == BARE:
        raise unknown(column.name, [*sorted(metrics()), *sorted(known), *ATTRIBUTES])
    raise unknown(f"{column.kind}.{column.name}", [*sorted(known), *sorted(metrics())])


def means(text: str, metric: str) -> bool:
    """Whether a text means a metric as a whole: by its name, as a column has it, or by a pattern as `val_*`.

    Raises BadInputError for a column that is one value of a metric, or no metric.
    """
    if text == metric or ("*" in text and fnmatch.fnmatchcase(metric, text)):
        return True
    try:
        column = parse(text)
    except BadInputError:
        return False
    if column.kind not in (METRIC, BARE) or column.at or column.how != "last":
        raise BadInputError(f"{text!r} is one value of a run, and a curve has all.", f"-m {quoted(column.name)}")
    return column.name == metric


def unknown(name: str, known: Iterable[str]) -> BadInputError:
    """The error for a column that no run has, with names that look like it."""
    return BadInputError(f"None of these runs has {name!r}.", near(name, known))


_SHORT = 3  # letters; of fewer, one in two may be another


def near(name: str, known: Iterable[str]) -> str:
    """Words on which of the known names may be meant."""
    names = list(dict.fromkeys(known))
    short = {one: one.partition(".")[2] if one.startswith((PARAM, TAG, ATTRIBUTE)) else one for one in names}
    asked = name.partition(".")[2] if name.startswith((f"{PARAM}.", f"{TAG}.", f"{ATTRIBUTE}.")) else name
    found = [one for one in names if asked.lower() in (short[one].lower(), one.lower())]
    found += [one for one in names if short[one].lower().endswith(f".{asked.lower()}")]
    alike = 0.6 if len(asked) > _SHORT else 0.5
    found += difflib.get_close_matches(name, names, 3, alike)
    found += [one for one in names if short[one] in difflib.get_close_matches(asked, set(short.values()), 3, alike)]
    found += [one for one in names if len(asked) >= _SHORT and asked.lower() in one.lower()]
    some = list(dict.fromkeys(found))[:4]
    if some:
        return f"is it {' or '.join(map(quoted, some))}?"
    shown = ", ".join(names[:8])
    return f"there is {shown}{', ...' if len(names) > 8 else ''}." if names else "they have no metrics."  # noqa: PLR2004


def quoted(name: str) -> str:
    """A name as it is written in a column."""
    return name if re.fullmatch(_PLAIN, name) else '"' + name.replace('"', '""') + '"'


def _duration(row: Row) -> float | None:
    begun, ended = row.run.start_time, row.run.end_time
    return None if begun is None or ended is None else (ended - begun) / 1000


ATTRIBUTES: dict[str, Callable[[Row], Any]] = {
    "run_id": lambda row: row.run.id,
    "name": lambda row: row.run.name,
    "run_name": lambda row: row.run.name,
    "experiment": lambda row: row.experiment,
    "experiment_id": lambda row: row.run.experiment_id,
    "status": lambda row: row.run.status,
    "user": lambda row: row.run.user_id,
    "user_id": lambda row: row.run.user_id,
    "start_time": lambda row: row.run.start_time,
    "end_time": lambda row: row.run.end_time,
    "duration": _duration,
    "parent": lambda row: row.run.parent_id,
    "artifact_uri": lambda row: row.run.artifact_uri,
    "lifecycle_stage": lambda row: row.run.lifecycle_stage,
    "source": lambda row: row.source,
}
