"""What the conformance kit leaves to sessions and to retrieval, for every family of the registry: chunks of its own for each
layer, no look ahead, and no trace of what was cancelled or said unasked. Exactness 5, 6 and 7 of the other families beside
`test_exactness.py`."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from transformers import DynamicCache

from data.frames import Frame
from model_adapters.base import ChunkKV, TokenRun
from model_adapters.cache import cache_name
from model_adapters.conformance import QUESTION, Conformance
from model_adapters.placement import Timed
from model_adapters.rope import rotate
from vstream.answer import Answer
from vstream.config import SessionConfig
from vstream.session import StreamSession

CONFIG = SessionConfig(window_seconds=3, top_k=2, max_new_tokens=4, poll_seconds=1)


@torch.inference_mode()
def test_each_layer_has_chunks_of_its_own_as_stock_layers_have(kit: Conformance) -> None:
    adapter = kit.adapter
    _, (sink, first, second, recent) = kit.watched()
    choices = [[first], [first, second], [second], []]
    rows = [choices[index % len(choices)] for index in range(adapter.info.num_layers)]
    context = adapter.new_context(8)
    adapter.append(context, [sink])
    adapter.append_layers(context, rows)
    adapter.append(context, [recent])
    run = adapter.question_run(QUESTION)
    found = adapter._forward(context, run)
    with kit.stock_attention():
        expected = by_stock_layers(kit, sink, rows, recent, run)
    assert float((found - expected).abs().max()) <= kit.bound * float(expected.abs().max())


def by_stock_layers(
    kit: Conformance, sink: ChunkKV, rows: Sequence[Sequence[ChunkKV]], recent: ChunkKV, run: TokenRun
) -> torch.Tensor:
    """Hidden states [S, D] of `run`: transformers' layers one by one, over its own cache and under a dense mask each."""
    language = kit.adapter.language
    placed, origin = placements(kit, sink, rows, recent)
    cache = DynamicCache()
    for index, row in enumerate(placed):
        for kv, positions in row:
            cos, sin = language.rotary_emb(kv.keys, kit.adapter._batched(positions))
            cache.update(rotate(kv.keys[index], cos[0], sin[0])[None], kv.values[index][None], index)
    hidden = run.embeds[None]
    positions = kit.adapter._batched(run.position_ids + origin)
    angles = language.rotary_emb(hidden, positions)
    size = run.num_tokens
    for index, layer in enumerate(language.layers):
        past = sum(kv.num_tokens for kv, _ in placed[index])
        future = torch.arange(past + size)[None] > past + torch.arange(size)[:, None]
        mask = torch.zeros(size, past + size).masked_fill(future, float("-inf"))[None, None]
        out = layer(hidden, attention_mask=mask, position_embeddings=angles, use_cache=True, **{cache_name(layer): cache})
        hidden = out if isinstance(out, torch.Tensor) else out[0]
    return language.norm(hidden)[0]


def placements(
    kit: Conformance, sink: ChunkKV, rows: Sequence[Sequence[ChunkKV]], recent: ChunkKV
) -> tuple[list[list[tuple[ChunkKV, torch.Tensor]]], int]:
    """Every layer's chunks with their positions [P, S], and where the question begins. Where time is told by position, a chunk
    stands at its own time behind the sink; else one behind the other, shorter rows moved up to the recent chunk."""
    if isinstance(kit.adapter.placement, Timed):
        at_their_time = [[(kv, kv.position_ids + sink.span) for kv in (*row, recent)] for row in rows]
        last = max(int(positions.max()) for row in at_their_time for _, positions in row)
        return [[(sink, sink.position_ids), *row] for row in at_their_time], last + kit.adapter.parts
    placed = []
    middle = sink.span + max(sum(kv.span for kv in row) for row in rows)
    for row in rows:
        at = middle - sum(kv.span for kv in row)
        placed.append([(sink, sink.position_ids)])
        for kv in (*row, recent):
            placed[-1].append((kv, kv.position_ids + at))
            at += kv.span
    return placed, middle + recent.span


def told(answer: Answer) -> tuple:
    return answer.text, answer.num_context_tokens, [(e.chunk_id, e.score) for e in answer.evidence]


@pytest.mark.slow
def test_neither_the_future_nor_what_was_cancelled_or_said_changes_an_answer(kit: Conformance, frames: list[Frame]) -> None:
    """A session that saw nothing later and was asked nothing, beside one that saw more, broke answers off, watched and
    commented: what was asked about 5.5 s, and all that is stored of that time, is the same to the last bit."""
    at = 5.5
    with StreamSession(kit.adapter, CONFIG) as quiet, StreamSession(kit.adapter, CONFIG) as busy:
        for frame in frames[:12]:
            quiet.push(frame)
        expected = told(quiet.answer(QUESTION, at))
        busy.watch("tell me when the door opens")
        busy.narrate()
        for frame in frames[:20]:
            busy.push(frame)
            cancelled = busy.ask(QUESTION)
            next(cancelled)
            cancelled.close()
        assert told(busy.answer(QUESTION, at)) == expected
        assert busy.unasked.watches.num_decisions and expected[2]
        ids = quiet.bank.chunk_ids()
        for mine, theirs in zip(quiet.bank.get(ids), busy.bank.get(ids), strict=True):
            assert torch.equal(mine.keys, theirs.keys) and torch.equal(mine.values, theirs.values)
