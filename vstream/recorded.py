"""Watching a source up to a moment, as fast as it comes: what `ask`, `batch` and the evaluation have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from data.frames import PTS_TOLERANCE_SECONDS, Frame
from vstream.session import StreamSession


class Reel:
    """Frames sampled to the session's fps, watched piece by piece: `watch_until(t)` feeds all frames up to stream time `t`.

    The frame that shows that `t` is reached is held back for the next piece, so nothing later than `t` is seen.
    """

    def __init__(self, session: StreamSession, frames: Iterator[Frame]) -> None:
        self.session = session
        self.ended = False
        self._frames = frames
        self._held: Frame | None = None

    def watch_until(self, seconds: float, on_frame: Callable[[float], None] = lambda pts: None) -> None:
        """Feed up to stream time `seconds`; at the end of the stream its last, unfinished chunk is stored."""
        while not self.ended:
            frame = self._held or next(self._frames, None)
            self._held = None
            if frame is None:
                self.session.finish()
                self.ended = True
            elif frame.pts_seconds + self.session.offset_seconds > seconds + PTS_TOLERANCE_SECONDS:
                self._held = frame
                return
            else:
                self.session.push(frame)
                on_frame(frame.pts_seconds)
