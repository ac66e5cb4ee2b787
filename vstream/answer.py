"""From a question to an answer with its evidence: sink + retrieved chunks in time order + recent window + question."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace

from data.errors import QuestionError
from memory.base import Bank
from model_adapters.base import AttentionTrace, ChunkKV, KVContext, ModelAdapter, Query
from retrieval.base import Hit, Retriever
from retrieval.per_layer import PerLayer
from retrieval.restored import Restored
from vstream.config import SessionConfig
from vstream.turns import Turns

MAX_QUESTION_CHARACTERS = 4000
MAX_EVIDENCE = 8
EVIDENCE_SHARE = 0.25
"""Evidence is what drew at least this share of the attention that the first of it drew."""


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
        with self._built(question, sink, view, run.num_tokens) as built:
            trace = AttentionTrace() if built.shared else None
            num_tokens = built.context.num_tokens + run.num_tokens
            answer = Answer("", kind, view.asked_at_seconds, built.evidence(None), 0.0, num_tokens)
            tokens = self.adapter.generate(
                built.context, run, config.max_new_tokens, float(config.temperature), config.seed, trace=trace
            )
            while True:
                with self.turns.answer():
                    text = next(tokens, None)
                if not answer.ttft_seconds:
                    answer = replace(answer, ttft_seconds=time.perf_counter() - started)
                answer = replace(answer, evidence=built.evidence(trace))
                if text is None:
                    break
                answer = replace(answer, text=text)
                yield answer
        yield replace(answer, done=True)

    def choose(self, question: str, options: Sequence[str], sink: ChunkKV, view: View) -> tuple[Answer, int]:
        """The likeliest of `options` as the answer, and its number."""
        started = time.perf_counter()
        run = self.adapter.question_run(question)
        with self._built(question, sink, view, run.num_tokens) as built, self.turns.answer():
            num_tokens = built.context.num_tokens + run.num_tokens
            found = self.adapter.likelihoods(built.context, run, options)
        choice = found.index(max(found))
        seconds = time.perf_counter() - started
        answer = Answer(options[choice], "choice", view.asked_at_seconds, built.evidence(None), seconds, num_tokens, True)
        return answer, choice

    @contextmanager
    def _built(self, question: str, sink: ChunkKV, view: View, num_question_tokens: int) -> Iterator[Built]:
        """The context for one answer: a copy, so the chunks behind it are let go as soon as it is made."""
        with self.turns.answer():
            query = self.adapter.encode_question(question)
            # Inside the turn: a retriever is used by one thread at a time, and ingest adds to it.
            layers = self._search(query, view)
        hits = {hit.chunk_id: hit for row in layers for hit in row}
        wanted = sorted(hits, key=lambda chunk_id: hits[chunk_id].start_seconds)
        tiers = {chunk_id: self.bank.tier(chunk_id) or "gone" for chunk_id in wanted}
        # One gather per answer, and read outside of the turn: the stream does not wait for the disk.
        with closing(self._read(wanted, together=len(layers) > 1)) as groups:
            built = self._context(sink, view, layers, groups, tiers, num_question_tokens)
        yield built

    def _read(self, wanted: list[int], together: bool) -> Generator[list[ChunkKV], None, None]:
        """What memory gives back, some at a time; all at once where the chunks of one layer are placed by those of others."""
        if together:
            yield self.bank.get(wanted)
        else:
            yield from self.bank.stream(wanted)

    def _search(self, query: Query, view: View) -> list[list[Hit]]:
        """The chunks to bring back: one row for all layers, or a row for each."""
        exclude = [kv.chunk_id for kv in view.window]
        retriever, top_k = self.retriever, self.config.top_k
        if not top_k:
            return [[]]
        if isinstance(retriever, Restored):
            retriever = retriever.ready()
        if isinstance(retriever, PerLayer):
            return retriever.search_layers(query, top_k, view.until_seconds, exclude)
        return [retriever.search(query, top_k, view.until_seconds, exclude)]

    def _context(
        self,
        sink: ChunkKV,
        view: View,
        layers: list[list[Hit]],
        groups: Iterator[list[ChunkKV]],
        tiers: dict[int, str],
        num_question_tokens: int,
    ) -> Built:
        """The context for one answer: a copy, so that nothing stored is held or changed by what is done with it.

        groups: what memory gives back of the hits, in time order, as it is read.
        """
        adapter = self.adapter
        hits = {hit.chunk_id: hit for row in layers for hit in row}
        recent = [*view.window, *([view.partial] if view.partial else [])]
        room = sum(kv.num_tokens for kv in [sink, *recent]) + num_question_tokens + self.config.max_new_tokens
        shared = len(layers) == 1
        context: KVContext | None = None
        read: list[Placed] = []
        for group in groups:
            with self.turns.answer():
                if context is None:
                    # As if all were as long as these; the buffers grow where they are not.
                    room += sum(kv.num_tokens for kv in group) * len(hits) // max(1, len(group))
                    context = adapter.new_context(room)
                    adapter.append(context, [sink])
                if shared:
                    adapter.append(context, group)
                else:
                    chunks = {kv.chunk_id: kv for kv in group}
                    rows = [[chunks[i] for i in sorted(hit.chunk_id for hit in row) if i in chunks] for row in layers]
                    adapter.append_layers(context, rows)
            read += map(Placed.of, group)
        assert context is not None
        with self.turns.answer():
            # What memory could not give back, dropped or damaged, must not be found again.
            self.retriever.remove(hits.keys() - {seen.chunk_id for seen in read})
            adapter.append(context, recent)
        found = [hits[seen.chunk_id] for seen in read]
        return Built(context, sink.num_tokens, [*read, *map(Placed.of, recent)], found, tiers, shared)


@dataclass(frozen=True)
class Placed:
    """A chunk that stands in a context, without its KV."""

    chunk_id: int
    start_seconds: float
    end_seconds: float
    num_tokens: int

    @classmethod
    def of(cls, kv: ChunkKV) -> Placed:
        return cls(kv.chunk_id, kv.start_seconds, kv.end_seconds, kv.num_tokens)


@dataclass(frozen=True)
class Built:
    """A context with what stands in it. chunks: in order behind the sink. shared: all layers hold the same chunks."""

    context: KVContext
    num_sink_tokens: int
    chunks: list[Placed]
    hits: list[Hit]
    tiers: dict[int, str]
    shared: bool

    def evidence(self, trace: AttentionTrace | None) -> tuple[Evidence, ...]:
        """The moments that the answer looked at, most first, with their share of its attention to the stream.

        Without a trace: what was retrieved, with the retriever's scores.
        """
        if trace is None or trace.weights is None:
            found = sorted(self.hits, key=lambda hit: -hit.score)
            return tuple(Evidence(h.chunk_id, h.start_seconds, h.end_seconds, h.score, self.tiers[h.chunk_id]) for h in found)
        # One way from the device for all chunks, since this is asked with every token of the answer.
        weights = trace.weights[self.num_sink_tokens :].cpu().split([kv.num_tokens for kv in self.chunks])
        sums = [float(w.sum()) for w in weights]
        total = sum(sums) or 1.0
        moments = sorted(zip(sums, self.chunks, strict=True), key=lambda pair: -pair[0])[:MAX_EVIDENCE]
        least = EVIDENCE_SHARE * (moments[0][0] if moments else 0.0)
        return tuple(
            Evidence(kv.chunk_id, kv.start_seconds, kv.end_seconds, share / total, self.tiers.get(kv.chunk_id, "window"))
            for share, kv in moments
            if share >= least
        )


def answer_fields(answer: Answer) -> dict[str, object]:
    """The fields of an answer that `--json` and batch rows share, ready for JSON."""
    return {
        "answer": answer.text,
        "asked_at_seconds": round(answer.asked_at_seconds, 3),
        "evidence": [asdict(e) for e in answer.evidence],
        "ttft_seconds": round(answer.ttft_seconds, 4),
        "num_context_tokens": answer.num_context_tokens,
    }


def checked_question(question: str) -> str:
    """The question without surrounding space. Raises QuestionError if it is empty, too long, or no text."""
    question = question.strip()
    if not question:
        raise QuestionError("the question is empty; ask something about the stream")
    if len(question) > MAX_QUESTION_CHARACTERS:
        raise QuestionError(f"the question has {len(question)} characters; {MAX_QUESTION_CHARACTERS} is the most, shorten it")
    if not is_text(question):
        raise QuestionError("the question holds characters that are no text; write it in UTF-8")
    return question


def is_text(words: str) -> bool:
    """Whether `words` can be written down: what came out of undecodable bytes or half a surrogate pair cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in words)
