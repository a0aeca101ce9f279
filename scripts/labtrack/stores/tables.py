"""The tables of a SQLite file of MLflow, of which a version may lack some or some of their columns."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from labtrack.errors import BadInputError
from labtrack.stores.database import Database
from labtrack.stores.model import Findings
from labtrack.stores.numbers import floor, text

_BESIDE_RUNS = (
    *("experiment_tags", "logged_model", "registered_model", "model_version", "trace_", "spans", "assessments"),
    "entity_associations",
)
_SHORT, _KNOWN = 64, 100_000  # characters of a text, and texts, that are kept for the next run


class Tables:
    """Reads rows; what is told about them goes to `found`."""

    def __init__(self, database: Database, location: str, found: Findings) -> None:
        self.database, self.location, self.found = database, location, found
        self._known: dict[str, str] = {}  # one object for names and values that many runs have

    def select(self, table: str, fields: Sequence[str], condition: str, values: Iterable[Any] = ()) -> list[Any]:
        """Rows of a table that may not be there, with NULL for columns that aren't.

        Where the file is damaged there, and no run is lost with the table, that is told, and there are no rows.
        Raises BadInputError where runs or their own values are lost.
        """
        try:
            return self._select(table, fields, condition, values)
        except BadInputError as error:
            if not table.startswith(_BESIDE_RUNS):
                raise
            self.found.problem(self.location, f"the table {table} can't be read: {error.what}")
            return []

    def _select(self, table: str, fields: Sequence[str], condition: str, values: Iterable[Any]) -> list[Any]:
        there = self.database.columns(table)
        if not there:
            return []
        columns = ", ".join(name if name in there or name == "rowid" else f"NULL AS {name}" for name in fields)
        return self.database.rows(f"SELECT {columns} FROM {table} WHERE {condition}", values)  # noqa: S608 names we know

    def texts(
        self, table: str, by: str, fields: tuple[str, str] = ("key", "value"), only: Sequence[Any] | None = None
    ) -> dict[Any, dict[str, str]]:
        """Keys and values by one column, as texts whatever they were written as."""
        condition = f"{by} IN ({', '.join('?' * len(only))})" if only is not None else "1"
        found: defaultdict[Any, dict[str, str]] = defaultdict(dict)
        known = self._known
        for owner, key, value in self.select(table, (by, *fields), f"{condition} ORDER BY rowid", only or ()):
            name, said = text(key), text(value)
            if len(said) < _SHORT and len(known) < _KNOWN:
                name, said = known.setdefault(name, name), known.setdefault(said, said)
            found[owner][name] = said
        return found

    def time(
        self, value: Any, place: str, name: str, run_id: str | None = None, experiment_id: str | None = None
    ) -> int | None:
        """A time in ms; what is none is told."""
        if value is None or type(value) is int:
            return value
        found = floor(value)
        if found is None:
            what = f"the {name} {str(value)[:60]!r} is no time and was left out"
            self.found.problem(place, what, run_id, experiment_id)
        return found
