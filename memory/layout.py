"""A chunk as plain bytes: its tensors by name, where each lies in one block, and a checksum over the block."""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass

import torch

from data.errors import MemoryBankError
from model_adapters.base import ChunkKV

ALIGNMENT = 64
"""Tensors start at multiples of a cache line; it also suits every dtype."""
NUM_PARTS = 3


def aligned(num_bytes: int) -> int:
    """`num_bytes` rounded up to a multiple of ALIGNMENT."""
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


def parts(chunk: ChunkKV) -> dict[str, torch.Tensor]:
    """The chunk's tensors by name; `from_parts` is the inverse."""
    return {"keys": chunk.keys, "values": chunk.values, "position_ids": chunk.position_ids}


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """uint8 [number of bytes]: the tensor's content, without a copy where it is contiguous."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


@dataclass(frozen=True)
class ChunkHead:
    """What a chunk is apart from its tensors."""

    chunk_id: int
    span: int
    start_seconds: float
    end_seconds: float

    @classmethod
    def of(cls, chunk: ChunkKV) -> ChunkHead:
        return cls(chunk.chunk_id, chunk.span, chunk.start_seconds, chunk.end_seconds)

    def with_parts(self, tensors: dict[str, torch.Tensor]) -> ChunkKV:
        return ChunkKV(
            self.chunk_id,
            tensors["keys"],
            tensors["values"],
            tensors["position_ids"],
            self.span,
            self.start_seconds,
            self.end_seconds,
        )


@dataclass(frozen=True)
class Block:
    """Where the tensors of one chunk lie inside one aligned block of bytes: (name, dtype, shape, offset) each."""

    head: ChunkHead
    places: tuple[tuple[str, torch.dtype, torch.Size, int], ...]
    total_bytes: int

    @classmethod
    def of(cls, chunk: ChunkKV) -> Block:
        places, offset = [], 0
        for name, tensor in parts(chunk).items():
            places.append((name, tensor.dtype, tensor.shape, offset))
            offset += aligned(tensor.numel() * tensor.element_size())
        return cls(ChunkHead.of(chunk), tuple(places), offset)

    def to_json(self) -> str:
        """One line; floats survive it exactly."""
        places = [[name, str(dtype).removeprefix("torch."), list(shape), offset] for name, dtype, shape, offset in self.places]
        head = self.head
        return json.dumps([head.chunk_id, head.span, head.start_seconds, head.end_seconds, self.total_bytes, places])

    @classmethod
    def from_json(cls, text: str) -> Block:
        chunk_id, span, start, end, total, places = json.loads(text)
        head = ChunkHead(chunk_id, span, start, end)
        return cls(head, tuple((n, getattr(torch, dtype), torch.Size(shape), at) for n, dtype, shape, at in places), total)

    def read(self, block: torch.Tensor) -> ChunkKV:
        """The chunk as views of `block`, uint8 [total_bytes] on any device."""
        tensors = {}
        for name, dtype, shape, offset in self.places:
            num_bytes = math.prod(shape) * dtype.itemsize
            tensors[name] = block[offset : offset + num_bytes].view(dtype).view(shape)
        return self.head.with_parts(tensors)


@dataclass(frozen=True)
class PackedChunk:
    """A chunk as one block of bytes, ready for a file. layout: JSON that turns the block back into the chunk.

    data: uint8 [num_bytes] on the CPU. crc32: over the layout and the data.
    """

    layout: str
    data: torch.Tensor
    crc32: int


def pack(chunk: ChunkKV) -> PackedChunk:
    """The chunk's block, copied; `unpack` is the inverse, bit for bit."""
    block = Block.of(chunk)
    data = torch.zeros(block.total_bytes, dtype=torch.uint8)
    for tensor, (_, _, _, offset) in zip(parts(chunk).values(), block.places, strict=True):
        plain = as_bytes(tensor)
        data[offset : offset + plain.numel()].copy_(plain)
    layout = block.to_json()
    return PackedChunk(layout, data, checksum(layout, data))


def unpack(layout: str, data: torch.Tensor, crc32: int) -> ChunkKV:
    """The chunk as views of `data`. MemoryBankError if layout or data are not what was packed."""
    if checksum(layout, data) != crc32:
        raise MemoryBankError("its checksum does not match")
    return Block.from_json(layout).read(data)


def checksum(layout: str, data: torch.Tensor) -> int:
    """CRC-32 over a layout and its block."""
    return zlib.crc32(data.numpy().data, zlib.crc32(layout.encode()))
