"""Watching a source up to a moment, as fast as it comes: what `ask`, `batch` and the evaluation have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from data.frames import PTS_TOLERANCE_SECONDS, Frame
from vstream.session import StreamSession
from vstream.together import never, num_at_once


class Reel:
    """Frames sampled to the session's fps, watched piece by piece: `watch_until(t)` feeds all frames up to stream time `t`.

    The frame that shows that `t` is reached is held back for the next piece, so nothing later than `t` is seen. waits: whether
    a further frame is there already (`Source.waits`); such frames are looked at together.
    """

    def __init__(self, session: StreamSession, frames: Iterator[Frame], waits: Callable[[], bool] = never) -> None:
        self.session = session
        self._waits = waits
        self.ended = False
        self._frames = frames
        self._held: Frame | None = None

    def watch_until(self, seconds: float, on_frame: Callable[[float], None] = lambda pts: None) -> None:
        """Feed up to stream time `seconds`; at the end of the stream its last, unfinished chunk is stored."""
        while not self.ended:
            group = self._group(seconds)
            if group:
                self.session.push(*group)
                on_frame(group[-1].pts_seconds)
            if self.ended:
                self.session.finish()
            elif self._held is not None:
                return

    def _group(self, seconds: float) -> list[Frame]:
        """The next frames up to `seconds`: one, or those that wait with it."""
        group: list[Frame] = []
        while len(group) < num_at_once(self.session.config, self.session.turns):
            frame = self._held or next(self._frames, None)
            self._held = None
            if frame is None:
                self.ended = True
                break
            if frame.pts_seconds + self.session.offset_seconds > seconds + PTS_TOLERANCE_SECONDS:
                self._held = frame
                break
            group.append(frame)
            if not self._waits():
                break
        return group
