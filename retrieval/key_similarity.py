"""The default retriever: what the model's own keys say about a chunk, against the model's own queries for the question.

ReKV (arXiv 2503.00540) compares the mean key of a frame with the mean query of the question in every layer apart; here all
layers and heads are summed into one score, so that one set of chunks serves all layers and is evidence to a reader. Keys
are un-rotated (LiveVLM: MLVU 68.1 against 64.8 on rotated ones). Several vectors per chunk follow InfLLM (arXiv 2402.04617).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch

from data.errors import ConfigError
from memory.stored_vectors import StoredVectors
from memory.vectors import mean_key
from model_adapters.base import ChunkKV, Query
from retrieval.base import Hit, Retriever
from retrieval.chunk_index import INDEX_BYTES, ChunkIndex
from retrieval.timeline import Timeline

LATE = ("mean", "max", "tokens")


class KeySimilarity(Retriever):
    """A chunk's score is the sum over layers and KV heads of query · key, for

    late="mean": the mean key of the chunk's tokens (the mean of its attention logits, without position);
    late="max": the token with the largest sum: exact late interaction; holds every token's keys in float32;
    late="tokens": the same over `num_tokens` tokens per chunk, those farthest from the mean, so memory is bounded.

    A vector has layers * kv_heads * head_dim float32 numbers; a chunk has 1, all, or at most `num_tokens` of them.
    layers: index only these layers (all, if None), in favour of memory. index_bytes: see `retrieval.chunk_index`; in the late
    modes pooling joins tokens, too. ConfigError for an unknown `late`.
    """

    index: ChunkIndex

    def __init__(
        self,
        late: str = "mean",
        num_tokens: int = 4,
        layers: Sequence[int] | None = None,
        index_bytes: int = INDEX_BYTES,
    ) -> None:
        if late not in LATE:
            raise ConfigError(f"late={late!r} is not one of {', '.join(LATE)}")
        if num_tokens < 1:
            raise ConfigError(f"num_tokens={num_tokens} must be at least 1")
        self.late = late
        self.num_tokens = num_tokens
        self.layers = None if layers is None else list(layers)
        self.timeline = Timeline()
        self.index = ChunkIndex(self._flat, index_bytes)

    def add(self, chunk: ChunkKV) -> None:
        self.timeline.add(chunk)
        self.index.add(chunk.chunk_id, self._vectors(chunk)[:, None], chunk.num_tokens if self.late == "mean" else 1)

    def restore(self, stored: StoredVectors) -> None:
        if self.late != "mean":
            raise ConfigError(f"late={self.late!r} needs the keys of every token, which a stored memory does not index")
        self.timeline.restore(stored)
        self.index.restore(stored)

    def remove(self, chunk_ids: Collection[int]) -> None:
        self.index.remove(self.timeline.remove(chunk_ids))

    def search(self, query: Query, top_k: int, until_seconds: float, exclude: Collection[int] = ()) -> list[Hit]:
        best = self._best(query, top_k, until_seconds, exclude)
        return [self.timeline.hit(chunk_id, score) for chunk_id, score in best.items()]

    def scores(self, query: Query, until_seconds: float) -> tuple[np.ndarray, np.ndarray]:
        """ids int64 [n] and scores float32 [n] of all chunks that end by `until_seconds`, best first: what the gate reads."""
        best = self._best(query, len(self.timeline), until_seconds)
        return np.array(list(best), dtype=np.int64), np.array(list(best.values()), dtype=np.float32)

    @property
    def num_bytes(self) -> int:
        return self.timeline.num_bytes + self.index.num_bytes

    def _flat(self, mean_keys: np.ndarray) -> np.ndarray:
        return (mean_keys if self.layers is None else mean_keys[:, self.layers]).reshape(len(mean_keys), 1, -1)

    def _vectors(self, chunk: ChunkKV) -> torch.Tensor:
        """float32 [n, layers * kv_heads * head_dim]; n = 0 for a chunk without tokens, which nothing can find."""
        if self.late == "mean" and chunk.num_tokens:
            means = mean_key(chunk)
            return (means if self.layers is None else means[self.layers]).flatten()[None]
        keys = chunk.keys if self.layers is None else chunk.keys[self.layers]
        tokens = keys.float().permute(2, 0, 1, 3).flatten(1)
        if self.late == "max" or not len(tokens):
            return tokens
        mean = tokens.mean(0, keepdim=True)
        far = (tokens - mean).square().sum(1).topk(min(self.num_tokens, len(tokens))).indices
        return tokens[far.sort().values]

    def _best(self, query: Query, num: int, until_seconds: float, exclude: Collection[int] = ()) -> dict[int, float]:
        """The `num` best chunks with their scores, best first."""
        per_layer = query.per_layer if self.layers is None else query.per_layer[self.layers]
        # The usual case, a question about now, needs no filter.
        allowed = None if self.timeline.holds_all(until_seconds) else self.timeline.allowed(until_seconds)
        return self.index.search(per_layer.flatten()[None], num, allowed, exclude)[0]
