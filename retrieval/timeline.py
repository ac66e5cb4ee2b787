"""The chunks a retriever knows, in stream order. Every retriever answers "which may I return?" from here."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from memory.stored_vectors import StoredVectors
from model_adapters.base import ChunkKV
from retrieval.base import Hit

TOLERANCE_SECONDS = 1e-6
"""Slots are products of floats: a chunk that ends this little after `until_seconds` still ends by it."""


class Timeline:
    """Ids and spans of chunks, ordered by start time; in columns, since a day has a hundred thousand."""

    def __init__(self) -> None:
        self._ids = np.zeros(0, dtype=np.int64)
        self._spans = np.zeros((0, 2))
        self._places = np.zeros(0, dtype=np.int64)
        """The places of the chunks by rising id."""
        self._fresh: dict[int, tuple[float, float]] = {}
        """What was added since the columns were made."""

    def add(self, chunk: ChunkKV) -> None:
        """ValueError if the id is known already: a chunk is added once."""
        if chunk.chunk_id in self:
            raise ValueError(f"chunk {chunk.chunk_id} is indexed already")
        self._fresh[chunk.chunk_id] = (chunk.start_seconds, chunk.end_seconds)

    def restore(self, stored: StoredVectors) -> None:
        """Add many chunks at once. ValueError if one is known already."""
        self._settle()
        if (known := np.isin(stored.chunk_ids, self._ids)).any():
            raise ValueError(f"chunk {stored.chunk_ids[known].min()} is indexed already")
        self._order(np.concatenate([self._ids, stored.chunk_ids]), np.concatenate([self._spans, stored.spans]))

    def remove(self, chunk_ids: Collection[int]) -> list[int]:
        """Forget chunks; returns those that were known."""
        if not len(chunk_ids) or not len(self):
            return []
        fresh = [i for i in dict.fromkeys(chunk_ids) if self._fresh.pop(i, None) is not None] if self._fresh else []
        gone = np.isin(self._ids, as_ids(chunk_ids))
        if not gone.any():
            return fresh
        known = self._ids[gone].tolist()
        self._order(self._ids[~gone], self._spans[~gone])
        return [*known, *fresh]

    def allowed(self, until_seconds: float, exclude: Collection[int] = ()) -> np.ndarray:
        """int64: ids of the chunks that end by `until_seconds` and are not excluded, in stream order."""
        self._settle()
        allowed = self._spans[:, 1] <= until_seconds + TOLERANCE_SECONDS
        if len(exclude):
            allowed &= ~np.isin(self._ids, as_ids(exclude))
        return self._ids[allowed]

    def overlapping(self, start_seconds: float, end_seconds: float, until_seconds: float) -> np.ndarray:
        """int64: ids of the chunks that overlap a span, or hold it if it is a moment, and end by `until_seconds`, in stream
        order."""
        self._settle()
        starts, ends = self._spans.T
        if start_seconds == end_seconds:
            inside = (starts <= start_seconds) & (start_seconds < ends)
        else:
            inside = (starts < end_seconds) & (ends > start_seconds)
        return self._ids[inside & (ends <= until_seconds + TOLERANCE_SECONDS)]

    def holds_all(self, until_seconds: float) -> bool:
        """Whether every chunk ends by `until_seconds`: then a search needs no filter. Asked of the last chunk only."""
        return self.end_seconds <= until_seconds + TOLERANCE_SECONDS

    def beside(self, chunk_id: int, step: int) -> int | None:
        """The chunk `step` places after `chunk_id` in stream order (before, if negative), if there is one."""
        self._settle()
        at = self._place(chunk_id) + step
        return int(self._ids[at]) if 0 <= at < len(self._ids) else None

    def ends_by(self, chunk_id: int, until_seconds: float) -> bool:
        return self.span(chunk_id)[1] <= until_seconds + TOLERANCE_SECONDS

    def span(self, chunk_id: int) -> tuple[float, float]:
        """KeyError for an unknown id."""
        if chunk_id in self._fresh:
            return self._fresh[chunk_id]
        start, end = self._spans[self._place(chunk_id)].tolist()
        return start, end

    def hit(self, chunk_id: int, score: float) -> Hit:
        start, end = self.span(chunk_id)
        return Hit(chunk_id, score, start, end)

    @property
    def end_seconds(self) -> float:
        """Where the last chunk ends; 0 if there is none."""
        self._settle()
        return float(self._spans[-1, 1]) if len(self._ids) else 0.0

    @property
    def num_bytes(self) -> int:
        """A fair estimate: columns, and a small tuple with its numbers and a table slot for what is new."""
        return 32 * len(self._ids) + 200 * len(self._fresh)

    def __len__(self) -> int:
        return len(self._ids) + len(self._fresh)

    def __contains__(self, chunk_id: int) -> bool:
        if chunk_id in self._fresh:
            return True
        at = int(np.searchsorted(self._ids, chunk_id, sorter=self._places))
        return at < len(self._ids) and int(self._ids[self._places[at]]) == chunk_id

    def _place(self, chunk_id: int) -> int:
        """KeyError for an id that is not in the columns."""
        if chunk_id not in self:
            raise KeyError(chunk_id)
        return int(self._places[np.searchsorted(self._ids, chunk_id, sorter=self._places)])

    def _settle(self) -> None:
        """Bring what is new into the columns."""
        if self._fresh:
            ids, spans = np.array(list(self._fresh), dtype=np.int64), np.array(list(self._fresh.values()))
            self._fresh.clear()
            self._order(np.concatenate([self._ids, ids]), np.concatenate([self._spans, spans]))

    def _order(self, ids: np.ndarray, spans: np.ndarray) -> None:
        if not (spans[1:, 0] > spans[:-1, 0]).all():
            order = np.lexsort((ids, spans[:, 0]))
            ids, spans = ids[order], spans[order]
        self._ids, self._spans = ids, spans
        self._places = np.argsort(self._ids, kind="stable")


def as_ids(chunk_ids: Collection[int]) -> np.ndarray:
    """int64 [n]."""
    return np.fromiter(chunk_ids, np.int64, len(chunk_ids))


def evenly(items: Sequence[int], num: int) -> list[int]:
    """At most `num` of `items`, in their order, spread evenly: each from the middle of its share."""
    if num <= 0:
        return []
    if len(items) <= num:
        return list(items)
    return [items[int((k + 0.5) * len(items) / num)] for k in range(num)]
