"""The controls that stand in every table: what an answer may see, from nothing to the schedule's own evidence."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from model_adapters.base import ChunkKV, Query
from retrieval.base import Hit, Retriever
from retrieval.baselines import All, NoneRetriever, TimeOnly, Uniform
from retrieval.compose import compose_retriever
from vstream.answer import Answer, Answerer, View
from vstream.session import StreamSession

MAX_ALL_TOKENS = 8192
"""The control that shows all chunks stands down beyond this many tokens of context."""


class Oracle(TimeOnly):
    """Brings back the chunks that it is told to: the ceiling of retrieval."""

    wanted: Collection[int] = ()

    def search(self, query: Query, top_k: int, until_seconds: float, exclude: Collection[int] = ()) -> list[Hit]:
        return [self.timeline.hit(i, 1.0) for i in self.timeline.allowed(until_seconds, exclude) if i in self.wanted]


@dataclass
class Arm:
    """One way to answer over the same stored stream. last_seconds: how much of the window it sees (None: all of it)."""

    name: str
    retriever: Retriever
    last_seconds: float | None = None

    def answer(
        self, session: StreamSession, question: str, view: View, wanted: Collection[int]
    ) -> tuple[Answer | None, list[Hit]]:
        """The answer, or None where this arm stands down; and what was retrieved for it, best first."""
        adapter = session.adapter
        if isinstance(self.retriever, Oracle):
            self.retriever.wanted = wanted
        if isinstance(self.retriever, All) and session.stats.num_stored_tokens > MAX_ALL_TOKENS:
            return None, []
        if self.last_seconds is not None:
            first = view.until_seconds - self.last_seconds - 1e-6
            partial = view.partial if self.last_seconds > 0 else None
            view = replace(view, window=tuple(kv for kv in view.window if kv.start_seconds >= first), partial=partial)
        answerer = Answerer(adapter, session.config, session.bank, self.retriever, session.turns)
        hits = self.retriever.search(
            adapter.encode_question(question), session.config.top_k, view.until_seconds, [kv.chunk_id for kv in view.window]
        )
        *_, last = answerer.answer(question, session.ingest.sink, view)
        return last, hits


def make_arms() -> list[Arm]:
    """Ours first, then the controls."""
    return [
        Arm("key_similarity", compose_retriever("key_similarity")),
        Arm("late interaction", compose_retriever("key_similarity", late="max")),
        Arm("per_layer", compose_retriever("per_layer")),
        Arm("blind", NoneRetriever(), last_seconds=0),
        Arm("last 4 s", NoneRetriever(), last_seconds=4),
        Arm("last window", NoneRetriever()),
        Arm("uniform", Uniform()),
        Arm("all", All()),
        Arm("oracle", Oracle()),
    ]


def remember(arms: list[Arm], chunks: list[ChunkKV], gone: Collection[int]) -> None:
    """Show new chunks to every arm, and let it forget those that memory dropped."""
    for arm in arms:
        arm.retriever.remove(gone)
        for kv in chunks:
            arm.retriever.add(kv)
