"""The two tiers in memory: the compute device's own, and RAM in slabs. The disk tier is `memory.segments`."""

from __future__ import annotations

from collections.abc import Collection

import torch

from memory.base import Store
from memory.layout import ALIGNMENT, NUM_PARTS, Block, aligned, as_bytes, parts
from memory.slabs import SLAB_BYTES, Extent, SlabPool
from model_adapters.base import ChunkKV


class DeviceStore(Store):
    """Chunks as tensors on the compute device. On a CPU it holds the given tensors themselves: nothing is copied."""

    def __init__(self, device: torch.device, capacity_bytes: int) -> None:
        self.device = device
        self.capacity_bytes = capacity_bytes
        self._chunks: dict[int, ChunkKV] = {}
        self._num_bytes = 0

    def put(self, chunk: ChunkKV) -> None:
        self._chunks[chunk.chunk_id] = _without_ballast(chunk.to(self.device))
        self._num_bytes += chunk.num_bytes

    def get(self, chunk_id: int, device: torch.device | None = None) -> ChunkKV:
        return self._chunks[chunk_id].to(device or self.device)

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
    """Chunks packed into slabs of RAM, page-locked when CUDA is there. Reading copies, so a slab can be reused at once."""

    def __init__(self, capacity_bytes: int, slab_bytes: int = SLAB_BYTES, pin: bool | None = None) -> None:
        self.capacity_bytes = capacity_bytes
        self._pool = SlabPool(capacity_bytes, slab_bytes, torch.cuda.is_available() if pin is None else pin)
        self._chunks: dict[int, tuple[Block, list[Extent], int]] = {}
        self._num_payload_bytes = 0

    def put(self, chunk: ChunkKV) -> None:
        block = Block.of(chunk)
        extents = self._pool.allocate(block.total_bytes)
        for tensor, (_, _, _, offset) in zip(parts(chunk).values(), block.places, strict=True):
            self._write(extents, offset, as_bytes(tensor))
        self._chunks[chunk.chunk_id] = (block, extents, chunk.num_bytes)
        self._num_payload_bytes += chunk.num_bytes

    def get(self, chunk_id: int, device: torch.device | None = None) -> ChunkKV:
        block, extents, _ = self._chunks[chunk_id]
        out = torch.empty(block.total_bytes, dtype=torch.uint8, device=device or "cpu")
        at = 0
        for extent in extents:
            out[at : at + extent.num_bytes].copy_(self._pool.view(extent))
            at += extent.num_bytes
        return block.read(out)

    def remove(self, chunk_id: int) -> None:
        _, extents, num_bytes = self._chunks.pop(chunk_id)
        self._pool.free(extents)
        self._num_payload_bytes -= num_bytes

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
        for chunk_id, (block, extents, _) in self._chunks.items():
            held = sum(extent.num_bytes for extent in extents)
            assert held == block.total_bytes, f"chunk {chunk_id} needs {block.total_bytes} bytes of slab and has {held}"
        total = sum(num_bytes for _, _, num_bytes in self._chunks.values())
        assert total == self._num_payload_bytes, f"RAM tier counts {self._num_payload_bytes} payload bytes and holds {total}"
        self._pool.check_integrity(extent for _, extents, _ in self._chunks.values() for extent in extents)

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
    return Block.of(chunk).head.with_parts({name: tensor.clone() for name, tensor in parts(chunk).items()})
