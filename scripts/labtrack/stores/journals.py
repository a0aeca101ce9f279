"""Journals: what the recorder writes, one file for each process, read here and nowhere else.

A journal is only ever appended to, by one process.  Each record is a line: the CRC-32 of its text, the text's
length, the text, which is JSON.  A line that is torn or damaged is known by these and is never taken for data; a
number in each record tells when one is missing.

A record is [number, clock in ms, kind, ...]:
    h: {facts and schema}            the first; see `Header`
    i, u: table, [values]            a row that was made, that was changed
    p: table, {key}, {values}        some columns of a row were changed, by another process than the row's
    d: table, [values of the key]    a row that was removed
    m: run, [[key, value, timestamp, step, is_nan], ...]   metric points
Places in the recording's own folder are recorded relative to it, as `labtrack:artifacts/...`.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

FORMAT = 1
FOLDER, SUFFIX = "recordings", ".journal"
NAME_FILE = "labtrack-folder"  # the folder's name for good, 32 hex digits, beside the recordings
ARTIFACTS = "artifacts"
RELATIVE = f"labtrack:{ARTIFACTS}/"
_CHUNK = 1 << 20
_LONGEST = 1 << 30  # bytes of a line: beyond that it is no line of ours


class Table(NamedTuple):
    """A table of MLflow's: how it is made, its columns in their order, and those of its key."""

    name: str
    sql: str
    columns: tuple[str, ...]
    key: tuple[str, ...]


@dataclass(frozen=True)
class Header:
    """What a journal says of itself.

    mlflow: the version of MLflow; revision: of its schema.  job: the key of the batch job, if any.
    kind: `process`, or `amend` for changes to runs of other processes.
    """

    mlflow: str
    revision: str
    host: str
    pid: int
    started: int
    job: str = ""
    kind: str = "process"
    tables: Mapping[str, Table] = field(default_factory=dict)
    indexes: tuple[str, ...] = ()

    def data(self) -> dict[str, Any]:
        """As the record has it."""
        tables = [[one.name, one.sql, one.columns, one.key] for one in self.tables.values()]
        schema = json.dumps([tables, self.indexes], separators=(",", ":")).encode()
        return {
            "format": FORMAT, "mlflow": self.mlflow, "revision": self.revision, "host": self.host, "pid": self.pid,
            "started": self.started, "job": self.job, "kind": self.kind,
            "schema": base64.b64encode(zlib.compress(schema, 6)).decode(),
        }  # fmt: skip

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Header:
        """The header in a record.  Raises ValueError where it is none that is understood."""
        try:
            if int(data["format"]) > FORMAT:
                raise ValueError(f"it has the format {data['format']}, of a later labtrack")
            tables, indexes = json.loads(zlib.decompress(base64.b64decode(data["schema"])))
            made = {
                str(name): Table(str(name), str(sql), tuple(map(str, columns)), tuple(map(str, key)))
                for name, sql, columns, key in tables
            }
            return cls(
                str(data["mlflow"]), str(data["revision"]), str(data["host"]), int(data["pid"]), int(data["started"]),
                str(data.get("job", "")), str(data.get("kind", "process")), made, tuple(map(str, indexes)),
            )  # fmt: skip
        except (KeyError, TypeError, zlib.error, binascii.Error) as error:
            raise ValueError(f"its header is not understood ({error})") from error


class Read(NamedTuple):
    """What a line of a journal is.

    record: None where the line is damaged.  end: the offset behind it.  line: its number of bytes.
    """

    record: Sequence[Any] | None
    end: int
    size: int


def frame(number: int, clock: int, kind: str, *what: Any) -> bytes:
    """A record as a line."""
    text = json.dumps([number, clock, kind, *what], separators=(",", ":")).encode()
    return b"%08x %d %b\n" % (zlib.crc32(text), len(text), text)


def value(recorded: Any) -> Any:
    """A value of a row as SQLite takes it."""
    return base64.b64decode(recorded["b"]) if isinstance(recorded, dict) else recorded


def recorded(given: Any) -> Any:
    """A value of SQLite as JSON takes it."""
    return {"b": base64.b64encode(given).decode()} if isinstance(given, bytes) else given


def parse(line: bytes) -> Sequence[Any] | None:
    """The record in a line, which ends with a newline; None where it is damaged."""
    try:
        checksum, length, text = line.rstrip(b"\n").split(b" ", 2)
        if len(checksum) != 8 or int(length) != len(text) or int(checksum, 16) != zlib.crc32(text):  # noqa: PLR2004
            return None
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, list) and len(found) > 3 and isinstance(found[0], int) else None  # noqa: PLR2004


def read(path: Path, offset: int = 0, needles: Iterable[bytes] = ()) -> Iterator[Read]:
    """The whole lines of a journal from a place on; what is behind the last newline is left for later.

    needles: only lines with one of these, and the header's; empty for all.
    """
    wanted = tuple(needles)
    with path.open("rb") as file:
        file.seek(offset)
        rest = b""
        while True:
            chunk = file.read(_CHUNK)
            if not chunk:
                return
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                offset += len(line) + 1
                if not wanted or offset == len(line) + 1 or any(one in line for one in wanted):
                    yield Read(parse(line) if line else None, offset, len(line) + 1)
            if len(rest) > _LONGEST:
                return


def journals(root: Path) -> list[Path]:
    """The journals of a folder of recordings, in the order in which they were begun.  Raises OSError."""
    folder = root / FOLDER
    try:
        found = [one for one in folder.iterdir() if one.name.endswith(SUFFIX) and not one.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(found)


def absolute(text: Any, base: str) -> Any:
    """A recorded value with the place in it where the recordings are now.  base: ends with a slash."""
    return (
        base + text[len(RELATIVE) - len(ARTIFACTS) - 1 :] if type(text) is str and text.startswith(RELATIVE) else text
    )
