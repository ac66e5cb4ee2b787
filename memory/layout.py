"""A chunk as plain bytes: its tensors by name, where each lies in one block, and a checksum over all of them."""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass

import torch

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

    def to_json(self) -> str:
        """One line of JSON; floats survive it exactly."""
        return json.dumps([self.chunk_id, self.span, self.start_seconds, self.end_seconds])


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

    def read(self, block: torch.Tensor) -> ChunkKV:
        """The chunk as views of `block`, uint8 [total_bytes] on any device."""
        tensors = {}
        for name, dtype, shape, offset in self.places:
            num_bytes = math.prod(shape) * dtype.itemsize
            tensors[name] = block[offset : offset + num_bytes].view(dtype).view(shape)
        return self.head.with_parts(tensors)


def checksum(head: ChunkHead, tensors: dict[str, torch.Tensor]) -> int:
    """CRC-32 over the head and the names, dtypes, shapes and bytes of CPU tensors, in the order of their names."""
    value = zlib.crc32(head.to_json().encode())
    for name, tensor in sorted(tensors.items()):
        value = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), value)
        value = zlib.crc32(as_bytes(tensor).numpy().data, value)
    return value
