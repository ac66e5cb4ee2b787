"""The retriever that a session uses: what a name stands for, and what comes with it."""

from __future__ import annotations

from retrieval import create_retriever
from retrieval.base import Retriever
from retrieval.chunk_index import INDEX_BYTES
from retrieval.gate import Gate
from retrieval.gated import Gated
from retrieval.key_similarity import KeySimilarity
from retrieval.neighbours import Neighbours
from retrieval.per_layer import PerLayer
from retrieval.temporal import Combined, Temporal


def compose_retriever(name: str, gate: float = 0.0, late: str = "mean", index_bytes: int = INDEX_BYTES) -> Retriever:
    """Key similarity passes a gate, is widened to what stood before and after a hit, and joined by the times that a
    question names. Baselines stay bare: they are what the composition is measured against. late: see KeySimilarity.
    index_bytes: what vectors may take up in RAM.
    """
    if name == "per_layer":
        return PerLayer(index_bytes)
    if name != "key_similarity":
        return create_retriever(name)
    base = KeySimilarity(late, index_bytes=index_bytes)
    return Combined(Temporal(margin=1), Neighbours(Gated(base, Gate(gate)), before=1, after=2))
