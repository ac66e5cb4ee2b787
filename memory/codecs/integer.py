"""int8 and int4: asymmetric integers between the extremes of a group; keys per channel, values per token.

Source: KIVI (arXiv 2402.02750): keys have outliers in fixed channels, values do not. Here a group keeps its own smallest and
largest number as they are, so that both come back exactly and encoding a second time changes nothing more.
"""

from __future__ import annotations

import torch

from data.errors import ConfigError, MemoryBankError
from memory.codecs.base import Codec, Shape, compute_dtype, cut, damaged, smallest_positions
from memory.layout import ChunkHead, Packet, as_bytes
from model_adapters.base import ChunkKV

TOKENS, CHANNELS = 2, 3
"""The axes of keys and values along which a group lies: keys of one channel over tokens, values of one token over channels."""


class Integer(Codec):
    """`bits` (4 or 8) per number; two int4 to a byte. group: how many numbers share their extremes.

    Error: half a step, (largest − smallest) / (2^bits − 1) / 2, and the rounding of the chunk's own data type.
    """

    def __init__(self, bits: int, group: int = 32) -> None:
        if bits not in (4, 8) or group < 1:
            raise ConfigError(f"{bits} bits in groups of {group} cannot be stored; give 4 or 8 bits and a group of 1 or more")
        self.name = f"int{bits}"
        self.bits = bits
        self.group = group

    def encode(self, chunk: ChunkKV) -> Packet:
        shape = Shape.of(chunk)
        pieces: list[torch.Tensor] = []
        for tensor, axis in ((chunk.keys, TOKENS), (chunk.values, CHANNELS)):
            low, high = _extremes(tensor, axis, self.group)
            width = _spread(high, axis, self.group, tensor) - (start := _spread(low, axis, self.group, tensor))
            if not torch.isfinite(width).all():
                raise MemoryBankError(
                    f"chunk {chunk.chunk_id} holds numbers that are not finite; {self.name} cannot keep them, native can"
                )
            share = (tensor.to(width.dtype) - start) / width.clamp(min=torch.finfo(width.dtype).tiny)
            codes = (share * self._levels).round_().clamp_(0, self._levels).to(torch.uint8).flatten()
            pieces += [as_bytes(low), as_bytes(high), codes if self.bits == 8 else pack_nibbles(codes)]
        positions = smallest_positions(chunk.position_ids)
        about = [*shape.to_about(), self.group, positions.element_size()]
        whole = torch.cat([*(piece.cpu() for piece in pieces), as_bytes(positions)])
        return Packet(ChunkHead.of(chunk), self.name, about, {"payload": whole})

    def decode(self, packet: Packet, device: torch.device) -> ChunkKV:
        shape, group, ranges, codes, positions = self._parts(packet)
        tensors = {"position_ids": positions.to(device, torch.int64)}
        for name, axis, (low, high), code in zip(("keys", "values"), (TOKENS, CHANNELS), ranges, codes, strict=True):
            code = code.to(device)
            whole = code if self.bits == 8 else unpack_nibbles(code, shape.numel)
            weight = whole.view(shape.kv).to(compute_dtype(shape.dtype)) / self._levels
            low, high = (_spread(bound.to(device), axis, group, weight) for bound in (low, high))
            # lerp gives both ends exactly, which low + weight * (high - low) does not.
            tensors[name] = torch.lerp(low, high, weight).to(shape.dtype)
        return packet.head.with_parts(tensors)

    def bound(self, packet: Packet) -> tuple[torch.Tensor, torch.Tensor]:
        shape, group, ranges, _, _ = self._parts(packet)
        like = torch.empty(shape.kv, dtype=compute_dtype(shape.dtype))
        found = []
        for axis, pair in zip((TOKENS, CHANNELS), ranges, strict=True):
            low, high = (_spread(bound, axis, group, like) for bound in pair)
            # 1e-4 of a step: the division and the product above, in float32.
            step = (high - low) / self._levels
            found.append(step * (0.5 + 1e-4) + torch.finfo(shape.dtype).eps * torch.maximum(low.abs(), high.abs()))
        return found[0], found[1]

    @property
    def _levels(self) -> int:
        return 2**self.bits - 1

    def _parts(self, packet: Packet) -> tuple[Shape, int, list[list[torch.Tensor]], list[torch.Tensor], torch.Tensor]:
        """Shape, group, (low, high) and codes of keys and of values, position ids."""
        shape = Shape.from_about(packet)
        group, width = [*packet.about[2:], 0, 0][:2]
        by_width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        if type(group) is not int or group < 1 or width not in by_width:
            raise damaged(packet, "its description is not one")
        num_codes = shape.numel if self.bits == 8 else -(-shape.numel // 2)
        ranges = [_range_shape(shape, axis, group) for axis in (TOKENS, CHANNELS)]
        sizes = []
        for one in ranges:
            sizes += [one.numel() * shape.dtype.itemsize] * 2 + [num_codes]
        pieces = cut(packet, [*sizes, shape.num_axes * shape.num_tokens * width])
        # A piece may begin anywhere in the row; a copy of its own can be read as wider numbers.
        bounds = [
            [pieces[at].clone().view(shape.dtype).view(one) for at in (i, i + 1)] for i, one in zip((0, 3), ranges, strict=True)
        ]
        positions = pieces[6].clone().view(by_width[width]).view(shape.num_axes, shape.num_tokens)
        return shape, group, bounds, [pieces[2], pieces[5]], positions


class Int8(Integer):
    def __init__(self) -> None:
        super().__init__(8)


class Int4(Integer):
    def __init__(self) -> None:
        super().__init__(4)


def pack_nibbles(codes: torch.Tensor) -> torch.Tensor:
    """uint8 [n] below 16 → uint8 [ceil(n / 2)], the first of a pair in the low half."""
    if len(codes) % 2:
        codes = torch.cat([codes, codes.new_zeros(1)])
    return codes[::2] | (codes[1::2] << 4)


def unpack_nibbles(packed: torch.Tensor, num: int) -> torch.Tensor:
    """The inverse: uint8 [num]."""
    return torch.stack([packed & 15, packed >> 4], dim=1).flatten()[:num]


def _range_shape(shape: Shape, axis: int, group: int) -> torch.Size:
    sizes = list(shape.kv)
    sizes[axis] = -(-sizes[axis] // group)
    return torch.Size(sizes)


def _extremes(tensor: torch.Tensor, axis: int, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The smallest and largest number of each group along `axis`; the last group may be short."""
    if not tensor.shape[axis]:
        return tensor, tensor
    pairs = [piece.aminmax(dim=axis, keepdim=True) for piece in tensor.split(group, dim=axis)]
    return torch.cat([pair.min for pair in pairs], dim=axis), torch.cat([pair.max for pair in pairs], dim=axis)


def _spread(of_groups: torch.Tensor, axis: int, group: int, like: torch.Tensor) -> torch.Tensor:
    """One number per group → one per element of `like` (or one for all along the axis), in the type to calculate in."""
    wide = of_groups.to(compute_dtype(like.dtype))
    if of_groups.shape[axis] == 1:
        return wide
    return wide.repeat_interleave(group, dim=axis).narrow(axis, 0, like.shape[axis])
