"""What a manifest says beside its chunks: when which source was watched, and which spans of the stream have no KV, and why.

Each entry has a checksum: a wrong offset would shift the times of all that comes after it.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import astuple, fields
from typing import TypeVar

from zlib_ng.zlib_ng import crc32

from memory.base import TOUCHING_SECONDS
from memory.meta import Meta
from memory.rows import Gap, Sitting

logger = logging.getLogger(__name__)

PAUSED = "paused"
TABLES: dict[type, str] = {Gap: "gaps", Sitting: "sittings"}
Entry = TypeVar("Entry", Gap, Sitting)


def add_checksums(db: sqlite3.Connection) -> None:
    """From format version 1, in which entries had none, to 2."""
    for kind, table in TABLES.items():
        names = ", ".join(field.name for field in fields(kind))
        rows = db.execute(f"SELECT rowid, {names} FROM {table}").fetchall()
        db.execute(f"ALTER TABLE {table} ADD COLUMN crc32 INTEGER")
        sealed = [(checksum_of(values), number) for number, *values in rows]
        db.executemany(f"UPDATE {table} SET crc32 = ? WHERE rowid = ?", sealed)


def checksum_of(values: Sequence[object]) -> int:
    """Over the values of an entry. Damage may have made bytes of them, which are taken as they are shown."""
    return crc32(json.dumps(list(values), default=repr).encode())


class History(Meta):
    """Gaps and sittings. An entry that is not as it was written is logged and left out."""

    def add_gaps(self, db: sqlite3.Connection, gaps: Sequence[Gap]) -> None:
        """Add spans. One that touches another of the same reason becomes one with it, so that days of them stay few; pauses
        stay apart, each with its own time by the clock."""
        touching = "reason = ? AND start_seconds <= ? AND end_seconds >= ?"
        for gap in gaps:
            if gap.reason != PAUSED:
                near = (gap.reason, gap.end_seconds + TOUCHING_SECONDS, gap.start_seconds - TOUCHING_SECONDS)
                found = db.execute(f"SELECT rowid, * FROM gaps WHERE {touching}", near).fetchall()
                right = {number: one for number, *values in found if (one := _entry(Gap, values)) is not None}
                spans = [gap, *right.values()]
                gap = Gap(min(one.start_seconds for one in spans), max(one.end_seconds for one in spans), gap.reason)
                db.executemany("DELETE FROM gaps WHERE rowid = ?", [(number,) for number in right])
            _insert(db, gap)

    def add_sitting(self, db: sqlite3.Connection, sitting: Sitting) -> None:
        _insert(db, sitting)

    def gaps(self) -> list[Gap]:
        return list(self._right(Gap, "ORDER BY start_seconds"))

    def sittings(self) -> list[Sitting]:
        return list(self._right(Sitting, "ORDER BY start_seconds"))

    def last_sitting(self) -> Sitting | None:
        """The newest one. None if there is none, or if it is damaged: one before it says nothing about now."""
        return next(self._right(Sitting, "ORDER BY rowid DESC LIMIT 1"), None)

    def num_damaged_entries(self) -> int:
        """How many gaps and sittings are not as they were written."""
        found = [(kind, row) for kind, table in TABLES.items() for row in self.query(f"SELECT * FROM {table}")]
        return sum(_entry(kind, row) is None for kind, row in found)

    def _right(self, kind: type[Entry], order: str) -> Iterator[Entry]:
        for row in self.query(f"SELECT * FROM {TABLES[kind]} {order}"):
            entry = _entry(kind, row)
            if entry is None:
                logger.warning("an entry of the %s of %s is damaged and left out", TABLES[kind], self.folder)
            else:
                yield entry


def _insert(db: sqlite3.Connection, entry: Gap | Sitting) -> None:
    # As SQLite gives them back, or the checksum would be another one: floats, and no zero below zero.
    values = [value + 0.0 if isinstance(value, int | float) else value for value in astuple(entry)]
    marks = ", ".join("?" * (len(values) + 1))
    db.execute(f"INSERT INTO {TABLES[type(entry)]} VALUES ({marks})", (*values, checksum_of(values)))


def _entry(kind: type[Entry], row: Sequence) -> Entry | None:
    """A row as it was written; None if it is not. One of format version 1 has no checksum and is taken as it is."""
    num = len(fields(kind))
    values, seal = row[:num], row[num:]
    if len(values) < num or (seal and seal[0] != checksum_of(values)):
        return None
    return kind(*values)
