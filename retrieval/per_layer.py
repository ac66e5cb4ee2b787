"""ReKV's own retrieval (arXiv 2503.00540): every layer chooses its own chunks by its own mean keys. The permanent baseline."""

from __future__ import annotations

from collections.abc import Collection

from data.errors import AdapterError
from memory.stored_vectors import StoredVectors
from memory.vectors import mean_key
from model_adapters.base import ChunkKV, Query
from retrieval.base import Hit, Retriever
from retrieval.chunk_index import INDEX_BYTES, ChunkIndex
from retrieval.timeline import Timeline


class PerLayer(Retriever):
    """One index per layer over the mean un-rotated key of a chunk, concatenated over KV heads (float32, kv_heads * head_dim).

    A layer's score is the sum over its KV heads of query · mean key. index_bytes: of all layers together, see
    `retrieval.chunk_index`.
    """

    index: ChunkIndex

    def __init__(self, index_bytes: int = INDEX_BYTES) -> None:
        self.timeline = Timeline()
        self.index = ChunkIndex(lambda mean_keys: mean_keys, index_bytes)
        self._num_layers: int | None = None

    def add(self, chunk: ChunkKV) -> None:
        self.timeline.add(chunk)
        # Without tokens there is no mean key: nothing can find the chunk.
        if chunk.num_tokens:
            self._num_layers = len(chunk.keys)
            self.index.add(chunk.chunk_id, mean_key(chunk)[None], chunk.num_tokens)

    def restore(self, stored: StoredVectors) -> None:
        self._num_layers = stored.file.layers
        self.timeline.restore(stored)
        self.index.restore(stored)

    def remove(self, chunk_ids: Collection[int]) -> None:
        self.index.remove(self.timeline.remove(chunk_ids))

    def search_layers(self, query: Query, top_k: int, until_seconds: float, exclude: Collection[int] = ()) -> list[list[Hit]]:
        """For every layer its own `top_k` hits, best first.

        AdapterError if the query has another number of layers than the chunks.
        """
        best = self._best(query, top_k, until_seconds, exclude)
        return [[self.timeline.hit(chunk_id, score) for chunk_id, score in layer.items()] for layer in best]

    def search(self, query: Query, top_k: int, until_seconds: float, exclude: Collection[int] = ()) -> list[Hit]:
        """The union of all layers' choices, ranked by the mean of the layers' scores, at most `top_k`."""
        layers = self._best(query, len(self.timeline), until_seconds, exclude)
        union = {chunk_id for scores in layers for chunk_id in list(scores)[:top_k]}
        means = {i: sum(scores[i] for scores in layers) / len(layers) for i in union}
        ranked = sorted(means, key=lambda chunk_id: (-means[chunk_id], chunk_id))
        return [self.timeline.hit(chunk_id, means[chunk_id]) for chunk_id in ranked[:top_k]]

    @property
    def num_bytes(self) -> int:
        return self.timeline.num_bytes + self.index.num_bytes

    def _best(self, query: Query, num: int, until_seconds: float, exclude: Collection[int]) -> list[dict[int, float]]:
        num_layers = len(query.per_layer)
        if num_layers != (self._num_layers or num_layers):
            raise AdapterError(f"the question has queries of {num_layers} layers, the memory keys of {self._num_layers}")
        allowed = None if self.timeline.holds_all(until_seconds) else self.timeline.allowed(until_seconds)
        return self.index.search(query.per_layer.flatten(1), num, allowed, exclude)
