"""Training contexts against what the engine shows: masks by definition, positions by the adapter, answers by counting."""

from __future__ import annotations

import copy
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from checkpoints import save_qwen3_vl
from test_world import names_by_second, truth
from transformers import Qwen3VLForConditionalGeneration

from data.frames import Chunk
from data.world import make_world
from model_adapters.base import VisualTokens
from model_adapters.registry import load_adapter
from model_adapters.tiny.asking import Stretch
from model_adapters.tiny.clips import FULL_LIGHT, Light, random_clip, random_light
from model_adapters.tiny.config import build_tokenizer, number_codes
from model_adapters.tiny.library import CELLS, Library
from model_adapters.tiny.losses import Watcher
from model_adapters.tiny.optim import Optimizers, save_state
from model_adapters.tiny.samples import PAD, QUESTION, SINK, Batch, Sampler
from model_adapters.tiny.searching import retrieval_loss
from model_adapters.tiny.steady import apart
from model_adapters.tiny.train import fix_numbers, forward
from vstream.config import SessionConfig
from vstream.session import StreamSession

SECONDS = 18


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def model(random_folder):
    return Qwen3VLForConditionalGeneration.from_pretrained(random_folder, dtype=torch.float32, attn_implementation="sdpa")


@pytest.fixture(scope="module")
def library(model) -> Library:
    return Library(model.model.visual, 2, SECONDS, np.random.default_rng(0))


class Recording(Sampler):
    """A sampler that remembers the stretches it asked about."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.stretches: list[Stretch] = []
        questions = self.asker.questions

        def remember(stretch: Stretch):
            self.stretches.append(stretch)
            return questions(stretch)

        self.asker.questions = remember  # type: ignore[method-assign]


def sampler(tokenizer, library: Library, seed: int, num_questions: int = 5) -> Recording:
    return Recording(tokenizer, library, np.random.default_rng(seed), num_questions)


def words_of(tokenizer, ids: torch.Tensor) -> str:
    return tokenizer.decode(ids.tolist(), skip_special_tokens=True)


# What sees what


def sees(batch: Batch, b: int, row: int, column: int) -> bool:
    """The definition, one pair of tokens at a time."""
    own, other = int(batch.owner[b, row]), int(batch.owner[b, column])
    if row == column:
        return True
    if column > row:
        return False
    if other == SINK:
        return True
    if own == other:
        return True
    if own >= QUESTION:
        return 0 <= other < QUESTION and bool(batch.asked[b][own - QUESTION].visible[other])
    return own >= 0 and other >= 0 and own - batch.window <= other <= own


@pytest.mark.parametrize("seed", range(3))
def test_the_mask_is_its_definition(tokenizer, library, seed: int) -> None:
    batch = sampler(tokenizer, library, seed, num_questions=3).batch(8, 300)
    mask = batch.attention_mask()
    size = batch.ids.shape[1]
    assert mask.shape == (len(batch.ids), 1, size, size)
    for b in range(len(batch.ids)):
        real = int((batch.owner[b] != PAD).sum())
        assert (batch.owner[b, real:] == PAD).all() and not mask[b, 0, :real, real:].any()
        expected = torch.tensor([[sees(batch, b, i, j) for j in range(real)] for i in range(real)])
        assert torch.equal(mask[b, 0, :real, :real], expected)


@pytest.mark.parametrize("seed", range(4))
def test_a_question_sees_the_window_its_proof_and_nothing_later(tokenizer, library, seed: int) -> None:
    made = sampler(tokenizer, library, seed, num_questions=8)
    for _ in range(3):
        batch = made.batch(16, 1500)
        for asked in batch.asked:
            for a in asked:
                assert a.visible[max(0, a.chunk - batch.window + 1) : a.chunk + 1].all() and not a.visible[a.chunk + 1 :].any()
                assert all(a.visible[k] for k in a.evidence) and all(k <= a.chunk for k in a.evidence)
        assert batch.visible.tolist() == [[a.visible.tolist() for a in asked] for asked in batch.asked]


def test_the_window_of_a_chunk_is_the_engines(random_adapter, frames, tokenizer, library) -> None:
    """A chunk that comes to the engine finds as many chunks before it as the mask shows it."""
    batch = sampler(tokenizer, library, 1).batch(16, 600)
    config = SessionConfig(window_seconds=batch.window)
    with StreamSession(random_adapter, config) as session:
        for frame in make_world(1, 16, side=96).frames(2.0):
            before = [kv.chunk_id for kv in session.ingest.window]
            for record in session.push(frame):
                k = record.chunk_id
                assert before == [c for c in range(k) if k - batch.window <= c]
        answer = session.view().window
    newest = answer[-1].chunk_id
    assert [kv.chunk_id for kv in answer] == [c for c in range(newest + 1) if c > newest - batch.window]


# Tokens, positions, labels


@pytest.mark.parametrize("seed", range(6))
def test_tokens_and_positions_are_those_of_the_adapters_runs(random_adapter, tokenizer, library, seed: int) -> None:
    made = sampler(tokenizer, library, seed)
    chunks, asked, _ = made._stretch(6 + seed, 4)
    prompts = tokenizer([f"{a.question}<|im_end|>\n<|im_start|>assistant\n" for a in asked])["input_ids"]
    answers = tokenizer([f"{a.answer}<|im_end|>" for a in asked])["input_ids"]
    ids, owner, labels, rows, positions = made._tokens(chunks, asked, prompts, answers)
    table = random_adapter.model.get_input_embeddings().weight
    width = table.shape[1]
    runs, owners = [random_adapter.sink_run()], [SINK]
    for k, (row, keep, stamp) in enumerate(chunks):
        visual = VisualTokens(torch.arange(16.0)[:, None].expand(-1, width) + row * CELLS, (1, 4, 4))
        pts = (float(stamp), float(stamp))
        chunk = Chunk(k, np.zeros((2, 3, 8, 8), np.uint8), pts, k, k + 1)
        runs.append(random_adapter.chunk_run(chunk, (1, 4, 4), torch.from_numpy(keep), visual))
        owners.append(k)
    starts = np.cumsum([0, *(run.span for run in runs)])
    expected_positions = [p for run, s in zip(runs, starts, strict=False) for p in (run.position_ids.T + int(s)).tolist()]
    expected_owner = [o for run, o in zip(runs, owners, strict=True) for _ in range(run.num_tokens)]
    for q, (a, prompt, answer) in enumerate(zip(asked, prompts, answers, strict=True)):
        run = random_adapter.question_run(a.question)
        assert torch.equal(run.embeds, table[torch.tensor(prompt)])
        # Behind its newest chunk, wherever other questions stand.
        start = int(starts[a.chunk + 2])
        expected_positions += [[start + i] * 3 for i in range(run.num_tokens + len(answer))]
        expected_owner += [QUESTION + q] * (run.num_tokens + len(answer))
    assert [list(p) for p in positions] == expected_positions
    assert owner == expected_owner
    embeds = torch.cat([run.embeds for run in runs])
    visual_mask = torch.cat([run.visual_mask for run in runs])
    size = len(embeds)
    assert (torch.tensor(rows[:size]) >= 0).tolist() == visual_mask.tolist() and max(rows[size:]) == -1
    assert torch.equal(table[torch.tensor(ids[:size])][~visual_mask], embeds[~visual_mask])
    assert embeds[visual_mask][:, 0].tolist() == [r for r in rows if r >= 0]
    assert len(labels) == len(ids)


@pytest.mark.parametrize("seed", range(3))
def test_labels_are_the_answers_and_nothing_else(tokenizer, library, seed: int) -> None:
    batch = sampler(tokenizer, library, seed).batch(10, 900)
    for b, asked in enumerate(batch.asked):
        labelled = batch.labels[b] != -100
        assert (batch.owner[b][labelled] >= QUESTION).all()
        for q, a in enumerate(asked):
            own = batch.owner[b] == QUESTION + q
            ids, labels = batch.ids[b][own], batch.labels[b][own]
            answer = tokenizer(f"{a.answer}<|im_end|>").input_ids
            assert labels[labels != -100].tolist() == answer
            # Each label is the token that comes next.
            for at in (labels != -100).nonzero().flatten().tolist():
                assert int(labels[at]) == int(ids[at + 1])
            assert words_of(tokenizer, ids) == words_of(
                tokenizer, torch.tensor(tokenizer(f"{a.question} assistant {a.answer}").input_ids)
            )
            bare = batch.question_ids[b * len(asked) + q], batch.question_mask[b * len(asked) + q]
            assert bare[0][bare[1]].tolist() == tokenizer(a.question).input_ids


@pytest.mark.parametrize("seed", range(8))
def test_answers_are_the_truth_about_the_cut_world(tokenizer, library, seed: int) -> None:
    made = sampler(tokenizer, library, seed, num_questions=20)
    families = set()
    for _ in range(2):
        made.stretches.clear()
        batch = made.batch(16, 2000)
        for stretch, asked in zip(made.stretches, batch.asked, strict=True):
            names = names_by_second(stretch.world)
            for a in asked:
                families.add(a.family)
                second, at = stretch.start + a.chunk, stretch.time_of(a.chunk)
                assert int(at) == second
                now, before = names[second], names[second - 1] if a.chunk else None
                if a.family == "clock":
                    expected = f"at {second} s"
                elif a.family == "comment":
                    words = [f"the {before} leaves"] * (before is not None and before != now)
                    words += [f"a {now} appears"] * (now is not None and before != now)
                    expected = " and ".join(words) or "silence"
                elif a.family == "watch":
                    name = re.fullmatch(r"tell me when a (.+) appears", a.question)[1]
                    expected = "yes" if now == name and before != name else "no"
                elif a.family == "which":
                    name = re.fullmatch(r"which way did the (.+) move \?", a.question)[1]
                    (stay,) = [s for s in stretch.world.stays if s.name == name]
                    expected = stay.direction
                else:
                    expected = truth(stretch.world, a.question, at)
                assert a.answer == expected, a
                shown = {names[stretch.start + k] for k in a.evidence}
                if a.family in ("when", "which") or (a.family == "did" and a.answer == "yes"):
                    assert shown == {re.search(r"(?:the|a) (\w+ \w+) (?:appear|move)", a.question)[1]}
    assert len(families) >= 7


def test_a_cut_world_shows_what_the_whole_one_showed(tokenizer, library) -> None:
    """The chunk of a second is the library's chunk of the second it was cut from."""
    made = sampler(tokenizer, library, 5)
    for _ in range(20):
        chunks, _, _ = made._stretch(7, 4)
        stretch = made.stretches[-1]
        stream, first = next(
            (s, int(np.flatnonzero(s.rows == chunks[0][0])[0])) for s in library.streams if chunks[0][0] in s.rows
        )
        for k, (row, keep, stamp) in enumerate(chunks):
            here, there = stretch.world.on_screen(stretch.start + k), stream.world.on_screen(first + k)
            assert (here.name if here else None) == (there.name if there else None)
            assert row == (stream.partial[first + k] if stretch.is_half(k) else stream.rows[first + k])
            assert keep.all() if k == 0 else (keep == stream.keep[first + k]).all() or keep.all()
            second = float(stamp) - stretch.start - k
            assert second == 0.0 if stretch.is_half(k) else 0.15 <= second <= 0.45


# Steps


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
