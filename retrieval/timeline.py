"""The chunks a retriever knows, in stream order. Every retriever answers "which may I return?" from here."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Sequence

from memory.vectors import Summaries
from model_adapters.base import ChunkKV
from retrieval.base import Hit

TOLERANCE_SECONDS = 1e-6
"""Slots are products of floats: a chunk that ends this little after `until_seconds` still ends by it."""


class Timeline:
    """Ids and spans of chunks, ordered by start time."""

    def __init__(self) -> None:
        self._spans: dict[int, tuple[float, float]] = {}
        self._order: list[tuple[float, int]] = []

    def add(self, chunk: ChunkKV) -> None:
        """ValueError if the id is known already: a chunk is added once."""
        if chunk.chunk_id in self._spans:
            raise ValueError(f"chunk {chunk.chunk_id} is indexed already")
        self._spans[chunk.chunk_id] = (chunk.start_seconds, chunk.end_seconds)
        insort(self._order, (chunk.start_seconds, chunk.chunk_id))

    def restore(self, stored: Summaries) -> None:
        """Add many chunks at once. ValueError if one is known already."""
        ids, spans = stored.chunk_ids.tolist(), [(start, end) for start, end in stored.spans.tolist()]
        if known := self._spans.keys() & set(ids):
            raise ValueError(f"chunk {min(known)} is indexed already")
        self._spans.update(zip(ids, spans, strict=True))
        added = sorted((start, i) for i, (start, _) in zip(ids, spans, strict=True))
        in_order = not (self._order and added) or self._order[-1] < added[0]
        self._order.extend(added)
        if not in_order:
            self._order.sort()

    def remove(self, chunk_ids: Collection[int]) -> list[int]:
        """Forget chunks; returns those that were known."""
        known = [chunk_id for chunk_id in dict.fromkeys(chunk_ids) if chunk_id in self._spans]
        for chunk_id in known:
            start, _ = self._spans.pop(chunk_id)
            del self._order[bisect_left(self._order, (start, chunk_id))]
        return known

    def allowed(self, until_seconds: float, exclude: Collection[int] = ()) -> list[int]:
        """Ids of the chunks that end by `until_seconds` and are not excluded, in stream order."""
        excluded = set(exclude)
        until = until_seconds + TOLERANCE_SECONDS
        return [i for _, i in self._order if self._spans[i][1] <= until and i not in excluded]

    def holds_all(self, until_seconds: float) -> bool:
        """Whether every chunk ends by `until_seconds`: then a search needs no filter. Asked of the last chunk only."""
        return self.end_seconds <= until_seconds + TOLERANCE_SECONDS

    def beside(self, chunk_id: int, step: int) -> int | None:
        """The chunk `step` places after `chunk_id` in stream order (before, if negative), if there is one."""
        at = bisect_left(self._order, (self._spans[chunk_id][0], chunk_id)) + step
        return self._order[at][1] if 0 <= at < len(self._order) else None

    def ends_by(self, chunk_id: int, until_seconds: float) -> bool:
        return self._spans[chunk_id][1] <= until_seconds + TOLERANCE_SECONDS

    def span(self, chunk_id: int) -> tuple[float, float]:
        return self._spans[chunk_id]

    def hit(self, chunk_id: int, score: float) -> Hit:
        start, end = self._spans[chunk_id]
        return Hit(chunk_id, score, start, end)

    @property
    def end_seconds(self) -> float:
        """Where the last chunk ends; 0 if there is none."""
        return self._spans[self._order[-1][1]][1] if self._order else 0.0

    @property
    def num_bytes(self) -> int:
        """A fair estimate: two small tuples and their numbers per chunk, and two table slots."""
        return 300 * len(self._spans)

    def __len__(self) -> int:
        return len(self._spans)

    def __contains__(self, chunk_id: int) -> bool:
        return chunk_id in self._spans


def evenly(items: Sequence[int], num: int) -> list[int]:
    """At most `num` of `items`, in their order, spread evenly: each from the middle of its share."""
    if num <= 0:
        return []
    if len(items) <= num:
        return list(items)
    return [items[int((k + 0.5) * len(items) / num)] for k in range(num)]
