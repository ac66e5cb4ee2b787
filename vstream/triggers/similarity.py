"""Query similarity: what is asked for is suddenly more alike to what is seen.

The score is retrieval's own (ReKV, arXiv 2503.00540): the question's un-rotated queries against the mean un-rotated key of the
chunk. Its level means nothing; that it stands out from the stream's last minute does.
"""

from __future__ import annotations

import torch

from model_adapters.base import ChunkKV, Query
from vstream.triggers.base import Decision, LiveChunk, Trigger
from vstream.triggers.recent import Recent

Z_FIRE = 1.0
"""Low, because it only chooses what a model is then asked: of 60 entries two are lost at 1.5 and none at 1.25."""
ENOUGH_VALUES = 30
"""What a few values have in common says little about what is usual: until there are so many, less of a jump is enough."""
FLOOR = 1e-6


class QueryJump(Trigger):
    """Fires where the similarity of `query` and chunk rises, and stands out by `z` robust deviations; always, while little is
    known."""

    def __init__(self, query: Query, z: float = Z_FIRE) -> None:
        self.query = query
        self.z = z
        self._recent = Recent(FLOOR)

    def look(self, moment: LiveChunk) -> Decision:
        (similarity,) = similarities(self.query.per_layer[None], moment.kv)
        decision = self.decide(moment.at_seconds, similarity)
        self.remember(moment.at_seconds, similarity)
        return decision

    def decide(self, at_seconds: float, similarity: float) -> Decision:
        """Whether `similarity` stands out from what is remembered."""
        z = self._recent.z(similarity)
        if z is None:
            return Decision(at_seconds, True, 0.0, self.z, "too little seen to know what is usual")
        threshold = self.z * min(1.0, len(self._recent) / ENOUGH_VALUES)
        rises = similarity > self._recent.newest
        fired = rises and z >= threshold
        words = f"{'' if fired else 'not '}more alike to the condition than {'of late' if rises else 'the moment before'}"
        return Decision(at_seconds, fired, z, threshold, words)

    def remember(self, at_seconds: float, similarity: float) -> None:
        """Take the similarity of a moment into what is usual."""
        self._recent.add(at_seconds, similarity)


def similarities(queries: torch.Tensor, kv: ChunkKV) -> list[float]:
    """The mean over layers of each query's dot product with the chunk's mean key. queries: [n, layers, kv_heads, head_dim]."""
    mean_keys = kv.keys.float().mean(2)
    return ((queries * mean_keys).flatten(1).sum(1) / len(mean_keys)).tolist()
