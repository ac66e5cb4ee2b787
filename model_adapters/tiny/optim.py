"""Muon for the matrices, AdamW for the rest, one schedule for both; and a state file that is never half written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn


class Optimizers:
    """Muon (orthogonalised momentum) trains 2-D weights inside the blocks; AdamW trains embeddings, heads, norms and biases."""

    def __init__(self, module: nn.Module, matrix_lr: float, other_lr: float, clip: float = 1.0) -> None:
        named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        matrices = [p for n, p in named if p.ndim == 2 and not any(part in n for part in ("embed", "heads", "lm_head"))]
        chosen = {id(p) for p in matrices}
        others = [p for _, p in named if id(p) not in chosen]
        self.parameters = [p for _, p in named]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=matrix_lr, weight_decay=0.01, adjust_lr_fn="original"),
            torch.optim.AdamW(others, lr=other_lr, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.base = [matrix_lr, other_lr]
        self.clip = clip

    def set_scale(self, scale: float) -> None:
        for optimizer, base in zip(self.optimizers, self.base, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = base * scale

    def step(self, loss: torch.Tensor) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        for optimizer in self.optimizers:
            optimizer.step()

    def state_dict(self) -> list[dict[str, Any]]:
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(state)


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write to a temporary name, then rename: a stop in between leaves the last good state."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)
