"""Whole steps from an anchor token, packed small by zstd: for the disk, where bytes count more than time.

Source: CacheGen (arXiv 2310.07240): tokens of one context are alike, so differences from an anchor token are small numbers
with little entropy. Two changes: the anchor is the mean token of the chunk instead of the first of ten (fewer bytes wherever
it was tried), and all is rounded to one grid *before* differences are taken: they are exact, and no error adds up.
Two differences share a byte, so that a byte-wise entropy coder sees pairs, which suits it better than one in a byte.
"""

from __future__ import annotations

import numpy as np
import torch
import zstandard

from data.errors import ConfigError, MemoryBankError
from memory.codecs.base import Codec, Shape, compute_dtype, damaged, payload
from memory.codecs.integer import pack_nibbles, unpack_nibbles
from memory.layout import ChunkHead, Packet, as_bytes
from model_adapters.base import ChunkKV

ESCAPE = 8
"""Half-bytes are −7..7 around 8; this one (as −8, so stored as 0) says that the number stands among the escapes."""
LEAST_SHARE = 2.0**-10
"""The least step in root mean squares of a layer: keeps numbers in range where all tokens of a chunk are nearly the same."""


class Entropy(Codec):
    """Keys and values on a grid of their own for each layer.

    coarseness: the step of the grid in standard deviations of a layer's tokens around their mean. Error: half a step, and
    the rounding of the chunk's own data type. level: of zstd.
    """

    name = "entropy"

    def __init__(self, coarseness: float = 1.5, level: int = 1) -> None:
        if not coarseness > 0:
            raise ConfigError(f"coarseness={coarseness} must be more than 0")
        self.coarseness = coarseness
        self.level = level

    def encode(self, chunk: ChunkKV) -> Packet:
        shape = Shape.of(chunk)
        both = torch.stack([chunk.keys, chunk.values]).to(compute_dtype(shape.dtype))
        steps = self._steps(both)
        if not torch.isfinite(steps).all():
            raise MemoryBankError(
                f"chunk {chunk.chunk_id} holds numbers that are not finite; {self.name} cannot keep them, native can"
            )
        stream = [chunk.position_ids.diff(dim=1, prepend=chunk.position_ids.new_zeros(shape.num_axes, 1)).flatten()]
        if shape.num_tokens:
            places = (both / steps.to(both.dtype)[:, :, None, None, None]).round()
            anchor = places.mean(3, keepdim=True).round()
            stream += [anchor.long().flatten(), (places - anchor).long().flatten()]
        numbers = torch.cat(stream).cpu()
        small = numbers.abs() < ESCAPE
        halves = pack_nibbles(torch.where(small, numbers + ESCAPE, 0).to(torch.uint8))
        plain = torch.cat([halves, as_bytes(numbers[~small])])
        packed = zstandard.ZstdCompressor(compression_params=_parameters(self.level)).compress(plain.numpy().data)
        about = [*shape.to_about(), int((~small).sum())]
        whole = torch.cat([as_bytes(steps.cpu()), torch.from_numpy(np.frombuffer(packed, np.uint8).copy())])
        return Packet(ChunkHead.of(chunk), self.name, about, {"payload": whole})

    def decode(self, packet: Packet, device: torch.device) -> ChunkKV:
        shape, steps, numbers = _numbers(packet, device)
        diffs, anchor, deltas = _split(shape, numbers)
        places = (deltas + anchor).to(compute_dtype(shape.dtype))
        # The nearest point of the grid may lie beyond the largest number that the chunk's own type has.
        most = torch.finfo(shape.dtype).max
        both = places.mul_(steps.to(places.dtype)[:, :, None, None, None]).clamp_(-most, most).to(shape.dtype)
        return packet.head.with_parts({"keys": both[0], "values": both[1], "position_ids": diffs.long().cumsum(1)})

    def bound(self, packet: Packet) -> tuple[torch.Tensor, torch.Tensor]:
        shape, steps, numbers = _numbers(packet, torch.device("cpu"))
        _, anchor, deltas = _split(shape, numbers)
        steps = steps.to(torch.float64)[:, :, None, None, None]
        largest = ((deltas + anchor).abs() + 1) * steps
        # The quotient and the product, in the type that is calculated in, and the rounding to the chunk's own.
        rounding = 2 * torch.finfo(compute_dtype(shape.dtype)).eps + torch.finfo(shape.dtype).eps
        found = steps / 2 + rounding * largest
        return found[0], found[1]

    def _steps(self, both: torch.Tensor) -> torch.Tensor:
        """float32 [2, layers]: the step of keys and values in each layer. both: [2, layers, kv_heads, S, head_dim]."""
        num_tokens = both.shape[3]
        if not both.numel():
            return torch.ones(both.shape[:2])
        rms = both.square().mean((2, 3, 4)).sqrt()
        spread = rms
        if num_tokens > 1:
            variance = (both - both.mean(3, keepdim=True)).square().mean((2, 3, 4)) * (num_tokens / (num_tokens - 1))
            spread = torch.maximum(variance.sqrt(), LEAST_SHARE * rms)
        # Stored as float32, so calculated with from the start. A layer of zeros gets a step as good as any other.
        return torch.where(spread == 0, 1.0, self.coarseness * spread).float().clamp(min=1e-30)


def _numbers(packet: Packet, device: torch.device) -> tuple[Shape, torch.Tensor, torch.Tensor]:
    """Shape, steps float32 [2, layers], and all whole numbers in their order. MemoryBankError if they are not there."""
    shape = Shape.from_about(packet)
    whole = payload(packet)
    num_escapes = packet.about[2] if len(packet.about) > 2 else None
    num = shape.num_axes * shape.num_tokens + (2 * (shape.numel + shape.numel // shape.num_tokens) if shape.num_tokens else 0)
    num_step_bytes = 2 * shape.num_layers * 4
    if type(num_escapes) is not int or not 0 <= num_escapes <= num or len(whole) < num_step_bytes:
        raise damaged(packet, "its description does not fit")
    num_plain = -(-num // 2) + 8 * num_escapes
    steps = whole[:num_step_bytes].clone().view(torch.float32).view(2, shape.num_layers)
    try:
        plain = zstandard.ZstdDecompressor(format=zstandard.FORMAT_ZSTD1_MAGICLESS).decompress(
            whole[num_step_bytes:].numpy().data, max_output_size=num_plain + 1, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise damaged(packet, f"it cannot be decompressed ({error})") from error
    if len(plain) != num_plain:
        raise damaged(packet, f"it holds {len(plain)} bytes and should hold {num_plain}")
    halves = torch.from_numpy(np.frombuffer(plain, np.uint8).copy())
    numbers = unpack_nibbles(halves[: -(-num // 2)].to(device), num).to(torch.int32) - ESCAPE
    if num_escapes:
        rest = halves[-(-num // 2) :].clone().view(torch.int64).to(device)
        places = numbers == -ESCAPE
        if int(places.sum()) != num_escapes:
            raise damaged(packet, "its escapes do not fit")
        numbers = numbers.long().masked_scatter_(places, rest)
    return shape, steps.to(device), numbers


def _split(shape: Shape, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Differences of positions [P, S], anchor [2, layers, kv_heads, 1, head_dim], deltas [2, layers, kv_heads, S, head_dim]."""
    layers, heads, tokens, dim = shape.kv
    num_anchor = 2 * layers * heads * dim if tokens else 0
    diffs, anchor, deltas = numbers.split([shape.num_axes * tokens, num_anchor, 2 * shape.numel])
    return (
        diffs.view(shape.num_axes, tokens),
        anchor.view(2, layers, heads, min(1, tokens), dim),
        deltas.view(2, *shape.kv),
    )


def _parameters(level: int) -> zstandard.ZstdCompressionParameters:
    """A frame without magic number, size and checksum: a packet has all of that already."""
    return zstandard.ZstdCompressionParameters.from_level(
        level, format=zstandard.FORMAT_ZSTD1_MAGICLESS, write_content_size=False, write_checksum=False
    )
