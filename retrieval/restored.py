"""A retriever over a stored memory: what was indexed before is searched where it lies on disk, from the first question on."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from memory.stored import StoredMemory
from memory.stored_vectors import StoredVectors
from memory.vectors import VectorFile
from model_adapters.base import ChunkKV, Query
from retrieval.base import Hit, Retriever


class Restored(Retriever):
    """`base`, whose past comes from `memory` when the first question needs it, and not before. Chunks may be added before that.

    until_chunk_id: the last chunk that was stored when the memory was opened. Where the memory is only read, later ones are
    somebody else's and not seen; where it is written, they are added like any others, and when the index is full, those that
    are on disk by then are searched there.
    """

    def __init__(self, base: Retriever, memory: StoredMemory, until_chunk_id: int) -> None:
        self.base = base
        self.index = base.index
        self._memory = memory
        self._until = until_chunk_id
        self._writes = memory.manifest.write
        self._file: VectorFile | None = memory.vectors if until_chunk_id < 0 else None
        """What `base` has been told of, up to record `_num_told`, and the chunks there."""
        self._num_told = 0
        self._told: list[StoredVectors] = []

    def add(self, chunk: ChunkKV) -> None:
        if self.index is not None and self.index.is_full:
            self._hand_over()
            # It may be on disk itself by now.
            self.base.remove([chunk.chunk_id])
        # What was thinned before it was loaded is loaded as it is then.
        if self._file is not None or chunk.chunk_id > self._until:
            self.base.add(chunk)

    def remove(self, chunk_ids: Collection[int]) -> None:
        # What is not loaded yet is loaded as it is stored then, or not at all.
        self.base.remove(chunk_ids)

    def restore(self, stored: StoredVectors) -> None:
        self.base.restore(stored)

    def search(self, query: Query, top_k: int, until_seconds: float, exclude: Collection[int] = ()) -> list[Hit]:
        return self.ready().search(query, top_k, until_seconds, exclude)

    def ready(self) -> Retriever:
        """`base` with all of its past."""
        # Forgetting, for one, puts another file in the place of the one that was there.
        if self._file is not self._memory.vectors:
            self._take_up()
        return self.base

    def _take_up(self) -> None:
        """Tell `base` what the file holds that it has not been told yet; what it had of that in RAM is let go."""
        file, until = self._memory.vectors, None if self._writes else self._until
        if file is not self._file:
            for told in self._told:
                self.base.remove(told.chunk_ids.tolist())
            self._file, self._num_told, self._told = file, 0, []
        first, self._num_told = self._num_told, file.num_records
        wanted = self._memory.manifest.ids_up_to(until)
        stored = StoredVectors.newest(file, wanted, first)
        self.base.remove(stored.chunk_ids.tolist())
        self.base.restore(stored)
        self._told.append(stored)
        if not first:
            for chunk in self._memory.without_vector(wanted, stored):
                self.base.remove([chunk.chunk_id])
                self.base.add(chunk)

    def _hand_over(self) -> None:
        """Let go of what is on disk by now."""
        if self._file is not None:
            if self._file is not self._memory.vectors or self._num_told < self._file.num_records:
                self._take_up()
            return
        stored = self._memory.manifest.ids_up_to()
        new = stored[stored > self._until]
        self.base.remove(new.tolist())
        self._until = int(np.max(new, initial=self._until))

    @property
    def num_bytes(self) -> int:
        return self.base.num_bytes
