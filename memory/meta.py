"""What a manifest says about itself, by name, each with its checksum; and whether its tables are declared as they were."""

from __future__ import annotations

import sqlite3

from zlib_ng.zlib_ng import crc32

from data.errors import MemoryBankError
from memory.database import Database

SCHEMA_SUM = "schema_crc32"
SCHEMA_ROWS = f"SELECT type, name, sql, (SELECT value FROM meta WHERE name = '{SCHEMA_SUM}') FROM sqlite_master ORDER BY 1, 2"
"""In one statement: between two, somebody else may commit a change."""


class Meta(Database):
    """Names and values."""

    def meta(self, name: str) -> str:
        found = self.query("SELECT value, crc32 FROM meta WHERE name = ?", (name,))
        if not found or found[0][1] != _crc32(name, str(found[0][0])):
            raise MemoryBankError(self.damaged(f": it has no right {name}"))
        return str(found[0][0])

    def number(self, name: str) -> int:
        return int(self.meta(name))

    def set_meta(self, db: sqlite3.Connection, name: str, value: object) -> None:
        db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", (name, str(value), _crc32(name, str(value))))

    def sum_schema(self, db: sqlite3.Connection) -> None:
        """To be called in each transaction that makes or changes tables."""
        self.set_meta(db, SCHEMA_SUM, _schema_sum(db.execute(SCHEMA_ROWS).fetchall()))

    def check_schema(self) -> None:
        """MemoryBankError if the tables are not declared as they were: SQLite believes whatever a flipped bit makes of that.
        A memory from before there was this sum has none to compare."""
        rows = self.query(SCHEMA_ROWS)
        if rows and rows[0][-1] is not None and rows[0][-1] != _schema_sum(rows):
            raise MemoryBankError(self.damaged(": its tables are not as declared"))


def _schema_sum(rows: list[tuple]) -> str:
    return str(crc32(repr([row[:-1] for row in rows]).encode()))


def _crc32(name: str, value: str) -> int:
    return crc32(f"{name}={value}".encode())
