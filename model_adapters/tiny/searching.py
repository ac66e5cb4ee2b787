"""The loss that makes keys worth searching: a question finds the chunks that prove its answer among all chunks of a batch."""

from __future__ import annotations

import re

import numpy as np
import torch
import torch.nn.functional as F

from data.world import COLORS, SHAPES
from model_adapters.tiny.asking import Asked
from model_adapters.tiny.samples import QUESTION, Batch

RETRIEVED_FAMILIES = ("at", "when", "did", "which", "after")
CUT = 8
"""At how many chunks recall is measured."""
NAME = re.compile(rf"({'|'.join(COLORS)}) ({'|'.join(SHAPES)})")


def retrieval_loss(keys: torch.Tensor, queries: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, float]:
    """Cross-entropy of key similarity against the chunks that prove each answer, and the recall at 8 of those chunks.

    The score is the retriever's own: mean key per chunk, layer and KV head, times the mean question query, summed. A question
    that names an object is also set against the chunks of all other stretches, as a long stream will set it: within one
    stretch nearly any score finds the right chunk.
    """
    scores = similarities(keys, queries, batch)
    size, _, _, num_chunks = scores.shape
    losses, recalls = [], []
    for b, asked in enumerate(batch.asked):
        for j, a in enumerate(asked):
            if a.family not in RETRIEVED_FAMILIES or a.chunk <= 2:
                continue
            rivals, wanted = contest(batch, b, a)
            if wanted:
                row = scores[b, j].flatten().masked_fill(~rivals.flatten(), float("-inf"))
                targets = [b * num_chunks + k for k in wanted]
                losses.append(-row.log_softmax(0)[targets].mean())
                top = row.topk(min(CUT, size * num_chunks)).indices.tolist()
                recalls.append(sum(k in top for k in targets) / len(targets))
    if not losses:
        return scores.sum() * 0, 1.0
    return torch.stack(losses).mean(), float(np.mean(recalls))


def similarities(keys: torch.Tensor, queries: torch.Tensor, batch: Batch) -> torch.Tensor:
    """float32 [B, Q, B, C]: every question against every chunk of the batch. keys, queries: from `Watcher.take`."""
    layers, size, _, kv_heads, dim = keys.shape
    num_chunks = batch.visible.shape[2]
    owner = torch.where((batch.owner >= 0) & (batch.owner < QUESTION), batch.owner, num_chunks)
    one_hot = F.one_hot(owner, num_chunks + 1)[..., :num_chunks].to(keys.dtype)
    mean = one_hot / one_hot.sum(1, keepdim=True).clamp(min=1)
    chunk_keys = torch.einsum("bsc,lbshd->blchd", mean, keys)
    mask = batch.question_mask.to(queries.dtype)
    q = torch.einsum("bs,lbsgd->lbgd", mask / mask.sum(1, keepdim=True), queries)
    q = q.view(layers, size, -1, kv_heads, q.shape[2] // kv_heads, dim).sum(4) * dim**-0.5
    return torch.einsum("lbqhd,elchd->bqec", q, chunk_keys).float()


def contest(batch: Batch, stretch: int, asked: Asked) -> tuple[torch.Tensor, list[int]]:
    """bool [B, C], the chunks that a question's own are set against (they included); and which of its stretch should win.

    What came after a thing is found through the thing itself, which is what the question names: from there the retriever
    steps forward in time. Chunks that follow it prove something too, so they are nobody's rivals.
    """
    wanted = asked.evidence
    if asked.family == "after":
        wanted = [k for k in asked.evidence if k not in asked.shown]
    name = NAME.search(asked.question)
    if name is None:
        rivals = torch.zeros(batch.states.shape[:2], dtype=torch.bool)
    else:
        color, shape = list(COLORS).index(name[1]), SHAPES.index(name[2])
        now = (batch.states[..., 0] == color) & (batch.states[..., 1] == shape)
        before = (batch.states[..., 3] == color) & (batch.states[..., 4] == shape)
        rivals = ~(now | before)
    if name is None or asked.family != "after":
        rivals[stretch] = True
    rivals[stretch, wanted] = True
    rivals[stretch, asked.chunk + 1 :] = False
    return rivals, wanted
