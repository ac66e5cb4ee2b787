"""Scores that need no judge: exact match with a Wilson interval, retrieval against the schedule, medians."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from data.questions import canonical

Z95 = 1.959964


@dataclass(frozen=True)
class Rate:
    """`right` of `n`, with its 95 % Wilson interval."""

    right: int
    n: int

    @property
    def value(self) -> float:
        return self.right / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper bound of the 95 % Wilson score interval."""
        if not self.n:
            return 0.0, 1.0
        p, z2 = self.value, Z95**2 / self.n
        middle = (p + z2 / 2) / (1 + z2)
        half = Z95 / (1 + z2) * math.sqrt(p * (1 - p) / self.n + z2 / (4 * self.n))
        return max(0.0, middle - half), min(1.0, middle + half)

    def __str__(self) -> str:
        if not self.n:
            return "–"
        low, high = self.interval
        return f"{100 * self.value:.1f} ({100 * low:.0f}–{100 * high:.0f}, n={self.n})"


def rate(hits: Sequence[bool]) -> Rate:
    return Rate(sum(hits), len(hits))


def exact(answer: str, truth: str) -> bool:
    """Equal after lower-casing and collapsing white space."""
    return canonical(answer) == canonical(truth)


def recall_precision(found: Sequence[int], wanted: Collection[int], k: int) -> tuple[float, float]:
    """Of the best `k` in `found`: the share of `wanted` that is there, and the share that is wanted. wanted: not empty."""
    top = found[:k]
    hits = len(set(top) & set(wanted))
    return hits / len(wanted), hits / len(top) if top else 0.0


def median(values: Sequence[float]) -> float:
    """The median; NaN of nothing."""
    ordered = sorted(values)
    if not ordered:
        return math.nan
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
