"""The controls that every table carries: the last chunks, evenly spread chunks, all chunks, none."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from memory.stored_vectors import StoredVectors
from model_adapters.base import ChunkKV, Query
from retrieval.base import Hit, Retriever
from retrieval.timeline import Timeline, evenly


class TimeOnly(Retriever):
    """Base of retrievers that look at nothing but the time of a chunk."""

    def __init__(self) -> None:
        self.timeline = Timeline()

    def add(self, chunk: ChunkKV) -> None:
        self.timeline.add(chunk)

    def remove(self, chunk_ids: Collection[int]) -> None:
        self.timeline.remove(chunk_ids)

    def restore(self, stored: StoredVectors) -> None:
        self.timeline.restore(stored)

    @property
    def num_bytes(self) -> int:
        return self.timeline.num_bytes

    def newest_first(self, chunk_ids: Sequence[int]) -> list[Hit]:
        """Hits scored by their end in seconds."""
        return [self.timeline.hit(chunk_id, self.timeline.span(chunk_id)[1]) for chunk_id in reversed(chunk_ids)]


class Recent(TimeOnly):
    """The last `top_k` chunks, the newest first. Score: the end of the chunk in seconds."""

    def search(self, query: Query, top_k: int, until_seconds: float, exclude: Collection[int] = ()) -> list[Hit]:
        allowed = self.timeline.allowed(until_seconds, exclude).tolist()
        return self.newest_first(allowed[max(0, len(allowed) - top_k) :])


class Uniform(TimeOnly):
    """`top_k` chunks spread evenly over what there is, the newest first. Score: the end of the chunk in seconds."""

    def search(self, query: Query, top_k: int, until_seconds: float, exclude: Collection[int] = ()) -> list[Hit]:
        return self.newest_first(evenly(self.timeline.allowed(until_seconds, exclude).tolist(), top_k))


class All(TimeOnly):
    """Every chunk, the newest first. The one retriever that does not keep to `top_k`: it is the control without a choice."""

    def search(self, query: Query, top_k: int, until_seconds: float, exclude: Collection[int] = ()) -> list[Hit]:
        return self.newest_first(self.timeline.allowed(until_seconds, exclude).tolist())


class NoneRetriever(Retriever):
    """Nothing, ever: the answer rests on the window alone."""

    def add(self, chunk: ChunkKV) -> None:
        pass

    def remove(self, chunk_ids: Collection[int]) -> None:
        pass

    def restore(self, stored: StoredVectors) -> None:
        pass

    def search(self, query: Query, top_k: int, until_seconds: float, exclude: Collection[int] = ()) -> list[Hit]:
        return []

    @property
    def num_bytes(self) -> int:
        return 0
