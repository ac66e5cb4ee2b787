"""Novelty: far more tokens survive dropping than of late.

Idea: TimeChat-Online's trigger on the drop ratio (arXiv 2504.17343), whose fixed 60 % rule fires all the time before a
hand-held camera. Ours compares with the stream's own last minute, and never looks ahead. Blind to slow change, and to a
stream of which nothing is dropped: stand a poll beside it.
"""

from __future__ import annotations

from vstream.triggers.base import Decision, LiveChunk, Trigger
from vstream.triggers.recent import Recent

Z_FIRE = 3.5
Z_REARM = 1.5
"""After it has fired, the z-score must fall below this before it fires again."""
FLOOR = 0.03
"""Least spread of the share of kept tokens; a stream that stands still has none."""


class Novelty(Trigger):
    """Fires where the share of kept tokens stands out by `z` robust deviations.

    key_every: every so many chunks one is kept whole whatever it shows; such a chunk says nothing and is passed over.
    """

    def __init__(self, key_every: int, z: float = Z_FIRE) -> None:
        self.key_every = key_every
        self.z = z
        self._recent = Recent(FLOOR)
        self._armed = True
        self._num_looks = 0

    def look(self, moment: LiveChunk) -> Decision:
        novelty = 1 - moment.record.drop_ratio
        scheduled = self._num_looks % self.key_every == 0
        self._num_looks += 1
        at = moment.at_seconds
        if scheduled and novelty == 1.0:
            return Decision(at, False, 0.0, self.z, "this chunk was kept whole on schedule")
        z = self._recent.z(novelty)
        self._recent.add(at, novelty)
        if z is None:
            return Decision(at, False, 0.0, self.z, "too little seen to know what is new")
        fired = self._armed and z >= self.z
        self._armed = z < Z_REARM or (self._armed and not fired)
        words = "stands out" if z >= self.z else "is usual"
        rest = "" if fired or z < self.z else ", but has not calmed down since"
        return Decision(at, fired, z, self.z, f"{novelty:.0%} of the picture is new, which {words}{rest}")
