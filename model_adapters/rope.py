"""Rotary position embedding as two pure functions. `cos` and `sin` come from the model's own `rotary_emb`, so that 1-D,
multimodal and interleaved multimodal RoPE are one case."""

from __future__ import annotations

import torch


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    """(a, b) -> (-b, a) over the halves of the last dimension."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((-b, a), dim=-1)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate keys or queries [..., S, head_dim] by the angles behind `cos` and `sin` [S, head_dim]."""
    return x * cos + rotate_half(x) * sin


def unrotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, attention_scaling: float = 1.0) -> torch.Tensor:
    """Undo `rotate`. `attention_scaling` is the factor that YaRN and its like fold into `cos` and `sin`."""
    return (x * cos - rotate_half(x) * sin) / attention_scaling**2
