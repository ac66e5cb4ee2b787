"""Frames that somebody else brings: a browser's webcam, a test, another program."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator

import numpy as np

from data.errors import SourceError
from data.frames import PTS_TOLERANCE_SECONDS, Frame
from data.sources.base import Slots, Source, SourceInfo
from data.sources.size import check_size


class PushSource(Source):
    """Bounded and thread-safe: `push` never waits, the newest frames win, and what is lost is counted.

    place_key: see `Source.place_key`. capacity: frames that wait for a slow reader. A reader that takes only some slots does
    not count the rest as dropped.
    """

    def __init__(self, label: str = "camera", capacity: int = 8, place_key: str = "") -> None:
        if capacity < 1:
            raise SourceError(f"{label}: capacity must be at least 1, got {capacity}")
        super().__init__(SourceInfo(kind="camera", label=label, live=True, width=0, height=0))
        self._capacity = capacity
        self._place_key = place_key
        self._queue: deque[tuple[float, Frame]] = deque()
        self._changed = threading.Condition()
        self._slots: Slots | None = None
        self._start_seconds = 0.0
        self._began: float | None = None
        self._last: float | None = None
        self._ended = False
        self.stats.reader = "pushed"

    @property
    def place_key(self) -> str:
        return self._place_key

    def push(self, rgb: np.ndarray, pts_seconds: float | None = None) -> bool:
        """Add a picture, uint8 [H, W, 3] or [3, H, W] RGB; the pixels are copied. Returns whether it was taken.

        pts_seconds: stream time; None means now, counted from the first push. A picture that is not later than the one before,
        or comes after `end` or `close`, is left out. Raises SourceError for anything that is not such a picture.
        """
        data = _picture(rgb, self.info.label)
        now = time.monotonic()
        with self._changed:
            if self._ended or self.closed:
                return False
            self._began = now if self._began is None else self._began
            pts = now - self._began if pts_seconds is None else float(pts_seconds)
            self.stats.frames_seen += 1
            self.stats.state = "live"
            if not (0 <= pts < float("inf")) or (self._last is not None and pts <= self._last):
                self.stats.frames_dropped += 1
                return False
            self._last = pts
            if (data.shape[2], data.shape[1]) != (self.info.width, self.info.height):
                self._info = SourceInfo("camera", self.info.label, True, data.shape[2], data.shape[1])
            # Until somebody reads, the sampling rate is not known: everything waits, and the newest stay.
            if self._slots is not None and not self._wanted(pts, self._slots):
                return True
            while len(self._queue) >= self._capacity:
                self._queue.popleft()
                self.stats.frames_dropped += 1
            self._queue.append((now, Frame(data, pts)))
            self._changed.notify_all()
        return True

    def end(self) -> None:
        """No more frames will come: `frames()` ends after those that wait."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def close(self) -> None:
        """End `frames()` at once."""
        super().close()
        with self._changed:
            self._queue.clear()
            self._changed.notify_all()

    @property
    def waits(self) -> bool:
        return bool(self._queue)

    def frames(self, fps: float, start_seconds: float = 0.0) -> Iterator[Frame]:
        """See `Source.frames`. One reader at a time."""
        slots = Slots(fps)
        with self._changed:
            self._start_seconds = start_seconds
            waiting = [entry for entry in self._queue if self._wanted(entry[1].pts_seconds, slots)]
            self._queue = deque(waiting)
            self._slots = slots
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._queue or self._ended or self.closed)
                    if self.closed or not self._queue:
                        break
                    arrived, frame = self._queue.popleft()
                self.stats.lag_seconds = time.monotonic() - arrived
                yield Frame(frame.data, frame.pts_seconds, 1.0 / fps)
            self.stats.state = "ended"
        finally:
            with self._changed:
                self._slots = None

    def _wanted(self, pts: float, slots: Slots) -> bool:
        return pts >= self._start_seconds - PTS_TOLERANCE_SECONDS and slots.due(pts)


def _picture(rgb: np.ndarray, label: str) -> np.ndarray:
    if not isinstance(rgb, np.ndarray) or rgb.dtype != np.uint8 or rgb.ndim != 3 or 3 not in (rgb.shape[0], rgb.shape[2]):
        got = f"{rgb.dtype}{list(rgb.shape)}" if isinstance(rgb, np.ndarray) else type(rgb).__name__
        raise SourceError(f"{label}: a picture must be uint8 [H, W, 3] or [3, H, W], got {got}")
    data = rgb.transpose(2, 0, 1) if rgb.shape[2] == 3 else rgb
    check_size(data.shape[2], data.shape[1], label)
    return np.array(data, dtype=np.uint8, order="C", copy=True)
