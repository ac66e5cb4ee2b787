"""Kinds of streams for what speaks unasked: the world as it is, quiet, hand-held, noisy and slowly fading.

Each is the world of `data.world` with its schedule as the truth. Quiet streams are the world's own pictures with half a minute
or more between the objects; the other kinds change every picture, as a camera or the light would, and nothing in the schedule.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from data.frames import Frame
from data.world import World, make_world

KINDS: tuple[str, ...] = ("eventful", "quiet", "hand-held", "noisy", "fading")
QUIET_GAP_SECONDS = (20, 61)
"""Seconds between two objects of a quiet stream, drawn evenly."""
SHAKE = 0.04
"""Hand-held: the picture wanders by at most this share of its side."""
WANDER = 0.5
"""Hand-held: share of the way to a newly drawn offset that one frame goes."""
NOISE_LEVELS = 10.0
"""Noisy: standard deviation of each frame's own Gaussian noise, in levels of 255."""
FADE_SECONDS = 90.0
FADE_DEPTH = 0.35
"""Fading: the light goes down to 1 - this and back, once per FADE_SECONDS."""


@dataclass(frozen=True)
class Scene:
    """A stream of one kind, and the world whose schedule is its truth."""

    kind: str
    world: World
    seed: int

    def frames(self, fps: float = 2.0) -> Iterator[Frame]:
        """The stream's frames in order. The same scene gives the same frames."""
        rng = np.random.default_rng([self.seed, 1])
        offset = np.zeros(2)
        for frame in self.world.frames(fps):
            data = frame.data
            if self.kind == "hand-held":
                offset += WANDER * (rng.uniform(-SHAKE, SHAKE, 2) - offset)
                data = _shifted(data, offset * data.shape[-1])
            elif self.kind == "noisy":
                data = _levels(data + rng.normal(0.0, NOISE_LEVELS, data.shape))
            elif self.kind == "fading":
                data = _levels(data * (1 - FADE_DEPTH * (1 - np.cos(2 * np.pi * frame.pts_seconds / FADE_SECONDS)) / 2))
            yield replace(frame, data=data)


def make_scene(kind: str, seed: int, seconds: int, side: int = 128) -> Scene:
    """Draw a stream of one of `KINDS`. ValueError for another kind."""
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; known: {', '.join(KINDS)}")
    world = make_world(seed, seconds, side)
    if kind == "quiet":
        world = world.spread_out(np.random.default_rng([seed, 2]), QUIET_GAP_SECONDS)
    return Scene(kind, world, seed)


def _shifted(picture: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """`picture` [3, H, W] moved by (x, y) pixels, between pixels too; the edge is repeated."""
    for axis, way in ((2, offset[0]), (1, offset[1])):
        size = picture.shape[axis]
        at = np.clip(np.arange(size) - way, 0, size - 1)
        low = np.floor(at).astype(int)
        share = (at - low).astype(np.float32)
        share = share[None, None, :] if axis == 2 else share[None, :, None]
        first, second = picture.take(low, axis), picture.take(np.minimum(low + 1, size - 1), axis)
        picture = first * (1 - share) + second * share
    return _levels(picture)


def _levels(values: np.ndarray) -> np.ndarray:
    """Rounded to uint8."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
