"""What is asked about a stretch of a stream in training, and what each question may see of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data.questions import (
    CLOCK_QUESTION,
    COMMENT_QUESTION,
    SILENCE,
    WorldQuestion,
    ask_after,
    ask_at,
    ask_did,
    ask_now,
    ask_when,
    ask_which,
    comment_at,
    named,
)
from data.world import PAIRS, Stay, World

MIX = {"now": 1, "clock": 2, "at": 5, "when": 4, "did": 2, "which": 2, "after": 5, "watch": 2, "comment": 2}


@dataclass
class Asked:
    """A question put to a stretch: what it may see, and which chunks prove its answer (stretch-relative numbers)."""

    family: str
    question: str
    answer: str
    chunk: int
    visible: np.ndarray
    evidence: list[int]
    shown: list[int]


@dataclass(frozen=True)
class Stretch:
    """Chunks [0, num) of `world`, whose clock begins at `start`. partial: the last chunk holds one frame only."""

    world: World
    num: int
    start: int
    window: int
    partial: bool

    def time_of(self, chunk: int) -> float:
        """Stream time of a question put when `chunk` is the newest: near its end, or its first instant if it is partial."""
        return self.start + chunk + (0.0 if self.is_half(chunk) else 0.9)

    def is_half(self, chunk: int) -> bool:
        return self.partial and chunk == self.num - 1

    def chunks_of(self, stay: Stay, newest: int) -> list[int]:
        """Chunks up to `newest` in which `stay` is on screen."""
        first, end = stay.start_seconds - self.start, stay.end_seconds - self.start
        return list(range(max(first, 0), min(end, newest + 1)))

    def known(self, newest: int) -> list[Stay]:
        """Stays of objects that occur once, of which a whole chunk has been seen by the end of `newest`."""
        last = self.time_of(newest) - (1 if self.is_half(newest) else 0)
        return [s for s in self.world.stays if s.name in self.world.needles and s.start_seconds <= last]


Made = tuple[WorldQuestion, int, list[int]]
"""A question, the newest chunk when it is asked, and the chunks that prove its answer."""


class Asker:
    """Draws questions about stretches, a method per family. A family that has nothing to ask about gives None."""

    def __init__(self, rng: np.random.Generator, num_questions: int) -> None:
        self.rng = rng
        self.num_questions = num_questions

    def questions(self, stretch: Stretch) -> list[Asked]:
        """`num_questions` questions; a family with nothing to ask is replaced by "at"."""
        shares = np.asarray(list(MIX.values())) / sum(MIX.values())
        asked = []
        for family in self.rng.choice(list(MIX), self.num_questions, p=shares):
            newest = stretch.num - 1 if self.rng.random() < 0.5 else int(self.rng.integers(0, stretch.num))
            made = getattr(self, f"_{family}")(stretch, newest) or self._at(stretch, newest)
            question, chunk, evidence = made
            visible = self._visible(stretch, chunk, evidence)
            shown = self._shown(stretch, question, evidence)
            asked.append(Asked(question.family, question.question, question.answer, chunk, visible, evidence, shown))
        return asked

    def _shown(self, stretch: Stretch, question: WorldQuestion, evidence: list[int]) -> list[int]:
        """Of the evidence, the chunks that show the answer itself."""
        if question.family != "after":
            return evidence
        there = {k: stretch.world.on_screen(stretch.start + k) for k in evidence}
        return [k for k, stay in there.items() if stay is not None and named(stay.name) == question.answer]

    def _now(self, stretch: Stretch, newest: int) -> Made:
        return ask_now(stretch.world, stretch.time_of(newest)), newest, []

    def _clock(self, stretch: Stretch, newest: int) -> Made:
        at = stretch.time_of(newest)
        return WorldQuestion("clock", CLOCK_QUESTION, f"at {stretch.start + newest} s", at, None), newest, []

    def _at(self, stretch: Stretch, newest: int) -> Made:
        t = int(self.rng.integers(0, newest + 1))
        return ask_at(stretch.world, stretch.start + t, stretch.time_of(newest)), newest, [t]

    def _comment(self, stretch: Stretch, newest: int) -> Made | None:
        if self.rng.random() < 0.5:
            edges = [t - stretch.start for s in stretch.world.stays for t in (s.start_seconds, s.end_seconds)]
            edges = [k for k in edges if 0 < k < stretch.num - stretch.partial]
            newest = int(self.rng.choice(edges)) if edges else newest
        if stretch.is_half(newest):
            return None
        words = comment_at(stretch.world, stretch.start + newest)
        if newest == 0:
            # Nothing came before: what is there has just come into view, and nothing can be seen to leave.
            first = stretch.world.on_screen(stretch.start)
            words = f"a {first.name} appears" if first else ""
        words = words or SILENCE
        return WorldQuestion("comment", COMMENT_QUESTION, words, stretch.time_of(newest), None), newest, []

    def _watch(self, stretch: Stretch, newest: int) -> Made | None:
        entries = [s for s in stretch.world.stays if s.start_seconds - stretch.start < stretch.num - stretch.partial]
        known = stretch.known(newest)
        kind = self.rng.random()
        if entries and kind < 0.6:
            stay = entries[int(self.rng.integers(len(entries)))]
            newest = max(0, stay.start_seconds - stretch.start)
            name = stay.name if kind < 0.4 else self._like(stay.name)
        else:
            name = str(self.rng.choice([s.name for s in known])) if known else self._any()
        if stretch.is_half(newest):
            return None
        # In the first chunk whatever is there has just come into view.
        there = stretch.world.on_screen(stretch.start + newest)
        fires = there is not None and there.name == name and (newest == 0 or there.start_seconds == stretch.start + newest)
        text = f"tell me when a {name} appears"
        return WorldQuestion("watch", text, "yes" if fires else "no", stretch.time_of(newest), None), newest, []

    def _did(self, stretch: Stretch, newest: int) -> Made | None:
        at = stretch.time_of(newest)
        if self.rng.random() < 0.5:
            return self._about(ask_did, stretch, newest)
        present = {s.name for s in stretch.world.stays if s.start_seconds <= at}
        name = self._like(str(self.rng.choice(sorted(present)))) if present and self.rng.random() < 0.6 else self._any()
        return None if name in present else (ask_did(stretch.world, name, at), newest, [])

    def _when(self, stretch: Stretch, newest: int) -> Made | None:
        return self._about(ask_when, stretch, newest)

    def _which(self, stretch: Stretch, newest: int) -> Made | None:
        return self._about(ask_which, stretch, newest)

    def _after(self, stretch: Stretch, newest: int) -> Made | None:
        known = stretch.known(newest)
        if not known:
            return None
        stay = known[int(self.rng.integers(len(known)))]
        at = stretch.time_of(newest)
        later = [s for s in stretch.world.stays if stay.end_seconds <= s.start_seconds <= at]
        following = stretch.chunks_of(later[0], newest) if later else []
        return ask_after(stretch.world, stay.name, at), newest, following + stretch.chunks_of(stay, newest)

    def _about(self, ask: Callable[[World, str, float], WorldQuestion], stretch: Stretch, newest: int) -> Made | None:
        known = stretch.known(newest)
        if not known:
            return None
        stay = known[int(self.rng.integers(len(known)))]
        return ask(stretch.world, stay.name, stretch.time_of(newest)), newest, stretch.chunks_of(stay, newest)

    def _visible(self, stretch: Stretch, chunk: int, evidence: list[int]) -> np.ndarray:
        """bool [num]: the window, the evidence with some neighbours, and distractors, in clumps as retrieval leaves them."""
        rng = self.rng
        ratio = float(rng.choice([0.0, 0.15, 0.4, 1.0]))
        visible = np.repeat(rng.random(stretch.num // 3 + 1) < ratio, 3)[: stretch.num]
        for k in evidence:
            before, after = rng.integers(0, 4, 2) if rng.random() < 0.6 else (0, 0)
            visible[max(0, k - int(before)) : k + int(after) + 1] = True
        visible[max(0, chunk - stretch.window + 1) : chunk + 1] = True
        visible[chunk + 1 :] = False
        return visible

    def _like(self, name: str) -> str:
        """Another name that shares the colour or the shape of `name`."""
        color, shape = name.split()
        near = [p for p in PAIRS if (p[0] == color) != (p[1] == shape)]
        return " ".join(near[int(self.rng.integers(len(near)))])

    def _any(self) -> str:
        return " ".join(PAIRS[int(self.rng.integers(len(PAIRS)))])
