"""Poll: look every so often, whatever happens. The safety net under triggers that are blind to slow change.

How StreamingBench (arXiv 2411.03628) has models without a trigger of their own speak up: it asks them every second.
"""

from __future__ import annotations

from vstream.triggers.base import Decision, LiveChunk, Trigger


class Poll(Trigger):
    """Fires at the first chunk, and at the first one that ends `every_seconds` or more after it fired."""

    def __init__(self, every_seconds: float) -> None:
        self.every_seconds = every_seconds
        self._last: float | None = None

    def look(self, moment: LiveChunk) -> Decision:
        end = moment.record.end_seconds
        waited = self.every_seconds if self._last is None else end - self._last
        words = "the first poll" if self._last is None else f"{waited:.0f} s since the last poll"
        fired = waited >= self.every_seconds - 1e-6
        if fired:
            self._last = end
        return Decision(moment.at_seconds, fired, waited, self.every_seconds, words)
