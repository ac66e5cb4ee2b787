"""The interface that turns chunks into packets and back, and what the codecs share in reading a packet with care."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch

from data.errors import MemoryBankError
from memory.layout import Packet
from model_adapters.base import ChunkKV

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)}
"""Data types that keys and values may have, by name."""
POSITION_DTYPES = (torch.uint8, torch.int16, torch.int32, torch.int64)


class Codec(ABC):
    """Turns chunks into packets and back. Position ids and times come back exactly, keys and values within `bound`.

    A packet says all that decoding needs: a codec with other settings decodes it just as well.
    """

    name: str

    @abstractmethod
    def encode(self, chunk: ChunkKV) -> Packet:
        """MemoryBankError if keys or values are not finite and the codec cannot keep that."""

    @abstractmethod
    def decode(self, packet: Packet, device: torch.device) -> ChunkKV:
        """The chunk on `device`, in its own data type. MemoryBankError if the packet is not what this codec makes."""

    @abstractmethod
    def bound(self, packet: Packet) -> tuple[torch.Tensor, torch.Tensor]:
        """The largest difference between what was encoded and what is decoded: two float tensors that broadcast to keys
        and values [layers, kv_heads, S, head_dim]."""


@dataclass(frozen=True)
class Shape:
    """The shape and data type of a chunk's keys and values, and the number of position axes: what `about` begins with."""

    num_layers: int
    num_heads: int
    num_tokens: int
    head_dim: int
    num_axes: int
    dtype: torch.dtype

    @classmethod
    def of(cls, chunk: ChunkKV) -> Shape:
        layers, heads, tokens, dim = chunk.keys.shape
        return cls(layers, heads, tokens, dim, chunk.position_ids.shape[0], chunk.keys.dtype)

    @classmethod
    def from_about(cls, packet: Packet) -> Shape:
        """MemoryBankError if `about` does not begin with a shape."""
        match packet.about:
            case [str(name), [int(), int(), int(), int(), int()] as sizes, *_] if name in DTYPES:
                if all(0 <= size < 2**31 for size in sizes):
                    layers, heads, tokens, dim, axes = sizes
                    return cls(layers, heads, tokens, dim, axes, DTYPES[name])
        raise damaged(packet, "its description is not one")

    def to_about(self) -> list[Any]:
        sizes = [self.num_layers, self.num_heads, self.num_tokens, self.head_dim, self.num_axes]
        return [str(self.dtype).removeprefix("torch."), sizes]

    @property
    def kv(self) -> tuple[int, int, int, int]:
        return self.num_layers, self.num_heads, self.num_tokens, self.head_dim

    @property
    def numel(self) -> int:
        """Numbers in the keys; as many are in the values."""
        return math.prod(self.kv)


def damaged(packet: Packet, reason: str) -> MemoryBankError:
    return MemoryBankError(f"chunk {packet.chunk_id} is damaged: {reason}; it is left out")


def payload(packet: Packet) -> torch.Tensor:
    """uint8 [n]: the one tensor of a packet whose codec makes one. MemoryBankError if there is none."""
    tensor = packet.tensors.get("payload")
    if tensor is None or len(packet.tensors) != 1 or tensor.dtype != torch.uint8 or tensor.ndim != 1:
        raise damaged(packet, f"{packet.codec} keeps one row of bytes, and this is something else")
    return tensor


def cut(packet: Packet, sizes: list[int]) -> list[torch.Tensor]:
    """The payload in pieces of `sizes` bytes. MemoryBankError unless it is exactly that long."""
    whole = payload(packet)
    if len(whole) != sum(sizes):
        raise damaged(packet, f"it has {len(whole)} bytes and should have {sum(sizes)}")
    return list(whole.split(sizes)) if sizes else []


def smallest_positions(position_ids: torch.Tensor) -> torch.Tensor:
    """The same whole numbers in the smallest type that holds them all."""
    low, high = (int(position_ids.min()), int(position_ids.max())) if position_ids.numel() else (0, 0)
    dtype = next(t for t in POSITION_DTYPES if torch.iinfo(t).min <= low and high <= torch.iinfo(t).max)
    return position_ids.to("cpu", dtype)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """In what to calculate so that rounding is that of `dtype` and not of the way there."""
    return torch.float64 if dtype == torch.float64 else torch.float32
