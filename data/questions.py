"""Questions about a world with their true answers, and the comparison of words that scores them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data.world import World

FAMILIES: tuple[str, ...] = ("now", "at", "when", "did", "which", "after")
CLOCK_QUESTION = "when is now ?"
"""Asks for the time of the newest chunk; the easiest way to learn that an answer can be copied from a time stamp."""
COMMENT_QUESTION = "comment"
"""What the engine asks each second to get a comment on it."""
SILENCE = "silence"
"""The comment on a second in which nothing begins or ends."""


@dataclass(frozen=True)
class WorldQuestion:
    """A question asked at `at_seconds`, its true answer, and the span of the stream that proves it (None: no span)."""

    family: str
    question: str
    answer: str
    at_seconds: float
    evidence: tuple[int, int] | None
    """Whole seconds [start, end) in which the proof is on screen."""

    @property
    def age_seconds(self) -> float:
        """Time from the end of the evidence to the question; 0 while it is still on screen."""
        return 0.0 if self.evidence is None else max(0.0, self.at_seconds - self.evidence[1])


def canonical(text: str) -> str:
    """Lower case, single spaces: the form in which answers are compared."""
    return " ".join(text.lower().split())


def named(name: str | None) -> str:
    """The answer that names an object: `a red circle`, or `nothing`."""
    return f"a {name}" if name else "nothing"


def ask_now(world: World, at: float) -> WorldQuestion:
    stay = world.on_screen(at)
    return WorldQuestion("now", "what is on screen now ?", named(stay.name if stay else None), at, (int(at), int(at) + 1))


def ask_at(world: World, t: int, at: float) -> WorldQuestion:
    stay = world.on_screen(t)
    return WorldQuestion("at", f"what was on screen at {t} s ?", named(stay.name if stay else None), at, (t, t + 1))


def ask_when(world: World, name: str, at: float) -> WorldQuestion:
    stay = _seen(world, name, at)
    return WorldQuestion("when", f"when did the {name} appear ?", f"at {stay.start_seconds} s", at, _span(stay, at))


def ask_which(world: World, name: str, at: float) -> WorldQuestion:
    stay = _seen(world, name, at)
    return WorldQuestion("which", f"which way did the {name} move ?", stay.direction, at, _span(stay, at))


def ask_did(world: World, name: str, at: float) -> WorldQuestion:
    stay = world.stay_of(name)
    seen = stay is not None and stay.start_seconds <= at
    span = _span(stay, at) if seen and stay is not None else None
    return WorldQuestion("did", f"did a {name} appear ?", "yes" if seen else "no", at, span)


def ask_after(world: World, name: str, at: float) -> WorldQuestion:
    stay = _seen(world, name, at)
    later = [s for s in world.stays if s.start_seconds >= stay.end_seconds and s.start_seconds <= at]
    following = later[0] if later else None
    span = _span(following, at) if following else _span(stay, at)
    return WorldQuestion("after", f"what came after the {name} ?", named(following.name if following else None), at, span)


def _seen(world: World, name: str, at: float):
    stay = world.stay_of(name)
    if stay is None or stay.start_seconds > at:
        raise ValueError(f"the {name} has not appeared by {at} s")
    return stay


def _span(stay, at: float) -> tuple[int, int]:
    return stay.start_seconds, min(stay.end_seconds, int(np.floor(at)) + 1)


def questions_about(world: World, at: float, rng: np.random.Generator, per_family: int = 1) -> Iterator[WorldQuestion]:
    """Draw `per_family` questions of every family that can be asked at stream time `at`.

    Questions that name an object name a needle that has been on screen for a full second, so that its direction shows.
    """
    seen = [n for n in world.needles if (s := world.stay_of(n)) is not None and s.start_seconds + 1 <= at]
    for _ in range(per_family):
        yield ask_now(world, at)
        yield ask_at(world, int(rng.integers(0, int(np.floor(at)) + 1)), at)
        if seen:
            yield ask_when(world, str(rng.choice(seen)), at)
            yield ask_which(world, str(rng.choice(seen)), at)
            yield ask_after(world, str(rng.choice(seen)), at)
        if seen and (not world.absent or rng.random() < 0.5):
            yield ask_did(world, str(rng.choice(seen)), at)
        elif world.absent:
            yield ask_did(world, str(rng.choice(world.absent)), at)


def comment_at(world: World, second: int) -> str:
    """What there is to say about the second that begins at `second`: entries, exits, or nothing (an empty string)."""
    words = [f"the {s.name} leaves" for s in world.stays if s.end_seconds == second]
    words += [f"a {s.name} appears" for s in world.stays if s.start_seconds == second]
    return " and ".join(words)
