"""One clock for a live stream: its own timestamps while they run on, wall-clock time where they are missing or jump."""

from __future__ import annotations

JUMP_SECONDS = 10.0
"""Timestamps further than this from the wall clock, or running backwards, start a new count (a wrap, another program)."""
STEP_SECONDS = 1e-3
"""Least distance of two frames on the timeline."""


class Timeline:
    """Places frames on stream time, which starts at 0 with the first frame and never runs backwards.

    follow_clock: False for finite streams that arrive faster or slower than they play; there only the order is kept.
    """

    def __init__(self, follow_clock: bool = True) -> None:
        self.follow_clock = follow_clock
        self.last_seconds: float | None = None
        self._zero: float | None = None
        self._offset: float | None = None

    def restart(self) -> None:
        """A new connection: its timestamps are counted from where the wall clock is."""
        self._offset = None

    def place(self, pts_seconds: float | None, now: float) -> float:
        """Stream time of a frame that says `pts_seconds` (None: it says nothing) and arrived at `now`, both in seconds."""
        if self._zero is None:
            self._zero = now
        wall = now - self._zero
        if pts_seconds is None:
            placed = wall
        else:
            if self._offset is None:
                self._offset = pts_seconds - (wall if self.follow_clock else self.last_seconds or 0.0)
            placed = pts_seconds - self._offset
            backwards = self.last_seconds is not None and placed <= self.last_seconds
            if self.follow_clock and (backwards or abs(placed - wall) > JUMP_SECONDS):
                self._offset = pts_seconds - max(wall, self.last_seconds or 0.0)
                placed = pts_seconds - self._offset
        if self.last_seconds is not None and placed <= self.last_seconds:
            placed = self.last_seconds + STEP_SECONDS
        self.last_seconds = placed
        return placed
