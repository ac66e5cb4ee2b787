"""Causal attention that is aligned at the bottom right and needs no dense mask.

Registered with transformers under a name of its own: queries are the last tokens of whatever keys a layer holds, so one
function serves a full forward, a chunk behind a cache, a single decoded token, and layers that hold different chunks.
Only where several questions are put at once is there a mask to look at: they share what is before them and not each other.
Where an answer is to name its evidence, the same pass over the keys says where the last query looked: see `Looked`.
"""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "causal_lower_right"

log = logging.getLogger(__name__)


class Looked:
    """Where the last query of each forward looked, summed over layers and heads; handed to the language model as `looked`.

    num_tokens: of the context, from its start, that are watched; None: all.
    """

    def __init__(self, num_tokens: int | None = None) -> None:
        self.num_tokens = num_tokens
        self._rows: dict[torch.device, torch.Tensor] = {}

    def add(self, weights: torch.Tensor) -> None:
        """weights: float32 [1, kv_heads, groups, n] of one layer; they lie on that layer's device until they are asked for."""
        row = weights[..., : self.num_tokens].sum((0, 1, 2))
        held = self._rows.get(row.device)
        if held is None:
            self._rows[row.device] = row
        else:
            held += row

    def row(self, device: torch.device) -> torch.Tensor:
        """float32 [num_tokens]: what the layers on one device have added, in the tensor that they add to."""
        return self._rows[device]

    def total(self, device: torch.device) -> torch.Tensor | None:
        """float32 [num_tokens] over all forwards so far, on `device`; None where none went through `attend`."""
        rows = [row.to(device) for row in self._rows.values()]
        return torch.stack(rows).sum(0) if rows else None


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    looked: Looked | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """query: [B, heads, S, d]; key, value: [B, kv_heads, n, d], n ≥ S. Returns [B, S, heads, d].

    attention_mask: None for causal attention, or bool [B, 1, S, n], true where a query sees a key.
    """
    groups = query.shape[1] // key.shape[1]
    num_queries, num_keys = query.shape[2], key.shape[2]
    if num_queries == 1:
        # The query heads of a group as the queries of one head: keys and values are read once per group, not once per head.
        folded = query.reshape(*key.shape[:2], groups, -1)
        if looked is None:
            out = F.scaled_dot_product_attention(folded, key, value, attn_mask=attention_mask, scale=scaling)
        else:
            weights = _weights(folded, key, attention_mask, scaling)
            looked.add(weights)
            out = weights.to(value.dtype) @ value
        return out.reshape(query.shape[0], 1, query.shape[1], -1), None
    if looked is not None:
        last = query[:, :, -1:].reshape(*key.shape[:2], groups, -1)
        looked.add(_weights(last, key, None if attention_mask is None else attention_mask[:, :, -1:], scaling))
    causal = attention_mask is None and num_queries == num_keys
    bias = attention_mask
    if attention_mask is None and num_queries < num_keys:
        bias = causal_lower_right(num_queries, num_keys)
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=bias, is_causal=causal, scale=scaling, enable_gqa=groups > 1
    )
    return out.transpose(1, 2).contiguous(), None


def _weights(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, scaling: float | None) -> torch.Tensor:
    """float32 [B, kv_heads, groups, n]: where one query [B, kv_heads, groups, d] looks. mask: bool [B, 1, 1, n] or None."""
    scores = (query @ key.transpose(2, 3)).float() * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    return (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1)


def no_mask(*args: object, **kwargs: object) -> None:
    """`attend` derives causality from the shapes. A mask of four axes is handed to it as it is."""


def hides_by_bool(name: str) -> bool:
    """Whether an attention hides keys by a mask of true and false. transformers hands on any mask of four axes as it is, and
    `eager` would add it to the scores; what others make of it is not known."""
    return name in (NAME, "sdpa")


def of_the_text(model: str, asked: str | None) -> dict[str, str]:
    """`attn_implementation` for transformers: what was asked for in the language model, by default ours, and sdpa elsewhere.

    What is lost by another than ours is told. model: its name."""
    if asked not in (None, NAME):
        log.warning(
            "%s runs with the attention %s, which does not tell where an answer looks: its evidence is what was retrieved%s",
            *(model, asked, "" if hides_by_bool(str(asked)) else "; questions that are waiting are put one after the other"),
        )
    return {"": "sdpa", "text_config": asked or NAME, "vision_config": "sdpa"}


def register() -> None:
    """Make the name known to transformers. Registering twice changes nothing."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, no_mask)
