"""The policy of the tiers: who moves down, who moves up, who goes. No locks, no files, no devices here.

A chunk enters the fastest tier that can hold it. To make room there, the least recently used chunk moves down one tier, for
which room is made below first, so that a chunk is never between two tiers. In the lowest tier old chunks thin out in steps (see
`memory.thinning`), the last of which is to go; without thinning the oldest goes at once.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass

from data.errors import MemoryBankError
from memory.base import Store, Stored
from memory.codecs import decoded
from memory.codecs.native import Native
from memory.layout import Packet
from memory.thinning import Ages, Thinning
from model_adapters.base import ChunkKV

logger = logging.getLogger(__name__)


@dataclass
class Entry:
    """Where a stored chunk is and what it takes up there. level: index of its tier, 0 the fastest; -1 for none."""

    level: int
    num_bytes: int
    start_seconds: float
    end_seconds: float
    num_tokens: int = 0
    """When it was whole."""
    step: int = 0
    """How often it has been thinned; 0 is whole."""


class Tiers:
    """Chunks in stores, fastest first. `pins` (by id) stay as and where they are.

    `on_drop` hears of every chunk that goes, `on_damage` of one that is found damaged on the way (and is still there then).
    as_cache: what goes is kept elsewhere, so the least recently used chunk goes instead of the oldest, and none is thinned.
    """

    def __init__(
        self,
        stores: list[tuple[str, Store]],
        pins: Collection[int],
        on_drop: Callable[[int, Entry], None],
        on_damage: Callable[[int, MemoryBankError], None],
        thinning: Thinning | None = None,
        as_cache: bool = False,
    ) -> None:
        self.as_cache = as_cache
        self.stores = stores
        self.thinning = thinning
        self.thinned: list[ChunkKV] = []
        """What is left of the chunks that were thinned, until somebody clears it."""
        self.entries: dict[int, Entry] = {}
        self.counts: Counter[str] = Counter()
        self._pins = pins
        self._on_drop = on_drop
        self._on_damage = on_damage
        self._ages = Ages(thinning.byte_shares if thinning else (1.0,))
        self._used: list[OrderedDict[int, None]] = [OrderedDict() for _ in stores]
        """Per tier, the least recently used chunk first."""

    def put(self, chunk: ChunkKV) -> bool:
        """Take in a new chunk. False if it was dropped at once, because no tier can hold it or it is the oldest."""
        entry = Entry(-1, chunk.num_bytes, chunk.start_seconds, chunk.end_seconds, chunk.num_tokens)
        item: Stored = chunk
        for level, (_, store) in enumerate(self.stores):
            item = self._prepared(store, item)
            if self._make_room(level, entry, item.num_bytes, may_drop=True):
                store.put(item)
                self.entries[chunk.chunk_id] = entry
                self._arrived(chunk.chunk_id, level, item.num_bytes)
                return True
        self._on_drop(chunk.chunk_id, entry)
        return False

    def admit(self, chunk: ChunkKV, stored: Stored) -> None:
        """Take in a chunk that is kept elsewhere too, as it is kept there. For a cache: see `as_cache`."""
        entry = Entry(-1, stored.num_bytes, chunk.start_seconds, chunk.end_seconds)
        for level, (_, store) in enumerate(self.stores):
            item = self._as_held(store, chunk, stored)
            if item is not None and self._make_room(level, entry, item.num_bytes, may_drop=True):
                store.put(item)
                self.entries[chunk.chunk_id] = entry
                self._arrived(chunk.chunk_id, level, item.num_bytes)
                return

    def touch(self, chunk_id: int) -> None:
        """The chunk is now the most recently used of its tier."""
        self._used[self.entries[chunk_id].level].move_to_end(chunk_id)

    def promote(self, chunk: ChunkKV, stored: Stored) -> None:
        """Move a chunk that has just been read to the fastest tier where room can be made without dropping anything.

        stored: the same chunk as its tier keeps it.
        """
        entry = self.entries[chunk.chunk_id]
        for level in range(entry.level):
            item = self._as_held(self.stores[level][1], chunk, stored)
            if item is not None and self._make_room(level, entry, item.num_bytes, may_drop=False):
                self._move(item, entry, level)
                self.counts["num_prefetched"] += 1
                return

    def forget(self, chunk_id: int) -> None:
        """Remove a chunk from its tier."""
        entry = self.entries.pop(chunk_id)
        del self._used[entry.level][chunk_id]
        self._ages.discard(chunk_id)
        self.stores[entry.level][1].remove(chunk_id)

    def close(self) -> None:
        self.entries.clear()
        self._ages = Ages(self._ages.byte_shares)
        for (_, store), used in zip(self.stores, self._used, strict=True):
            store.close()
            used.clear()

    def check_integrity(self) -> None:
        """AssertionError, in words, if entries, order of use and stores disagree or a budget is exceeded."""
        seen: Counter[int] = Counter()
        for level, ((name, store), used) in enumerate(zip(self.stores, self._used, strict=True)):
            here = {chunk_id for chunk_id, entry in self.entries.items() if entry.level == level}
            seen.update(store.chunk_ids())
            assert set(store.chunk_ids()) == here, f"{name} tier holds {sorted(store.chunk_ids())}, expected {sorted(here)}"
            assert set(used) == here, f"{name} tier: order of use knows {sorted(used)}, expected {sorted(here)}"
            total = sum(self.entries[chunk_id].num_bytes for chunk_id in here)
            assert store.num_payload_bytes == total, f"{name} tier: {store.num_payload_bytes} bytes of chunks, expected {total}"
            assert store.num_bytes <= store.capacity_bytes, f"{name} tier holds {store.num_bytes} bytes, over its budget"
            store.check_integrity()
        lowest = {chunk_id for chunk_id, entry in self.entries.items() if entry.level == len(self.stores) - 1}
        assert set(self._ages.chunk_ids()) == lowest, "the ages of the lowest tier disagree with what is in it"
        assert all(self._ages.step(chunk_id) == self.entries[chunk_id].step for chunk_id in lowest), "a step is miscounted"
        self._ages.check_integrity()
        astray = sorted(chunk_id for chunk_id in {*seen, *self.entries} if seen[chunk_id] != 1)
        assert not astray, f"chunks that are not in exactly one tier: {astray}"

    def _prepared(self, store: Store, item: Stored) -> Stored:
        """A chunk as `store` would keep it; a packet stays one. What its codec cannot keep is kept as it is."""
        if not isinstance(item, ChunkKV):
            return item
        try:
            return store.prepared(item)
        except MemoryBankError as error:
            logger.warning("%s; it is kept as it is", error)
            self.counts["num_kept_native"] += 1
            return Native().encode(item)

    def _as_held(self, store: Store, chunk: ChunkKV, stored: Stored) -> Stored | None:
        """A chunk that was read, as `store` would hold it; None if it must not."""
        if store.holds_packets:
            return stored
        # What a codec has changed stays a packet: as a chunk it would be encoded anew, and changed again, on its way down.
        return chunk if not isinstance(stored, Packet) or stored.codec == Native.name else None

    def _make_room(self, level: int, entry: Entry, num_bytes: int, may_drop: bool) -> bool:
        """Whether the tier has room for `num_bytes` of `entry`, after offloading from it, or dropping if it is the lowest."""
        store = self.stores[level][1]
        if not store.can_ever_hold(num_bytes):
            return False
        while not store.has_room(num_bytes):
            if store.reclaim():
                continue
            if level < len(self.stores) - 1:
                victim = next((chunk_id for chunk_id in self._used[level] if chunk_id not in self._pins), None)
                if victim is None or not self._offload(victim, level, may_drop):
                    return False
            elif not may_drop or not self._shed(store, entry):
                return False
        return True

    def _shed(self, store: Store, entry: Entry) -> bool:
        """Thin the chunks of the lowest tier whose turn it is, or let one go. False if none may: all are pinned, or the one to
        go is younger than `entry`."""
        if self.as_cache:
            victim = next((chunk_id for chunk_id in self._used[-1] if chunk_id not in self._pins), None)
            if victim is not None:
                self._drop(victim)
            return victim is not None
        last = len(self._ages.byte_shares) - 1
        for step, chunk_id in self._ages.turns(self._pins):
            if step == last and entry.start_seconds < self.entries[chunk_id].start_seconds:
                return False
            # Space in a file comes back only when all that is in it goes; without thinning, that is for `reclaim` to see to.
            together = sorted(store.together(chunk_id)) if self.thinning else [chunk_id]
            if not self._pins or not any(other in self._pins for other in together):
                self._age(store, together)
                return True
        return False

    def _age(self, store: Store, chunk_ids: list[int]) -> None:
        """Each chunk one step further: thinned, or gone after the last step."""
        fewer: dict[int, Stored] = {}
        left: list[ChunkKV] = []
        sizes: dict[int, int] = {}
        for chunk_id in chunk_ids:
            entry = self.entries[chunk_id]
            if self.thinning is None or entry.step == len(self.thinning.token_shares):
                self._drop(chunk_id)
                continue
            try:
                item = store.stored(chunk_id)
                chunk = decoded(item) if isinstance(item, Packet) else item
            except MemoryBankError as error:
                self._on_damage(chunk_id, error)
                continue
            chunk = self.thinning.thin(chunk, entry.step + 1, entry.num_tokens)
            thinner = self._prepared(store, chunk)
            sizes[chunk_id] = min(item.num_bytes, thinner.num_bytes)
            if thinner.num_bytes < item.num_bytes:
                fewer[chunk_id] = thinner
                left.append(chunk)
        # Written first: if that fails, all is as it was.
        store.replace(fewer)
        for chunk_id, num_bytes in sizes.items():
            self.entries[chunk_id].step += 1
            self._arrived(chunk_id, self.entries[chunk_id].level, num_bytes)
        self.thinned += left
        self.counts["num_thinned"] += len(fewer)

    def _arrived(self, chunk_id: int, level: int, num_bytes: int) -> None:
        """The books of a chunk that is now in this tier, at this size."""
        entry = self.entries[chunk_id]
        entry.level, entry.num_bytes = level, num_bytes
        self._used[level].setdefault(chunk_id, None)
        self._ages.discard(chunk_id)
        if level == len(self.stores) - 1:
            self._ages.add(chunk_id, entry.step, entry.start_seconds, num_bytes)

    def _offload(self, chunk_id: int, level: int, may_drop: bool) -> bool:
        """Move a chunk down; if no lower tier takes it, drop it. False if it would have to be dropped and must not be."""
        entry = self.entries[chunk_id]
        item = self.stores[level][1].stored(chunk_id)
        for below in range(level + 1, len(self.stores)):
            item = self._prepared(self.stores[below][1], item)
            if self._make_room(below, entry, item.num_bytes, may_drop):
                self._move(item, entry, below)
                self.counts["num_offloaded"] += 1
                return True
        if may_drop:
            self._drop(chunk_id)
        return may_drop

    def _move(self, item: Stored, entry: Entry, level: int) -> None:
        # Put before remove: if the store below cannot be written, the chunk is still where it was.
        self.stores[level][1].put(item)
        self.stores[entry.level][1].remove(item.chunk_id)
        del self._used[entry.level][item.chunk_id]
        self._arrived(item.chunk_id, level, item.num_bytes)

    def _drop(self, chunk_id: int) -> None:
        entry = self.entries[chunk_id]
        self.forget(chunk_id)
        self._on_drop(chunk_id, entry)
