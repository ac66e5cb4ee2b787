"""The memory of one stream in three tiers, GPU → RAM → disk, each with a byte budget.

`tiers` decides what moves where; here are the lock, the pins, the damage, the gaps and the folder.
Source: the block memory of InfLLM (arXiv 2402.04617) and ReKV (arXiv 2503.00540), with a disk tier and exact accounting.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import torch

from data.errors import ConfigError, MemoryBankError
from memory.base import Bank, Span, Store, Stored, add_span, overlapping
from memory.codecs import Codec, create_codec, decoded
from memory.files import passing_folder
from memory.reading import Take, fresh, in_groups
from memory.records import ChunkRecord
from memory.segments import SEGMENT_BYTES, DiskStore
from memory.slabs import SLAB_BYTES
from memory.stores import DeviceStore, RamStore
from memory.thinning import Thinning
from memory.tiers import Entry, Tiers
from model_adapters.base import ChunkKV

logger = logging.getLogger(__name__)

COUNTED = ("num_put", "num_offloaded", "num_prefetched", "num_dropped", "num_thinned", "num_kept_native")


class MemoryBank(Bank):
    """Chunks in GPU, RAM and disk tiers. Budgets are in bytes; 0 switches a tier off; no folder, no disk tier.

    RAM and disk keep chunks as `codec` encodes them, the GPU tier as they are. thinning: how the chunks of a full lowest tier
    thin out; without it the oldest go whole.
    The disk tier works in a private folder (0700) of its own inside `folder`, which `close` removes. as_cache: what is dropped
    is kept elsewhere; then there may be no tier at all.
    ConfigError if a budget is negative, no tier is on or the codec is not known; MemoryBankError if the folder cannot be used.
    """

    def __init__(
        self,
        device: torch.device | str,
        gpu_bytes: int,
        ram_bytes: int,
        disk_bytes: int = 0,
        folder: Path | None = None,
        *,
        codec: str | Codec = "native",
        thinning: Thinning | None = None,
        slab_bytes: int = SLAB_BYTES,
        segment_bytes: int = SEGMENT_BYTES,
        as_cache: bool = False,
    ) -> None:
        budgets = {"gpu_bytes": gpu_bytes, "ram_bytes": ram_bytes, "disk_bytes": disk_bytes if folder else 0}
        if min(budgets.values()) < 0 or not (any(budgets.values()) or as_cache):
            raise ConfigError(f"memory budgets must not be negative and one tier must be on, got {budgets}")
        self.device = torch.device(device)
        self.codec = create_codec(codec) if isinstance(codec, str) else codec
        self.damaged: list[int] = []
        self.gaps: list[Span] = []
        self._lock = threading.RLock()
        self._pins: Counter[int] = Counter()
        self._dropped: list[int] = []
        self._counts: Counter[str] = Counter()
        self._closed = False
        self._spill = ExitStack()
        stores: list[tuple[str, Store]] = []
        if gpu_bytes:
            stores.append(("gpu", DeviceStore(self.device, gpu_bytes)))
        if ram_bytes:
            stores.append(("ram", RamStore(ram_bytes, slab_bytes, codec=self.codec)))
        if folder and disk_bytes:
            private = self._spill.enter_context(passing_folder(folder))
            stores.append(("disk", DiskStore(private, disk_bytes, segment_bytes, self.codec)))
        self._tiers = Tiers(stores, self._pins, self._record_drop, self._record_damage, thinning, as_cache)

    def put(self, chunk: ChunkKV, record: ChunkRecord | None = None) -> list[int]:
        with self._lock:
            self._check_open()
            if chunk.chunk_id in self._tiers.entries:
                raise MemoryBankError(f"chunk {chunk.chunk_id} is already in the memory")
            self._counts["num_put"] += 1
            try:
                self._tiers.put(chunk)
            finally:
                dropped, self._dropped = self._dropped, []
            return dropped

    def get(self, chunk_ids: Sequence[int]) -> list[ChunkKV]:
        # Pinned, so that the first chunks of one request are not pushed out again by its last.
        with self._lock, self._pinning(chunk_ids):
            return self._get(chunk_ids, fresh, chunk_ids)

    def stream(self, chunk_ids: Sequence[int]) -> Generator[list[ChunkKV], None, None]:
        with self._pinning(chunk_ids):
            read = partial(self._get, requested=chunk_ids)
            yield from in_groups(read, self._announce, chunk_ids, self._sizes(chunk_ids), self.device.type == "cuda")

    def _get(self, chunk_ids: Sequence[int], take: Take, requested: Sequence[int]) -> list[ChunkKV]:
        """take: see `Store.gather`. requested: see `_promote_unless_pinned`."""
        found = []
        with self._lock:
            self._check_open()
            gathered = self._gather(chunk_ids, take)
            for chunk_id in chunk_ids:
                tier = self.tier(chunk_id)
                if tier is not None and (read := self._read(chunk_id, gathered)) is not None:
                    self._counts[f"num_read_{tier}"] += 1
                    found.append(read[0])
                    self._promote_unless_pinned(*read, requested)
        return found

    def _announce(self, chunk_ids: Sequence[int]) -> None:
        with self._lock:
            for _, store in self._tiers.stores:
                store.announce(chunk_ids)

    def _sizes(self, chunk_ids: Sequence[int]) -> dict[int, int]:
        """Bytes that chunks take up where they are."""
        with self._lock:
            entries = self._tiers.entries
            return {chunk_id: entries[chunk_id].num_bytes for chunk_id in chunk_ids if chunk_id in entries}

    def forget(self, start_seconds: float, end_seconds: float) -> list[int]:
        with self._lock:
            self._check_open()
            ids = overlapping([(i, self.span(i)) for i in self._tiers.entries], start_seconds, end_seconds)
            for chunk_id in ids:
                # Whole chunks go, and nothing beyond what was watched is a gap.
                self.gaps = add_span(self.gaps, self.span(chunk_id))
                self._tiers.forget(chunk_id)
            return ids

    def prefetch(self, chunk_ids: Sequence[int]) -> None:
        """Move the chunks up as far as that drops nothing; chunks already pinned stay where they are."""
        with self._lock, self._pinning(chunk_ids):
            self._check_open()
            gathered = self._gather(chunk_ids)
            for chunk_id in dict.fromkeys(chunk_ids):
                entry = self._tiers.entries.get(chunk_id)
                if entry is not None and entry.level > 0 and (read := self._read(chunk_id, gathered)) is not None:
                    self._promote_unless_pinned(*read, chunk_ids)

    @contextmanager
    def pinned(self, chunk_ids: Sequence[int]) -> Iterator[None]:
        """Prefetches the chunks, and then neither drops nor moves them until the context closes."""
        with self._lock:
            self.prefetch(chunk_ids)
            known = [chunk_id for chunk_id in chunk_ids if chunk_id in self._tiers.entries]
            self._pins.update(known)
        try:
            yield
        finally:
            self._unpin(known)

    def take_thinned(self) -> list[ChunkKV]:
        with self._lock:
            thinned, self._tiers.thinned = self._tiers.thinned, []
            # Thinned twice: the last is what is left. Thinned and then gone: nothing is.
            return [chunk for chunk in {chunk.chunk_id: chunk for chunk in thinned}.values() if self.tier(chunk.chunk_id)]

    def step(self, chunk_id: int) -> int:
        with self._lock:
            entry = self._tiers.entries.get(chunk_id)
            return 0 if entry is None else entry.step

    def steps(self) -> dict[int, int]:
        with self._lock:
            return {chunk_id: entry.step for chunk_id, entry in self._tiers.entries.items() if entry.step}

    def tier(self, chunk_id: int) -> str | None:
        with self._lock:
            entry = self._tiers.entries.get(chunk_id)
            return None if entry is None else self._tiers.stores[entry.level][0]

    def tiers(self) -> dict[int, str]:
        with self._lock:
            names = [name for name, _ in self._tiers.stores]
            return {chunk_id: names[entry.level] for chunk_id, entry in self._tiers.entries.items()}

    def num_bytes(self, tier: str) -> int:
        with self._lock:
            return sum(store.num_bytes for name, store in self._tiers.stores if name == tier)

    def chunk_ids(self) -> list[int]:
        with self._lock:
            entries = self._tiers.entries
            return sorted(entries, key=lambda chunk_id: (entries[chunk_id].start_seconds, chunk_id))

    def span(self, chunk_id: int) -> Span:
        with self._lock:
            entry = self._tiers.entries[chunk_id]
            return (entry.start_seconds, entry.end_seconds)

    def stats(self) -> dict[str, object]:
        with self._lock:
            levels = Counter(entry.level for entry in self._tiers.entries.values())
            steps = Counter(entry.step for entry in self._tiers.entries.values())
            tiers = {
                name: {"num_chunks": levels[level], "num_bytes": store.num_bytes, "capacity_bytes": store.capacity_bytes}
                for level, (name, store) in enumerate(self._tiers.stores)
            }
            counts = self._counts + self._tiers.counts
            names = [*COUNTED, *(f"num_read_{name}" for name in tiers)]
            return {
                "num_chunks": len(self._tiers.entries),
                "num_pinned": len(self._pins),
                "num_damaged": len(self.damaged),
                "gap_seconds": sum(end - start for start, end in self.gaps),
                "codec": self.codec.name,
                "num_at_step": [steps[step] for step in range(max(steps, default=0) + 1)],
                "tiers": tiers,
                **{name: counts[name] for name in names},
            }

    def check_integrity(self) -> None:
        with self._lock:
            self._tiers.check_integrity()
            assert all(count > 0 for count in self._pins.values()), f"pins below one: {self._pins}"
            for (_, end), (start, _) in zip(self.gaps, self.gaps[1:], strict=False):
                assert end < start, f"gaps not merged or not in order: {self.gaps}"

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._tiers.close()
            self._spill.close()

    def _gather(self, chunk_ids: Sequence[int], take: Take = fresh) -> dict[int, Stored]:
        """What can be read together of these chunks."""
        here = [(i, self._tiers.entries[i].level) for i in dict.fromkeys(chunk_ids) if i in self._tiers.entries]
        gathered: dict[int, Stored] = {}
        for level, (_, store) in enumerate(self._tiers.stores):
            gathered |= store.gather([i for i, at in here if at == level], take)
        return gathered

    def _read(self, chunk_id: int, gathered: dict[int, Stored] | None = None) -> tuple[ChunkKV, Stored] | None:
        """The chunk on the compute device, and as its tier keeps it. Now it is the most recently used there. None if it is
        damaged and thus forgotten.

        gathered: chunks already read, each of which is given out once: its tensors are its reader's own.
        """
        store = self._tiers.stores[self._tiers.entries[chunk_id].level][1]
        try:
            item = (gathered or {}).pop(chunk_id, None) or store.stored(chunk_id)
            chunk = item if isinstance(item, ChunkKV) else decoded(item, self.device)
        except MemoryBankError as error:
            self._record_damage(chunk_id, error)
            return None
        self._tiers.touch(chunk_id)
        return chunk, item

    def _promote_unless_pinned(self, chunk: ChunkKV, item: Stored, requested: Sequence[int]) -> None:
        """`requested` holds the pins that the request itself has set; any pin beyond them is somebody else's."""
        if self._pins[chunk.chunk_id] == requested.count(chunk.chunk_id):
            self._tiers.promote(chunk, item)

    def _record_damage(self, chunk_id: int, error: MemoryBankError) -> None:
        """Report a chunk that does not read back, and forget it."""
        logger.warning("%s", error)
        self.damaged.append(chunk_id)
        self.gaps = add_span(self.gaps, self.span(chunk_id))
        self._tiers.forget(chunk_id)

    def _record_drop(self, chunk_id: int, entry: Entry) -> None:
        if not self._counts["num_dropped"]:
            logger.warning("the memory is full: from now on what is left of the oldest chunks is dropped")
        self._counts["num_dropped"] += 1
        self._dropped.append(chunk_id)
        self.gaps = add_span(self.gaps, (entry.start_seconds, entry.end_seconds))

    @contextmanager
    def _pinning(self, chunk_ids: Sequence[int]) -> Iterator[None]:
        with self._lock:
            self._pins.update(chunk_ids)
        try:
            yield
        finally:
            self._unpin(chunk_ids)

    def _unpin(self, chunk_ids: Sequence[int]) -> None:
        with self._lock:
            self._pins.subtract(chunk_ids)
            for chunk_id in set(chunk_ids):
                if self._pins[chunk_id] <= 0:
                    del self._pins[chunk_id]

    def _check_open(self) -> None:
        if self._closed:
            raise MemoryBankError("the memory is closed")
