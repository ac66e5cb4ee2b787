"""A bank without tiers or budgets: the specification of `MemoryBank`, and the store for small jobs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from data.errors import MemoryBankError
from memory.base import Bank, Span, add_span, overlapping
from memory.records import ChunkRecord
from model_adapters.base import ChunkKV


class PlainBank(Bank):
    """Every chunk in one dict on the compute device; nothing is ever moved, dropped or damaged."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.damaged: list[int] = []
        self.gaps: list[Span] = []
        self._chunks: dict[int, ChunkKV] = {}
        self._closed = False

    def put(self, chunk: ChunkKV, record: ChunkRecord | None = None) -> list[int]:
        if self._closed:
            raise MemoryBankError("the memory is closed")
        if chunk.chunk_id in self._chunks:
            raise MemoryBankError(f"chunk {chunk.chunk_id} is already in the memory")
        self._chunks[chunk.chunk_id] = chunk.to(self.device)
        return []

    def get(self, chunk_ids: Sequence[int]) -> list[ChunkKV]:
        if self._closed:
            raise MemoryBankError("the memory is closed")
        return [self._chunks[chunk_id] for chunk_id in chunk_ids if chunk_id in self._chunks]

    def forget(self, start_seconds: float, end_seconds: float) -> list[int]:
        ids = overlapping([(i, self.span(i)) for i in self._chunks], start_seconds, end_seconds)
        for chunk_id in ids:
            self.gaps = add_span(self.gaps, self.span(chunk_id))
            del self._chunks[chunk_id]
        return ids

    @contextmanager
    def pinned(self, chunk_ids: Sequence[int]) -> Iterator[None]:
        yield

    def tier(self, chunk_id: int) -> str | None:
        return self._tier_name if chunk_id in self._chunks else None

    def num_bytes(self, tier: str) -> int:
        return sum(chunk.num_bytes for chunk in list(self._chunks.values())) if tier == self._tier_name else 0

    def chunk_ids(self) -> list[int]:
        chunks = list(self._chunks.values())
        return [chunk.chunk_id for chunk in sorted(chunks, key=lambda chunk: (chunk.start_seconds, chunk.chunk_id))]

    def span(self, chunk_id: int) -> Span:
        chunk = self._chunks[chunk_id]
        return (chunk.start_seconds, chunk.end_seconds)

    def stats(self) -> dict[str, object]:
        return {"num_chunks": len(self._chunks), "num_bytes": self.num_bytes(self._tier_name), "num_damaged": 0}

    def check_integrity(self) -> None:
        for chunk_id, chunk in self._chunks.items():
            assert chunk.chunk_id == chunk_id, f"chunk {chunk.chunk_id} is filed under {chunk_id}"

    def close(self) -> None:
        self._chunks.clear()
        self._closed = True

    @property
    def _tier_name(self) -> str:
        return "gpu" if self.device.type != "cpu" else "ram"
