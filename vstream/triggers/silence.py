"""Silence as a token: speak unless the model would rather say nothing.

VideoLLM-online (arXiv 2406.11816) speaks unless P(interval token) reaches 0.725; LiveCC (2504.16030) and StreamingVLM
(2510.09608) set how much they talk by a threshold on their token of silence. For checkpoints that have such a word.
"""

from __future__ import annotations

from model_adapters.base import ModelAdapter
from vstream.triggers.base import Decision, LiveChunk, Trigger

THRESHOLD = 0.725


class SilenceToken(Trigger):
    """Fires where the probability that the answer to `question` begins with `word` is below `threshold`."""

    def __init__(self, adapter: ModelAdapter, question: str, word: str, threshold: float = THRESHOLD) -> None:
        self.adapter = adapter
        self.question = question
        self.word = word
        self.threshold = threshold

    def look(self, moment: LiveChunk) -> Decision:
        run = self.adapter.question_run(self.question)
        silence = float(self.adapter.openings(moment.live, [run], [self.word]).exp())
        fired = silence < self.threshold
        words = f"the model {'wants to speak' if fired else 'keeps silent'} (silence {silence:.2f})"
        return Decision(moment.at_seconds, fired, silence, self.threshold, words)
