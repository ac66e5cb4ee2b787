"""Memory's nouns: a store (one tier's place for chunks), a bank (what a session talks to), and the spans it has lost."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch

from data.errors import MemoryBankError
from memory.codecs import decoded
from memory.layout import Packet
from memory.reading import Take, fresh
from memory.records import ChunkRecord
from model_adapters.base import ChunkKV

Stored = ChunkKV | Packet
"""A chunk as a tier keeps it: as it is on the compute device, in a packet elsewhere."""

Span = tuple[float, float]
"""(start_seconds, end_seconds) of stream time."""

TOUCHING_SECONDS = 1e-6
"""Slots are products of floats; spans this close to each other are one span."""


class Store(ABC):
    """One tier's place for chunks, with a byte budget. Which chunk goes where is the bank's business, not the store's.

    A chunk that went through the native codec reads back bit-equal right after `put`. Not thread-safe: the bank holds the lock.
    """

    capacity_bytes: int
    holds_packets = True
    """Whether chunks are kept as packets: then one moves from store to store without being decoded on the way."""

    @abstractmethod
    def prepared(self, chunk: ChunkKV) -> Stored:
        """The chunk in the form in which it would be kept, so that its size is known before room is made for it."""

    @abstractmethod
    def put(self, item: Stored) -> None:
        """Keep a chunk, prepared or not. The caller has made sure of `has_room` and that the id is not there yet."""

    @abstractmethod
    def stored(self, chunk_id: int) -> Stored:
        """The chunk as it is kept. KeyError for an unknown id, MemoryBankError for a damaged one. The tensors may be the
        stored ones: never write into them."""

    def gather(self, chunk_ids: Collection[int], take: Take = fresh) -> dict[int, Stored]:
        """Chunks as `stored` returns them, read into what `take` gives, as far as that is worth doing. Others, and those that
        cannot be read, are left out."""
        return {}

    def announce(self, chunk_ids: Collection[int]) -> None:  # noqa: B027 - most stores need not be told
        """These will be gathered soon; unknown ones are ignored."""

    def get(self, chunk_id: int, device: torch.device | None = None) -> ChunkKV:
        """The chunk itself on `device` (or where the store lives). Errors and caution as in `stored`."""
        item = self.stored(chunk_id)
        if isinstance(item, Packet):
            return decoded(item, device or "cpu")
        return item if device is None else item.to(device)

    @abstractmethod
    def remove(self, chunk_id: int) -> None:
        """Forget a chunk. KeyError for an unknown id."""

    def replace(self, items: Mapping[int, Stored]) -> None:
        """Keep smaller versions of chunks that are there. MemoryBankError, with nothing changed, if that cannot be written."""
        for chunk_id, item in items.items():
            self.remove(chunk_id)
            self.put(item)

    def together(self, chunk_id: int) -> Collection[int]:
        """The chunks that share space with this one: it comes back only when all of them go or are replaced."""
        return [chunk_id]

    @abstractmethod
    def chunk_ids(self) -> Collection[int]:
        """The ids in the store, in no particular order."""

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """Bytes really held: whole slabs, whole files, and what waits to be written."""

    @property
    @abstractmethod
    def num_payload_bytes(self) -> int:
        """The sum of `num_bytes` over the chunks in the store, as they are kept."""

    @property
    def num_free_bytes(self) -> int:
        """Bytes that chunks can still take before the budget is spent."""
        return self.capacity_bytes - self.num_bytes

    @abstractmethod
    def footprint(self, num_bytes: int) -> int:
        """The most bytes that a chunk of `num_bytes` takes here (alignment and headers included)."""

    def can_ever_hold(self, num_bytes: int) -> bool:
        """Whether a chunk of `num_bytes` would fit if the store were empty."""
        return self.footprint(num_bytes) <= self.capacity_bytes

    def has_room(self, num_bytes: int) -> bool:
        """Whether a chunk of `num_bytes` fits now, inside the budget."""
        return self.footprint(num_bytes) <= self.num_free_bytes

    def reclaim(self) -> bool:
        """Win back space that removed chunks still take up. False if there was none worth the work."""
        return False

    @abstractmethod
    def check_integrity(self) -> None:
        """AssertionError, in words, if the store's own bookkeeping is wrong or the budget is exceeded."""

    @abstractmethod
    def close(self) -> None:
        """Let everything go. Idempotent."""

    def __contains__(self, chunk_id: int) -> bool:
        return chunk_id in self.chunk_ids()


class Bank(ABC):
    """All stored chunks of one stream. Thread-safe: one thread puts while others get."""

    damaged: list[int]
    """Ids of chunks that did not read back as they were written; they are skipped and forgotten."""
    gaps: list[Span]
    """Spans of the stream that the memory no longer holds, merged and in order."""

    @abstractmethod
    def put(self, chunk: ChunkKV, record: ChunkRecord | None = None) -> list[int]:
        """Store a chunk. Returns the ids of the chunks that were dropped for it (the retriever should forget them).

        record: what is kept of it beside its KV, by a bank that outlives the session; others have no use for it.

        MemoryBankError if the id is already stored, the bank is closed or a tier cannot be written.
        """

    def take_thinned(self) -> list[ChunkKV]:
        """What is left of the chunks that were thinned since the last call; the retriever should index them anew."""
        return []

    def step(self, chunk_id: int) -> int:
        """How often a stored chunk has been thinned: 0 for a whole one, and for one that is not there."""
        return self.steps().get(chunk_id, 0)

    def steps(self) -> dict[int, int]:
        """How often chunks have been thinned, by their ids; whole ones are left out."""
        return {}

    @abstractmethod
    def get(self, chunk_ids: Sequence[int]) -> list[ChunkKV]:
        """The chunks on the compute device in the given order. Ids that are not there (dropped, or damaged: see `damaged`)
        are left out. The tensors may be the stored ones: never write into them."""

    def stream(self, chunk_ids: Sequence[int]) -> Generator[list[ChunkKV], None, None]:
        """What `get` returns, some chunks at a time, at least once; the next are read while the last are used.

        Chunks are good until the next are asked for: their memory is used again. Close it where it is left early."""
        yield self.get(chunk_ids)

    @abstractmethod
    def forget(self, start_seconds: float, end_seconds: float) -> list[int]:
        """Remove every chunk that overlaps the span, wherever it is. Returns their ids. MemoryBankError for an empty span."""

    @abstractmethod
    def pinned(self, chunk_ids: Sequence[int]) -> AbstractContextManager[None]:
        """While the context is open these chunks are neither dropped nor moved. Unknown ids are ignored."""

    @abstractmethod
    def tier(self, chunk_id: int) -> str | None:
        """ "gpu", "ram" or "disk"; None if the chunk is not there."""

    def tiers(self) -> dict[int, str]:
        """The tier of every stored chunk."""
        found = {chunk_id: self.tier(chunk_id) for chunk_id in self.chunk_ids()}
        return {chunk_id: tier for chunk_id, tier in found.items() if tier is not None}

    @abstractmethod
    def num_bytes(self, tier: str) -> int:
        """Bytes that a tier really holds; 0 for a tier that is off."""

    @abstractmethod
    def chunk_ids(self) -> list[int]:
        """All stored ids, in stream order."""

    @abstractmethod
    def span(self, chunk_id: int) -> Span:
        """The stream time of a stored chunk. KeyError for an unknown id."""

    @abstractmethod
    def stats(self) -> dict[str, object]:
        """Counts, sizes and budgets, ready for JSON."""

    @abstractmethod
    def check_integrity(self) -> None:
        """AssertionError, in words, if bookkeeping and content disagree; MemoryBankError if that cannot be told, or what is on
        disk is damaged."""

    @abstractmethod
    def close(self) -> None:
        """Let everything go. Idempotent."""


def overlapping(spans: Iterable[tuple[int, Span]], start_seconds: float, end_seconds: float) -> list[int]:
    """The ids whose span overlaps [start_seconds, end_seconds). MemoryBankError if that is no span."""
    check_span(start_seconds, end_seconds)
    return [chunk_id for chunk_id, (start, end) in spans if start < end_seconds and end > start_seconds]


class Timed(Protocol):
    """What lies in [start_seconds, end_seconds) of a stream."""

    @property
    def start_seconds(self) -> float: ...

    @property
    def end_seconds(self) -> float: ...


def outside(timed: Timed, start_seconds: float, end_seconds: float) -> bool:
    """Whether nothing of it lies in [start_seconds, end_seconds)."""
    return timed.end_seconds <= start_seconds or timed.start_seconds >= end_seconds


def check_span(start_seconds: float, end_seconds: float) -> None:
    """MemoryBankError unless start comes before end."""
    if not start_seconds < end_seconds:
        raise MemoryBankError(f"{start_seconds:g}–{end_seconds:g} s is no span; give a start before its end")


def add_span(spans: Sequence[Span], new: Span) -> list[Span]:
    """Ordered, disjoint `spans` with `new` in its place, merged with those that it touches."""
    start, end = new
    before = [span for span in spans if span[1] < start - TOUCHING_SECONDS]
    after = [span for span in spans if span[0] > end + TOUCHING_SECONDS]
    touching = spans[len(before) : len(spans) - len(after)]
    merged = (min([start, *(span[0] for span in touching)]), max([end, *(span[1] for span in touching)]))
    return [*before, merged, *after]
