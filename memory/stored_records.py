"""The records of a session that is stored: they come from the manifest when they are asked for."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Collection

from data.errors import MemoryBankError
from memory.manifest import Manifest
from memory.records import ChunkRecord, in_window
from memory.rows import ChunkRow, Moments

logger = logging.getLogger(__name__)

NUM_CHECKED = 4
"""How many records in RAM are asked for in the manifest whenever one is added."""


class StoredRecords:
    """In RAM are only the records that are not in the manifest (yet)."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self._fresh: dict[int, ChunkRecord] = {}
        self._unchecked: deque[int] = deque()
        """The same by the turn in which the manifest is asked for them: what it never gets must not hold up the rest."""
        self._moments: list[tuple] = []
        """What the timeline has asked for before: fields of TimelineMoment."""
        self._asking = threading.Lock()
        self._told = False

    def add(self, record: ChunkRecord) -> None:
        for _ in range(min(NUM_CHECKED, len(self._unchecked))):
            chunk_id = self._unchecked.popleft()
            if chunk_id in self._fresh and self._is_stored(chunk_id):
                del self._fresh[chunk_id]
            elif chunk_id in self._fresh:
                self._unchecked.append(chunk_id)
        if record.chunk_id not in self._fresh:
            self._unchecked.append(record.chunk_id)
        self._fresh[record.chunk_id] = record

    def _is_stored(self, chunk_id: int) -> bool:
        """Whether the manifest has a record. One that cannot be asked must not end the stream."""
        try:
            return self.manifest.holds(chunk_id)
        except MemoryBankError as error:
            if not self._told:
                logger.warning("%s", error)
            self._told = True
            return False

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

    def moments(self) -> Moments:
        with self._asking:
            # What is drawn of a chunk never changes: only what is new has to be asked for, unless something was forgotten.
            self._moments += self.manifest.moments(self._moments[-1][0] if self._moments else -1)
            if self.manifest.num_rows != len(self._moments):
                self._moments = self.manifest.moments()
            stored = list(self._moments)
        fresh = list(self._fresh.values())
        known = {row[0] for row in stored[-len(fresh) - NUM_CHECKED :]} if fresh else set()
        return Moments(stored, [record for record in fresh if record.chunk_id not in known])

    def remove(self, chunk_ids: Collection[int]) -> None:
        """Forget what is in RAM; what the manifest keeps of a chunk without KV, its time and picture, stays."""
        for chunk_id in chunk_ids:
            self._fresh.pop(chunk_id, None)
