"""Perplexity verification: what was said last no longer fits what is seen.

LiveStar (arXiv 2511.05299): one teacher-forced pass of the last caption behind the newest picture; where its perplexity exceeds
alpha times what it was when it was said, there is something new to say.
"""

from __future__ import annotations

import math

from model_adapters.base import ModelAdapter
from vstream.triggers.base import Decision, LiveChunk, Trigger

ALPHA = 1.03


class Perplexity(Trigger):
    """Fires where the perplexity of the last caption exceeds `alpha` times its reference; always, before the first caption."""

    def __init__(self, adapter: ModelAdapter, question: str, alpha: float = ALPHA) -> None:
        self.adapter = adapter
        self.question = question
        self.alpha = alpha
        self._caption: str | None = None
        self._reference: float | None = None

    def told(self, caption: str) -> None:
        """`caption` was just said. Its perplexity at the next moment is what later ones are compared with."""
        self._caption, self._reference = caption, None

    def look(self, moment: LiveChunk) -> Decision:
        at = moment.at_seconds
        if self._caption is None:
            return Decision(at, True, math.inf, self.alpha, "nothing has been said yet")
        run = self.adapter.question_run(self.question)
        (likelihood,) = self.adapter.likelihoods(moment.live.fork(), run, [self._caption])
        perplexity = math.exp(-likelihood)
        if self._reference is None:
            self._reference = perplexity
        ratio = perplexity / self._reference
        words = "no longer fits" if ratio > self.alpha else "still fits"
        return Decision(at, ratio > self.alpha, ratio, self.alpha, f"what was said last {words} (perplexity ×{ratio:.2f})")
