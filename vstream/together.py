"""Frames that wait are looked at together; a frame behind which none waits is looked at alone, at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from data.frames import Frame
from vstream.config import SessionConfig
from vstream.turns import Turns

CHUNKS_AT_ONCE = 4
"""Chunks that are looked at together at most, in one turn: an answer's token waits for no more of them."""


def num_at_once(config: SessionConfig, turns: Turns) -> int:
    """Frames that may be looked at together; one while an answer waits for its turn."""
    return 1 if turns.answer_waits else max(1, round(CHUNKS_AT_ONCE * config.fps * config.chunk_seconds))


def never() -> bool:
    """Of a source of which nothing is known: no frame is asked for before the one before it was looked at."""
    return False


def together(frames: Iterable[Frame], waits: Callable[[], bool], most: Callable[[], int]) -> Iterator[list[Frame]]:
    """The frames in groups of at most `most()`. waits: whether a further one is there already (`Source.waits`)."""
    group: list[Frame] = []
    for frame in frames:
        group.append(frame)
        if len(group) >= most() or not waits():
            yield group
            group = []
    if group:
        yield group
