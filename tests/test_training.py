"""Training: the forward pass is the engine, steps lower the loss, a saved state goes on exactly; searching and dim light."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from checkpoints import save_qwen3_vl
from training_samples import SECONDS, Recording, library, model, sampler, tokenizer, words_of  # noqa: F401  # fixtures
from transformers import Qwen3VLForConditionalGeneration

from model_adapters.registry import load_adapter
from model_adapters.tiny.clips import FULL_LIGHT, Light, random_clip, random_light
from model_adapters.tiny.config import number_codes
from model_adapters.tiny.library import Library
from model_adapters.tiny.losses import Watcher
from model_adapters.tiny.optim import Optimizers, save_state
from model_adapters.tiny.samples import QUESTION, SINK, Batch
from model_adapters.tiny.searching import retrieval_loss
from model_adapters.tiny.steady import apart
from model_adapters.tiny.train import fix_numbers, forward


@pytest.fixture
def fresh(tmp_path):
    return Qwen3VLForConditionalGeneration.from_pretrained(
        save_qwen3_vl(tmp_path / "fresh", seed=3), dtype=torch.float32, attn_implementation="sdpa"
    )


def step(model, optimizers: Optimizers, library: Library, batch: Batch) -> float:
    logits, labels = forward(model, library, batch)
    loss = F.cross_entropy(logits, labels)
    optimizers.step(loss)
    return float(loss.detach())


def prepared(model, tokenizer) -> Optimizers:
    model.model.visual.requires_grad_(False)
    fix_numbers(model, tokenizer)
    optimizers = Optimizers(model.model.language_model, matrix_lr=0.01, other_lr=0.001)
    optimizers.set_scale(1.0)
    return optimizers


def test_forward_is_the_engine_on_what_a_question_sees(model, random_adapter, library, tokenizer) -> None:
    """A question that sees all chunks: the logits of one masked pass over many are those of sink, chunks, question alone."""
    made = sampler(tokenizer, library, 2)
    batch = made.batch(4, 400)
    b = 0
    batch.visible[b, 0] = torch.arange(batch.visible.shape[2]) <= batch.asked[b][0].chunk
    with torch.inference_mode():
        # The library's DeepStack has one level; the adapter is given the same.
        logits, _ = forward(model, library, batch)
        counts = [(batch.labels[k] != -100).sum() for k in range(len(batch.ids))]
        own = (batch.owner[b] == QUESTION)[batch.labels[b] != -100]
        found = logits[: int(counts[0])][own]
        chunk = batch.asked[b][0].chunk
        chosen = (batch.owner[b] == SINK) | ((batch.owner[b] >= 0) & (batch.owner[b] <= chunk)) | (batch.owner[b] == QUESTION)
        rows = batch.rows[b][chosen]
        embeds = model.get_input_embeddings()(batch.ids[b][chosen])
        embeds[rows >= 0] = library.embeds.flatten(0, 1)[rows[rows >= 0]].float()
        hidden = model.model.language_model(
            inputs_embeds=embeds[None],
            position_ids=batch.positions[:, b][:, chosen][:, None],
            visual_pos_masks=(rows >= 0)[None],
            deepstack_visual_embeds=[library.deepstack.flatten(0, 1)[rows[rows >= 0]].float()],
            use_cache=False,
        ).last_hidden_state[0]
        wanted = batch.labels[b][chosen] != -100
        expected = model.lm_head(hidden[wanted])
    # The window is at least as long as this stretch, so that a plain causal pass is the definition.
    assert batch.window >= batch.visible.shape[2] - 1
    assert torch.allclose(found, expected, atol=1e-3)


def test_steps_lower_the_loss_and_leave_numbers_and_tower_alone(fresh, tokenizer, library) -> None:
    optimizers = prepared(fresh, tokenizer)
    batch = sampler(tokenizer, library, 4, num_questions=4).batch(4, 200)
    zero = tokenizer.convert_tokens_to_ids("0")
    before = {name: p.detach().clone() for name, p in fresh.named_parameters()}
    losses = [step(fresh, optimizers, library, batch) for _ in range(6)]
    assert losses[1] < losses[0] and losses[-1] < losses[0] - 0.5
    after = dict(fresh.named_parameters())
    table = "model.language_model.embed_tokens.weight"
    assert torch.equal(after[table][zero:], before[table][zero:]) and not torch.equal(after[table][:zero], before[table][:zero])
    for name, p in after.items():
        assert torch.equal(p, before[name]) == ("visual" in name), name


def test_saved_state_goes_on_exactly(fresh, tokenizer, library, tmp_path) -> None:
    batch = sampler(tokenizer, library, 4, num_questions=3).batch(3, 100)
    optimizers = prepared(fresh, tokenizer)
    for _ in range(2):
        step(fresh, optimizers, library, batch)
    path = tmp_path / "deep" / "train.pt"
    save_state(path, {"model": fresh.state_dict(), "optimizers": optimizers.state_dict(), "step": 2})
    assert [p.name for p in path.parent.iterdir()] == ["train.pt"]
    other = copy.deepcopy(fresh)
    for p in other.parameters():
        p.data.normal_()
    expected = [step(fresh, optimizers, library, batch) for _ in range(2)]
    saved = torch.load(path, weights_only=True)
    other.load_state_dict(saved["model"])
    resumed = prepared(other, tokenizer)
    resumed.load_state_dict(saved["optimizers"])
    resumed.set_scale(1.0)
    assert [step(other, resumed, library, batch) for _ in range(2)] == expected and saved["step"] == 2
    for (name, a), (_, b) in zip(fresh.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(a, b), name


@torch.inference_mode()
def names_it(stretch, k: int, question: str) -> bool:
    """Whether the question names what is on screen in chunk k, or what was before."""
    now = stretch.world.on_screen(stretch.start + k)
    since = now.start_seconds if now else stretch.start + k
    before = [s.name for s in stretch.world.stays if s.end_seconds <= since][-1:]
    return any(f" {name} " in question for name in [*([now.name] if now else []), *before])


def test_the_retrieval_loss_scores_as_the_retriever_does(model, random_folder, tokenizer, library) -> None:
    """Mean key per chunk against the mean query of question and sink, as `KeySimilarity` and `encode_question` see them."""
    made = sampler(tokenizer, library, 6, num_questions=4)
    batch = made.batch(10, 300)
    twin = copy.deepcopy(model)
    watcher = Watcher(twin.model.language_model)
    forward(twin, library, batch)
    keys, _ = watcher.take()
    twin.model.language_model(inputs_embeds=twin.get_input_embeddings()(batch.question_ids), use_cache=False)
    _, queries = watcher.take()
    loss, recall = retrieval_loss(keys, queries, batch)
    adapter = load_adapter(str(random_folder), device="cpu")
    losses, recalls = [], []
    for b, asked in enumerate(batch.asked):
        for a in asked:
            own = {k for k in a.evidence if a.family != "after" or k not in a.shown}
            if a.family not in ("at", "when", "did", "which", "after") or not own or a.chunk <= 2:
                continue
            query = adapter.encode_question(a.question).per_layer
            wanted = {(b, k) for k in own}
            scores = {}
            for e, stretch in enumerate(made.stretches):
                for k in range(stretch.num):
                    if (
                        (e, k) in wanted
                        or (e == b and k <= a.chunk and a.family != "after")
                        or (a.family != "at" and (e != b or k <= a.chunk) and not names_it(stretch, k, a.question))
                    ):
                        scores[e, k] = float((keys[:, e, batch.owner[e] == k].mean(1) * query).sum().detach())
            row = dict(zip(scores, torch.tensor(list(scores.values())).log_softmax(0), strict=True))
            losses.append(-np.mean([float(row[k]) for k in wanted]))
            best = sorted(scores, key=lambda k: -scores[k])[:8]
            recalls.append(sum(k in best for k in wanted) / len(wanted))
    assert losses and float(loss.detach()) == pytest.approx(np.mean(losses), rel=1e-3)
    assert recall == pytest.approx(np.mean(recalls))


def test_number_codes_are_alike_for_all_who_draw_them() -> None:
    codes = number_codes(500, 192)
    assert torch.equal(codes, number_codes(500, 192)) and codes.shape == (500, 192)
    lengths = codes.norm(dim=1)
    assert torch.allclose(lengths, torch.full_like(lengths, float(lengths[0])))
    # No two numbers are near each other.
    near = (codes @ codes.T / lengths[0] ** 2).fill_diagonal_(0)
    assert float(near.max()) < 0.9
    assert int(torch.linalg.matrix_rank(codes)) == 48


def test_a_clip_in_dim_light_is_the_same_clip_darker() -> None:
    rng = np.random.default_rng(1)
    for clip in (random_clip(rng) for _ in range(6)):
        clip = replace(clip, quality=None)
        full, dim = clip.pictures(FULL_LIGHT).float(), clip.pictures(Light(0.4, 1e9, 0.5)).float()
        # Dimmed before it is resized: levels are rounded twice, and bicubic weights sum to more than one in size.
        assert (dim - 0.6 * full).abs().max() <= 2.5


def test_light_stays_between_full_and_its_depth() -> None:
    rng = np.random.default_rng(2)
    lights = [random_light(rng) for _ in range(200)]
    assert 60 < sum(light == FULL_LIGHT for light in lights) < 140
    for light in lights:
        gains = [light.gain(t) for t in np.linspace(0, light.period_seconds, 50)]
        assert max(gains) <= 1 and abs(min(gains) - (1 - light.depth)) < 0.01


def test_a_tower_learns_to_say_of_dim_clips_what_it_says_in_full_light(fresh) -> None:
    visual = fresh.model.visual
    teacher = copy.deepcopy(visual)
    rng = np.random.default_rng(3)
    full = [replace(random_clip(rng), light=FULL_LIGHT) for _ in range(4)]
    dim = [replace(clip, light=Light(0.5, 1e9, 0.5)) for clip in full]
    assert apart(visual, teacher, full).max() < 1e-6
    before = apart(visual, teacher, dim)
    before.sum().backward()
    moved = [p for p in visual.parameters() if p.grad is not None]
    size = torch.stack([p.grad.norm() for p in moved]).norm()
    with torch.no_grad():
        for p in moved:
            p -= 0.003 / size * p.grad
    after = apart(visual, teacher, dim)
    assert before.min() > 0.01 and after.sum() < before.sum()
