"""Where queries and keys are read before rotation, without touching the model's code."""

from __future__ import annotations

from typing import Any

import torch


class Tap:
    """Reads un-rotated keys and queries of every layer during a forward pass, by hooks on what makes them last: the norms
    `k_norm` and `q_norm` where a layer has them (Qwen3), else the projections `k_proj` and `q_proj` (Qwen2, Llama).
    device: where what all layers made is brought together."""

    def __init__(self, layers: Any, head_dim: int, device: torch.device) -> None:
        self.head_dim = head_dim
        self.device = device
        self.on = False
        self.keys: list[torch.Tensor] = []
        self.queries: list[torch.Tensor] = []
        for layer in layers:
            attention = layer.self_attn
            key_source = getattr(attention, "k_norm", attention.k_proj)
            query_source = getattr(attention, "q_norm", attention.q_proj)
            key_source.register_forward_hook(lambda _m, _i, out: self._add(self.keys, out))
            query_source.register_forward_hook(lambda _m, _i, out: self._add(self.queries, out))

    def __enter__(self) -> Tap:
        self.on, self.keys, self.queries = True, [], []
        return self

    def __exit__(self, *exc: object) -> None:
        self.on, self.keys, self.queries = False, [], []

    def stacked_keys(self) -> torch.Tensor:
        """[layers, kv_heads, S, head_dim]"""
        return torch.stack([k.transpose(0, 1).to(self.device) for k in self.keys])

    def stacked_queries(self) -> torch.Tensor:
        """[layers, heads, S, head_dim]"""
        return torch.stack([q.transpose(0, 1).to(self.device) for q in self.queries])

    def _add(self, held: list[torch.Tensor], out: torch.Tensor) -> None:
        """out: [1, S, heads, head_dim] or [1, S, heads * head_dim]"""
        if self.on:
            held.append(out[0].view(out.shape[1], -1, self.head_dim))
