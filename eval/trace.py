"""TRACE: how well commentary tells what there is to tell, and when, in one number from 0 to 1, without a judge.

After "Temporally-Grounded Language Generation" (arXiv 2505.11326): what was said and what is true are matched one to one by
time, neighbours change partners where their words then fit better, and pairs too far apart are let go. A pair's accuracy is
the likeness of its words; its timing is that of its start, of its end at a speaker's pace, and of not talking over others. The
score is the mean of both over all pairs, times F1. Ours differs in two things: words are compared by their own F1 instead of a
sentence model, which would be a download, and the end of what is true is that of speaking it, since a schedule has no speaker.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.questions import canonical

WORDS_PER_SECOND = 2.5
MATCH_SECONDS = 3.0
"""How fast a match loses worth with the time between its two sides."""
FAR_SECONDS = 5.0
"""Pairs further apart are none."""
TIMING_SECONDS = 1.0
START, END, OVERLAP = 0.4, 0.4, 0.2
MAX_PASSES = 5

Told = tuple[float, str]
"""(start_seconds, text) of something that is said, or that there is to say."""


@dataclass(frozen=True)
class Pair:
    """Something that was said and what it tells of: numbers in both lists, and the two marks from 0 to 1."""

    said: int
    true: int
    accuracy: float
    timing: float


def pairs_of(said: Sequence[Told], true: Sequence[Told]) -> list[Pair]:
    """The pairs of one stream, in the order of what was said."""
    if not said or not true:
        return []
    likeness = np.array([[words_f1(text, other) for _, other in true] for _, text in said])
    apart = np.abs(np.array([at for at, _ in said])[:, None] - np.array([at for at, _ in true]))
    partner = assigned(np.exp(-apart / MATCH_SECONDS))
    _swap(partner, likeness, apart <= FAR_SECONDS)
    kept = [(i, j) for i, j in sorted(partner.items()) if apart[i, j] <= FAR_SECONDS]
    spans = [_span(said[i]) for i, _ in kept]
    return [
        Pair(i, j, float(likeness[i, j]), _timing(spans[number], _span(true[j]), spans[:number] + spans[number + 1 :]))
        for number, (i, j) in enumerate(kept)
    ]


def trace_score(pairs: Sequence[Pair], num_said: int, num_true: int) -> float:
    """The score of all pairs of all streams. num_said, num_true: how much was said, and how much there was to say."""
    if not pairs:
        return 0.0
    f1 = 2 * len(pairs) / (num_said + num_true)
    return f1 * float(np.mean([(pair.accuracy + pair.timing) / 2 for pair in pairs]))


def words_f1(one: str, other: str) -> float:
    """The harmonic mean of precision and recall of the words, each as often as it is there."""
    a, b = canonical(one).split(), canonical(other).split()
    return 2 * (Counter(a) & Counter(b)).total() / (len(a) + len(b)) if a or b else 0.0


def assigned(worth: np.ndarray) -> dict[int, int]:
    """The column of every row (of every column's row, where there are fewer) so that the sum of `worth` [n, m] is greatest.

    The Hungarian method by shortest augmenting paths (Jonker and Volgenant, 1987).
    """
    if len(worth) > worth.shape[1]:
        return {row: column for column, row in assigned(worth.T).items()}
    cost = -np.asarray(worth, float)
    num_rows, num_columns = cost.shape
    of_row, of_column = np.zeros(num_rows), np.zeros(num_columns + 1)
    owner = np.full(num_columns + 1, -1)
    """The row that each column is given to; the last column is where a search begins."""
    for row in range(num_rows):
        owner[-1], column = row, num_columns
        least, before = np.full(num_columns, np.inf), np.full(num_columns, -1)
        done = np.zeros(num_columns + 1, bool)
        while owner[column] >= 0:
            done[column] = True
            here = owner[column]
            free = ~done[:-1]
            found = cost[here] - of_row[here] - of_column[:-1]
            better = free & (found < least)
            least[better], before[better] = found[better], column
            column = int(np.flatnonzero(free)[np.argmin(least[free])])
            step = least[column]
            of_row[owner[done]] += step
            of_column[done] -= step
            least[free] -= step
        while column != num_columns:
            owner[column], column = owner[before[column]], before[column]
    return {int(row): column for column, row in enumerate(owner[:-1]) if row >= 0}


def _swap(partner: dict[int, int], likeness: np.ndarray, near: np.ndarray) -> None:
    """Let pairs change partners where both stay near, as long as their words then fit better; a few rounds at most."""
    for _ in range(MAX_PASSES):
        changed = False
        for i in partner:
            for k in partner:
                j, m = partner[i], partner[k]
                if i < k and near[i, m] and near[k, j] and likeness[i, m] + likeness[k, j] > likeness[i, j] + likeness[k, m]:
                    partner[i], partner[k] = m, j
                    changed = True
        if not changed:
            return


def _span(told: Told) -> tuple[float, float]:
    return told[0], told[0] + len(told[1].split()) / WORDS_PER_SECOND


def _timing(said: tuple[float, float], true: tuple[float, float], others: Sequence[tuple[float, float]]) -> float:
    overlap = sum(max(0.0, min(said[1], end) - max(said[0], start)) for start, end in others)
    late = (abs(said[0] - true[0]), abs(said[1] - true[1]), overlap)
    return float(np.dot((START, END, OVERLAP), np.exp(-np.array(late) / TIMING_SECONDS)))
