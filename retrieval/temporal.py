"""Retrieval by the times that the question itself names, and its combination with any other retriever."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace

from data.errors import ConfigError
from memory.stored_vectors import StoredVectors
from model_adapters.base import ChunkKV, Query
from retrieval.base import Hit, Retriever
from retrieval.baselines import TimeOnly
from retrieval.timeline import evenly
from retrieval.times import TimeSpan, parse_times

__all__ = ["Combined", "Temporal", "TimeSpan", "parse_times"]


class Temporal(TimeOnly):
    """The chunks that overlap the times named in the question, then `margin` chunks on either side; nothing if it names none.

    "Now" is `until_seconds`. Spans that hold more chunks than there is room for are thinned evenly, the shortest span last.
    Score: 1 / (1 + seconds from the chunk's middle to the middle of its span), plus 1 for chunks inside a span.
    """

    def __init__(self, margin: int = 1) -> None:
        if margin < 0:
            raise ConfigError(f"margin={margin} must be 0 or more")
        super().__init__()
        self.margin = margin

    def search(self, query: Query, top_k: int, until_seconds: float, exclude: Collection[int] = ()) -> list[Hit]:
        now = until_seconds if math.isfinite(until_seconds) else self.timeline.end_seconds
        spans = parse_times(query.text, now)
        if not spans:
            return []
        excluded = set(exclude)
        inside = [self.timeline.overlapping(s.start_seconds, s.end_seconds, until_seconds).tolist() for s in spans]
        scores: dict[int, float] = {}
        room = top_k
        # The shortest span first: an exact time must not be crowded out by a long one beside it.
        ranked = sorted(range(len(spans)), key=lambda number: len(inside[number]))
        for left, number in zip(range(len(ranked), 0, -1), ranked, strict=True):
            wanted = [chunk_id for chunk_id in inside[number] if chunk_id not in excluded and chunk_id not in scores]
            for chunk_id in evenly(wanted, -(-room // left)):
                scores[chunk_id] = 1.0 + self._closeness(chunk_id, spans[number])
                room -= 1
        beside: dict[int, float] = {}
        for span, named in zip(spans, inside, strict=True):
            edges = [(named[0], -1), (named[-1], 1)] if named else []
            for edge, step in edges:
                for k in range(1, self.margin + 1):
                    near = self.timeline.beside(edge, k * step)
                    if near is not None and near not in excluded and self.timeline.ends_by(near, until_seconds):
                        beside[near] = max(beside.get(near, 0.0), self._closeness(near, span))
        best = sorted((beside | scores).items(), key=lambda item: (-item[1], item[0]))
        return [self.timeline.hit(chunk_id, score) for chunk_id, score in best[: max(0, top_k)]]

    def _closeness(self, chunk_id: int, span: TimeSpan) -> float:
        start, end = self.timeline.span(chunk_id)
        return 1.0 / (1.0 + abs((start + end) - (span.start_seconds + span.end_seconds)) / 2)


class Combined(Retriever):
    """Two retrievers as one: what `first` finds comes first, and `base` fills up to `top_k`.

    The scores of `first` are raised by one constant so that they stand above those of `base`; where `first` finds nothing
    the result is that of `base`, unchanged.
    """

    def __init__(self, first: Retriever, base: Retriever) -> None:
        self.first = first
        self.base = base
        self.index = base.index

    def add(self, chunk: ChunkKV) -> None:
        self.first.add(chunk)
        self.base.add(chunk)

    def remove(self, chunk_ids: Collection[int]) -> None:
        self.first.remove(chunk_ids)
        self.base.remove(chunk_ids)

    def restore(self, stored: StoredVectors) -> None:
        self.first.restore(stored)
        self.base.restore(stored)

    def search(self, query: Query, top_k: int, until_seconds: float, exclude: Collection[int] = ()) -> list[Hit]:
        named = self.first.search(query, top_k, until_seconds, exclude)
        taken = {*exclude, *(hit.chunk_id for hit in named)}
        fill = self.base.search(query, top_k - len(named), until_seconds, taken) if len(named) < top_k else []
        if named and fill:
            lift = max(0.0, fill[0].score - named[-1].score + 1.0)
            named = [replace(hit, score=hit.score + lift) for hit in named]
        return named + fill

    @property
    def num_bytes(self) -> int:
        return self.first.num_bytes + self.base.num_bytes
