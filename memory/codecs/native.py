"""The trivial codec: the tensors as they are. It is the specification and the baseline of the others."""

from __future__ import annotations

import torch

from memory.codecs.base import DTYPES, Codec, damaged
from memory.layout import ChunkHead, Packet, parts
from model_adapters.base import ChunkKV


class Native(Codec):
    """Bit-equal, NaN included."""

    name = "native"

    def encode(self, chunk: ChunkKV) -> Packet:
        return Packet(ChunkHead.of(chunk), self.name, [], {name: tensor.cpu() for name, tensor in parts(chunk).items()})

    def decode(self, packet: Packet, device: torch.device) -> ChunkKV:
        tensors = packet.tensors
        if sorted(tensors) != ["keys", "position_ids", "values"]:
            raise damaged(
                packet, f"it holds {', '.join(sorted(tensors)) or 'nothing'} instead of keys, values and position ids"
            )
        keys, values, position_ids = tensors["keys"], tensors["values"], tensors["position_ids"]
        alike = keys.shape == values.shape and keys.dtype == values.dtype and keys.ndim == 4 and keys.dtype in DTYPES.values()
        if not alike or position_ids.ndim != 2 or position_ids.shape[1] != keys.shape[2] or position_ids.dtype != torch.int64:
            raise damaged(packet, "its keys, values and position ids do not belong together")
        return packet.head.with_parts(tensors).to(device)

    def bound(self, packet: Packet) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
