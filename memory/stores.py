"""The two tiers in memory: the compute device's own, and RAM in slabs. The disk tier is `memory.segments`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch

from memory.base import Store, Stored
from memory.codecs import Codec, decoded
from memory.codecs.native import Native
from memory.layout import ALIGNMENT, NUM_PARTS, Block, ChunkHead, Packet, aligned, as_bytes, parts
from memory.reading import Take, fresh
from memory.slabs import SLAB_BYTES, Extent, SlabPool
from model_adapters.base import ChunkKV


@dataclass(frozen=True)
class _InSlabs:
    """Where a packet lies. bare: all of it but its tensors."""

    bare: Packet
    block: Block
    extents: list[Extent]
    num_bytes: int


class DeviceStore(Store):
    """Chunks as tensors on the compute device. On a CPU it holds the given tensors themselves: nothing is copied."""

    holds_packets = False

    def __init__(self, device: torch.device, capacity_bytes: int) -> None:
        self.device = device
        self.capacity_bytes = capacity_bytes
        self._chunks: dict[int, ChunkKV] = {}
        self._num_bytes = 0

    def prepared(self, chunk: ChunkKV) -> ChunkKV:
        return chunk

    def put(self, item: Stored) -> None:
        chunk = decoded(item, self.device) if isinstance(item, Packet) else item
        self._chunks[chunk.chunk_id] = _without_ballast(chunk.to(self.device))
        self._num_bytes += chunk.num_bytes

    def stored(self, chunk_id: int) -> ChunkKV:
        return self._chunks[chunk_id]

    def remove(self, chunk_id: int) -> None:
        self._num_bytes -= self._chunks.pop(chunk_id).num_bytes

    def chunk_ids(self) -> Collection[int]:
        return self._chunks.keys()

    @property
    def num_bytes(self) -> int:
        return self._num_bytes

    @property
    def num_payload_bytes(self) -> int:
        return self._num_bytes

    def footprint(self, num_bytes: int) -> int:
        return num_bytes

    def check_integrity(self) -> None:
        total = sum(chunk.num_bytes for chunk in self._chunks.values())
        assert total == self._num_bytes, f"device tier counts {self._num_bytes} bytes and holds {total}"
        assert total <= self.capacity_bytes, f"device tier holds {total} of {self.capacity_bytes} bytes"

    def close(self) -> None:
        self._chunks.clear()
        self._num_bytes = 0


class RamStore(Store):
    """Packets in slabs of RAM, page-locked when CUDA is there. Reading copies, so a slab can be reused at once."""

    def __init__(
        self, capacity_bytes: int, slab_bytes: int = SLAB_BYTES, pin: bool | None = None, codec: Codec | None = None
    ) -> None:
        self.capacity_bytes = capacity_bytes
        self.codec = codec or Native()
        self._pool = SlabPool(capacity_bytes, slab_bytes, torch.cuda.is_available() if pin is None else pin)
        self._chunks: dict[int, _InSlabs] = {}
        self._num_payload_bytes = 0

    def prepared(self, chunk: ChunkKV) -> Packet:
        return self.codec.encode(chunk)

    def put(self, item: Stored) -> None:
        packet = item if isinstance(item, Packet) else self.prepared(item)
        block = Block.of(packet.tensors)
        extents = self._pool.allocate(aligned(block.num_bytes))
        for tensor, (_, _, _, offset) in zip(packet.tensors.values(), block.places, strict=True):
            self._write(extents, offset, as_bytes(tensor))
        bare = replace(packet, tensors={})
        self._chunks[packet.chunk_id] = _InSlabs(bare, block, extents, packet.num_bytes)
        self._num_payload_bytes += packet.num_bytes

    def stored(self, chunk_id: int) -> Packet:
        return self._read(chunk_id, lambda num_bytes: torch.empty(num_bytes, dtype=torch.uint8, pin_memory=self._pool.pin))

    def gather(self, chunk_ids: Collection[int], take: Take = fresh) -> dict[int, Stored]:
        return {} if take is fresh else {chunk_id: self._read(chunk_id, take) for chunk_id in chunk_ids}

    def _read(self, chunk_id: int, take: Take) -> Packet:
        here = self._chunks[chunk_id]
        out = take(aligned(here.block.num_bytes))
        at = 0
        for extent in here.extents:
            out[at : at + extent.num_bytes].copy_(self._pool.view(extent))
            at += extent.num_bytes
        return replace(here.bare, tensors=here.block.read(out))

    def remove(self, chunk_id: int) -> None:
        here = self._chunks.pop(chunk_id)
        self._pool.free(here.extents)
        self._num_payload_bytes -= here.num_bytes

    def chunk_ids(self) -> Collection[int]:
        return self._chunks.keys()

    @property
    def num_bytes(self) -> int:
        return self._pool.num_bytes

    @property
    def num_payload_bytes(self) -> int:
        return self._num_payload_bytes

    @property
    def num_free_bytes(self) -> int:
        return self._pool.num_free_bytes

    def footprint(self, num_bytes: int) -> int:
        return aligned(num_bytes + NUM_PARTS * (ALIGNMENT - 1))

    def can_ever_hold(self, num_bytes: int) -> bool:
        return self.footprint(num_bytes) <= self._pool.capacity_bytes

    def check_integrity(self) -> None:
        for chunk_id, here in self._chunks.items():
            held, needed = sum(extent.num_bytes for extent in here.extents), aligned(here.block.num_bytes)
            assert held == needed, f"chunk {chunk_id} needs {needed} bytes of slab and has {held}"
        total = sum(here.num_bytes for here in self._chunks.values())
        assert total == self._num_payload_bytes, f"RAM tier counts {self._num_payload_bytes} payload bytes and holds {total}"
        self._pool.check_integrity(extent for here in self._chunks.values() for extent in here.extents)

    def close(self) -> None:
        self._chunks.clear()
        self._pool.close()
        self._num_payload_bytes = 0

    def _write(self, extents: list[Extent], offset: int, data: torch.Tensor) -> None:
        """Copy `data` to `offset` of the block that `extents` make up."""
        at = 0
        for extent in extents:
            low, high = max(offset, at), min(offset + data.numel(), at + extent.num_bytes)
            if low < high:
                self._pool.view(extent)[low - at : high - at].copy_(data[low - offset : high - offset])
            at += extent.num_bytes


def _without_ballast(chunk: ChunkKV) -> ChunkKV:
    """The chunk itself, or a copy if its tensors are views that keep a larger buffer alive: the budget counts only them."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in parts(chunk).values()}
    if sum(storages.values()) <= chunk.num_bytes + NUM_PARTS * ALIGNMENT:
        return chunk
    return ChunkHead.of(chunk).with_parts({name: tensor.clone() for name, tensor in parts(chunk).items()})
