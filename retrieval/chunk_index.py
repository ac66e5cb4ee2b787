"""The vectors of chunks: of those watched now in RAM, within a budget, of those of a stored memory in its file.

When the budget is spent, a stored memory takes over what it holds on disk (see `retrieval.restored`). Without one, the vectors
of old neighbours are pooled: two become their mean, weighted by the tokens behind each, which for mean keys is exactly the mean
key of both chunks together, and stands for both from then on. That a block of tokens is found through one vector is InfLLM's
(arXiv 2402.04617); that blocks double with age, about as many of each size, is the exponential histogram of Datar, Gionis,
Indyk and Motwani (SIAM J. Comput. 31(6), 2002): a stream twice as long needs one more size, and the recent past stays whole.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import torch

from memory.stored_vectors import StoredVectors
from retrieval.index import ID_BYTES, Index, kind_of_index
from retrieval.timeline import as_ids

logger = logging.getLogger(__name__)

INDEX_BYTES = 2**30
ROW_BYTES = 300
"""What the tables hold of a row beside its vector, about."""


def chunk_bytes(num_layers: int, dim: int) -> int:
    """What one chunk's mean key takes up in RAM. dim: kv_heads * head_dim."""
    return 4 * num_layers * dim + ID_BYTES + ROW_BYTES


Select = Callable[[np.ndarray], np.ndarray]
"""mean keys float32 [m, layers, kv_heads * head_dim] → vectors float32 [m, groups, dim]."""


@dataclass
class Row:
    """One vector per group, and the chunks that it stands for. num_tokens: behind it. level: how often it was pooled."""

    chunk_ids: list[int]
    num_tokens: int
    level: int = 0


@dataclass
class Part:
    """Chunks of a stored memory. there: bool [n], those that are still to be found."""

    stored: StoredVectors
    there: np.ndarray


class ChunkIndex:
    """Vectors [groups, dim] of chunks, each group searched by itself. A chunk's score is that of its best vector.

    capacity_bytes: for vectors in RAM and their tables. What is pooled is logged once and counted in `num_pooled`. A pooled
    vector stays as it is until the last of its chunks is removed.
    """

    def __init__(self, select: Select, capacity_bytes: int = INDEX_BYTES) -> None:
        """select: which part of a chunk's mean keys is searched."""
        self.capacity_bytes = capacity_bytes
        self._select = select
        self._kind = kind_of_index()
        self._indexes: list[Index] = []
        self._rows: dict[int, Row] = {}
        self._rows_of: dict[int, list[int]] = {}
        self._next_row = 0
        self._parts: list[Part] = []

    def add(self, chunk_id: int, vectors: torch.Tensor, num_tokens: int) -> None:
        """vectors: float [n, groups, dim], any n. num_tokens: behind each of them."""
        if not len(vectors):
            return
        self._indexes = self._indexes or [self._kind(vectors.shape[2]) for _ in range(vectors.shape[1])]
        self._add_rows([Row([chunk_id], num_tokens) for _ in vectors], vectors)
        while self.num_ram_bytes > self.capacity_bytes and len(self._rows) > 1:
            self._pool()

    def restore(self, stored: StoredVectors) -> None:
        """Chunks that are not known yet. Their vectors stay where they are; those without tokens cannot be found."""
        self._parts.append(Part(stored, stored.num_tokens > 0))

    def remove(self, chunk_ids: Collection[int]) -> None:
        """Unknown ids are ignored."""
        if not len(chunk_ids):
            return
        for part in self._parts:
            part.there &= ~np.isin(part.stored.chunk_ids, as_ids(chunk_ids))
        self._parts = [part for part in self._parts if part.there.any()]
        gone = []
        for chunk_id in chunk_ids:
            for row in self._rows_of.pop(chunk_id, ()):
                self._rows[row].chunk_ids.remove(chunk_id)
                if not self._rows[row].chunk_ids:
                    gone.append(row)
        self._remove_rows(gone)

    def search(
        self, queries: torch.Tensor, k: int, allowed: np.ndarray | None, exclude: Collection[int] = ()
    ) -> list[dict[int, float]]:
        """For every group the `k` best chunks with their scores, best first.

        queries: float [groups, dim]. allowed: ids to choose from; None: all. A vector that also stands for chunks that are not
        allowed is left out: its score would tell of them. exclude: ids that are not wanted.
        """
        if k <= 0:
            return [{} for _ in queries]
        found = [self._search_ram(group, query, k, allowed, set(exclude)) for group, query in enumerate(queries)]
        plain = queries.detach().to("cpu", torch.float32).numpy()
        for part in self._parts:
            wanted = part.there & ~np.isin(part.stored.chunk_ids, as_ids(exclude))
            if allowed is not None:
                wanted &= np.isin(part.stored.chunk_ids, allowed)
            scores = part.stored.scores(lambda keys: self._products(keys, plain), len(plain))
            scores[~wanted] = -np.inf
            for best, column in zip(found, scores.T, strict=True):
                best |= _largest(part.stored.chunk_ids, column, k)
        return [dict(sorted(best.items(), key=lambda pair: (-pair[1], pair[0]))[:k]) for best in found]

    @property
    def kind(self) -> str:
        """What searches the vectors, for stats."""
        return self._kind.kind

    @property
    def num_ram_bytes(self) -> int:
        """What the budget is for."""
        return sum(index.num_bytes for index in self._indexes) + ROW_BYTES * len(self._rows)

    @property
    def num_bytes(self) -> int:
        """All that is held in RAM."""
        return self.num_ram_bytes + sum(part.stored.num_bytes + part.there.nbytes for part in self._parts)

    @property
    def is_full(self) -> bool:
        """Whether the next chunk would have vectors pooled."""
        return bool(self._rows) and self.num_ram_bytes * (1 + 1 / len(self._rows)) > self.capacity_bytes

    @property
    def num_pooled(self) -> int:
        """Chunks that share their vector with others."""
        # A copy, which is atomic: a page asks while the stream goes on.
        return sum(len(row.chunk_ids) for row in list(self._rows.values()) if len(row.chunk_ids) > 1)

    def _products(self, keys: np.ndarray, queries: np.ndarray) -> np.ndarray:
        """float32 [m, groups]."""
        vectors = self._select(keys)
        return np.stack([self._kind.products(query, vectors[:, group]) for group, query in enumerate(queries)], axis=1)

    def _search_ram(
        self, group: int, query: torch.Tensor, k: int, allowed: np.ndarray | None, exclude: set[int]
    ) -> dict[int, float]:
        rows = None
        if allowed is not None:
            there = set(allowed.tolist())
            rows = [number for number, row in self._rows.items() if there.issuperset(row.chunk_ids)]
        num_there = len(self._rows) if rows is None else len(rows)
        num = k + len(exclude)
        while num_there:
            best: dict[int, float] = {}
            # Fetching a few too many is cheaper than a selector that leaves out what is excluded.
            for number, score in self._indexes[group].search(query, num, rows):
                # A chunk's first row in this order is its best one.
                for chunk_id in self._rows[number].chunk_ids:
                    if chunk_id not in exclude:
                        best.setdefault(chunk_id, score)
            if len(best) >= k or num >= num_there:
                return dict(list(best.items())[:k])
            num *= 2
        return {}

    def _add_rows(self, rows: list[Row], vectors: torch.Tensor) -> None:
        numbers = range(self._next_row, self._next_row + len(rows))
        self._next_row = numbers.stop
        for number, row in zip(numbers, rows, strict=True):
            self._rows[number] = row
            for chunk_id in row.chunk_ids:
                self._rows_of.setdefault(chunk_id, []).append(number)
        for group, index in enumerate(self._indexes):
            index.add(numbers, vectors[:, group])

    def _remove_rows(self, numbers: Collection[int]) -> None:
        for number in numbers:
            for chunk_id in self._rows.pop(number).chunk_ids:
                self._rows_of[chunk_id].remove(number)
        for index in self._indexes:
            index.remove(numbers)

    def _pool(self) -> None:
        """Of the size that there are most of, the older half: two neighbours each become one."""
        if not self.num_pooled:
            logger.warning("the index is full (index_bytes=%d): vectors of old neighbours are pooled", self.capacity_bytes)
        levels = Counter(row.level for row in self._rows.values())
        level, num = max(levels.items(), key=lambda pair: (pair[1], pair[0]))
        # Where every size is there once, the two oldest are joined.
        some = [number for number, row in self._rows.items() if row.level == level or num < 2]
        oldest = sorted(some, key=lambda number: self._rows[number].chunk_ids[0])[: max(2, num // 4 * 2)]
        pairs = [(self._rows[a], self._rows[b]) for a, b in zip(oldest[::2], oldest[1::2], strict=True)]
        weights = torch.tensor([[a.num_tokens, b.num_tokens] for a, b in pairs], dtype=torch.float32)
        weights = (weights / weights.sum(1, keepdim=True))[..., None]
        pooled = [(index.vectors(oldest).view(len(pairs), 2, -1) * weights).sum(1) for index in self._indexes]
        self._remove_rows(oldest)
        rows = [
            Row(list(dict.fromkeys(a.chunk_ids + b.chunk_ids)), a.num_tokens + b.num_tokens, max(a.level, b.level) + 1)
            for a, b in pairs
        ]
        self._add_rows(rows, torch.stack(pooled, dim=1))


def _largest(chunk_ids: np.ndarray, scores: np.ndarray, k: int) -> dict[int, float]:
    """At most `k` ids with the largest finite scores, in no particular order. NaN is no score."""
    at = np.flatnonzero(scores > -np.inf)
    if len(at) > k:
        at = at[np.argpartition(-scores[at], k - 1)[:k]]
    return dict(zip(chunk_ids[at].tolist(), scores[at].tolist(), strict=True))
