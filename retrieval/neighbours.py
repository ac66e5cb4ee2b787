"""Hits widened in time: what came after a thing is proved by the chunks that follow it, not by the chunk that shows it."""

from __future__ import annotations

import re
from collections.abc import Collection

from memory.stored_vectors import StoredVectors
from model_adapters.base import ChunkKV, Query
from retrieval.base import Hit, Retriever
from retrieval.timeline import Timeline

FORWARD = re.compile(r"\b(?:after|afterwards|next|then|follow\w*)\b", re.IGNORECASE)
BACKWARD = re.compile(r"\b(?:before|previous\w*|prior|preced\w*)\b", re.IGNORECASE)


class Neighbours(Retriever):
    """A retriever whose hits bring the `before` and `after` chunks beside them in stream order, nearest first.

    A question that asks for what came after (or before) what it names gets `far` chunks on that side and none on the other.
    The best hit comes first with all its neighbours, then the next, until `top_k` is reached. A neighbour carries the score
    of the hit that brought it. Neighbours obey `until_seconds` and `exclude` like hits.
    """

    def __init__(self, base: Retriever, before: int = 1, after: int = 1, far: int = 6) -> None:
        self.base = base
        self.index = base.index
        self.before = before
        self.after = after
        self.far = far
        self.timeline = Timeline()

    def add(self, chunk: ChunkKV) -> None:
        self.timeline.add(chunk)
        self.base.add(chunk)

    def remove(self, chunk_ids: Collection[int]) -> None:
        self.timeline.remove(chunk_ids)
        self.base.remove(chunk_ids)

    def restore(self, stored: StoredVectors) -> None:
        self.timeline.restore(stored)
        self.base.restore(stored)

    def search(self, query: Query, top_k: int, until_seconds: float, exclude: Collection[int] = ()) -> list[Hit]:
        excluded = set(exclude)
        before, after = self.reach(query.text)
        steps = sorted([*range(-before, 0), *range(1, after + 1)], key=lambda step: (abs(step), -step))
        widened: dict[int, Hit] = {}
        for hit in self.base.search(query, top_k, until_seconds, exclude):
            widened.setdefault(hit.chunk_id, hit)
            for step in steps:
                near = self.timeline.beside(hit.chunk_id, step)
                if near is not None and near not in excluded and self.timeline.ends_by(near, until_seconds):
                    widened.setdefault(near, self.timeline.hit(near, hit.score))
        return list(widened.values())[: max(0, top_k)]

    def reach(self, question: str) -> tuple[int, int]:
        """How many chunks before and after a hit the question needs."""
        forward, backward = FORWARD.search(question), BACKWARD.search(question)
        if bool(forward) == bool(backward):
            return self.before, self.after
        return (0, self.far) if forward else (self.far, 0)

    @property
    def num_bytes(self) -> int:
        return self.timeline.num_bytes + self.base.num_bytes
