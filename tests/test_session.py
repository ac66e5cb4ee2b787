"""A session on a small random model: what a question may see, bounded memory, threads, and the evidence of an answer."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from test_exactness import stock_inputs
from transformers import Qwen3VLForConditionalGeneration

from data.errors import QuestionError
from data.frames import Frame
from data.world import make_world
from model_adapters.base import AttentionTrace, ModelAdapter
from vstream.answer import MAX_QUESTION_CHARACTERS, Answer
from vstream.config import SessionConfig
from vstream.session import StreamSession
from vstream.turns import Turns

QUESTION = "when did the red circle appear ?"
SMALL = SessionConfig(window_seconds=3, top_k=2, max_new_tokens=6)


def fed(adapter: ModelAdapter, frames: Sequence[Frame], config: SessionConfig = SMALL, **options) -> StreamSession:
    session = StreamSession(adapter, config, **options)
    for frame in frames:
        session.push(frame)
    return session


def said(answer: Answer) -> tuple:
    """All of an answer but how long it took."""
    return answer.text, answer.asked_at_seconds, answer.evidence, answer.num_context_tokens, answer.done


def until(frames: Sequence[Frame], at: float) -> list[Frame]:
    return [frame for frame in frames if frame.pts_seconds <= at]


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


# Bounded memory


def ids_of(session: StreamSession) -> list[int]:
    everything = replace(random_query(session), text="")
    return sorted(hit.chunk_id for hit in session.retriever.search(everything, 10_000, 1e9))


def random_query(session: StreamSession):
    return session.adapter.encode_question(QUESTION)


@pytest.mark.parametrize("tier", ["gpu_bytes", "ram_bytes", "disk_bytes"])
@pytest.mark.parametrize("retrieval", ["key_similarity", "all"])
@pytest.mark.slow
def test_tiny_budgets_bound_the_memory_and_gaps_are_told(random_adapter, tmp_path, tier: str, retrieval: str) -> None:
    frames = list(make_world(seed=8, seconds=40, side=96).frames(2.0))
    budget = 120_000
    config = SMALL.replace(
        **{"gpu_bytes": 0, "ram_bytes": 0, "disk_bytes": 0} | {tier: budget}, drop="off", retrieval=retrieval
    )
    with fed(random_adapter, frames, config, folder=tmp_path / "memory") as session:
        kept = session.bank.chunk_ids()
        assert 3 <= len(kept) < 40 and kept == list(range(40 - len(kept), 40)), "the newest chunks stay"
        assert session.bank.num_bytes(tier.removesuffix("_bytes")) <= budget
        assert session.bank.gaps == [(0.0, 40.0 - len(kept))]
        assert [record.chunk_id for record in session.timeline] == kept == ids_of(session)
        assert session.record(0) is None and session.record(kept[0]) is not None
        answer = session.answer(QUESTION)
        assert answer.done and {e.chunk_id for e in answer.evidence} <= set(kept)
        assert session.answer("what was on screen at 1 s ?").done
        assert session.view(5.0).window == (), "what was dropped cannot be seen"
        session.bank.check_integrity()
    assert not list((tmp_path / "memory").glob("**/*")), "closing leaves no files"


def test_a_budget_below_one_chunk_stores_and_indexes_nothing(random_adapter, frames) -> None:
    config = SMALL.replace(gpu_bytes=0, ram_bytes=100, disk_bytes=0)
    with fed(random_adapter, frames, config) as session:
        assert session.bank.chunk_ids() == [] and ids_of(session) == []
        assert [r.chunk_id for r in session.timeline] == [kv.chunk_id for kv in session.ingest.window]
        assert session.bank.gaps == [(0.0, 12.0)] and session.stats.num_chunks == 12
        assert session.answer(QUESTION).done


# Threads and shared models


@pytest.mark.slow
def test_asking_while_the_stream_goes_on(random_adapter, frames) -> None:
    """Answers at a past moment stay what they are, answers about now see no hole, and the stream is stored as ever."""
    world = make_world(seed=8, seconds=60, side=96)
    stream = list(world.frames(2.0))
    quiet = fed(random_adapter, stream)
    failures: list[BaseException] = []
    answers: list[Answer] = []
    done = threading.Event()
    with fed(random_adapter, stream[:20]) as session:
        expected = said(session.answer(QUESTION, 9.5))

        def feed() -> None:
            try:
                for frame in stream[20:]:
                    session.push(frame)
            except BaseException as error:  # noqa: BLE001
                failures.append(error)
            done.set()

        def ask() -> None:
            try:
                while not done.is_set():
                    assert said(session.answer(QUESTION, 9.5)) == expected
                    with session.turns.answer(), session._lock:
                        view, now = session.view(), session.now_seconds
                    assert view.until_seconds + (view.partial is not None) == int(now) + 1, "every frame is in view"
                    answers.append(session.answer("what is on screen now ?"))
            except BaseException as error:  # noqa: BLE001
                failures.append(error)

        threads = [threading.Thread(target=work) for work in (feed, ask, ask)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not failures and not any(thread.is_alive() for thread in threads)
        assert len(answers) > 2 and session.now_seconds == 59.5
        ids = quiet.bank.chunk_ids()
        assert ids == session.bank.chunk_ids() == list(range(60))
        for a, b in zip(quiet.bank.get(ids), session.bank.get(ids), strict=True):
            assert torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values)
        session.bank.check_integrity()
    quiet.close()


@pytest.mark.slow
def test_sessions_that_share_a_model_do_not_mix(random_adapter) -> None:
    streams = [list(make_world(seed=seed, seconds=10, side=96).frames(2.0)) for seed in (1, 2)]
    alone = []
    for stream in streams:
        with fed(random_adapter, stream) as session:
            alone.append((said(session.answer(QUESTION)), [kv.keys for kv in session.bank.get(list(range(10)))]))
    turns = Turns()
    sessions = [StreamSession(random_adapter, SMALL, turns=turns) for _ in streams]
    failures: list[BaseException] = []

    def run(session: StreamSession, stream: list[Frame]) -> None:
        try:
            for frame in stream:
                session.push(frame)
                session.answer(QUESTION)
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=run, args=pair) for pair in zip(sessions, streams, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    for session, (expected, keys) in zip(sessions, alone, strict=True):
        assert said(session.answer(QUESTION)) == expected
        for kv, key in zip(session.bank.get(list(range(10))), keys, strict=True):
            assert torch.equal(kv.keys, key)
        session.close()
    assert alone[0][1][5].shape != alone[1][1][5].shape or not torch.equal(alone[0][1][5], alone[1][1][5])


# Feeding and counting


@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("rate", [5, 8, 10])
def test_raw_frames_may_be_fed_in_pieces(random_adapter, world, rate: int, size: int) -> None:
    raw = list(world.frames(rate))[: 6 * rate]
    with StreamSession(random_adapter, SMALL) as whole, StreamSession(random_adapter, SMALL) as pieces:
        records = list(whole.feed(raw))
        found = [record for start in range(0, len(raw), size) for record in pieces.feed(raw[start : start + size])]
        assert [(r.chunk_id, r.last_pts_seconds, r.num_tokens) for r in records] == [
            (r.chunk_id, r.last_pts_seconds, r.num_tokens) for r in found
        ]
        assert [r.chunk_id for r in found] == list(range(6)) and whole.stats.num_frames == pieces.stats.num_frames == 12


@pytest.mark.parametrize("fps,chunk_seconds", [(2.5, 1.0), (1.7, 1.0), (0.7, 2.0)])
def test_a_rate_that_does_not_divide_a_chunk(random_adapter, world, fps: float, chunk_seconds: float) -> None:
    config = SMALL.replace(fps=fps, chunk_seconds=chunk_seconds)
    with StreamSession(random_adapter, config) as session:
        list(session.feed(world.frames(30)))
        session.finish()
        assert [r.chunk_id for r in session.timeline] == list(range(int(12 / chunk_seconds)))
        assert session.answer(QUESTION).done


def test_a_stream_may_change_its_picture_size(random_adapter, world) -> None:
    frames = list(world.frames(2.0))
    large = {frame.pts_seconds: frame for frame in world.at_side(160).frames(2.0)}
    mixed = [large[f.pts_seconds] if 3.5 <= f.pts_seconds < 8.5 else f for f in frames]
    with fed(random_adapter, mixed) as session:
        assert [r.chunk_id for r in session.timeline] == list(range(12))
        assert session.answer(QUESTION).done and session.bank.gaps == []


def test_finishing_stores_the_open_chunk_once(random_adapter, frames) -> None:
    with fed(random_adapter, frames[:9]) as session:
        (record,) = session.finish()
        assert record.chunk_id == 4 and record.last_pts_seconds == 4.0 and session.finish() == []
        assert session.view().partial is None and session.view().until_seconds == 5.0


def test_records_and_stats_add_up(random_adapter, frames) -> None:
    with fed(random_adapter, frames, SMALL.replace(drop="pixel")) as session:
        stats, records = session.stats, session.timeline
        assert (stats.num_frames, stats.num_chunks, len(records)) == (24, 12, 12)
        assert stats.num_seen_tokens == 12 * 16 == sum(r.keep.size for r in records)
        assert stats.num_kept_tokens == sum(int(r.keep.sum()) for r in records) < stats.num_seen_tokens
        # Four tokens of time stamp and start, one of end.
        assert stats.num_stored_tokens == stats.num_kept_tokens + 5 * 12 == sum(r.num_tokens for r in records)
        assert stats.num_stored_tokens == sum(kv.num_tokens for kv in session.bank.get(session.bank.chunk_ids()))
        assert stats.drop_ratio == pytest.approx(1 - stats.num_kept_tokens / stats.num_seen_tokens)
        assert records[0].drop_ratio == 0.0
        assert all(r.thumbnail[:3] == b"\xff\xd8\xff" and r.keep.shape == (1, 4, 4) for r in records)
        for number in range(3):
            assert session.answer(QUESTION).ttft_seconds == stats.last_ttft_seconds
            assert stats.num_answers == number + 1 == len(stats.recent_ttft_seconds)
        next(session.ask(QUESTION))
        assert stats.num_answers == 3, "a cancelled answer is none"


def test_closing_twice_is_once(random_adapter, frames) -> None:
    with fed(random_adapter, frames[:4]) as session:
        pass
    session.close()
