"""A chunk as plain bytes: its tensors by name, where each lies in one block, and a checksum over the block."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from zlib_ng.zlib_ng import crc32

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
class Packet:
    """A chunk as a tier keeps it: `head` as it was, tensors as `codec` made them.

    about: what decoding needs beside the tensors; ready for JSON.
    """

    head: ChunkHead
    codec: str
    about: list[Any]
    tensors: dict[str, torch.Tensor]

    @property
    def chunk_id(self) -> int:
        return self.head.chunk_id

    @property
    def num_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())


@dataclass(frozen=True)
class Block:
    """Where tensors lie inside one block of bytes: (name, dtype, shape, offset) each; every offset is aligned."""

    places: tuple[tuple[str, torch.dtype, torch.Size, int], ...]
    num_bytes: int

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor]) -> Block:
        places, end = [], 0
        for name, tensor in tensors.items():
            places.append((name, tensor.dtype, tensor.shape, aligned(end)))
            end = aligned(end) + tensor.numel() * tensor.element_size()
        return cls(tuple(places), end)

    def read(self, block: torch.Tensor) -> dict[str, torch.Tensor]:
        """The tensors as views of `block`, uint8 [num_bytes or more] on any device."""
        tensors = {}
        for name, dtype, shape, offset in self.places:
            num_bytes = math.prod(shape) * dtype.itemsize
            tensors[name] = block[offset : offset + num_bytes].view(dtype).view(shape)
        return tensors


@dataclass(frozen=True)
class PackedChunk:
    """A packet as one block of bytes, ready for a file. layout: JSON that turns the block back into the packet.

    data: uint8 [num_bytes] on the CPU. crc32: over the layout and the data.
    """

    layout: str
    data: torch.Tensor
    crc32: int


def pack(packet: Packet) -> PackedChunk:
    """The packet's block, copied; `unpack` is the inverse, bit for bit."""
    block = Block.of(packet.tensors)
    data = torch.zeros(block.num_bytes, dtype=torch.uint8)
    for tensor, (_, _, _, offset) in zip(packet.tensors.values(), block.places, strict=True):
        plain = as_bytes(tensor)
        data[offset : offset + plain.numel()].copy_(plain)
    places = [[name, str(dtype).removeprefix("torch."), list(shape), offset] for name, dtype, shape, offset in block.places]
    head = packet.head
    # Floats survive JSON exactly.
    fields = [head.chunk_id, head.span, head.start_seconds, head.end_seconds, packet.codec, packet.about, places]
    layout = json.dumps(fields, separators=(",", ":"))
    return PackedChunk(layout, data, checksum(layout, data))


def unpack(layout: str, data: torch.Tensor, crc32: int) -> Packet:
    """The packet, its tensors views of `data`. MemoryBankError if layout or data are not what was packed."""
    if checksum(layout, data) != crc32:
        raise MemoryBankError("its checksum does not match")
    chunk_id, span, start, end, codec, about, places = json.loads(layout)
    block = Block(tuple((n, getattr(torch, dtype), torch.Size(shape), at) for n, dtype, shape, at in places), data.numel())
    return Packet(ChunkHead(chunk_id, span, start, end), codec, about, block.read(data))


def checksum(layout: str, data: torch.Tensor) -> int:
    """CRC-32 over a layout and its block."""
    return crc32(data.numpy().data, crc32(layout.encode()))
