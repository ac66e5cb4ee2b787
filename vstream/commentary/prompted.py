"""Commentary by prompting: any model, asked at every moment that a gate finds worth it; it may answer with silence.

The context is its own and is built anew for each turn: sink, the last seconds of vision, and its own last words in the prompt.
"""

from __future__ import annotations

import time
from collections import deque

from memory.base import outside
from model_adapters.base import ChunkKV, ModelAdapter
from vstream.commentary.base import STYLES, Commentator, NarrationRules, Utterance
from vstream.commentary.guards import DuplicateGuard, WordBudget, is_silence, said_in, shortened
from vstream.config import SessionConfig
from vstream.prompts import Prompts
from vstream.triggers import AnyOf, Gated, LiveChunk, Poll, SilenceToken, Trigger, create_gate
from vstream.turns import Turns

VISION_SECONDS = 8.0
TOKENS_PER_WORD = 3
"""Room for long words when a budget of words becomes one of tokens."""


class PromptedCommentator(Commentator):
    """Asks `prompts.comment` where the gate opens. sink: what stands before the stream, as ingest stored it."""

    def __init__(
        self, adapter: ModelAdapter, config: SessionConfig, prompts: Prompts, rules: NarrationRules, sink: ChunkKV, turns: Turns
    ) -> None:
        self.adapter = adapter
        self.config = config
        self.prompts = prompts
        self.rules = rules
        self.sink = sink
        self.turns = turns
        self.wants_live = rules.silence_threshold is not None
        self.trigger = self._create_trigger()
        self._vision: deque[ChunkKV] = deque()
        self._said: deque[Utterance] = deque(maxlen=64)
        self._guard = DuplicateGuard(rules.guard_last)
        self._budget = WordBudget(rules.words_per_second or prompts.words_per_second)

    def _create_trigger(self) -> Trigger:
        gate = AnyOf([create_gate(self.config), Poll(self.rules.poll_seconds)])
        threshold = self.rules.silence_threshold
        if threshold is None:
            return gate
        return Gated(gate, SilenceToken(self.adapter, self._question(()), self.prompts.silence, threshold))

    def look(self, moment: LiveChunk) -> list[Utterance]:
        started = time.perf_counter()
        try:
            preceded = self._see(moment)
            with self.turns.answer():
                due = self.trigger.look(moment).fired
            num_words = self._budget.available(moment.record.end_seconds)
            # What came and what was there already cannot be told apart where nothing before is in view.
            due = due and (preceded or moment.begins)
            text = self._comment(num_words) if due and num_words else ""
        finally:
            self.spent_seconds += time.perf_counter() - started
        if is_silence(text, self.prompts.silence) or self._guard.seen(text):
            return []
        self._guard.add(text)
        self._budget.spend(text)
        self._said.append(Utterance(moment.record.start_seconds, moment.record.end_seconds, text))
        return [self._said[-1]]

    def forget(self, start_seconds: float, end_seconds: float) -> None:
        self._vision = deque(kv for kv in self._vision if outside(kv, start_seconds, end_seconds))
        self._said = deque((u for u in self._said if outside(u, start_seconds, end_seconds)), self._said.maxlen)

    def finish(self) -> list[Utterance]:
        """Nothing: every turn is a whole."""
        return []

    def _see(self, moment: LiveChunk) -> bool:
        """Take the newest chunk into view. Returns whether anything before it was in view."""
        if not self._vision:
            # Commentary that begins in the middle of a stream knows what was there before.
            self._vision.extend(moment.before)
        preceded = bool(self._vision)
        self._vision.append(moment.kv)
        start = moment.kv.end_seconds - (self.rules.vision_seconds or VISION_SECONDS) - 1e-6
        while self._vision[0].start_seconds < start:
            self._vision.popleft()
        return preceded

    def _comment(self, num_words: int) -> str:
        """One turn: the model's words, free of loops and at most `num_words` of them."""
        adapter, room = self.adapter, TOKENS_PER_WORD * num_words
        with self.turns.answer():
            run = adapter.question_run(self._question(self._tail()))
            chunks = [self.sink, *self._vision]
            context = adapter.new_context(sum(kv.num_tokens for kv in chunks) + run.num_tokens + room)
            adapter.append(context, chunks)
        tokens = adapter.generate(context, run, room)
        return shortened(said_in(tokens, num_words, self.turns).strip(), num_words)

    def _tail(self) -> tuple[str, ...]:
        """Its own last words, as many as fit into `text_tokens`."""
        if not self.prompts.takes_talk:
            return ()
        said = [utterance.text for utterance in self._said]
        alone = self.adapter.question_run(self._question(())).num_tokens
        while said and self.adapter.question_run(self._question(said)).num_tokens - alone > self.rules.text_tokens:
            said.pop(0)
        return tuple(said)

    def _question(self, said: tuple[str, ...] | list[str]) -> str:
        background = STYLES[self.rules.style] + (f"{self.rules.background.strip()} " if self.rules.background.strip() else "")
        spoken = f"You have said so far: {' '.join(said)} " if said else ""
        return self.prompts.comment.format(background=background + spoken)
