"""The gate: memory joins an answer only when its best score stands out from the stream's own scores.

Memory helps questions about the past and hurts questions about the present. A score means little by itself (it grows with
the model, the layers and the question), so it is measured against all chunks of the same stream for the same question, in
robust units: z = (top − median) / (1.4826 · MAD), which is the ordinary z-score on normal data and is not moved by the few
chunks that do matter. The largest of n ordinary scores has z ≈ sqrt(2 ln n) by itself: thresholds of 3 to 4 are sensible
for streams of some thousand chunks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.errors import ConfigError

MAD_TO_SIGMA = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""
MIN_SCORES = 4
"""With fewer chunks there is no distribution to stand out from, and little that could hurt: the gate is open."""


def robust_z(scores_of_all: Sequence[float] | np.ndarray, top: float) -> float:
    """How far `top` stands above the scores of all chunks, in robust standard deviations.

    Where at least half of all scores are the same the deviation is 0: the result is 0 or ±infinity. ValueError without scores.
    """
    scores = np.asarray(scores_of_all, dtype=np.float64)
    if scores.size == 0:
        raise ValueError("robust_z needs at least one score")
    median = float(np.median(scores))
    deviation = MAD_TO_SIGMA * float(np.median(np.abs(scores - median)))
    if deviation == 0.0:
        return 0.0 if top == median else math.copysign(math.inf, top - median)
    return (top - median) / deviation


@dataclass(frozen=True)
class Gate:
    """threshold: the least robust z-score of the best hit with which retrieval joins; 0 is always open."""

    threshold: float = 0.0

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise ConfigError(f"gate={self.threshold} must be 0 (always open) or more")

    def open(self, scores_of_all: Sequence[float] | np.ndarray, top: Sequence[float] | np.ndarray) -> bool:
        """Whether retrieval joins. scores_of_all: the question's score for every chunk; top: the scores of the hits."""
        if self.threshold == 0 or len(scores_of_all) < MIN_SCORES:
            return True
        return len(top) > 0 and robust_z(scores_of_all, float(np.max(top))) >= self.threshold
