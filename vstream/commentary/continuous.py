"""Continuous commentary, for checkpoints that were trained to speak second by second and to be silent in between.

StreamingVLM (arXiv 2510.09608): every second is one step, its vision and then its words, or the word for silence. In view are
the first 512 tokens of text, the last 512, and the last 16 s of vision; all else is thrown away, and what stays moves up to
contiguous positions. Nothing is computed twice: keys are held un-rotated and turned to the positions that they get.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from memory.base import outside
from model_adapters.base import ChunkKV, KVContext, ModelAdapter, TokenRun
from vstream.commentary.base import STYLES, Commentator, NarrationRules, Utterance
from vstream.commentary.guards import DuplicateGuard, WordBudget, is_silence, said_in, shortened, without_loop
from vstream.prompts import Prompts
from vstream.triggers import LiveChunk
from vstream.turns import Turns

VISION_SECONDS = 16.0
TOKENS_PER_WORD = 3
SENTENCE_END = (".", "!", "?", "…")
MAX_SENTENCE_SECONDS = 12.0
"""A sentence that goes on for longer is told in parts."""


@dataclass(frozen=True)
class Segment:
    """What one step added: its "vision", or its words; the first words are the text "sink" and stay, later ones are "text"."""

    kind: str
    kv: ChunkKV


def in_view(segments: Sequence[Segment], vision_seconds: float, text_tokens: int, now_seconds: float) -> list[Segment]:
    """The segments that stay: the sink, recent vision, and of the other text the last `text_tokens` tokens, in whole pieces."""
    room = text_tokens
    for oldest in range(len(segments) - 1, -1, -1):
        if segments[oldest].kind == "text":
            room -= segments[oldest].kv.num_tokens
            if room < 0:
                break
    else:
        oldest = -1
    first = now_seconds - vision_seconds - 1e-6
    stays = {
        "sink": lambda i, kv: True,
        "text": lambda i, kv: i > oldest,
        "vision": lambda i, kv: kv.start_seconds >= first,
    }
    return [segment for i, segment in enumerate(segments) if stays[segment.kind](i, segment.kv)]


class ContinuousCommentator(Commentator):
    """One step per chunk. Words become an utterance when their sentence ends, or when silence follows."""

    def __init__(self, adapter: ModelAdapter, prompts: Prompts, rules: NarrationRules, sink: ChunkKV, turns: Turns) -> None:
        self.adapter = adapter
        self.prompts = prompts
        self.rules = rules
        self.turns = turns
        self._budget = WordBudget(rules.words_per_second or prompts.words_per_second)
        self._guard = DuplicateGuard(rules.guard_last)
        self._begun: list[Utterance] = []
        self._segments: list[Segment] = []
        self._sink = sink
        self._sink_room: int | None = rules.text_tokens
        """Tokens that the text sink still takes; None once a text has not fitted."""
        with turns.answer():
            self._context = adapter.new_context(1024)
            adapter.append(self._context, [sink])
            opening = " ".join(
                part for part in (STYLES[rules.style].strip(), prompts.opening, rules.background.strip()) if part
            )
            if opening:
                self._add(self._without_tail(adapter.question_run(opening + "\n")), True, 0.0, 0.0)

    @property
    def context(self) -> KVContext:
        """What the next step stands behind."""
        return self._context

    def look(self, moment: LiveChunk) -> list[Utterance]:
        started = time.perf_counter()
        record = moment.record
        with self.turns.answer():
            self._slide(record.end_seconds)
            self._add(moment.run, False, record.start_seconds, record.end_seconds)
        text = self._speak(self._budget.available(record.end_seconds))
        with self.turns.answer():
            spoken = text + self.prompts.pause or self.prompts.silence
            run = self._without_tail(self.adapter.question_run("", [("", spoken)]))
            self._add(run, True, record.start_seconds, record.end_seconds)
        self.spent_seconds += time.perf_counter() - started
        return self._said(text, record.start_seconds, record.end_seconds)

    def forget(self, start_seconds: float, end_seconds: float) -> None:
        kept = [segment for segment in self._segments if outside(segment.kv, start_seconds, end_seconds)]
        self._begun = [part for part in self._begun if outside(part, start_seconds, end_seconds)]
        with self.turns.answer():
            self._renew(kept)

    def finish(self) -> list[Utterance]:
        return self._whole()

    def _speak(self, num_words: int) -> str:
        """The words of this step; none for silence."""
        room = max(1, TOKENS_PER_WORD * num_words)
        tokens = self.adapter.generate(self._context.fork(), self.adapter.question_run(""), room)
        text = said_in(tokens, num_words, self.turns).strip().removesuffix(self.prompts.pause.strip())
        if is_silence(text, self.prompts.silence) or not num_words:
            return ""
        text = shortened(text.strip(), num_words)
        self._budget.spend(text)
        return text

    def _said(self, text: str, start_seconds: float, end_seconds: float) -> list[Utterance]:
        """Collect the words of a step; the whole utterance, once it is one."""
        if not text:
            return self._whole()
        self._begun.append(Utterance(start_seconds, end_seconds, text))
        long = end_seconds - self._begun[0].start_seconds >= MAX_SENTENCE_SECONDS
        return self._whole() if text.endswith(SENTENCE_END) or long else []

    def _whole(self) -> list[Utterance]:
        begun, self._begun = self._begun, []
        text, _ = without_loop(" ".join(part.text for part in begun))
        if not begun or self._guard.seen(text):
            return []
        self._guard.add(text)
        return [Utterance(begun[0].start_seconds, begun[-1].end_seconds, text)]

    def _add(self, run: TokenRun, is_text: bool, start_seconds: float, end_seconds: float) -> None:
        keys, values = self.adapter.extend(self._context, run)
        kind = "vision"
        if is_text:
            fits = self._sink_room is not None and run.num_tokens <= self._sink_room
            self._sink_room = self._sink_room - run.num_tokens if fits and self._sink_room is not None else None
            kind = "sink" if fits else "text"
        kv = ChunkKV(0, keys, values, run.position_ids, run.span, start_seconds, end_seconds)
        self._segments.append(Segment(kind, kv))

    def _slide(self, now_seconds: float) -> None:
        """Throw away what is out of view; what stays is given contiguous positions again."""
        kept = in_view(self._segments, self.rules.vision_seconds or VISION_SECONDS, self.rules.text_tokens, now_seconds)
        if len(kept) < len(self._segments):
            self._renew(kept)

    def _renew(self, kept: list[Segment]) -> None:
        self._segments = kept
        chunks = [self._sink, *(segment.kv for segment in kept)]
        self._context = self.adapter.new_context(2 * sum(kv.num_tokens for kv in chunks))
        self.adapter.append(self._context, chunks)

    def _without_tail(self, run: TokenRun) -> TokenRun:
        """A run of text without the start of an answer at its end, so that vision can follow."""
        size = run.num_tokens - self.adapter.question_run("").num_tokens
        span = run.span * size // run.num_tokens
        return TokenRun(run.embeds[:size], run.position_ids[:, :size], span, run.visual_mask[:size])
