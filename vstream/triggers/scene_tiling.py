"""Scene tiling: the newest chunk is unlike the one before it.

VideoLLaMB's SceneTiling (arXiv 2409.01071) cuts where the cosine of neighbours falls into a valley, by depth scores after
TextTiling. Its depth looks to both sides; only the left side is causal, and is what stands here. The features are ours: the
values that the language model stored for a chunk's last token, two thirds up its layers, which has read the chunk.
"""

from __future__ import annotations

from collections import deque

import torch
import torch.nn.functional as F

from vstream.triggers.base import Decision, LiveChunk, Trigger
from vstream.triggers.recent import MIN_VALUES, Recent

DEVIATIONS = 0.5
"""A valley is this many standard deviations deeper than the mean depth, as published."""
LEAST_DEPTH = 0.1
"""Shallower is no valley, however calm the stream is."""
ENOUGH_DEPTH = 0.15
"""Deeper is one, however restless it is: where events are frequent they are the mean, and would hide each other."""
LEFT = 8
"""Chunks to the left among which the peak is sought. Climbing only while it goes up would hide the second of two valleys."""


class SceneTiling(Trigger):
    """Fires where the likeness to the chunk before falls far below the peak to the left of it.

    The first chunk was alike to itself, so that the peak is 1 until `LEFT` chunks have passed: of two cuts at the beginning
    neither hides the other.
    """

    def __init__(self, deviations: float = DEVIATIONS) -> None:
        self.deviations = deviations
        self._before: torch.Tensor | None = None
        self._left: deque[float] = deque([1.0], maxlen=LEFT)
        self._recent = Recent(0.0)

    def look(self, moment: LiveChunk) -> Decision:
        at = moment.at_seconds
        feature = chunk_feature(moment)
        before, self._before = self._before, feature
        if before is None:
            return Decision(at, True, 0.0, LEAST_DEPTH, "nothing was looked at before")
        likeness = float(F.cosine_similarity(feature, before, dim=0))
        depth = max(0.0, max(self._left) - likeness)
        self._left.append(likeness)
        threshold = self._threshold()
        self._recent.add(at, depth)
        fired = depth >= threshold
        words = "another scene than" if fired else "like"
        return Decision(at, fired, depth, threshold, f"{words} the moment before (likeness {likeness:.2f}, depth {depth:.2f})")

    def _threshold(self) -> float:
        depths = self._recent.values
        if len(depths) < MIN_VALUES:
            return ENOUGH_DEPTH
        return float(min(max(depths.mean() + self.deviations * depths.std(), LEAST_DEPTH), ENOUGH_DEPTH))


def chunk_feature(moment: LiveChunk) -> torch.Tensor:
    """float32 [kv_heads * head_dim]: what the chunk's last token holds, two thirds up the layers."""
    values = moment.kv.values
    return values[2 * values.shape[0] // 3, :, -1].flatten().float()
