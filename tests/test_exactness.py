"""The exactness contract, on a small random Qwen3-VL, against stock transformers and dense attention written out.

float64 to 1e-6 of the largest value, float32 to 1e-4. Not 1e-9: stock RMSNorm computes in float32 whatever the weights are, so
that one rounding that falls the other way shows as 6e-8 per layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from everyday import everyday
from transformers import Qwen3VLForConditionalGeneration

from data.frames import Chunk, Chunker, Frame
from model_adapters.base import ChunkKV, ModelAdapter
from model_adapters.preprocess import patchify
from model_adapters.rope import rotate, unrotate
from vstream.answer import View
from vstream.config import SessionConfig
from vstream.session import StreamSession

QUESTION = "when did the red circle appear ?"
WHOLE = SessionConfig(drop="off", window_seconds=1000, max_new_tokens=12)


def tolerance(adapter: ModelAdapter, like: torch.Tensor) -> float:
    return (1e-6 if adapter.info.dtype == torch.float64 else 1e-4) * float(like.abs().max())


def chunks_of(frames: Sequence[Frame], chunk_seconds: float = 1.0) -> list[Chunk]:
    chunker = Chunker(2.0, chunk_seconds)
    return [chunk for frame in frames for chunk in chunker.push(frame)] + chunker.flush()


def fed(adapter: ModelAdapter, frames: Sequence[Frame], config: SessionConfig = WHOLE) -> StreamSession:
    session = StreamSession(adapter, config)
    assert len(list(session.feed(frames))) > 0
    session.finish()
    return session


def question_logits(adapter: ModelAdapter, chunks: Sequence[ChunkKV], sink: ChunkKV) -> torch.Tensor:
    context = adapter.new_context(64)
    adapter.append(context, [sink, *chunks])
    return adapter.logits(context, adapter.question_run(QUESTION))


@pytest.fixture(scope="module")
def stock(random_folder, exact_adapter) -> Qwen3VLForConditionalGeneration:
    return Qwen3VLForConditionalGeneration.from_pretrained(
        random_folder, dtype=exact_adapter.info.dtype, attn_implementation="eager"
    ).eval()


def stock_inputs(stock, tokenizer, adapter: ModelAdapter, frames: Sequence[Frame]) -> dict[str, torch.Tensor]:
    """ids as the family's processor writes them for the whole video at once, and the pixels of the whole video at once."""
    text = "<|im_start|>user\n"
    for first, second in zip(frames[::2], frames[1::2], strict=True):
        stamp = (first.pts_seconds + second.pts_seconds) / 2
        text += f"<{stamp:.1f} seconds><|vision_start|>{'<|video_pad|>' * 16}<|vision_end|>"
    text += QUESTION + "<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    whole = Chunk(0, np.stack([f.data for f in frames]), tuple(f.pts_seconds for f in frames), 0.0, len(frames) / 2)
    pixels, grid = patchify(adapter.picture(whole), adapter.spec, adapter.info.dtype)  # type: ignore[attr-defined]
    kinds = (ids == stock.config.video_token_id).int() * 2
    return {"input_ids": ids, "pixel_values_videos": pixels, "video_grid_thw": grid, "mm_token_type_ids": kinds}


@torch.inference_mode()
def test_1_nothing_dropped_equals_one_stock_forward(exact_adapter, stock, frames) -> None:
    inputs = stock_inputs(stock, exact_adapter.tokenizer, exact_adapter, frames)
    expected = stock(**inputs).logits[0].float() if exact_adapter.info.dtype == torch.float32 else stock(**inputs).logits[0]
    session = fed(exact_adapter, frames)
    run = exact_adapter.question_run(QUESTION)
    context = exact_adapter.new_context(8)
    exact_adapter.append(context, [session.ingest.sink, *session.ingest.window])
    found = exact_adapter.model.lm_head(exact_adapter._forward(context, run))
    assert found.shape[0] == run.num_tokens
    assert float((found - expected[-run.num_tokens :]).abs().max()) <= tolerance(exact_adapter, expected)


@torch.inference_mode()
def test_1_ids_and_positions_are_the_processors_own(exact_adapter, stock, frames) -> None:
    inputs = stock_inputs(stock, exact_adapter.tokenizer, exact_adapter, frames)
    expected, _ = stock.model.get_rope_index(
        inputs["input_ids"], inputs["mm_token_type_ids"], video_grid_thw=inputs["video_grid_thw"]
    )
    runs = [exact_adapter.sink_run()]
    for chunk in chunks_of(frames):
        visual = exact_adapter.embed(exact_adapter.picture(chunk))
        runs.append(exact_adapter.chunk_run(chunk, visual.grid, torch.ones(16, dtype=torch.bool), visual))
    runs.append(exact_adapter.question_run(QUESTION))
    starts = np.cumsum([0] + [run.span for run in runs[:-1]])
    positions = torch.cat([run.position_ids + int(start) for run, start in zip(runs, starts, strict=True)], dim=1)
    assert torch.equal(positions, expected[:, 0])
    visual_mask = torch.cat([run.visual_mask for run in runs])
    assert torch.equal(visual_mask, inputs["input_ids"][0] == stock.config.video_token_id)
    words = stock.get_input_embeddings()(inputs["input_ids"][0])
    assert torch.equal(torch.cat([run.embeds for run in runs])[~visual_mask], words[~visual_mask])


def test_2_everything_retrieved_equals_everything_in_the_window(exact_adapter, frames) -> None:
    session = fed(exact_adapter, frames, WHOLE.replace(retrieval="all"))
    window = tuple(session.ingest.window)
    inside = View(6.0, 12.0, window, None)
    outside = View(6.0, 12.0, (), None)
    *_, first = session.answerer.answer(QUESTION, session.ingest.sink, inside)
    *_, second = session.answerer.answer(QUESTION, session.ingest.sink, outside)
    assert first.text == second.text and first.num_context_tokens == second.num_context_tokens
    assert first.text.strip()
    assert {e.tier for e in first.evidence} != {e.tier for e in second.evidence}
    stored = session.bank.get(session.bank.chunk_ids())
    for mine, theirs in zip(stored, window, strict=True):
        assert torch.equal(mine.keys, theirs.keys) and torch.equal(mine.values, theirs.values)


@pytest.mark.parametrize("chunk_seconds", [2.0, 3.0, 4.0])
def test_3_chunk_size_does_not_matter(exact_adapter, frames, chunk_seconds: float) -> None:
    single = fed(exact_adapter, frames)
    other = fed(exact_adapter, frames, WHOLE.replace(chunk_seconds=chunk_seconds))
    a = question_logits(exact_adapter, list(single.ingest.window), single.ingest.sink)
    b = question_logits(exact_adapter, list(other.ingest.window), other.ingest.sink)
    assert len(other.timeline) < len(single.timeline)
    # Summation order differs with the size of a forward pass; beyond rounding nothing may.
    assert float((a - b).abs().max()) <= tolerance(exact_adapter, a)


def test_3_batches_of_frames_do_not_matter(exact_adapter, frames) -> None:
    config = SessionConfig(window_seconds=4)
    whole = fed(exact_adapter, frames, config)
    pieces = StreamSession(exact_adapter, config)
    for start in range(0, len(frames), 5):
        list(pieces.feed(frames[start : start + 5]))
    pieces.finish()
    for mine, theirs in zip(whole.bank.get(whole.bank.chunk_ids()), pieces.bank.get(pieces.bank.chunk_ids()), strict=True):
        assert torch.equal(mine.keys, theirs.keys) and torch.equal(mine.values, theirs.values)


@pytest.mark.parametrize("drop", everyday(["off", "pixel", "feature"], ["pixel"]))
@pytest.mark.parametrize("at", [0.0, 3.5, 4.0, 7.5])
def test_5_frames_after_t_never_change_an_answer_at_t(exact_adapter, frames, drop: str, at: float) -> None:
    config = SessionConfig(window_seconds=3, drop=drop, top_k=3, max_new_tokens=12)
    past = StreamSession(exact_adapter, config)
    list(past.feed(f for f in frames if f.pts_seconds <= at))
    changed = [f if f.pts_seconds <= at else Frame(255 - f.data, f.pts_seconds) for f in frames]
    expected = past.answer(QUESTION, at)
    for later in (frames, changed):
        session = fed(exact_adapter, later, config)
        if at % 1 == 0.5:
            found = session.answer(QUESTION, at)
            assert (found.text, found.num_context_tokens) == (expected.text, expected.num_context_tokens)
            assert [(e.chunk_id, e.score) for e in found.evidence] == [(e.chunk_id, e.score) for e in expected.evidence]
        else:
            # In the middle of a chunk the past session shows its open chunk, which a later one has stored as a whole and
            # leaves out: nothing later than t may be in it.
            assert all(e.end_seconds <= at for e in session.answer(QUESTION, at).evidence)


@pytest.mark.slow
def test_6_a_cancelled_answer_leaves_no_trace(exact_adapter, frames) -> None:
    config = SessionConfig(window_seconds=3, top_k=3, max_new_tokens=12)
    quiet, asked = StreamSession(exact_adapter, config), StreamSession(exact_adapter, config)
    for frame in frames:
        quiet.push(frame)
        asked.push(frame)
        stream = asked.ask(QUESTION)
        next(stream)
        stream.close()
    a, b = quiet.answer(QUESTION), asked.answer(QUESTION)
    assert (a.text, a.evidence, a.num_context_tokens) == (b.text, b.evidence, b.num_context_tokens)
    for mine, theirs in zip(quiet.bank.get(quiet.bank.chunk_ids()), asked.bank.get(asked.bank.chunk_ids()), strict=True):
        assert torch.equal(mine.keys, theirs.keys) and torch.equal(mine.values, theirs.values)
    asked.bank.check_integrity()


@torch.inference_mode()
def test_7_per_layer_equals_a_dense_reference(exact_adapter, frames) -> None:
    session = fed(exact_adapter, frames, SessionConfig(drop="pixel", window_seconds=3, max_new_tokens=4, retrieval="per_layer"))
    adapter, sink, recent = exact_adapter, session.ingest.sink, list(session.ingest.window)
    old = session.bank.get([i for i in session.bank.chunk_ids() if i not in {kv.chunk_id for kv in recent}])
    rows = [[old[0], old[3], old[4]], [old[1]], [old[2], old[5]]]
    context = adapter.new_context(8)
    adapter.append(context, [sink])
    adapter.append_layers(context, rows)
    adapter.append(context, recent)
    run = adapter.question_run(QUESTION)
    found = adapter._forward(context, run)
    expected = dense_per_layer(adapter, sink, rows, recent, run.embeds)
    assert float((found - expected).abs().max()) <= tolerance(adapter, expected)


def dense_per_layer(
    adapter, sink: ChunkKV, rows: list[list[ChunkKV]], recent: list[ChunkKV], embeds: torch.Tensor
) -> torch.Tensor:
    """The language model written out with dense softmax attention, each layer over keys and positions of its own."""
    model = adapter.language
    middle = max(sum(kv.span for kv in row) for row in rows)
    hidden = embeds
    for index, layer in enumerate(model.layers):
        spans = sum(kv.span for kv in rows[index])
        keys, values, at = [], [], 0
        for kv, jump in [
            (sink, 0),
            *((kv, middle - spans if i == 0 else 0) for i, kv in enumerate(rows[index])),
            *((kv, 0) for kv in recent),
        ]:
            at += jump
            cos, sin = model.rotary_emb(kv.keys, (kv.position_ids + at)[:, None])
            keys.append(rotate(kv.keys[index], cos[0], sin[0]))
            values.append(kv.values[index])
            at += kv.span
        attention = layer.self_attn
        x = layer.input_layernorm(hidden)
        size = len(x)
        q = attention.q_norm(attention.q_proj(x).view(size, -1, adapter.info.head_dim)).transpose(0, 1)
        k = attention.k_norm(attention.k_proj(x).view(size, -1, adapter.info.head_dim)).transpose(0, 1)
        v = attention.v_proj(x).view(size, -1, adapter.info.head_dim).transpose(0, 1)
        cos, sin = model.rotary_emb(x, (at + torch.arange(size)).expand(3, 1, -1))
        all_keys = torch.cat([*keys, rotate(k, cos[0], sin[0])], dim=1).repeat_interleave(2, 0)
        all_values = torch.cat([*values, v], dim=1).repeat_interleave(2, 0)
        scores = rotate(q, cos[0], sin[0]) @ all_keys.transpose(1, 2) * adapter.info.head_dim**-0.5
        past = all_keys.shape[1] - size
        future = torch.arange(all_keys.shape[1])[None] > past + torch.arange(size)[:, None]
        mixed = scores.masked_fill(future, float("-inf")).softmax(-1) @ all_values
        hidden = hidden + attention.o_proj(mixed.transpose(0, 1).reshape(size, -1))
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return model.norm(hidden)


def test_dropped_tokens_keep_position_deepstack_and_order(exact_adapter, stock, frames) -> None:
    """A dropped chunk equals stock transformers on the surviving ids, embeddings, positions and DeepStack features."""
    chunk = chunks_of(frames)[3]
    visual = exact_adapter.embed(exact_adapter.picture(chunk))
    keep = torch.zeros(16, dtype=torch.bool)
    keep[[1, 2, 7, 12]] = True
    run = exact_adapter.chunk_run(chunk, visual.grid, keep, visual)
    whole = exact_adapter.chunk_run(chunk, visual.grid, torch.ones(16, dtype=torch.bool), visual)
    survive = torch.cat([torch.ones(4, dtype=torch.bool), keep, torch.ones(1, dtype=torch.bool)])
    assert torch.equal(run.position_ids, whole.position_ids[:, survive]) and run.span == whole.span
    with torch.inference_mode():
        expected = stock.model.language_model(
            inputs_embeds=whole.embeds[survive][None],
            position_ids=whole.position_ids[:, survive][:, None],
            visual_pos_masks=whole.visual_mask[survive][None],
            deepstack_visual_embeds=[level[keep] for level in visual.deepstack],
        ).last_hidden_state[0]
        found = exact_adapter._forward(exact_adapter.new_context(4), run)
    assert float((found - expected).abs().max()) <= tolerance(exact_adapter, expected)


def test_unrotate_is_the_inverse_of_rotate(exact_adapter) -> None:
    x = torch.randn(2, 5, exact_adapter.info.head_dim, dtype=exact_adapter.info.dtype)
    cos, sin = exact_adapter.language.rotary_emb(x, torch.randint(0, 500, (3, 1, 5)))
    back = unrotate(rotate(x, cos[0], sin[0]), cos[0], sin[0])
    # The angles themselves are computed in float32 by the model.
    assert float((back - x).abs().max()) < 1e-5


def test_the_window_is_rebased_and_bounded(random_adapter, world) -> None:
    session = StreamSession(random_adapter, SessionConfig(window_seconds=3))
    for _ in session.feed(world.frames(2.0)):
        held = session.ingest.sink.num_tokens + sum(kv.num_tokens for kv in session.ingest.window)
        assert session.ingest.live.num_tokens == held
        assert session.ingest.live.next_position <= 2 + 9 * 3
        assert len(session.ingest.window) <= 3
