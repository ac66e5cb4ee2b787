"""A conversation about a stream, as the chat shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vstream.answer import Answer
from vstream.ui.text import clock, escaped


@dataclass(frozen=True)
class Exchange:
    """A question and what came of it: the newest state of its answer, or an error in words."""

    question: str
    answer: Answer | None = None
    error: str = ""
    stopped: bool = False

    @property
    def reply(self) -> str:
        """The answer as plain text."""
        if self.error:
            return f"⚠ {self.error}"
        text = self.answer.text if self.answer else ""
        if self.stopped:
            return f"{text} (stopped)".strip()
        return text or ("(no answer)" if self.answer and self.answer.done else "…")

    @property
    def note(self) -> str:
        """What the evidence chips belong to."""
        if self.answer is None:
            return ""
        if not self.answer.evidence:
            return f"Asked at {clock(self.answer.asked_at_seconds)}: no moment stood out."
        return f"Asked at {clock(self.answer.asked_at_seconds)}: moments this answer rests on, the best match first"


def messages(exchanges: Sequence[Exchange]) -> list[dict[str, str]]:
    """The chat, two messages per exchange.

    Escaped here: the chat shows HTML even where Markdown is off, and an `<img>` in an answer would ask a foreign server.
    """
    return [
        message
        for exchange in exchanges
        for message in (
            {"role": "user", "content": escaped(exchange.question)},
            {"role": "assistant", "content": escaped(exchange.reply)},
        )
    ]


def finished_turns(exchanges: Sequence[Exchange]) -> list[tuple[str, str]]:
    """The (question, answer) pairs that a follow-up question may refer to."""
    return [(e.question, e.answer.text) for e in exchanges if e.answer and e.answer.done]
