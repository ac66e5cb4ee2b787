"""The retriever that a session uses: what a name stands for, and what comes with it."""

from __future__ import annotations

from retrieval import create_retriever
from retrieval.base import Retriever
from retrieval.gate import Gate
from retrieval.gated import Gated
from retrieval.key_similarity import KeySimilarity
from retrieval.neighbours import Neighbours
from retrieval.temporal import Combined, Temporal


def compose_retriever(name: str, gate: float = 0.0, late: str = "mean") -> Retriever:
    """Key similarity passes a gate, is widened to what stood before and after a hit, and joined by the times that a
    question names. Baselines stay bare: they are what the composition is measured against. late: see KeySimilarity.
    """
    base = create_retriever(name, late=late) if name == "key_similarity" else create_retriever(name)
    if not isinstance(base, KeySimilarity):
        return base
    return Combined(Temporal(margin=1), Neighbours(Gated(base, Gate(gate)), before=1, after=2))
