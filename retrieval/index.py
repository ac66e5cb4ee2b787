"""Vectors by id, searched by inner product: FAISS, and a slow torch twin that says what FAISS must return."""

from __future__ import annotations

import importlib.util
import logging
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
import torch

logger = logging.getLogger(__name__)

ID_BYTES = 16
"""An id and its place, beside a vector."""

Found = list[tuple[int, float]]
"""(id, inner product), best first."""


MARGIN = 0.25
"""Of the range of what an 8-bit index has seen: this much more is left on either side for what is to come."""
LEVELS = 255


class Index(ABC):
    """float32 vectors of one dimension, by integer id. Searches are exact.

    like: float [n, dim]; then a number is kept in 8 bits, within the range that its place in these vectors has, and a margin;
    what is outside becomes the nearest there is. The error of a number is at most half a step, 1.5 ranges / 255.
    """

    kind: str
    """Which implementation this is, for stats."""
    dim: int
    item_bytes: int
    """Of a number as it is kept."""

    @abstractmethod
    def __init__(self, dim: int, like: torch.Tensor | None = None) -> None: ...

    @staticmethod
    @abstractmethod
    def products(query: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        """float32 [n]: inner products of `query` (float32 [dim]) with `vectors` (float32 [n, dim]) that are in no index.

        Bit for bit as `search` would find them if they were.
        """

    @abstractmethod
    def add(self, ids: Collection[int], vectors: torch.Tensor) -> None:
        """vectors: float [len(ids), dim] on any device. Ids are new."""

    @abstractmethod
    def remove(self, ids: Iterable[int]) -> None:
        """Unknown ids are ignored."""

    @abstractmethod
    def search(self, query: torch.Tensor, k: int, allowed: Collection[int] | None = None) -> Found:
        """At most `k` ids with the largest inner products with `query` (float [dim]), among `allowed` ids where given."""

    @abstractmethod
    def vectors(self, ids: Collection[int]) -> torch.Tensor:
        """float32 [len(ids), dim]: vectors that are there, as they are kept."""

    @abstractmethod
    def __len__(self) -> int:
        """How many vectors there are."""

    @property
    def num_bytes(self) -> int:
        """Bytes of vectors and ids."""
        return len(self) * (self.item_bytes * self.dim + ID_BYTES)


class VectorIndex(Index):
    """FAISS: IndexIDMap2 over IndexFlatIP, with an id selector where only some ids are allowed."""

    kind = "faiss-flat"

    def __init__(self, dim: int, like: torch.Tensor | None = None) -> None:
        import faiss

        self.dim = dim
        self.item_bytes = 4 if like is None else 1
        self._faiss: Any = faiss
        if like is None:
            flat: Any = faiss.IndexFlatIP(dim)
        else:
            flat = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
            flat.sq.rangestat_arg = MARGIN
            flat.train(_to_numpy(like))
        self._index = faiss.IndexIDMap2(flat)

    def add(self, ids: Collection[int], vectors: torch.Tensor) -> None:
        self._index.add_with_ids(_to_numpy(vectors), np.fromiter(ids, np.int64, len(ids)))

    def remove(self, ids: Iterable[int]) -> None:
        unwanted = np.array(sorted(set(ids)), dtype=np.int64)
        if len(unwanted):
            self._index.remove_ids(self._faiss.IDSelectorBatch(unwanted))

    def search(self, query: torch.Tensor, k: int, allowed: Collection[int] | None = None) -> Found:
        k = min(k, len(self) if allowed is None else len(allowed))
        if k <= 0:
            return []
        parameters = None
        if allowed is not None:
            selector = self._faiss.IDSelectorBatch(np.fromiter(allowed, np.int64, len(allowed)))
            parameters = self._faiss.SearchParameters(sel=selector)
        scores, ids = self._index.search(_to_numpy(query)[None], k, params=parameters)
        return [(i, s) for i, s in zip(ids[0].tolist(), scores[0].tolist(), strict=True) if i >= 0]

    @staticmethod
    def products(query: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        library: Any = importlib.import_module("faiss")
        query, vectors = np.ascontiguousarray(query), np.ascontiguousarray(vectors)
        found = np.empty(len(vectors), dtype=np.float32)
        pointers = map(library.swig_ptr, (found, query, vectors))
        library.fvec_inner_products_ny(*pointers, vectors.shape[1], len(vectors))
        return found

    def vectors(self, ids: Collection[int]) -> torch.Tensor:
        return torch.from_numpy(self._index.reconstruct_batch(np.fromiter(ids, np.int64, len(ids))))

    def __len__(self) -> int:
        return int(self._index.ntotal)


class BruteIndex(Index):
    """The same in a few lines of torch: the specification, and the fallback where FAISS is not installed."""

    kind = "torch-brute"

    def __init__(self, dim: int, like: torch.Tensor | None = None) -> None:
        self.dim = dim
        self.item_bytes = 4 if like is None else 1
        self._vectors: dict[int, torch.Tensor] = {}
        self._low, self._range = torch.zeros(dim), torch.ones(dim)
        if like is not None:
            low, high = like.detach().to("cpu", torch.float32).aminmax(dim=0)
            self._low, self._range = low - MARGIN * (high - low), (1 + 2 * MARGIN) * (high - low)

    def add(self, ids: Collection[int], vectors: torch.Tensor) -> None:
        kept = vectors.detach().to("cpu", torch.float32).clone()
        if self.item_bytes == 1:
            share = ((kept - self._low) / self._range.clamp(min=1e-30)).clamp(0, 1)
            kept = (share * LEVELS).to(torch.uint8)
        self._vectors.update(zip(ids, kept, strict=True))

    def remove(self, ids: Iterable[int]) -> None:
        for unwanted in ids:
            self._vectors.pop(unwanted, None)

    def search(self, query: torch.Tensor, k: int, allowed: Collection[int] | None = None) -> Found:
        wanted = None if allowed is None else set(allowed)
        ids = [i for i in self._vectors if wanted is None or i in wanted]
        if not ids or k <= 0:
            return []
        scores = self.vectors(ids) @ query.detach().to("cpu", torch.float32)
        best = scores.topk(min(k, len(ids)))
        return [(ids[row], score) for score, row in zip(best.values.tolist(), best.indices.tolist(), strict=True)]

    @staticmethod
    def products(query: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        return (torch.from_numpy(np.ascontiguousarray(vectors)) @ torch.from_numpy(query)).numpy()

    def vectors(self, ids: Collection[int]) -> torch.Tensor:
        kept = torch.stack([self._vectors[i] for i in ids])
        return kept if self.item_bytes == 4 else self._low + (kept.float() + 0.5) / LEVELS * self._range

    def __len__(self) -> int:
        return len(self._vectors)


def kind_of_index() -> type[Index]:
    """FAISS where it is installed, else the torch index, which is said in the log and in `kind`."""
    if importlib.util.find_spec("faiss") is not None:
        return VectorIndex
    logger.warning("faiss is not installed: searching with the slower torch index")
    return BruteIndex


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().to("cpu", torch.float32).numpy())
