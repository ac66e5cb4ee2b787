"""What a chunk should know, half-way through the layers: the object on screen, the one before it, and when it entered.

Every question reads some of this off the stored chunks. Asked of every chunk by throw-away heads, it is learned from hundreds
of labels per step instead of a few answers.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from model_adapters.tiny.labels import CLASSES, UNKNOWN
from model_adapters.tiny.samples import Batch

MIDDLE, ASKED = 2, 600
"""After which layer the heads read, and how many tokens they read per step."""


class StateHeads(nn.Module):
    """Linear heads on the hidden states after layer `MIDDLE`. `codes`: the embeddings of all whole numbers [n, width]."""

    def __init__(self, codes: torch.Tensor) -> None:
        super().__init__()
        width = codes.shape[1]
        self.classes = nn.Linear(width, sum(CLASSES))
        self.entry = nn.Linear(width, width, bias=False)
        self.codes = codes

    def forward(
        self, middle: torch.Tensor, batch: Batch, end_id: int, rng: np.random.Generator
    ) -> tuple[torch.Tensor, list[float]]:
        """The loss, and the share that is right of each of the six. middle: [B, S, D]."""
        chosen = ((batch.rows >= 0) | (batch.ids == end_id)).nonzero()
        chosen = chosen[torch.from_numpy(rng.permutation(len(chosen))[:ASKED])]
        b, s = chosen.unbind(1)
        hidden = middle[b, s].float()
        hidden = hidden * hidden.square().mean(-1, keepdim=True).add(1e-6).rsqrt()
        target = batch.states[b, batch.owner[b, s]]
        logits = [*self.classes(hidden).float().split(CLASSES, dim=-1), self.entry(hidden).float() @ self.codes.T]
        losses, right = [], []
        for i, logit in enumerate(logits):
            known = target[:, i] != UNKNOWN
            if known.any():
                losses.append(F.cross_entropy(logit[known], target[known, i]))
                right.append(float((logit[known].argmax(-1) == target[known, i]).float().mean()))
        return torch.stack(losses).sum(), right
