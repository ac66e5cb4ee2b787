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
from memory.vectors import Summaries, mean_key
from model_adapters.base import ChunkKV, Query
from retrieval.base import Hit, Retriever
from retrieval.index import Index, create_index
from retrieval.timeline import Timeline

LATE = ("mean", "max", "tokens")


class KeySimilarity(Retriever):
    """A chunk's score is the sum over layers and KV heads of query · key, for

    late="mean": the mean key of the chunk's tokens (the mean of its attention logits, without position);
    late="max": the token with the largest sum: exact late interaction; holds every token's keys in float32;
    late="tokens": the same over `num_tokens` tokens per chunk, those farthest from the mean, so memory is bounded.

    A vector has layers * kv_heads * head_dim float32 numbers; a chunk has 1, all, or at most `num_tokens` of them.
    layers: index only these layers (all, if None), in favour of memory. ConfigError for an unknown `late`.
    """

    def __init__(self, late: str = "mean", num_tokens: int = 4, layers: Sequence[int] | None = None) -> None:
        if late not in LATE:
            raise ConfigError(f"late={late!r} is not one of {', '.join(LATE)}")
        if num_tokens < 1:
            raise ConfigError(f"num_tokens={num_tokens} must be at least 1")
        self.late = late
        self.num_tokens = num_tokens
        self.layers = None if layers is None else list(layers)
        self.timeline = Timeline()
        self._index: Index | None = None
        self._rows: dict[int, range] = {}
        self._chunk_of: dict[int, int] = {}
        self._next_row = 0

    def add(self, chunk: ChunkKV) -> None:
        self.timeline.add(chunk)
        vectors = self._vectors(chunk)
        self._add_rows({chunk.chunk_id: len(vectors)}, vectors)

    def restore(self, stored: Summaries) -> None:
        if self.late != "mean":
            raise ConfigError(f"late={self.late!r} needs the keys of every token, which a stored memory does not index")
        self.timeline.restore(stored)
        means = torch.from_numpy(stored.mean_keys if self.layers is None else stored.mean_keys[:, self.layers])
        there = stored.num_tokens > 0
        counts = dict(zip(stored.chunk_ids.tolist(), there.astype(int).tolist(), strict=True))
        self._add_rows(counts, means.flatten(1)[torch.from_numpy(there)])

    def _add_rows(self, counts: dict[int, int], vectors: torch.Tensor) -> None:
        """counts: how many of `vectors` belong to each chunk, in order."""
        self._index = self._index or create_index(vectors.shape[1])
        first = self._next_row
        for chunk_id, count in counts.items():
            rows = range(self._next_row, self._next_row + count)
            self._next_row = rows.stop
            self._rows[chunk_id] = rows
            self._chunk_of.update(dict.fromkeys(rows, chunk_id))
        if self._next_row > first:
            self._index.add(range(first, self._next_row), vectors)

    def remove(self, chunk_ids: Collection[int]) -> None:
        rows = [row for chunk_id in self.timeline.remove(chunk_ids) for row in self._rows.pop(chunk_id)]
        for row in rows:
            del self._chunk_of[row]
        if self._index is not None:
            self._index.remove(rows)

    def search(self, query: Query, top_k: int, until_seconds: float, exclude: Collection[int] = ()) -> list[Hit]:
        if self.timeline.holds_all(until_seconds):
            # The usual case, a question about now: fetching a few too many is cheaper than a selector over all ids.
            wider = self._best(query, top_k + len(exclude), None)
            best = dict([(i, score) for i, score in wider.items() if i not in exclude][: max(0, top_k)])
        else:
            best = self._best(query, top_k, self.timeline.allowed(until_seconds, exclude))
        return [self.timeline.hit(chunk_id, score) for chunk_id, score in best.items()]

    def scores(self, query: Query, until_seconds: float) -> tuple[np.ndarray, np.ndarray]:
        """ids int64 [n] and scores float32 [n] of all chunks that end by `until_seconds`, best first: what the gate reads."""
        allowed = self.timeline.allowed(until_seconds)
        best = self._best(query, len(allowed), allowed)
        return np.array(list(best), dtype=np.int64), np.array(list(best.values()), dtype=np.float32)

    @property
    def index_kind(self) -> str:
        """Which index is in use; "none" before the first chunk."""
        return "none" if self._index is None else self._index.kind

    @property
    def num_bytes(self) -> int:
        # Two table slots and a number per row.
        index = 0 if self._index is None else self._index.num_bytes
        return self.timeline.num_bytes + index + 150 * len(self._chunk_of)

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

    def _best(self, query: Query, num: int, allowed: list[int] | None) -> dict[int, float]:
        """The `num` best chunks with their scores, best first. allowed: ids to choose from; None: all."""
        if self._index is None or num <= 0:
            return {}
        per_layer = query.per_layer if self.layers is None else query.per_layer[self.layers]
        rows = None if allowed is None else [row for chunk_id in allowed for row in self._rows[chunk_id]]
        num_there = len(self._index) if rows is None else len(rows)
        num_rows = num
        while True:
            found = self._index.search(per_layer.flatten(), num_rows, rows)
            best: dict[int, float] = {}
            for row, score in found:
                # A chunk's first row in this order is its best one.
                best.setdefault(self._chunk_of[row], score)
            if len(best) >= num or len(found) == num_there:
                return dict(list(best.items())[:num])
            num_rows = min(num_there, 2 * num_rows)
