"""Which chunks of the past matter for a question."""

from __future__ import annotations

import importlib
from typing import Any

from data.errors import ConfigError
from retrieval.base import Hit, Retriever

RETRIEVERS = {
    "key_similarity": "retrieval.key_similarity:KeySimilarity",
    "per_layer": "retrieval.per_layer:PerLayer",
    "recent": "retrieval.baselines:Recent",
    "uniform": "retrieval.baselines:Uniform",
    "all": "retrieval.baselines:All",
    "none": "retrieval.baselines:NoneRetriever",
}
"""Name → module:class, imported when it is asked for."""


def create_retriever(name: str, **options: Any) -> Retriever:
    """The retriever called `name`, made with `options`. ConfigError for an unknown name."""
    if name not in RETRIEVERS:
        raise ConfigError(f"retrieval={name!r} is not known; known are {', '.join(sorted(RETRIEVERS))}")
    module, kind = RETRIEVERS[name].split(":")
    retriever: Retriever = getattr(importlib.import_module(module), kind)(**options)
    return retriever


__all__ = ["RETRIEVERS", "Hit", "Retriever", "create_retriever"]
