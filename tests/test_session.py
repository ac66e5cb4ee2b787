"""A session on a small random model: how it is fed, how its memory is bounded, threads and shared models."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch
from fed import QUESTION, SMALL, fed, said

from data.frames import Frame
from data.world import make_world
from vstream.answer import Answer
from vstream.session import StreamSession
from vstream.turns import Turns

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
