"""ReKV's own retrieval (arXiv 2503.00540): every layer chooses its own chunks by its own mean keys. The permanent baseline."""

from __future__ import annotations

from collections.abc import Collection

import torch

from data.errors import AdapterError
from memory.vectors import Summaries, mean_key
from model_adapters.base import ChunkKV, Query
from retrieval.base import Hit, Retriever
from retrieval.index import Index, create_index
from retrieval.timeline import Timeline


class PerLayer(Retriever):
    """One index per layer over the mean un-rotated key of a chunk, concatenated over KV heads (float32, kv_heads * head_dim).

    A layer's score is the sum over its KV heads of query · mean key.
    """

    def __init__(self) -> None:
        self.timeline = Timeline()
        self._indexes: list[Index] = []
        self._indexed: set[int] = set()

    def add(self, chunk: ChunkKV) -> None:
        self.timeline.add(chunk)
        if chunk.num_tokens == 0:
            # Without tokens there is no mean key: nothing can find the chunk.
            return
        self._add_means([chunk.chunk_id], mean_key(chunk)[None])

    def restore(self, stored: Summaries) -> None:
        self.timeline.restore(stored)
        there = stored.num_tokens > 0
        if there.any():
            self._add_means(stored.chunk_ids[there].tolist(), torch.from_numpy(stored.mean_keys[there]))

    def _add_means(self, chunk_ids: list[int], means: torch.Tensor) -> None:
        """means: float32 [chunks, layers, kv_heads * head_dim]."""
        if not self._indexes:
            self._indexes = [create_index(means.shape[2]) for _ in range(means.shape[1])]
        for layer, index in enumerate(self._indexes):
            index.add(chunk_ids, means[:, layer])
        self._indexed.update(chunk_ids)

    def remove(self, chunk_ids: Collection[int]) -> None:
        known = self.timeline.remove(chunk_ids)
        self._indexed.difference_update(known)
        for index in self._indexes:
            index.remove(known)

    def search_layers(self, query: Query, top_k: int, until_seconds: float, exclude: Collection[int] = ()) -> list[list[Hit]]:
        """For every layer its own `top_k` hits, best first. Empty before the first chunk.

        AdapterError if the query has another number of layers than the chunks.
        """
        allowed = self._allowed(until_seconds, exclude)
        return [
            [self.timeline.hit(chunk_id, score) for chunk_id, score in index.search(layer.flatten(), top_k, allowed)]
            for index, layer in zip(self._indexes, self._layers(query), strict=True)
        ]

    def search(self, query: Query, top_k: int, until_seconds: float, exclude: Collection[int] = ()) -> list[Hit]:
        """The union of all layers' choices, ranked by the mean of the layers' scores, at most `top_k`."""
        layers = self.search_layers(query, top_k, until_seconds, exclude)
        union = {hit.chunk_id for hits in layers for hit in hits}
        totals = dict.fromkeys(union, 0.0)
        for index, layer in zip(self._indexes, self._layers(query), strict=True):
            for chunk_id, score in index.search(layer.flatten(), len(union), union):
                totals[chunk_id] += score / len(self._indexes)
        ranked = sorted(totals, key=lambda chunk_id: (-totals[chunk_id], chunk_id))
        return [self.timeline.hit(chunk_id, totals[chunk_id]) for chunk_id in ranked[:top_k]]

    @property
    def index_kind(self) -> str:
        """Which index is in use; "none" before the first chunk."""
        return self._indexes[0].kind if self._indexes else "none"

    @property
    def num_bytes(self) -> int:
        return self.timeline.num_bytes + sum(index.num_bytes for index in self._indexes)

    def _allowed(self, until_seconds: float, exclude: Collection[int]) -> list[int]:
        return [chunk_id for chunk_id in self.timeline.allowed(until_seconds, exclude) if chunk_id in self._indexed]

    def _layers(self, query: Query) -> list[torch.Tensor]:
        layers = list(query.per_layer)
        if self._indexes and len(layers) != len(self._indexes):
            raise AdapterError(f"the question has queries of {len(layers)} layers, the memory keys of {len(self._indexes)}")
        return layers if self._indexes else []
