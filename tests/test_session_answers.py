"""A session on a small random model: what cannot be asked, what a question may see, its answer and the evidence."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from fed import QUESTION, SMALL, fed, said, until
from test_exactness import stock_inputs
from transformers import Qwen3VLForConditionalGeneration

from data.errors import QuestionError
from data.frames import Frame
from model_adapters.base import AttentionTrace
from vstream.answer import MAX_QUESTION_CHARACTERS
from vstream.config import SessionConfig
from vstream.session import StreamSession

# What cannot be asked


def test_before_the_first_frame_there_is_nothing_to_ask(random_adapter) -> None:
    with StreamSession(random_adapter, SMALL) as session:
        for at in (None, 0.0, 3.0):
            with pytest.raises(QuestionError, match="nothing has been watched"):
                session.answer(QUESTION, at)
        with pytest.raises(QuestionError, match="nothing has been watched"):
            session.choose(QUESTION, ["yes", "no"])
        assert session.now_seconds == 0.0 and session.timeline == []


@pytest.mark.parametrize("at", [-0.5, 6.6, 100.0, float("inf"), float("-inf"), float("nan")])
def test_a_time_outside_of_what_was_watched(random_adapter, frames, at: float) -> None:
    with fed(random_adapter, until(frames, 5.5)) as session, pytest.raises(QuestionError) as caught:
        session.answer(QUESTION, at)
    assert f"{at:g} s" in str(caught.value) and "5.5 s" in str(caught.value)


@pytest.mark.parametrize("question", ["", "   ", "\n\t", "x" * (MAX_QUESTION_CHARACTERS + 1), "what \udcff"])
def test_a_question_that_is_none(random_adapter, frames, question: str) -> None:
    with fed(random_adapter, frames[:4]) as session:
        with pytest.raises(QuestionError) as caught:
            session.answer(question)
        assert "\n" not in str(caught.value)
        with pytest.raises(QuestionError):
            session.choose(question, ["yes", "no"])
        assert session.stats.num_answers == 0


def test_the_longest_question_is_answered(random_adapter, frames) -> None:
    with fed(random_adapter, frames[:4]) as session:
        assert session.answer("now " * (MAX_QUESTION_CHARACTERS // 4)).done
        assert said(session.answer(f"  {QUESTION}\n")) == said(session.answer(QUESTION))


# The view of a question


@pytest.mark.parametrize("window", [0, 1, 2.5, 3, 100])
def test_the_window_holds_the_last_complete_chunks(random_adapter, frames, window: float) -> None:
    with fed(random_adapter, frames[:17], SMALL.replace(window_seconds=window)) as session:
        for at in (0.0, 0.5, 2.0, 5.5, 6.3, 7.5, 8.0):
            view = session.view(at)
            complete = [k for k in range(8) if k + 0.5 <= at + 1e-9]
            end = complete[-1] + 1 if complete else 0
            expected = [k for k in complete if k >= end - window]
            assert [kv.chunk_id for kv in view.window] == expected
            assert view.until_seconds == end and view.asked_at_seconds == at
            # Only of the open chunk, whose first frame came at 8.0, are frames at hand that are not stored.
            assert (view.partial is not None) == (at == 8.0)
        held = {kv.chunk_id: kv for kv in session.ingest.window}
        assert sorted(held) == [k for k in range(8) if k >= 8 - window]
        for kv in session.view(4.0).window:
            (stored,) = session.bank.get([kv.chunk_id])
            assert torch.equal(stored.keys, kv.keys) and torch.equal(stored.values, kv.values)


def test_retrieved_chunks_are_older_than_the_window_and_come_once(random_adapter, frames) -> None:
    config = SMALL.replace(retrieval="all", drop="off", top_k=1)
    with fed(random_adapter, frames[:16], config) as session:
        run = random_adapter.question_run(QUESTION)
        for at in (3.5, 5.5, 7.5):
            answer = session.answer(QUESTION, at)
            stored = session.bank.get([k for k in range(8) if k + 0.5 <= at])
            tokens = session.ingest.sink.num_tokens + sum(kv.num_tokens for kv in stored) + run.num_tokens
            assert answer.num_context_tokens == tokens


@pytest.mark.parametrize("drop", ["off", "pixel", "feature"])
@pytest.mark.parametrize("chunk_seconds", [2.0, 4.0])
@pytest.mark.slow
def test_a_question_within_a_chunk_sees_the_frames_up_to_its_time(
    random_adapter, frames, drop: str, chunk_seconds: float
) -> None:
    """Watched further inside of the open chunk, then asked about an earlier moment: as if nothing later had come."""
    config = SMALL.replace(chunk_seconds=chunk_seconds, drop=drop, window_seconds=4)
    last = 8 + chunk_seconds - 1.0
    with fed(random_adapter, until(frames, last), config) as session:
        for at in np.arange(8.0, last + 0.01, 0.5):
            with fed(random_adapter, until(frames, at), config) as past:
                assert said(session.answer(QUESTION, at)) == said(past.answer(QUESTION, at))
                mine, theirs = session.view(at).partial, past.view(at).partial
                assert mine is not None and theirs is not None and torch.equal(mine.keys, theirs.keys)
                assert mine.chunk_id == int(8 / chunk_seconds) and (mine.start_seconds, mine.end_seconds) == (
                    8.0,
                    8.0 + chunk_seconds,
                )


def test_the_open_chunk_matters_and_its_kv_is_that_of_its_frames(random_adapter, frames) -> None:
    with fed(random_adapter, until(frames, 8.0), SMALL.replace(drop="off")) as session:
        partial = session.view().partial
        changed = [*until(frames, 7.5), Frame(255 - frames[16].data, 8.0)]
        with fed(random_adapter, changed, SMALL.replace(drop="off")) as other:
            assert not torch.equal(other.view().partial.values, partial.values)
        # A slot of one frame repeats it, and stands behind the same window as the stored chunk would.
        twice = [*until(frames, 8.0), Frame(frames[16].data, 8.0)]
        chunk = session.chunker.partial()
        assert chunk is not None and len(chunk.frames) == 1 and len(twice) == 18
        session.finish()
        (stored,) = session.bank.get([8])
        assert torch.equal(stored.keys, partial.keys) and torch.equal(stored.values, partial.values)


@pytest.mark.slow
def test_asking_changes_nothing_that_is_stored(random_adapter, frames) -> None:
    config = SMALL.replace(drop_target=0.5)
    with fed(random_adapter, [], config) as quiet, fed(random_adapter, [], config) as asked:
        for frame in frames:
            quiet.push(frame)
            asked.push(frame)
            asked.answer(QUESTION)
            asked.choose(QUESTION, ["yes", "no"])
        ids = quiet.bank.chunk_ids()
        assert ids == asked.bank.chunk_ids() == list(range(12))
        for a, b in zip(quiet.bank.get(ids), asked.bank.get(ids), strict=True):
            assert torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values)
        assert said(quiet.answer(QUESTION)) == said(asked.answer(QUESTION))


def test_dialogue_turns_enter_the_context(random_adapter, frames) -> None:
    with fed(random_adapter, frames) as session:
        turns = [("what is on screen now ?", "a red circle"), ("what came after the red circle ?", "nothing")]
        bare = session.answer(QUESTION)
        *_, talked = session.ask(QUESTION, turns=turns)
        # <|im_start|>user / question / <|im_end|> <|im_start|>assistant / answer / <|im_end|>, all but the first head.
        added = len(
            random_adapter.tokenizer("".join(f"{q}<|im_end|><|im_start|>assistant\n{a}<|im_end|>" for q, a in turns)).input_ids
        )
        heads = len(random_adapter.tokenizer("<|im_start|>user").input_ids) * len(turns)
        assert talked.num_context_tokens == bare.num_context_tokens + added + heads
        context = random_adapter.new_context(8)
        random_adapter.append(context, [session.ingest.sink])
        other = random_adapter.new_context(8)
        random_adapter.append(other, [session.ingest.sink])
        a = random_adapter.logits(context, random_adapter.question_run(QUESTION, turns))[-1]
        b = random_adapter.logits(other, random_adapter.question_run(QUESTION, [(turns[0][0], "a blue star"), turns[1]]))[-1]
        assert not torch.allclose(a, b, atol=1e-3)


# Answers


def test_an_answer_grows_and_ends_once(random_adapter, frames) -> None:
    with fed(random_adapter, frames) as session:
        answers = list(session.ask(QUESTION))
        assert [a.done for a in answers] == [False] * (len(answers) - 1) + [True]
        assert all(b.text.startswith(a.text) for a, b in pairwise(answers))
        assert answers[-1].text == answers[-2].text and len(answers) <= SMALL.max_new_tokens + 1
        assert all(a.ttft_seconds == answers[0].ttft_seconds > 0 for a in answers)
        assert {a.kind for a in answers} == {"answer"} and {a.asked_at_seconds for a in answers} == {11.5}


def test_sampling_is_reproducible_by_seed(random_adapter, frames) -> None:
    with fed(random_adapter, frames) as session:
        texts = {}
        for seed in (1, 2, 3):
            # A whole number is a temperature too.
            session.answerer.config = SMALL.replace(temperature=1, seed=seed)
            texts[seed] = session.answer(QUESTION).text
            assert session.answer(QUESTION).text == texts[seed]
        assert len(set(texts.values())) > 1
        session.answerer.config = SMALL.replace(temperature=1e-4, seed=4)
        cold = session.answer(QUESTION).text
        session.answerer.config = SMALL
        assert session.answer(QUESTION).text == cold


@pytest.fixture(scope="module")
def stock(random_folder) -> Qwen3VLForConditionalGeneration:
    return Qwen3VLForConditionalGeneration.from_pretrained(
        random_folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def longer(stock, inputs: dict[str, torch.Tensor], ids: Sequence[int]) -> dict[str, torch.Tensor]:
    added = torch.tensor([list(ids)], dtype=torch.long)
    kinds = torch.zeros_like(added, dtype=inputs["mm_token_type_ids"].dtype)
    return inputs | {
        "input_ids": torch.cat([inputs["input_ids"], added], 1),
        "mm_token_type_ids": torch.cat([inputs["mm_token_type_ids"], kinds], 1),
    }


@torch.inference_mode()
def test_choose_is_the_likeliest_of_full_forward_passes(random_adapter, stock, frames) -> None:
    options = ["yes", "no", "at 35 s", "a red circle", "a blue star and the green ring leaves"]
    with fed(random_adapter, frames, SessionConfig(drop="off", window_seconds=100)) as session:
        answer, choice = session.choose(QUESTION, options)
        inputs = stock_inputs(stock, random_adapter.tokenizer, random_adapter, frames)
        size = inputs["input_ids"].shape[1]
        means = []
        for option in options:
            ids = [*random_adapter.tokenizer(option).input_ids, random_adapter.tokenizer.eos_token_id]
            scores = stock(**longer(stock, inputs, ids)).logits[0].float().log_softmax(-1)
            means.append(float(np.mean([float(scores[size - 1 + k, token]) for k, token in enumerate(ids)])))
        context = random_adapter.new_context(8)
        random_adapter.append(context, [session.ingest.sink, *session.ingest.window])
        found = random_adapter.likelihoods(context, random_adapter.question_run(QUESTION), options)
        assert found == pytest.approx(means, abs=1e-3)
        for option, mean in zip(options, means, strict=True):
            alone = random_adapter.new_context(8)
            random_adapter.append(alone, [session.ingest.sink, *session.ingest.window])
            (single,) = random_adapter.likelihoods(alone, random_adapter.question_run(QUESTION), [option])
            assert single == pytest.approx(mean, abs=1e-3), "one answer goes in one forward"
        assert choice == means.index(max(means)) and answer.text == options[choice]
        assert answer.kind == "choice" and answer.done and answer.num_context_tokens == size
        # The order in which options stand does not matter.
        assert session.choose(QUESTION, options[::-1])[0].text == answer.text
        for wrong in ([], ["yes", " "], ["yes", "\udcff"]):
            with pytest.raises(QuestionError, match="options"):
                session.choose(QUESTION, wrong)


@torch.inference_mode()
def test_the_attention_trace_is_a_dense_softmax(random_adapter, stock, frames) -> None:
    frames = frames[:8]
    with fed(random_adapter, frames, SessionConfig(drop="off", window_seconds=100, max_new_tokens=4)) as session:
        context = random_adapter.new_context(8)
        random_adapter.append(context, [session.ingest.sink, *session.ingest.window])
        size, trace = context.num_tokens, AttentionTrace()
        run = random_adapter.question_run(QUESTION)
        assert trace.weights is None
        list(random_adapter.generate(context, run, 4, trace=trace))
        inputs = stock_inputs(stock, random_adapter.tokenizer, random_adapter, frames)
        num_prompt = inputs["input_ids"].shape[1]
        assert num_prompt == size + run.num_tokens
        expected = torch.zeros(size)
        written: list[int] = []
        for _ in range(4):
            out = stock(**longer(stock, inputs, written), output_attentions=True)
            expected += torch.stack(out.attentions)[:, 0, :, -1, :size].sum((0, 1))
            written.append(int(out.logits[0, -1].argmax()))
            if written[-1] in random_adapter.stop_ids:
                break
        assert trace.weights is not None and trace.weights.shape == (size,)
        assert float((trace.weights - expected).abs().max()) < 1e-3 * float(expected.max())
        # The evidence is that, summed over each chunk's tokens, as shares of what the stream drew.
        answer = session.answer(QUESTION)
        sums, at = {}, session.ingest.sink.num_tokens
        for kv in session.ingest.window:
            sums[kv.chunk_id] = float(expected[at : at + kv.num_tokens].sum())
            at += kv.num_tokens
        total = sum(sums.values())
        for e in answer.evidence:
            assert e.score == pytest.approx(sums[e.chunk_id] / total, abs=1e-3) and e.tier == "window"
        assert answer.evidence[0].chunk_id == max(sums, key=sums.__getitem__)


@pytest.mark.parametrize("retrieval", ["key_similarity", "per_layer", "recent", "uniform", "all", "none"])
def test_evidence_lies_in_what_was_seen(random_adapter, frames, retrieval: str) -> None:
    with fed(random_adapter, frames, SMALL.replace(retrieval=retrieval, top_k=3)) as session:
        for at in (3.5, 7.5, 11.5):
            for question in (QUESTION, "what was on screen at 1 s ?"):
                answer = session.answer(question, at)
                assert len({e.chunk_id for e in answer.evidence}) == len(answer.evidence)
                window = {kv.chunk_id for kv in session.view(at).window}
                for e in answer.evidence:
                    assert e.end_seconds <= at + 0.5 and (e.start_seconds, e.end_seconds) == (e.chunk_id, e.chunk_id + 1)
                    assert (e.tier == "window") == (e.chunk_id in window)
                scores = [e.score for e in answer.evidence]
                assert scores == sorted(scores, reverse=True)
                if retrieval == "per_layer":
                    assert not window & {e.chunk_id for e in answer.evidence}
                else:
                    assert 0 < sum(scores) <= 1 + 1e-6 and min(scores) >= 0
                if retrieval == "none":
                    assert {e.chunk_id for e in answer.evidence} <= window
                if question != QUESTION and retrieval == "key_similarity":
                    assert session.retriever.search(random_adapter.encode_question(question), 3, at + 0.5)[0].chunk_id == 1
