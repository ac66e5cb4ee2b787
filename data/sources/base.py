"""The nouns of a source: what it is, how it goes, and the interface that every source fills."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, Self

from data.errors import SourceError
from data.frames import Frame, tick_of

Kind = Literal["file", "live", "world", "camera"]
State = Literal["opening", "live", "paused", "reconnecting", "ended", "failed"]

MAX_WARNINGS = 50
"""A damaged stream can run for days; the list of its warnings may not grow with it."""


@dataclass(frozen=True)
class SourceInfo:
    """What a source is. `label` is safe to show: it holds no user name, password or query.

    width, height: pixels of the upright picture (0 while unknown). fps, duration_seconds: None when unknown or endless.
    rotation: degrees counter-clockwise by which decoded pictures are turned to stand upright (already applied to frames).
    """

    kind: Kind
    label: str
    live: bool
    width: int
    height: int
    fps: float | None = None
    duration_seconds: float | None = None
    rotation: int = 0
    codec: str = ""


@dataclass
class SourceStats:
    """How a source goes.

    frames_seen: frames of the source that were decoded, drawn or pushed. frames_dropped: sampled frames that a newer one
    replaced before they were read. lag_seconds: age of the last frame handed out. reader: what decodes the frames, and why.
    gaps: spans (start, end) of stream time in which the connection was lost.
    """

    frames_seen: int = 0
    frames_dropped: int = 0
    frames_broken: int = 0
    reconnects: int = 0
    state: State = "opening"
    lag_seconds: float = 0.0
    reader: str = ""
    warnings: list[str] = field(default_factory=list)
    gaps: list[tuple[float, float]] = field(default_factory=list)

    def warn(self, text: str) -> None:
        """Add `text` once; the oldest warning goes when there are too many."""
        if text not in self.warnings:
            self.warnings.append(text)
            del self.warnings[:-MAX_WARNINGS]


class Slots:
    """The rule of `data.frames.sample`, asked per timestamp, so that frames that are not due need no colour conversion."""

    def __init__(self, fps: float) -> None:
        if not 0 < fps <= 1000:
            raise SourceError(f"cannot sample {fps} frames per second; give a number above 0 and up to 1000")
        self.fps = fps
        self._last: int | None = None

    def due(self, pts_seconds: float) -> bool:
        """Whether a frame at `pts_seconds` is the first of its slot; the slot is taken by asking."""
        tick = tick_of(pts_seconds, self.fps)
        if self._last is not None and tick <= self._last:
            return False
        self._last = tick
        return True


class Source(ABC):
    """A stream of frames. A context manager; `close()` may be called from any thread and ends `frames()` promptly."""

    def __init__(self, info: SourceInfo) -> None:
        self._info = info
        self._stats = SourceStats()
        self._closed = threading.Event()

    @property
    def info(self) -> SourceInfo:
        """What the source is."""
        return self._info

    @property
    def stats(self) -> SourceStats:
        """How it goes; updated while frames are read."""
        return self._stats

    @property
    def recording_key(self) -> str:
        """Tells recordings apart: the same key is the same recording, from its first frame on. Empty for what is live."""
        return ""

    @property
    def place_key(self) -> str:
        """Tells live sources apart: the same key is the same camera or address. Empty for recordings, and where nothing
        tells."""
        return ""

    @property
    def waits(self) -> bool:
        """Whether a further frame can be had at once: reading it waits for no time to pass and for no network."""
        return not self.info.live

    @abstractmethod
    def frames(self, fps: float, start_seconds: float = 0.0) -> Iterator[Frame]:
        """The frames in order, the first one of every slot of 1/fps seconds, from `start_seconds` on.

        Frame.data is uint8 [3, H, W], RGB, contiguous and upright. pts_seconds counts from the start of the stream's
        presentation and strictly increases. Raises SourceError when the source cannot be read further.
        """

    def close(self) -> None:
        """Let go of the source and end `frames()`. May be called twice."""
        self._closed.set()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed.is_set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.info.label!r}, state={self.stats.state!r})"
