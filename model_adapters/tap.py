"""Where queries and keys are read before rotation, without touching the model's code."""

from __future__ import annotations

from typing import Any

import torch


class Tap:
    """Reads un-rotated keys and queries of every layer during a forward pass, by hooks on k_norm and q_norm."""

    def __init__(self, layers: Any) -> None:
        self.on = False
        self.keys: list[torch.Tensor] = []
        self.queries: list[torch.Tensor] = []
        for layer in layers:
            layer.self_attn.k_norm.register_forward_hook(lambda _m, _i, out: self._add(self.keys, out))
            layer.self_attn.q_norm.register_forward_hook(lambda _m, _i, out: self._add(self.queries, out))

    def __enter__(self) -> Tap:
        self.on, self.keys, self.queries = True, [], []
        return self

    def __exit__(self, *exc: object) -> None:
        self.on, self.keys, self.queries = False, [], []

    def stacked_keys(self) -> torch.Tensor:
        """[layers, kv_heads, S, head_dim]"""
        return torch.stack([k[0].transpose(0, 1) for k in self.keys])

    def stacked_queries(self) -> torch.Tensor:
        """[layers, heads, S, head_dim]"""
        return torch.stack([q[0].transpose(0, 1) for q in self.queries])

    def _add(self, held: list[torch.Tensor], out: torch.Tensor) -> None:
        if self.on:
            held.append(out)
