"""A retriever that stays out of the context where its best hit does not stand out."""

from __future__ import annotations

from collections.abc import Collection

from memory.stored_vectors import StoredVectors
from model_adapters.base import ChunkKV, Query
from retrieval.base import Hit, Retriever
from retrieval.gate import Gate
from retrieval.key_similarity import KeySimilarity


class Gated(Retriever):
    """Key similarity behind a gate: no hits at all unless the best one passes it."""

    def __init__(self, base: KeySimilarity, gate: Gate) -> None:
        self.base = base
        self.index = base.index
        self.gate = gate

    def add(self, chunk: ChunkKV) -> None:
        self.base.add(chunk)

    def remove(self, chunk_ids: Collection[int]) -> None:
        self.base.remove(chunk_ids)

    def restore(self, stored: StoredVectors) -> None:
        self.base.restore(stored)

    def search(self, query: Query, top_k: int, until_seconds: float, exclude: Collection[int] = ()) -> list[Hit]:
        hits = self.base.search(query, top_k, until_seconds, exclude)
        if not hits or self.gate.threshold == 0:
            return hits
        _, scores = self.base.scores(query, until_seconds)
        return hits if self.gate.open(scores, [hit.score for hit in hits]) else []

    @property
    def num_bytes(self) -> int:
        return self.base.num_bytes
