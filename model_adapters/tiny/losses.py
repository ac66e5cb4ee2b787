"""The helping losses of training: time carried by what is seen, and where a question and its answer look."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from model_adapters.rope import rotate
from model_adapters.tiny.labels import UNKNOWN
from model_adapters.tiny.samples import QUESTION, Batch
from model_adapters.tiny.states import MIDDLE

EARLY, STAMPED = 1, 500
"""After which layer visual tokens should carry their time, and how many of them are asked per step."""


MATCHING, LOOKING = 2, 3
"""The layers in which the number of a question looks for the chunk of that second, and an answer for what shows it."""


class Watcher:
    """Collects the un-rotated keys and queries of every layer during a forward pass, by hooks on k_norm and q_norm."""

    def __init__(self, language_model: Any) -> None:
        self.keys: list[torch.Tensor] = []
        self.queries: list[torch.Tensor] = []
        self.early = self.middle = torch.empty(0)
        language_model.layers[EARLY].register_forward_hook(self._keep_early)
        language_model.layers[MIDDLE].register_forward_hook(self._keep_middle)
        for layer in language_model.layers:
            layer.self_attn.k_norm.register_forward_hook(lambda _m, _i, out: self.keys.append(out))
            layer.self_attn.q_norm.register_forward_hook(lambda _m, _i, out: self.queries.append(out))

    def _keep_early(self, _module: Any, _inputs: Any, out: torch.Tensor) -> None:
        self.early = out

    def _keep_middle(self, _module: Any, _inputs: Any, out: torch.Tensor) -> None:
        self.middle = out

    def take(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys [layers, B, S, kv_heads, d] and queries [layers, B, S, heads, d] since the last call."""
        keys, queries = torch.stack(self.keys), torch.stack(self.queries)
        self.keys, self.queries = [], []
        return keys, queries


def stamp_loss(
    early: torch.Tensor, model: Any, batch: Batch, first_number: int, end_id: int, rng: np.random.Generator
) -> torch.Tensor:
    """Cross-entropy of reading a chunk's own number off its visual tokens and its end, early on.

    early: [B, S, D], after layer `EARLY`.

    "At" and "when" are two steps, from a number to what was seen then or back. The first half, that what is seen carries its
    time, gets almost no gradient until the second half works, and the other way round; this teaches it by itself.
    """
    in_chunk = (batch.owner >= 0) & (batch.owner < QUESTION)
    is_number = in_chunk & (batch.ids >= first_number)
    table = torch.full((len(batch.ids), batch.visible.shape[2]), -1)
    table[is_number.nonzero()[:, 0], batch.owner[is_number]] = batch.ids[is_number]
    chosen = ((batch.rows >= 0) | (batch.ids == end_id)).nonzero()
    chosen = chosen[torch.from_numpy(rng.permutation(len(chosen))[:STAMPED])]
    b, s = chosen.unbind(1)
    hidden = early[b, s].float()
    hidden = hidden * hidden.square().mean(-1, keepdim=True).add(1e-6).rsqrt()
    numbers = model.get_input_embeddings().weight[first_number:].detach()
    return F.cross_entropy(hidden @ numbers.T, table[b, batch.owner[b, s]] - first_number)


def match_loss(
    keys: torch.Tensor, queries: torch.Tensor, batch: Batch, cos: torch.Tensor, sin: torch.Tensor, first_number: int
) -> torch.Tensor:
    """How little the number in an "at" question looks at the chunk of that second, in one head per KV group of `MATCHING`.

    Matching numbers is of use to one family alone and stays on a plateau for thousands of steps; shown once where to look, the
    rest follows. keys, queries: from `Watcher.take`. cos, sin: [B, S, d], so that the attention is the rotated one.
    """
    asked_at = [[a.family == "at" for a in asked] for asked in batch.asked]
    is_at = torch.tensor(asked_at)[torch.arange(len(batch.ids))[:, None], (batch.owner - QUESTION).clamp(min=0)]
    where = ((batch.owner >= QUESTION) & (batch.ids >= first_number) & is_at & (batch.labels == UNKNOWN)).nonzero()
    if not len(where):
        return keys.sum() * 0
    b, s = where.unbind(1)
    seconds = batch.ids[b, s] - first_number
    first = (batch.ids * ((batch.owner == 0) & (batch.ids >= first_number))).amax(1) - first_number
    target = batch.owner[b] == (seconds - first[b])[:, None]
    return _missed(keys[MATCHING], queries[MATCHING], 0, batch, cos, sin, (b, s), target)


def look_loss(keys: torch.Tensor, queries: torch.Tensor, batch: Batch, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """How little the tokens of an answer look at the chunks that show it, in one head per KV group of layer `LOOKING`.

    As `match_loss`, for the second half of the way: from what is asked to what is said. keys, queries, cos, sin: as there.
    """
    shown = torch.zeros(batch.visible.shape, dtype=torch.bool)
    for row, asked in enumerate(batch.asked):
        for number, a in enumerate(asked):
            shown[row, number, a.shown] = True
    where = (batch.labels != UNKNOWN).nonzero()
    question = batch.owner[where[:, 0], where[:, 1]] - QUESTION
    has = shown[where[:, 0], question].any(1)
    if not has.any():
        return keys.sum() * 0
    (b, s), question = where[has].unbind(1), question[has]
    target = shown[b, question].gather(1, batch.owner[b].clamp(0, shown.shape[2] - 1))
    return _missed(keys[LOOKING], queries[LOOKING], 1, batch, cos, sin, (b, s), target)


def _missed(
    keys: torch.Tensor,
    queries: torch.Tensor,
    head: int,
    batch: Batch,
    cos: torch.Tensor,
    sin: torch.Tensor,
    where: tuple[torch.Tensor, torch.Tensor],
    target: torch.Tensor,
) -> torch.Tensor:
    """-log of the share on `target` of what the tokens at `where` (rows, places) look at in chunks, in head `head` of every KV
    group, summed over groups. keys, queries: of one layer, [B, S, heads, d]. target: bool [n, S].
    """
    b, s = where
    groups = queries.shape[2] // keys.shape[2]
    seen = batch.attention_mask()[b, 0, s] & (batch.owner[b] >= 0) & (batch.owner[b] < QUESTION)
    total = keys.new_zeros(()).float()
    for group in range(keys.shape[2]):
        q = rotate(queries[:, :, group * groups + head], cos, sin)[b, s].float()
        k = rotate(keys[:, :, group], cos, sin).float()
        logits = torch.einsum("nd,nsd->ns", q, k[b]) * keys.shape[-1] ** -0.5
        everything = logits.masked_fill(~seen, float("-inf")).logsumexp(1)
        right = logits.masked_fill(~(seen & target), float("-inf")).logsumexp(1)
        total = total + (everything - right).mean()
    return total
