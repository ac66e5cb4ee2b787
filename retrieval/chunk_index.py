"""The vectors of chunks: of those watched now in RAM, within a budget, of those of a stored memory in its file.

When the budget is spent, a stored memory takes over what it holds on disk (see `retrieval.restored`). Without one, vectors are
kept in 8 bits per number from then on, which is a quarter. When that is spent, too, neighbours that are most alike share a
vector: their mean, weighted by the tokens behind each, which for mean keys is exactly the mean key of them all. Joining the
most alike of all neighbours in time is MovieChat's (arXiv 2307.16449); how alike they are is measured by what joining adds to
the squared distances from the mean (Ward 1963, doi 10.1080/01621459.1963.10500845), so that what is seldom keeps its own vector
longest. Sharing has its price: see `eval.run day --index-bytes`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from memory.stored_vectors import StoredVectors
from retrieval.index import ID_BYTES, Index, kind_of_index
from retrieval.timeline import as_ids

logger = logging.getLogger(__name__)

INDEX_BYTES = 2**30
AT_A_TIME_BYTES = 2**26
"""Of vectors that are compared with each other."""
ROW_BYTES = 300
"""What the tables hold of a row beside its vector, about."""


def chunk_bytes(num_layers: int, dim: int) -> int:
    """What one chunk's mean key takes up in RAM. dim: kv_heads * head_dim."""
    return 4 * num_layers * dim + ID_BYTES + ROW_BYTES


Select = Callable[[np.ndarray], np.ndarray]
"""mean keys float32 [m, layers, kv_heads * head_dim] → vectors float32 [m, groups, dim]."""


@dataclass
class Row:
    """One vector per group, and the chunks that it stands for. num_tokens: behind the vector."""

    chunk_ids: list[int]
    num_tokens: int


@dataclass
class Part:
    """Chunks of a stored memory. there: bool [n], those that are still to be found."""

    stored: StoredVectors
    there: np.ndarray


class ChunkIndex:
    """Vectors [groups, dim] of chunks, each group searched by itself. A chunk's score is that of its best vector.

    capacity_bytes: for vectors in RAM and their tables. What is done to keep to it is logged once and told by `is_coarse` and
    `num_pooled`. A shared vector stays as it is until the last of its chunks is removed.
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
            if self._is_worth_coarsening:
                self._coarsen()
            else:
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
        # Begun anew, it need not be coarse.
        self._indexes = self._indexes if self._rows else []

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
        """Whether there is no room for the next chunk."""
        return bool(self._rows) and self.num_ram_bytes * (1 + 1 / len(self._rows)) > self.capacity_bytes

    @property
    def is_coarse(self) -> bool:
        """Whether vectors in RAM are kept in 8 bits per number."""
        return bool(self._indexes) and self._indexes[0].item_bytes == 1

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

    @property
    def _is_worth_coarsening(self) -> bool:
        """Where vectors are so short that their tables weigh most, 8 bits win too little for what they cost."""
        index = self._indexes[0]
        return index.item_bytes > 1 and len(self._indexes) * index.dim > ROW_BYTES

    def _coarsen(self) -> None:
        """Keep every number in 8 bits from now on."""
        logger.warning("the index is full (index_bytes=%d): its vectors are kept in 8 bits per number", self.capacity_bytes)
        order = list(self._rows)
        step = max(1, AT_A_TIME_BYTES // (4 * self._indexes[0].dim))
        for group, index in enumerate(self._indexes):
            coarse = self._kind(index.dim, like=index.vectors(order[:: -(-len(order) // step)]))
            for start in range(0, len(order), step):
                some = order[start : start + step]
                coarse.add(some, index.vectors(some))
            self._indexes[group] = coarse

    def _pool(self) -> None:
        """Join the neighbours that are most alike, in pairs, until there are an eighth fewer rows."""
        if not self.num_pooled:
            logger.warning("the index is full (index_bytes=%d): neighbours that are alike share a vector", self.capacity_bytes)
        order = sorted(self._rows, key=lambda number: self._rows[number].chunk_ids[0])
        used: set[int] = set()
        firsts: list[int] = []
        for at in self._costs(order).argsort(stable=True).tolist():
            if not {at, at + 1} & used:
                used |= {at, at + 1}
                firsts.append(at)
                if len(firsts) >= len(order) / 8:
                    break
        joined = [number for at in firsts for number in order[at : at + 2]]
        pairs = [(self._rows[a], self._rows[b]) for a, b in zip(joined[::2], joined[1::2], strict=True)]
        weights = torch.tensor([[a.num_tokens, b.num_tokens] for a, b in pairs], dtype=torch.float32)
        weights = (weights / weights.sum(1, keepdim=True))[..., None]
        vectors = [(index.vectors(joined).view(len(pairs), 2, -1) * weights).sum(1) for index in self._indexes]
        self._remove_rows(joined)
        rows = [Row(list(dict.fromkeys(a.chunk_ids + b.chunk_ids)), a.num_tokens + b.num_tokens) for a, b in pairs]
        self._add_rows(rows, torch.stack(vectors, dim=1))

    def _costs(self, order: Sequence[int]) -> torch.Tensor:
        """float32 [n - 1]: what it costs to join each row with the one behind it."""
        weights = torch.tensor([self._rows[number].num_tokens for number in order], dtype=torch.float32)
        costs = torch.zeros(len(order) - 1)
        step = max(1, AT_A_TIME_BYTES // (4 * self._indexes[0].dim))
        for index in self._indexes:
            for start in range(0, len(costs), step):
                vectors = index.vectors(order[start : start + step + 1])
                costs[start : start + step] += vectors.diff(dim=0).square_().sum(1)
        return costs * weights[1:] * weights[:-1] / (weights[1:] + weights[:-1])


def _largest(chunk_ids: np.ndarray, scores: np.ndarray, k: int) -> dict[int, float]:
    """At most `k` ids with the largest finite scores, in no particular order. NaN is no score."""
    at = np.flatnonzero(scores > -np.inf)
    if len(at) > k:
        at = at[np.argpartition(-scores[at], k - 1)[:k]]
    return dict(zip(chunk_ids[at].tolist(), scores[at].tolist(), strict=True))
