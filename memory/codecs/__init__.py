"""How the RAM and disk tiers keep a chunk: bit-equal, as small integers, or entropy-coded. One file per codec."""

from __future__ import annotations

import importlib

import torch

from data.errors import ConfigError, MemoryBankError
from memory.codecs.base import Codec
from memory.layout import Packet
from model_adapters.base import ChunkKV

CODECS = {
    "native": "memory.codecs.native:Native",
    "int8": "memory.codecs.integer:Int8",
    "int4": "memory.codecs.integer:Int4",
    "entropy": "memory.codecs.entropy:Entropy",
}
"""Name → module:class, imported when it is asked for."""


def create_codec(name: str) -> Codec:
    """The codec called `name`. ConfigError for an unknown name."""
    if name not in CODECS:
        raise ConfigError(f"kv_codec={name!r} is not known; known are {', '.join(CODECS)}")
    module, kind = CODECS[name].split(":")
    codec: Codec = getattr(importlib.import_module(module), kind)()
    return codec


def decoded(packet: Packet, device: torch.device | str = "cpu") -> ChunkKV:
    """The chunk in a packet, on `device`. MemoryBankError if the packet is damaged or of a codec that is not known here."""
    if packet.codec not in CODECS:
        raise MemoryBankError(f"chunk {packet.chunk_id} is kept as {packet.codec!r}, which is not known here; it is left out")
    return create_codec(packet.codec).decode(packet, torch.device(device))


__all__ = ["CODECS", "Codec", "Packet", "create_codec", "decoded"]
