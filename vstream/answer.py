"""From a question to an answer with its evidence: sink + retrieved chunks in time order + recent window + question."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from data.errors import QuestionError
from memory.base import Bank
from model_adapters.base import ChunkKV, KVContext, ModelAdapter, Query
from retrieval.base import Hit, Retriever
from retrieval.per_layer import PerLayer
from vstream.config import SessionConfig
from vstream.turns import Turns

MAX_QUESTION_CHARACTERS = 4000


@dataclass(frozen=True)
class Evidence:
    """A moment that an answer rests on. tier: where its KV was when the question came; "window" was in view anyway."""

    chunk_id: int
    start_seconds: float
    end_seconds: float
    score: float
    tier: str


@dataclass(frozen=True)
class Answer:
    """An answer as it grows: `text` so far, `done` in the last one.

    kind: "answer", later "comment" or "alert". asked_at_seconds: stream time of the question. ttft_seconds: wall time from
    the question to its first token.
    """

    text: str
    kind: str
    asked_at_seconds: float
    evidence: tuple[Evidence, ...]
    ttft_seconds: float
    num_context_tokens: int
    done: bool = False


@dataclass(frozen=True)
class View:
    """What a question at one moment may see: the window's chunks, the unfinished chunk, and how far memory counts."""

    asked_at_seconds: float
    until_seconds: float
    window: tuple[ChunkKV, ...]
    partial: ChunkKV | None


class Answerer:
    """The question path of one stream. It builds a context for each answer and throws it away."""

    def __init__(self, adapter: ModelAdapter, config: SessionConfig, bank: Bank, retriever: Retriever, turns: Turns) -> None:
        self.adapter = adapter
        self.config = config
        self.bank = bank
        self.retriever = retriever
        self.turns = turns

    def answer(
        self, question: str, sink: ChunkKV, view: View, turns: Sequence[tuple[str, str]] = (), kind: str = "answer"
    ) -> Iterator[Answer]:
        """Yield the growing answer; the last one is `done`. Close the iterator to cancel without a trace."""
        started = time.perf_counter()
        run = self.adapter.question_run(question, turns)
        config = self.config
        with self._built(question, sink, view, run.num_tokens) as (context, evidence):
            answer = Answer("", kind, view.asked_at_seconds, evidence, 0.0, context.num_tokens + run.num_tokens)
            tokens = self.adapter.generate(context, run, config.max_new_tokens, config.temperature, config.seed)
            while True:
                with self.turns.answer():
                    text = next(tokens, None)
                if not answer.ttft_seconds:
                    answer = replace(answer, ttft_seconds=time.perf_counter() - started)
                if text is None:
                    break
                answer = replace(answer, text=text)
                yield answer
        yield replace(answer, done=True)

    def choose(self, question: str, options: Sequence[str], sink: ChunkKV, view: View) -> tuple[Answer, int]:
        """The likeliest of `options` as the answer, and its number."""
        started = time.perf_counter()
        run = self.adapter.question_run(question)
        with self._built(question, sink, view, run.num_tokens) as (context, evidence), self.turns.answer():
            found = self.adapter.likelihoods(context, run, options)
        choice = found.index(max(found))
        seconds = time.perf_counter() - started
        return Answer(options[choice], "choice", view.asked_at_seconds, evidence, seconds, context.num_tokens, True), choice

    @contextmanager
    def _built(
        self, question: str, sink: ChunkKV, view: View, num_question_tokens: int
    ) -> Iterator[tuple[KVContext, tuple[Evidence, ...]]]:
        """The context for one answer and its evidence; the chunks behind them stay pinned while it is open."""
        with self.turns.answer():
            query = self.adapter.encode_question(question)
        layers = self._search(query, view)
        hits = list({hit.chunk_id: hit for row in layers for hit in row}.values())
        tiers = {hit.chunk_id: self.bank.tier(hit.chunk_id) for hit in hits}
        with self.bank.pinned([hit.chunk_id for hit in hits]):
            with self.turns.answer():
                context, read = self._context(sink, view, layers, num_question_tokens)
            yield context, self._evidence(query, [hit for hit in hits if hit.chunk_id in read], view, tiers)

    def _search(self, query: Query, view: View) -> list[list[Hit]]:
        """The chunks to bring back: one row for all layers, or a row for each."""
        exclude = [kv.chunk_id for kv in view.window]
        retriever, top_k = self.retriever, self.config.top_k
        if not top_k:
            return [[]]
        if isinstance(retriever, PerLayer):
            return retriever.search_layers(query, top_k, view.until_seconds, exclude)
        return [retriever.search(query, top_k, view.until_seconds, exclude)]

    def _context(
        self, sink: ChunkKV, view: View, layers: list[list[Hit]], num_question_tokens: int
    ) -> tuple[KVContext, set[int]]:
        """The context for one answer, and the ids of the retrieved chunks that could be read."""
        wanted = sorted({hit.chunk_id: hit for row in layers for hit in row}.values(), key=lambda hit: hit.start_seconds)
        chunks = {kv.chunk_id: kv for kv in self.bank.get([hit.chunk_id for hit in wanted])}
        recent = [*view.window, *([view.partial] if view.partial else [])]
        room = sum(kv.num_tokens for kv in [sink, *chunks.values(), *recent])
        context = self.adapter.new_context(room + num_question_tokens + self.config.max_new_tokens)
        if len(layers) == 1:
            self.adapter.append(context, [sink, *chunks.values(), *recent])
        else:
            self.adapter.append(context, [sink])
            rows = [[chunks[i] for i in sorted(hit.chunk_id for hit in row) if i in chunks] for row in layers]
            self.adapter.append_layers(context, rows)
            self.adapter.append(context, recent)
        return context, set(chunks)

    def _evidence(self, query: Query, hits: list[Hit], view: View, tiers: dict[int, str | None]) -> tuple[Evidence, ...]:
        """Retrieved and window chunks, those most alike the question first."""
        moments = [Evidence(h.chunk_id, h.start_seconds, h.end_seconds, h.score, tiers[h.chunk_id] or "gone") for h in hits]
        return tuple(sorted(moments, key=lambda e: -e.score))


def checked_question(question: str) -> str:
    """The question without surrounding space. Raises QuestionError if it is empty or too long."""
    question = question.strip()
    if not question:
        raise QuestionError("the question is empty; ask something about the stream")
    if len(question) > MAX_QUESTION_CHARACTERS:
        raise QuestionError(f"the question has {len(question)} characters; {MAX_QUESTION_CHARACTERS} is the most, shorten it")
    return question
