"""A bank that outlives its session: every chunk goes to a stored memory, write-behind; GPU and RAM are caches above it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
import torch

from data.errors import MemoryBankError
from memory.bank import MemoryBank
from memory.base import Span, Stored, add_span
from memory.codecs import decoded
from memory.layout import Packet
from memory.reading import Take, fresh
from memory.records import ChunkRecord
from memory.slabs import SLAB_BYTES
from memory.stored import StoredMemory
from memory.tiers import Entry
from memory.upkeep import forget_span
from memory.writer import LAG_SECONDS, WriteBehind
from model_adapters.base import ChunkKV

logger = logging.getLogger(__name__)


class DurableBank(MemoryBank):
    """`memory` is closed with the bank. With `write`, one thread commits what is put; without it, nothing can be put.

    A chunk that no cache holds is read from disk, verified, and counts as tier "disk".
    """

    def __init__(
        self,
        memory: StoredMemory,
        device: torch.device | str,
        gpu_bytes: int,
        ram_bytes: int,
        *,
        write: bool = True,
        lag_seconds: float = LAG_SECONDS,
        slab_bytes: int = SLAB_BYTES,
    ) -> None:
        super().__init__(device, gpu_bytes, ram_bytes, codec=memory.codec.name, slab_bytes=slab_bytes, as_cache=True)
        self.memory = memory
        self._absent: set[int] = set()
        """Ids that are on disk but must not be read: damaged."""
        self._steps: dict[int, int] = {}
        """Of who only reads: how often chunks were thinned when the caches were last compared with the disk."""
        self._take_up_gaps()
        # Last: where the manifest cannot be read, no thread is left behind that holds the memory.
        self.writer = WriteBehind(memory, lag_seconds) if write else None

    def put(self, chunk: ChunkKV, record: ChunkRecord | None = None) -> list[int]:
        if self.writer is None:
            raise MemoryBankError(f"the memory {self.memory.folder} was opened for reading only")
        with self._lock:
            self._check_open()
            if self._is_there(chunk.chunk_id):
                raise MemoryBankError(f"chunk {chunk.chunk_id} is already in the memory")
        # Outside of the lock: who reads must not wait for the disk.
        self.writer.put(chunk, record or bare_record(chunk))
        with self._lock:
            self._counts["num_put"] += 1
            self._absent.discard(chunk.chunk_id)
            self._tiers.put(chunk)
            dropped, self._dropped = self._dropped, []
            unwritten, gone = self.writer.take_lost()
            # Given up by the writer or by the disk: gone, unless a cache has it still.
            lost = [i for i in [*unwritten, *gone] if i not in self._tiers.entries]
            for chunk_id in gone:
                self._add_gap(chunk_id)
            return [*dropped, *lost]

    def prefetch(self, chunk_ids: Sequence[int]) -> None:
        with self._lock:
            self._check_open()
            away = [i for i in dict.fromkeys(chunk_ids) if i not in self._tiers.entries and self.tier(i)]
            with self._pinning(chunk_ids):
                for chunk_id in away:
                    if (read := self._read(chunk_id)) is not None:
                        self._promote_unless_pinned(*read, chunk_ids)
            super().prefetch([i for i in chunk_ids if i not in away])

    def take_thinned(self) -> list[ChunkKV]:
        with self._lock:
            left = {chunk.chunk_id: chunk for chunk in (self.writer.take_thinned() if self.writer else [])}
            for chunk_id in left:
                # A cache must not remember more than the disk does: the answer would depend on what was asked before.
                if chunk_id in self._tiers.entries and chunk_id not in self._pins:
                    self._tiers.forget(chunk_id)
            return [chunk for chunk in left.values() if self.tier(chunk.chunk_id)]

    def step(self, chunk_id: int) -> int:
        return self.memory.manifest.step(chunk_id)

    def steps(self) -> dict[int, int]:
        return self.memory.manifest.steps()

    def tier(self, chunk_id: int) -> str | None:
        with self._lock:
            if chunk_id in self._tiers.entries:
                return super().tier(chunk_id)
            if chunk_id in self._absent:
                return None
            return "disk" if self._pending(chunk_id) is not None or self.memory.manifest.holds(chunk_id) else None

    def tiers(self) -> dict[int, str]:
        with self._lock:
            return {**dict.fromkeys(self.chunk_ids(), "disk"), **super().tiers()}

    def num_bytes(self, tier: str) -> int:
        return self.memory.num_bytes if tier == "disk" else super().num_bytes(tier)

    def chunk_ids(self) -> list[int]:
        with self._lock:
            waiting = {record.chunk_id for record in self.writer.pending_records()} if self.writer else set()
            return sorted({*self.memory.manifest.ids(), *waiting, *self._tiers.entries} - self._absent)

    def span(self, chunk_id: int) -> Span:
        with self._lock:
            if chunk_id in self._tiers.entries:
                return super().span(chunk_id)
            waiting = self._pending(chunk_id)
            if waiting is not None:
                return (waiting.start_seconds, waiting.end_seconds)
            row = None if chunk_id in self._absent else self.memory.manifest.row(chunk_id)
            if row is None:
                raise KeyError(chunk_id)
            return (row.start_seconds, row.end_seconds)

    def forget(self, start_seconds: float, end_seconds: float) -> list[int]:
        """Really remove every chunk that overlaps the span, from the caches and from the disk. Returns their ids.

        KV of later chunks was made with these in view; what their tokens have drawn from them cannot be taken out again.
        """
        if self.writer is None:
            raise MemoryBankError(f"the memory {self.memory.folder} was opened for reading only; nothing was forgotten")
        self.writer.flush()
        with self._lock:
            self._check_open()
            stored = forget_span(self.memory, start_seconds, end_seconds)
            self._take_up_gaps()
            # A cache may have more than the disk, which has failed for a while.
            return sorted({*stored, *super().forget(start_seconds, end_seconds)})

    def stats(self) -> dict[str, object]:
        found = super().stats()
        tiers = found["tiers"]
        assert isinstance(tiers, dict)
        tiers["disk"] = {"num_bytes": self.memory.num_bytes, "capacity_bytes": self.memory.disk_bytes}
        with self._lock:
            num_read = self._counts["num_read_disk"]
        writer = self.writer.stats() if self.writer else None
        num = self.memory.manifest.num_with_kv + (len(self.writer.pending_records()) if self.writer else 0)
        steps = Counter(self.steps().values())
        at_step = [num - steps.total(), *(steps[step] for step in range(1, max(steps, default=0) + 1))]
        found |= {"num_chunks": num, "num_thinned": steps.total(), "num_at_step": at_step}
        return {**found, "num_read_disk": num_read, "writer": writer, "notices": list(self.memory.notices)}

    def check_integrity(self) -> None:
        super().check_integrity()
        with self._lock:
            assert not self._absent & set(self._tiers.entries), "a damaged chunk is in a cache"
            # In this order: the writer may commit between the two, and numbers only grow.
            segments = self.memory.manifest.segments()
            number = self.memory.manifest.number("next_segment")
            if any(segment >= number for segment in segments):
                # Not the bookkeeping of this process: a flipped bit does it.
                raise MemoryBankError(self.memory.manifest.damaged(": a segment has a number to come"))

    def close(self) -> None:
        with ExitStack() as closing:
            closing.callback(self.memory.close)
            closing.callback(super().close)
            if self.writer is not None:
                self.writer.close()

    def _announce(self, chunk_ids: Sequence[int]) -> None:
        with self._lock:
            here = [i for i in chunk_ids if i in self._tiers.entries]
        super()._announce(here)
        self.memory.announce([i for i in chunk_ids if i not in here])

    def _sizes(self, chunk_ids: Sequence[int]) -> dict[int, int]:
        return {**self.memory.manifest.sizes(chunk_ids), **super()._sizes(chunk_ids)}

    def _pending(self, chunk_id: int) -> ChunkKV | None:
        return self.writer.pending(chunk_id) if self.writer else None

    def _is_there(self, chunk_id: int) -> bool:
        """Whether a chunk is stored already, or waits to be. One of which only a damaged row is left, or about which the
        manifest cannot be asked any more, is not: who goes on behind the last right one watches it anew."""
        if chunk_id in self._tiers.entries or self._pending(chunk_id) is not None:
            return True
        try:
            row = self.memory.manifest.row(chunk_id)
        except MemoryBankError:
            return False
        return row is not None and row.segment is not None and chunk_id not in self._absent

    def _gather(self, chunk_ids: Sequence[int], take: Take = fresh) -> dict[int, Stored]:
        self._follow()
        away = {i for i in chunk_ids if i not in self._tiers.entries and i not in self._absent and self._pending(i) is None}
        here = [i for i in chunk_ids if i not in away]
        return {**super()._gather(here, take), **self.memory.packets(sorted(away), take)}

    def _follow(self) -> None:
        """Who only reads: what the writer has forgotten or thinned meanwhile must not live on in these caches."""
        if self.writer is not None or not self.memory.manifest.has_changed():
            return
        held, steps = self.memory.manifest.sizes(list(self._tiers.entries)), self.memory.manifest.steps()
        for chunk_id in list(self._tiers.entries):
            if chunk_id not in held or steps.get(chunk_id) != self._steps.get(chunk_id):
                self._tiers.forget(chunk_id)
        self._steps = steps
        self._take_up_gaps()

    def _read(self, chunk_id: int, gathered: dict[int, Stored] | None = None) -> tuple[ChunkKV, Stored] | None:
        if chunk_id in self._tiers.entries:
            return super()._read(chunk_id, gathered)
        waiting = self._pending(chunk_id)
        if waiting is not None:
            return waiting.to(self.device), waiting
        try:
            packet = (gathered or {}).pop(chunk_id, None) or self.memory.packet(chunk_id)
            assert isinstance(packet, Packet)
            return decoded(packet, self.device), packet
        except KeyError:
            return None
        except MemoryBankError as error:
            self._report_damage(chunk_id, str(error))
            return None

    def _report_damage(self, chunk_id: int, words: str) -> None:
        logger.warning("%s", words)
        self.damaged.append(chunk_id)
        self._absent.add(chunk_id)
        self._add_gap(chunk_id)

    def _take_up_gaps(self) -> None:
        for gap in self.memory.manifest.gaps():
            self.gaps = add_span(self.gaps, (gap.start_seconds, gap.end_seconds))

    def _add_gap(self, chunk_id: int) -> None:
        """A stored chunk has no KV (any more)."""
        try:
            row = self.memory.manifest.row(chunk_id)
        except MemoryBankError:
            return  # Not even its time can be trusted.
        if row is not None:
            self.gaps = add_span(self.gaps, (row.start_seconds, row.end_seconds))

    def _promote_unless_pinned(self, chunk: ChunkKV, item: Stored, requested: Sequence[int]) -> None:
        if chunk.chunk_id in self._tiers.entries:
            super()._promote_unless_pinned(chunk, item, requested)
        elif self._pins[chunk.chunk_id] == requested.count(chunk.chunk_id):
            if isinstance(item, ChunkKV):
                self._tiers.put(chunk)
            else:
                self._tiers.admit(chunk, item)

    def _record_drop(self, chunk_id: int, entry: Entry) -> None:
        if self._pending(chunk_id) is None and not self.memory.manifest.holds(chunk_id):
            super()._record_drop(chunk_id, entry)


def bare_record(chunk: ChunkKV) -> ChunkRecord:
    """A record for a chunk of which nothing else is known."""
    keep = np.ones((0, 0, 0), dtype=bool)
    start, end = chunk.start_seconds, chunk.end_seconds
    return ChunkRecord(chunk.chunk_id, start, end, end, chunk.num_tokens, keep, b"")
