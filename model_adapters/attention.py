"""Causal attention that is aligned at the bottom right and needs no dense mask.

Registered with transformers under a name of its own: queries are the last tokens of whatever keys a layer holds, so one
function serves a full forward, a chunk behind a cache, a single decoded token, and layers that hold different chunks.
Only where several questions are put at once is there a mask to look at: they share what is before them and not each other.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "causal_lower_right"


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """query: [B, heads, S, d]; key, value: [B, kv_heads, n, d], n ≥ S. Returns [B, S, heads, d].

    attention_mask: None for causal attention, or bool [B, 1, S, n], true where a query sees a key.
    """
    groups = query.shape[1] // key.shape[1]
    num_queries, num_keys = query.shape[2], key.shape[2]
    if attention_mask is None and num_queries == 1:
        # The query heads of a group as the queries of one head: keys and values are read once per group, not once per head.
        folded = F.scaled_dot_product_attention(query.reshape(*key.shape[:2], groups, -1), key, value, scale=scaling)
        return folded.reshape(query.shape[0], 1, query.shape[1], -1), None
    causal = attention_mask is None and num_queries > 1 and num_queries == num_keys
    bias = attention_mask
    if attention_mask is None and 1 < num_queries < num_keys:
        bias = causal_lower_right(num_queries, num_keys)
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=bias, is_causal=causal, scale=scaling, enable_gqa=groups > 1
    )
    return out.transpose(1, 2).contiguous(), None


def no_mask(*args: object, **kwargs: object) -> None:
    """`attend` derives causality from the shapes. A mask of four axes is handed to it as it is."""


def register() -> None:
    """Make the name known to transformers. Registering twice changes nothing."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, no_mask)
