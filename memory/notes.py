"""Notes beside the chunks of a stored memory: what a session wants to find again, by kind and number, each with its checksum.

A note about a span of the stream is forgotten with it. What a note says is the business of whoever writes it.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from memory.manifest import Manifest

logger = logging.getLogger(__name__)

TABLE = "notes"
SCHEMA = f"""CREATE TABLE {TABLE} (kind TEXT, number INTEGER, start_seconds REAL, end_seconds REAL, content TEXT,
crc32 INTEGER, PRIMARY KEY (kind, number)) WITHOUT ROWID"""
"""Made with the first note: most memories hold none."""


@dataclass(frozen=True)
class Note:
    """content: any text. start_seconds, end_seconds: the span that it is about; None: about none, and never forgotten."""

    kind: str
    number: int
    content: str
    start_seconds: float | None = None
    end_seconds: float | None = None

    @property
    def crc32(self) -> int:
        span = [None if seconds is None else float(seconds) for seconds in (self.start_seconds, self.end_seconds)]
        return zlib.crc32(f"{self.kind} {self.number} {span} {self.content}".encode())


class Notes:
    """The notes of one memory. Thread-safe. Errors are MemoryBankError, as those of the manifest."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest

    def put(self, notes: Sequence[Note], most: int) -> None:
        """Write notes, all or none of them, in the place of those of the same kind and number; at most `most` of a kind stay,
        those with the highest numbers."""
        if not notes:
            return
        with self.manifest.changing() as db:
            if not self._exist():
                db.execute(SCHEMA)
                self.manifest.sum_schema(db)
            rows = [(n.kind, n.number, n.start_seconds, n.end_seconds, n.content, n.crc32) for n in notes]
            db.executemany(f"INSERT OR REPLACE INTO {TABLE} VALUES (?, ?, ?, ?, ?, ?)", rows)
            for kind in {note.kind for note in notes}:
                newest = max(note.number for note in notes if note.kind == kind)
                db.execute(f"DELETE FROM {TABLE} WHERE kind = ? AND number <= ?", (kind, newest - most))

    def of(self, kind: str) -> list[Note]:
        """The notes of a kind, in the order of their numbers. Damaged ones are left out, which is logged."""
        if not self._exist():
            return []
        found = []
        names = "kind, number, content, start_seconds, end_seconds, crc32"
        for *values, crc32 in self.manifest.query(f"SELECT {names} FROM {TABLE} WHERE kind = ? ORDER BY number", (kind,)):
            note = Note(*values)
            if note.crc32 == crc32:
                found.append(note)
            else:
                logger.warning("a note (%s %s) in %s is damaged and left out", kind, note.number, self.manifest.folder)
        return found

    def all(self) -> list[Note]:
        """The notes of every kind, but for damaged ones."""
        kinds = self.manifest.query(f"SELECT DISTINCT kind FROM {TABLE}") if self._exist() else []
        return [note for (kind,) in kinds for note in self.of(kind)]

    def num_damaged(self) -> int:
        """How many are not as they were written."""
        return int(self.manifest.query(f"SELECT count(*) FROM {TABLE}")[0][0]) - len(self.all()) if self._exist() else 0

    def forget(self, spans: Collection[tuple[float, float]]) -> None:
        """Remove the notes that overlap one of the spans; really gone they are when the forgetting is finished."""
        if not self._exist():
            return
        with self.manifest.changing() as db:
            for start, end in spans:
                found = db.execute(f"DELETE FROM {TABLE} WHERE start_seconds < ? AND end_seconds > ?", (end, start))
                if found.rowcount:
                    self.manifest.set_meta(db, "forgetting", 1)

    def _exist(self) -> bool:
        return bool(self.manifest.query("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (TABLE,)))
