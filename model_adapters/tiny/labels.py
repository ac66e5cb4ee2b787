"""What each chunk of a stretch should know: labels for the throw-away heads of states.py."""

from __future__ import annotations

import numpy as np

from data.world import COLORS, DIRECTIONS, SHAPES, Stay
from model_adapters.tiny.asking import Stretch

CLASSES = (len(COLORS) + 1, len(SHAPES) + 1, len(DIRECTIONS) + 1, len(COLORS) + 1, len(SHAPES) + 1)
"""Colour, shape and direction of the object on screen, colour and shape of the one before; the last of each means none."""
UNKNOWN = -100


def chunk_states(stretch: Stretch) -> np.ndarray:
    """int64 [num, 6]: the five classes of every chunk, and the second at which its object entered; or UNKNOWN."""
    states = np.full((stretch.num, len(CLASSES) + 1), UNKNOWN)
    for k in range(stretch.num):
        t = stretch.start + k
        now = stretch.world.on_screen(t)
        since = now.start_seconds if now else t
        before = [s for s in stretch.world.stays if s.end_seconds <= since]
        direction = list(DIRECTIONS).index(now.direction) if now else len(DIRECTIONS)
        if now and stretch.is_half(k) and now.start_seconds == t:
            direction = UNKNOWN
        states[k, :5] = (*_pair(now), direction, *_pair(before[-1] if before else None))
        if now and now.start_seconds >= stretch.start:
            states[k, 5] = now.start_seconds
    return states


def _pair(stay: Stay | None) -> tuple[int, int]:
    return (list(COLORS).index(stay.color), SHAPES.index(stay.shape)) if stay else (len(COLORS), len(SHAPES))
