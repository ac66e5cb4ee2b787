"""A retriever over a stored memory: what was indexed before is loaded when the first question needs it, and not before."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from memory.vectors import Summaries
from model_adapters.base import ChunkKV, Query
from retrieval.base import Hit, Retriever


class Restored(Retriever):
    """`base`, whose past comes from `load` in blocks. Chunks may be added before that.

    until_chunk_id: the last chunk that was stored when the memory was opened; later ones are added like any others.
    """

    def __init__(self, base: Retriever, load: Callable[[], Iterator[Summaries]], until_chunk_id: int) -> None:
        self.base = base
        self.loaded = False
        self._load = load
        self._until_chunk_id = until_chunk_id

    def add(self, chunk: ChunkKV) -> None:
        # What was thinned before it was loaded is loaded as it is then.
        if self.loaded or chunk.chunk_id > self._until_chunk_id:
            self.base.add(chunk)

    def remove(self, chunk_ids: Collection[int]) -> None:
        # What is not loaded yet is loaded as it is stored then, or not at all.
        self.base.remove(chunk_ids)

    def restore(self, stored: Summaries) -> None:
        self.base.restore(stored)

    def search(self, query: Query, top_k: int, until_seconds: float, exclude: Collection[int] = ()) -> list[Hit]:
        return self.ready().search(query, top_k, until_seconds, exclude)

    def ready(self) -> Retriever:
        """`base` with all of its past."""
        if not self.loaded:
            self.loaded = True
            for block in self._load():
                self.base.restore(block.only(block.chunk_ids <= self._until_chunk_id))
        return self.base

    @property
    def num_bytes(self) -> int:
        return self.base.num_bytes
