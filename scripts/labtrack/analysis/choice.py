"""Which columns a table has beside its own: lists, patterns, and what is dropped of them."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from labtrack.analysis import columns
from labtrack.analysis.columns import METRIC, Column
from labtrack.analysis.frame import Frame, Needs
from labtrack.analysis.rows import Row
from labtrack.errors import BadInputError

_EVERY_PARAMETER = "params.*"


@dataclass(frozen=True)
class Choice:
    """Columns that a person asked for.  only: these and no others.

    keep, drop: of those that patterns give.  only_changed: none that is equal everywhere.
    """

    columns: tuple[Column, ...] = ()
    only: bool = False
    keep: re.Pattern[str] | None = None
    drop: re.Pattern[str] | None = None
    only_changed: bool = False

    def needs(self, *more: Column) -> Needs:
        """What these and some more columns need."""
        found = Needs.of([*more, *self.columns])
        every = any(is_pattern(one) and one.kind in (METRIC, columns.BARE) for one in self.columns)
        return replace(found, keys=None) if every else found

    @property
    def is_plain(self) -> bool:
        """Whether it can be told from the runs that are shown which columns there are."""
        return all(one.kind in (METRIC, columns.ATTRIBUTE) and not is_pattern(one) for one in self.columns)

    def resolved(self, frame: Frame) -> list[Column]:
        """The columns that there are: patterns become what matches them."""
        found: list[Column] = []
        for one in self.columns:
            if not (is_pattern(one) and not _has(frame, one)):
                found += frame.resolve([one])
                continue
            matching = [each for each in _matching(frame, one) if self.keep is None or self.keep.search(each.label)]
            found += matching
        if self.drop is not None:
            found = [one for one in found if not self.drop.search(one.label)]
        return list(dict.fromkeys(found))

    def changed(self, names: list[str], cells: list[list[Any]], own: int) -> tuple[list[str], list[list[Any]]]:
        """Columns and rows without those that are equal in all rows.  own: the first ones, which stay."""
        if not self.only_changed or len(cells) < 2:  # noqa: PLR2004
            return names, cells
        kept = [at for at in range(len(names)) if at < own or any(row[at] != cells[0][at] for row in cells)]
        return [names[at] for at in kept], [[row[at] for at in kept] for row in cells]


NO_CHOICE = Choice()


def choice(
    more: Sequence[str] = (),
    only: Sequence[str] = (),
    *,
    keep: str | None = None,
    drop: str | None = None,
    only_changed: bool = False,
) -> Choice:
    """Reads what a person asked for.  Raises BadInputError for what can't be read."""  # fmt: skip
    if more and only:
        raise BadInputError("--columns adds columns, and --only has these and no others.", "give one of the two.")
    lists = tuple(columns.parse_list(*(only or more)))
    if only_changed and not lists:
        lists = tuple(columns.parse_list(_EVERY_PARAMETER))
    return Choice(lists, bool(only), _regex("--keep", keep), _regex("--drop", drop), only_changed)


def _regex(option: str, text: str | None) -> re.Pattern[str] | None:
    if text is None:
        return None
    try:
        return re.compile(text)
    except re.error as error:
        raise BadInputError(
            f"{option} {text!r} is no regular expression: {error}.", "for example: '^params\\.opt'"
        ) from None


def is_pattern(column: Column) -> bool:
    """Whether a column stands for all whose names match, as `params.*`."""
    return column.kind != columns.ATTRIBUTE and column.at is None and "*" in column.name


def _has(frame: Frame, column: Column) -> bool:
    """Whether some run has just this name, with its star."""
    kinds = (column.kind,) if column.kind else ("params", "tags", METRIC)
    return any(column.name in _of(row, kind) for row in frame.rows for kind in kinds)


def _of(row: Row, kind: str) -> Any:
    return row.metrics if kind == METRIC else getattr(row.run, kind)


def _matching(frame: Frame, column: Column) -> list[Column]:
    kind = column.kind or METRIC
    own: Callable[[str], bool] = lambda name: kind == "tags" and name.startswith(("mlflow.", "labtrack."))  # noqa: E731
    names = [name for name in frame.names(kind) if fnmatch.fnmatchcase(name, column.name)]
    names = [name for name in names if not own(name) or column.name.startswith(("mlflow.", "labtrack."))]
    before = f"{column.how}:" if column.how != "last" else "" if kind == METRIC else f"{kind}."
    return [replace(column, kind=kind, name=name, label=f"{before}{name}") for name in names]
