"""What keeps commentary from chattering: no loops, nothing twice, not more words than can be spoken.

A guard against loops is a must on long input: released commentary models fall into them (LiveCC, arXiv 2504.16030).
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator

from data.questions import canonical
from vstream.turns import Turns

SHORT_PHRASE = 2
"""A phrase of up to this many words is a loop from its third repetition on, a longer one from its second."""
MAX_SAVED_SECONDS = 4.0
"""Silence earns words for this long at most."""


def without_loop(text: str) -> tuple[str, bool]:
    """The text up to where it begins to repeat itself, and whether it does: a run of words, said over again at once."""
    words = text.split()
    bare = [canonical(word).strip(".,;:!?…") for word in words]
    for end in range(2, len(words) + 1):
        for size in range(1, end // 2 + 1):
            times = 3 if size <= SHORT_PHRASE else 2
            phrase = bare[end - size : end]
            if end >= times * size and bare[end - times * size : end] == phrase * times:
                return " ".join(words[: end - (times - 1) * size]), True
    return text, False


def said_in(tokens: Iterator[str], num_words: int, turns: Turns) -> str:
    """What a model says, as it grows, up to where it loops or has said more than `num_words`. A turn for every token."""
    text = ""
    while True:
        with turns.answer():
            longer = next(tokens, None)
        if longer is None:
            return text
        text, loops = without_loop(longer)
        if loops or len(text.split()) > num_words:
            return text


def shortened(text: str, max_words: int) -> str:
    """At most `max_words` words: whole sentences if one fits, else cut at a word, with an ellipsis that says so."""
    words = text.split()
    if len(words) <= max_words:
        return text
    kept = words[:max_words]
    ends = [i for i, word in enumerate(kept) if word[-1] in ".!?"]
    return " ".join(kept[: ends[-1] + 1]) if ends else " ".join(kept).rstrip(",;:") + " …"


def is_silence(text: str, silence: str) -> bool:
    """Whether an answer says that there is nothing to say: nothing at all, dots, or the word for it."""
    bare = re.sub(r"[\W_]+", " ", text).strip().lower()
    return not bare or bare == silence or bare.startswith(f"{silence} ")


class DuplicateGuard:
    """The last `size` utterances."""

    def __init__(self, size: int) -> None:
        self._last: deque[str] = deque(maxlen=size)

    def seen(self, text: str) -> bool:
        """Whether `text` was among them, but for case, spaces and punctuation."""
        return _bare(text) in self._last

    def add(self, text: str) -> None:
        self._last.append(_bare(text))


class WordBudget:
    """Words that may be spoken: earned by the second, saved up for `MAX_SAVED_SECONDS`."""

    def __init__(self, per_second: float) -> None:
        self.per_second = per_second
        self._words = 0.0
        self._at: float | None = None

    def available(self, at_seconds: float) -> int:
        """Whole words that may be said at stream time `at_seconds`."""
        passed = MAX_SAVED_SECONDS if self._at is None else max(0.0, at_seconds - self._at)
        self._words = min(self._words + passed * self.per_second, MAX_SAVED_SECONDS * self.per_second)
        self._at = at_seconds
        return int(self._words + 1e-6)

    def spend(self, text: str) -> None:
        self._words -= len(text.split())


def _bare(text: str) -> str:
    return re.sub(r"[\W_]+", " ", text).strip().lower()
