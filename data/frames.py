"""The nouns of a stream: frames and chunks, and the verbs that sample and cut them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

PTS_TOLERANCE_SECONDS = 0.002
"""Containers round pts to a millisecond or a 90 kHz tick; a frame this early still belongs to its tick."""


@dataclass(frozen=True)
class Frame:
    """One picture of a stream.

    data: uint8 [3, H, W], RGB. pts_seconds: stream time at which it appears. duration_seconds: how long it stays.
    """

    data: np.ndarray
    pts_seconds: float
    duration_seconds: float = 0.0

    def __repr__(self) -> str:
        return f"Frame(data={self.data.dtype}{list(self.data.shape)}, pts_seconds={self.pts_seconds:.3f})"


@dataclass(frozen=True)
class Chunk:
    """Consecutive sampled frames of one slot of the stream: the unit of encoding, memory and evidence.

    frames: uint8 [T, 3, H, W]. pts_seconds: T floats. The slot is [start_seconds, end_seconds) of stream time, and
    chunk_id is its number: floor(start_seconds / chunk_seconds).
    """

    chunk_id: int
    frames: np.ndarray
    pts_seconds: tuple[float, ...]
    start_seconds: float
    end_seconds: float

    def __repr__(self) -> str:
        return f"Chunk({self.chunk_id}, frames={list(self.frames.shape)}, {self.start_seconds:.2f}..{self.end_seconds:.2f} s)"


def tick_of(pts_seconds: float, per_second: float) -> int:
    """The number of the sampling slot in which `pts_seconds` falls."""
    return math.floor((pts_seconds + PTS_TOLERANCE_SECONDS) * per_second)


def sample(frames: Iterable[Frame], fps: float, after_seconds: float | None = None) -> Iterator[Frame]:
    """Keep the first frame of every slot of 1/fps seconds. Causal, and right for variable frame rates.

    after_seconds: the pts of a frame that was kept before; its slot is taken.
    """
    last = None if after_seconds is None else tick_of(after_seconds, fps)
    for frame in frames:
        tick = tick_of(frame.pts_seconds, fps)
        if last is None or tick > last:
            last = tick
            yield frame


class Chunker:
    """Cuts sampled frames into chunks of `chunk_seconds`. `push` returns the chunk that a frame completes, if any.

    A chunk is complete when no later sampled frame can fall into its slot, or when a later frame shows that none will come.
    It holds pictures of one size: frames of another one are fitted to its first until the slot ends.
    """

    def __init__(self, fps: float, chunk_seconds: float) -> None:
        self.fps = fps
        self.chunk_seconds = chunk_seconds
        self._open: list[Frame] = []

    def push(self, frame: Frame) -> list[Chunk]:
        """Add a sampled frame; returns the chunks that are complete now (0, 1 or 2), oldest first."""
        done: list[Chunk] = []
        slot = self.slot_of(frame)
        if self._open and slot != self.slot_of(self._open[0]):
            done.append(self._cut())
        self._open.append(replace(frame, data=_fitted(frame.data, self._open[0].data)) if self._open else frame)
        next_tick_seconds = (tick_of(frame.pts_seconds, self.fps) + 1) / self.fps
        if next_tick_seconds >= (slot + 1) * self.chunk_seconds - 1e-6:
            done.append(self._cut())
        return done

    def slot_of(self, frame: Frame) -> int:
        return tick_of(frame.pts_seconds, 1 / self.chunk_seconds)

    def partial(self, until_seconds: float = math.inf) -> Chunk | None:
        """The frames of the unfinished chunk with pts ≤ `until_seconds`, as a chunk, without consuming them."""
        frames = [frame for frame in self._open if frame.pts_seconds <= until_seconds + PTS_TOLERANCE_SECONDS]
        return self._chunk(frames) if frames else None

    def discard(self, start_seconds: float, end_seconds: float) -> None:
        """Throw away the frames of the unfinished chunk that fall into a span."""
        self._open = [frame for frame in self._open if not start_seconds <= frame.pts_seconds < end_seconds]

    def flush(self) -> list[Chunk]:
        """The last, unfinished chunk, at the end of a stream."""
        return [self._cut()] if self._open else []

    def _cut(self) -> Chunk:
        frames, self._open = self._open, []
        return self._chunk(frames)

    def _chunk(self, frames: list[Frame]) -> Chunk:
        slot = self.slot_of(frames[0])
        return Chunk(
            chunk_id=slot,
            frames=np.stack([frame.data for frame in frames]),
            pts_seconds=tuple(frame.pts_seconds for frame in frames),
            start_seconds=slot * self.chunk_seconds,
            end_seconds=(slot + 1) * self.chunk_seconds,
        )


def _fitted(picture: np.ndarray, like: np.ndarray) -> np.ndarray:
    """`picture` [3, H, W] in the size of `like`, by nearest neighbour; itself where the sizes agree."""
    if picture.shape == like.shape:
        return picture
    rows, columns = (np.arange(size) * old // size for size, old in zip(like.shape[1:], picture.shape[1:], strict=True))
    return picture[:, rows][:, :, columns]
