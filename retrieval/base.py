"""Retrieval's nouns: a hit, and the interface that every retriever fills."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data.errors import ConfigError
from memory.stored_vectors import StoredVectors
from model_adapters.base import ChunkKV, Query

if TYPE_CHECKING:
    from retrieval.chunk_index import ChunkIndex


@dataclass(frozen=True)
class Hit:
    """A chunk that a retriever brings back, with its score (higher is better, comparable within one search only)."""

    chunk_id: int
    score: float
    start_seconds: float
    end_seconds: float


class Retriever(ABC):
    """Remembers what it needs of every chunk, and finds the chunks that matter for a question.

    Every method is called from one thread at a time.
    """

    index: ChunkIndex | None = None
    """What holds its vectors; None if it has none."""

    @abstractmethod
    def add(self, chunk: ChunkKV) -> None:
        """Index a chunk. Chunks arrive in stream order; a chunk_id is added once."""

    @abstractmethod
    def remove(self, chunk_ids: Collection[int]) -> None:
        """Forget chunks; unknown ids are ignored."""

    @abstractmethod
    def search(self, query: Query, top_k: int, until_seconds: float, exclude: Collection[int] = ()) -> list[Hit]:
        """At most `top_k` hits, best first, among chunks that end by `until_seconds` and are not in `exclude`."""

    def restore(self, stored: StoredVectors) -> None:
        """Index chunks of a stored memory, as `add` would have, without their KV; those that were added before must have been
        removed. ConfigError if that needs their KV."""
        raise ConfigError(f"{type(self).__name__} cannot search a stored memory; choose another retrieval")

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """Bytes that the index holds in RAM."""
