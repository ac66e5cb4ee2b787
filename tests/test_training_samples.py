"""Training contexts against what the engine shows: masks by definition, positions by the adapter, answers by counting."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from test_world import names_by_second, truth
from training_samples import SECONDS, Recording, library, model, sampler, tokenizer, words_of  # noqa: F401  # fixtures

from data.frames import Chunk
from data.world import make_world
from model_adapters.base import VisualTokens
from model_adapters.tiny.library import CELLS
from model_adapters.tiny.samples import PAD, QUESTION, SINK, Batch
from vstream.config import SessionConfig
from vstream.session import StreamSession

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
