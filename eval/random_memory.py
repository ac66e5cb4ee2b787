"""Chunks made from a seed, for measurements of memory that need no model: any chunk can be made again to compare with."""

from __future__ import annotations

import numpy as np
import torch

from memory.identity import Identity
from memory.records import ChunkRecord
from model_adapters.base import ChunkKV, ModelInfo, Query
from vstream.config import SessionConfig
from vstream.remembered import identity_of

CHUNK_SECONDS = 1.0


def model_info(layers: int = 2, heads: int = 2, dim: int = 8) -> ModelInfo:
    return ModelInfo("random", "random", "0" * 16, layers, heads, dim, 3, torch.float32)


def random_identity(info: ModelInfo) -> Identity:
    return identity_of(info, SessionConfig())


def random_chunk(info: ModelInfo, seed: int, chunk_id: int, num_tokens: int | None = None) -> ChunkKV:
    """The chunk `chunk_id` of the stream `seed`. num_tokens: default: from 0 to 6, drawn too."""
    rng = np.random.default_rng([seed, chunk_id])
    num = int(rng.integers(0, 7)) if num_tokens is None else num_tokens
    kv = rng.standard_normal((2, info.num_layers, info.num_kv_heads, num, info.head_dim), dtype=np.float32)
    positions = torch.from_numpy(rng.integers(0, 2**40, (info.num_position_axes, num)))
    start = chunk_id * CHUNK_SECONDS
    keys, values = torch.from_numpy(kv)
    return ChunkKV(chunk_id, keys, values, positions, num + 1, start, start + CHUNK_SECONDS)


def random_record(seed: int, chunk: ChunkKV, thumbnail_bytes: int = 40) -> ChunkRecord:
    """What would be known of a random chunk without its KV; the thumbnail is noise."""
    rng = np.random.default_rng([seed, chunk.chunk_id, 1])
    keep = rng.random((1, 4, 4)) < 0.3
    last = chunk.end_seconds - 0.5
    start, end = chunk.start_seconds, chunk.end_seconds
    return ChunkRecord(chunk.chunk_id, start, end, last, chunk.num_tokens, keep, rng.bytes(thumbnail_bytes))


def random_query(info: ModelInfo, seed: int) -> Query:
    rng = np.random.default_rng([seed, 2])
    return Query(
        torch.from_numpy(rng.standard_normal((info.num_layers, info.num_kv_heads, info.head_dim), dtype=np.float32)), ""
    )


def same_chunk(left: ChunkKV, right: ChunkKV) -> bool:
    """Bit for bit."""
    heads = [(c.chunk_id, c.span, c.start_seconds, c.end_seconds) for c in (left, right)]
    pairs = ((left.keys, right.keys), (left.values, right.values), (left.position_ids, right.position_ids))
    return heads[0] == heads[1] and all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def same_record(left: ChunkRecord | None, right: ChunkRecord) -> bool:
    if left is None or not np.array_equal(left.keep, right.keep):
        return False
    names = ("chunk_id", "start_seconds", "end_seconds", "last_pts_seconds", "num_tokens", "thumbnail")
    return all(getattr(left, name) == getattr(right, name) for name in names)
