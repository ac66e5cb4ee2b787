"""The synthetic world: streams whose truth is known to the pixel and to the frame.

One coloured shape at a time crosses a dim, noisy background. The schedule answers every question, so accuracy is measured
without a judge and without a download. Times are whole seconds of the stream's own clock; lengths are fractions of the side.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from data.frames import Frame

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 200, 60),
    "blue": (50, 80, 230),
    "yellow": (230, 220, 50),
    "white": (240, 240, 240),
    "purple": (160, 50, 200),
    "orange": (240, 140, 30),
    "cyan": (40, 210, 220),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross", "ring")
DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
PAIRS: tuple[tuple[str, str], ...] = tuple((color, shape) for color in COLORS for shape in SHAPES)
MAX_ALL_NEEDLES = 40
"""Streams with at most this many objects may use a pair only once, so that every object is a needle."""


@dataclass(frozen=True)
class Stay:
    """One object's time on screen: it enters at `start_seconds` and is gone from `end_seconds` on."""

    color: str
    shape: str
    direction: str
    radius: float
    mid_x: float
    mid_y: float
    speed: float
    start_seconds: int
    end_seconds: int

    @property
    def name(self) -> str:
        """The words of the object without an article, e.g. `red circle`."""
        return f"{self.color} {self.shape}"

    def center(self, t: float) -> tuple[float, float]:
        """Centre (x, y) at stream time `t`; at the path's midpoint half-way through the stay."""
        dx, dy = DIRECTIONS[self.direction]
        way = self.speed * (t - (self.start_seconds + self.end_seconds) / 2)
        return self.mid_x + dx * way, self.mid_y + dy * way


@dataclass(frozen=True)
class Background:
    """A solid colour, a horizontal ramp in levels over the width, and noise that never changes."""

    color: tuple[int, ...]
    ramp: float
    noise_seed: int

    def draw(self, side: int) -> np.ndarray:
        """float32 [3, side, side] in levels, not yet clipped."""
        ramp = np.linspace(-self.ramp / 2, self.ramp / 2, side, dtype=np.float32)
        noise = np.random.default_rng(self.noise_seed).normal(0.0, 3.0, (side, side)).astype(np.float32)
        return np.asarray(self.color, np.float32)[:, None, None] + ramp[None, None, :] + noise[None]


@dataclass(frozen=True)
class World:
    """A stream's schedule and background. `frame(t)` draws it; the other methods answer from the schedule."""

    seconds: int
    stays: tuple[Stay, ...]
    background: Background
    side: int = 128
    needles: tuple[str, ...] = ()
    """Names that occur exactly once in the stream."""
    absent: tuple[str, ...] = ()
    """Names that never occur in the stream."""
    _canvas: dict[int, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    def on_screen(self, t: float) -> Stay | None:
        """The object on screen at stream time `t`, if any."""
        for stay in self.stays:
            if stay.start_seconds <= t < stay.end_seconds:
                return stay
        return None

    def stay_of(self, name: str) -> Stay | None:
        """The first stay of the object called `name`."""
        return next((stay for stay in self.stays if stay.name == name), None)

    def frame(self, t: float) -> np.ndarray:
        """uint8 [3, side, side]: the picture at stream time `t`."""
        if self.side not in self._canvas:
            self._canvas[self.side] = np.clip(np.rint(self.background.draw(self.side)), 0, 255).astype(np.uint8)
        picture = self._canvas[self.side].copy()
        stay = self.on_screen(t)
        if stay is not None:
            _paint(picture, stay, *stay.center(t))
        return picture

    def frames(self, fps: float = 2.0, start_seconds: float = 0.0) -> Iterator[Frame]:
        """The stream's frames in order, `fps` per second, from `start_seconds` to the end."""
        index = int(np.ceil(start_seconds * fps - 1e-9))
        while index / fps < self.seconds:
            t = index / fps
            yield Frame(data=self.frame(t), pts_seconds=t, duration_seconds=1.0 / fps)
            index += 1

    def at_side(self, side: int) -> World:
        """The same stream drawn on a canvas of another size."""
        return replace(self, side=side, _canvas={})

    def spread_out(self, rng: np.random.Generator, gap_seconds: tuple[int, int]) -> World:
        """The same objects in the same order with longer gaps, drawn evenly from [low, high) whole seconds, before each.

        Objects that no longer fit are left out. A world's own gaps are 0 to 2 s; quiet streams have more.
        """
        stays: list[Stay] = []
        at = 0
        for stay in self.stays:
            start = at + int(rng.integers(*gap_seconds))
            at = start + stay.end_seconds - stay.start_seconds
            if at > self.seconds:
                break
            stays.append(replace(stay, start_seconds=start, end_seconds=at))
        there = {stay.name for stay in stays}
        return replace(self, stays=tuple(stays), needles=tuple(n for n in self.needles if n in there), _canvas={})


def _paint(picture: np.ndarray, stay: Stay, cx: float, cy: float) -> None:
    side = picture.shape[-1]
    r = stay.radius
    x0, x1 = (int(np.clip(np.floor((cx + s * 1.05 * r) * side), 0, side)) for s in (-1, 1))
    y0, y1 = (int(np.clip(np.floor((cy + s * 1.05 * r) * side), 0, side)) for s in (-1, 1))
    if x1 < side:
        x1 += 1
    if y1 < side:
        y1 += 1
    dx = ((np.arange(x0, x1) + 0.5) / side - cx)[None, :]
    dy = ((np.arange(y0, y1) + 0.5) / side - cy)[:, None]
    inside = shape_mask(stay.shape, dx, dy, r)
    box = picture[:, y0:y1, x0:x1]
    box[:, inside] = np.asarray(COLORS[stay.color], np.uint8)[:, None]


def shape_mask(shape: str, dx: np.ndarray, dy: np.ndarray, r: float) -> np.ndarray:
    """bool, broadcast of `dx` and `dy` (offsets from the centre, y down): which points the shape covers."""
    if shape == "circle":
        return dx**2 + dy**2 <= r * r
    if shape == "square":
        return (np.abs(dx) <= 0.85 * r) & (np.abs(dy) <= 0.85 * r)
    if shape == "triangle":
        below = dy + 0.9 * r
        return (below >= 0) & (dy <= 0.8 * r) & (np.abs(dx) <= 0.6 * below)
    if shape == "star":
        theta = np.arctan2(dy, dx)
        return np.hypot(dx, dy) <= r * (0.6 + 0.4 * np.cos(5 * theta + np.pi / 2))
    if shape == "cross":
        near_x, near_y = np.abs(dx) <= 0.3 * r, np.abs(dy) <= 0.3 * r
        return (near_x & (np.abs(dy) <= r)) | (near_y & (np.abs(dx) <= r))
    if shape == "ring":
        distance = np.hypot(dx, dy)
        return (distance <= r) & (distance >= 0.55 * r)
    raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")


def make_world(
    seed: int, seconds: int, side: int = 128, num_needles: int = 6, min_objects_for_distractors: int = MAX_ALL_NEEDLES
) -> World:
    """Draw a world from `seed`. Streams of at most 40 objects use every pair at most once; longer ones hide `num_needles`
    unique objects, spread over the stream, among distractors that repeat.
    """
    if seconds < 1:
        raise ValueError(f"seconds must be at least 1, got {seconds}")
    rng = np.random.default_rng(seed)
    spans = _spans(rng, seconds)
    pairs = [PAIRS[i] for i in rng.permutation(len(PAIRS))]
    if len(spans) <= min_objects_for_distractors:
        chosen = pairs[: len(spans)]
        needles = [f"{c} {s}" for c, s in chosen]
        absent = pairs[len(spans) :]
    else:
        needle_pairs, absent, common = pairs[:num_needles], pairs[num_needles : num_needles + 6], pairs[num_needles + 6 :]
        chosen = _distractors(rng, common, len(spans))
        for slot, pair in zip(_spread(rng, len(spans), num_needles), needle_pairs, strict=True):
            chosen[slot] = pair
        needles = [f"{c} {s}" for c, s in needle_pairs]
    stays = tuple(_stay(rng, pair, span) for pair, span in zip(chosen, spans, strict=True))
    background = Background(
        color=tuple(int(v) for v in rng.integers(0, 61, 3)),
        ramp=float(rng.uniform(-25, 25)),
        noise_seed=int(rng.integers(2**31)),
    )
    return World(seconds, stays, background, side, tuple(needles), tuple(f"{c} {s}" for c, s in absent))


def _spans(rng: np.random.Generator, seconds: int) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    t = int(rng.integers(0, 3))
    while True:
        end = t + int(rng.integers(2, 5))
        if end > seconds:
            return spans
        spans.append((t, end))
        t = end + int(rng.integers(0, 3))


def _distractors(rng: np.random.Generator, common: list[tuple[str, str]], num: int) -> list[tuple[str, str]]:
    chosen: list[tuple[str, str]] = []
    for _ in range(num):
        pair = common[int(rng.integers(len(common)))]
        while chosen and pair == chosen[-1]:
            pair = common[int(rng.integers(len(common)))]
        chosen.append(pair)
    return chosen


def _spread(rng: np.random.Generator, num_slots: int, num: int) -> list[int]:
    edges = np.linspace(0, num_slots, num + 1)
    return [int(rng.integers(int(np.ceil(a)), max(int(np.ceil(b)), int(np.ceil(a)) + 1))) for a, b in itertools.pairwise(edges)]


def _stay(rng: np.random.Generator, pair: tuple[str, str], span: tuple[int, int]) -> Stay:
    return Stay(
        color=pair[0],
        shape=pair[1],
        direction=str(rng.choice(list(DIRECTIONS))),
        radius=float(rng.uniform(0.15, 0.23)),
        mid_x=float(rng.uniform(0.31, 0.69)),
        mid_y=float(rng.uniform(0.31, 0.69)),
        speed=float(rng.uniform(0.10, 0.16)),
        start_seconds=span[0],
        end_seconds=span[1],
    )
