"""The records of a session that is stored: they come from the manifest when they are asked for."""

from __future__ import annotations

import logging
from collections.abc import Collection
from itertools import islice

from data.errors import MemoryBankError
from memory.manifest import Manifest
from memory.records import ChunkRecord, Moment, in_window
from memory.rows import ChunkRow

logger = logging.getLogger(__name__)

NUM_CHECKED = 4
"""How many records in RAM are asked for in the manifest whenever one is added."""


class StoredRecords:
    """In RAM are only the records that are not in the manifest (yet)."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self._fresh: dict[int, ChunkRecord] = {}

    def add(self, record: ChunkRecord) -> None:
        for chunk_id in list(islice(self._fresh, NUM_CHECKED)):
            if self.manifest.holds(chunk_id):
                del self._fresh[chunk_id]
        self._fresh[record.chunk_id] = record

    def get(self, chunk_id: int) -> ChunkRecord | None:
        fresh = self._fresh.get(chunk_id)
        if fresh is not None:
            return fresh
        try:
            row = self.manifest.row(chunk_id)
        except MemoryBankError as error:
            logger.warning("%s", error)
            return None
        return row.record if row is not None else None

    def recent(self, until_pts_seconds: float, window_seconds: float) -> list[ChunkRecord]:
        found = {record.chunk_id: record for record in self._fresh.values()}
        newest = self.manifest.newest(until_pts_seconds, window_seconds)
        found |= {row.chunk_id: row.record for row in newest if isinstance(row, ChunkRow) and row.chunk_id not in found}
        ordered = sorted(found.values(), key=lambda record: -record.last_pts_seconds)
        return in_window(ordered, until_pts_seconds, window_seconds)

    def moments(self) -> list[Moment]:
        stored: list[Moment] = list(self.manifest.moments())
        known = {moment.chunk_id for moment in stored[-len(self._fresh) - NUM_CHECKED :]} if self._fresh else set()
        return [*stored, *(record for record in list(self._fresh.values()) if record.chunk_id not in known)]

    def remove(self, chunk_ids: Collection[int]) -> None:
        """Forget what is in RAM; what the manifest keeps of a chunk without KV, its time and picture, stays."""
        for chunk_id in chunk_ids:
            self._fresh.pop(chunk_id, None)
