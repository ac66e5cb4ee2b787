"""Triggers: what each fires on, and that none of them can see what comes later."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch

from data.frames import Frame
from model_adapters.base import ChunkKV, ModelAdapter, Query
from vstream.config import SessionConfig
from vstream.ingest import ChunkRecord
from vstream.session import StreamSession
from vstream.triggers import (
    Always,
    AnyOf,
    Decision,
    Gated,
    LiveChunk,
    Never,
    Novelty,
    Paced,
    Perplexity,
    Poll,
    QueryJump,
    SceneTiling,
    SilenceToken,
    Trigger,
    YesNo,
    create_gate,
)
from vstream.triggers.yes_no import yes_probabilities

NUM_CELLS = 100


def moment(i: int, kept: int = 0, feature: Iterable[float] = (1.0, 0.0), keys: Iterable[float] = (0.0, 0.0)) -> LiveChunk:
    """A moment that shows only what the triggers without a model look at."""
    keep = np.zeros((1, 10, 10), bool)
    keep.reshape(-1)[:kept] = True
    record = ChunkRecord(i, i, i + 1, i + 0.5, kept + 3, keep, b"")
    values = torch.tensor(list(feature)).view(1, 1, 1, 2).expand(3, 1, 4, 2)
    key = torch.tensor(list(keys)).view(1, 1, 1, 2).expand(3, 1, 4, 2)
    kv = ChunkKV(i, key, values, torch.zeros(1, 4, dtype=torch.long), 4, i, i + 1)
    return LiveChunk(record, kv, None, None)  # type: ignore[arg-type]


def fired(trigger: Trigger, moments: Iterable[LiveChunk]) -> list[int]:
    return [m.record.chunk_id for m in moments if trigger.look(m).fired]


def test_novelty_fires_on_what_stands_out_once_per_outburst() -> None:
    kept = [5, 6, 4, 5, 6, 5, 4, 60, 61, 60, 5, 4, 6, 70, 5]
    assert fired(Novelty(key_every=1000), (moment(i, k) for i, k in enumerate(kept))) == [7, 13]


def test_novelty_ignores_the_whole_chunks_of_the_schedule_and_what_is_always_so() -> None:
    scheduled = [100 if i % 8 == 0 else 5 + i % 3 for i in range(40)]
    assert fired(Novelty(key_every=8), (moment(i, k) for i, k in enumerate(scheduled))) == []
    assert fired(Novelty(key_every=1000), (moment(i, k) for i, k in enumerate(scheduled))) != [], "the schedule was not needed"
    restless = np.random.default_rng(0).integers(70, 100, 200)
    assert len(fired(Novelty(key_every=1000), (moment(i, int(k)) for i, k in enumerate(restless)))) <= 1
    slow = [min(99, 10 + i // 4) for i in range(200)]
    assert fired(Novelty(key_every=1000), (moment(i, k) for i, k in enumerate(slow))) == [], "the poll is there for this"


def test_scene_tiling_finds_each_of_two_cuts_in_a_row_and_no_drift() -> None:
    angles = [0.0] * 10 + [1.2, 2.4] + [2.4] * 10
    moments = [moment(i, feature=(math.cos(a), math.sin(a))) for i, a in enumerate(angles)]
    assert fired(SceneTiling(), moments) == [0, 10, 11]
    drift = [moment(i, feature=(math.cos(0.05 * i), math.sin(0.05 * i))) for i in range(60)]
    assert fired(SceneTiling(), drift) == [0]


def test_scene_tiling_is_not_dulled_by_frequent_cuts() -> None:
    turns = np.cumsum([1.5 if i % 2 else 0.02 for i in range(80)])
    moments = [moment(i, feature=(math.cos(a), math.sin(a))) for i, a in enumerate(turns)]
    assert fired(SceneTiling(), moments) == [0, *range(1, 80, 2)]
    small = np.cumsum([(0.65 if i % 16 == 15 else 1.5) if i % 2 else 0.02 for i in range(80)])
    moments = [moment(i, feature=(math.cos(a), math.sin(a))) for i, a in enumerate(small)]
    assert fired(SceneTiling(), moments) == [0, *range(1, 80, 2)], "nor is a small one lost among large ones"


def test_scene_tiling_sees_a_cut_in_the_second_chunk_and_none_where_there_is_none() -> None:
    for angle, found in ((1.2, [0, 1]), (0.1, [0])):
        assert fired(SceneTiling(), [moment(i, feature=(math.cos(a), math.sin(a))) for i, a in enumerate((0, angle))]) == found


def test_scene_tiling_sees_two_cuts_in_a_row_also_at_the_beginning() -> None:
    angles = (0.0, 1.4, 2.9, 2.9, 2.9)
    assert fired(SceneTiling(), [moment(i, feature=(math.cos(a), math.sin(a))) for i, a in enumerate(angles)]) == [0, 1, 2]


def test_poll_keeps_its_time_over_gaps() -> None:
    assert fired(Poll(3), [moment(i) for i in (0, 1, 2, 3, 10, 11, 12, 13)]) == [0, 3, 10, 13]
    assert fired(Poll(0), [moment(i) for i in range(4)]) == [0, 1, 2, 3]
    poll = Poll(30)
    assert [poll.look(moment(i)).reason for i in (7, 9)] == ["the first poll", "2 s since the last poll"]


def test_query_jump_fires_on_a_rise_only() -> None:
    query = Query(torch.tensor([1.0, 0.0]).view(1, 1, 2).expand(3, 1, 2), "")
    levels = [5.0, 5.1, 4.9, 5.0, 5.1, 5.0, 8.0, 7.9, 2.0, 5.0]
    found = fired(QueryJump(query), [moment(i, keys=(level, 3.0 * i)) for i, level in enumerate(levels)])
    assert found == [0, 1, 2, 3, 4, 6], "always while nothing is known, then where it rises"


def test_query_jump_is_easily_stirred_while_little_has_been_seen() -> None:
    query = Query(torch.tensor([1.0, 0.0]).view(1, 1, 2).expand(3, 1, 2), "")
    usual = [4.0, 5.0, 6.0]
    for num, fires in ((9, True), (30, False)):
        levels = [*(usual * (num // 3)), 6.2]  # a z-score of 0.81
        found = fired(QueryJump(query, z=1.0), [moment(i, keys=(level, 0.0)) for i, level in enumerate(levels)])
        assert (num in found) == fires


def test_paced_cools_down_and_caps() -> None:
    assert fired(Paced(Always(), cooldown_seconds=3), [moment(i) for i in range(8)]) == [0, 3, 6]
    assert fired(Paced(Always(), per_minute=2), [moment(10 * i) for i in range(9)]) == [0, 10, 60, 70]
    decision = [Paced(Always(), cooldown_seconds=30).look(moment(i)) for i in range(2)]
    assert all(d.fired for d in decision), "each has a state of its own"


class Counting(Trigger):
    def __init__(self) -> None:
        self.seen: list[int] = []

    def look(self, moment: LiveChunk) -> Decision:
        self.seen.append(moment.record.chunk_id)
        return Decision(moment.at_seconds, True, 1.0, 0.0, "")


def test_a_closed_gate_costs_no_check_and_any_looks_at_all() -> None:
    check = Counting()
    assert fired(Gated(Poll(4), check), [moment(i) for i in range(9)]) == [0, 4, 8] == check.seen
    one, other = Counting(), Counting()
    assert fired(AnyOf([Never(), one, other]), [moment(0)]) == [0] and one.seen == other.seen == [0]
    assert fired(Gated(Never(), check), [moment(9)]) == [] and check.seen == [0, 4, 8]
    with pytest.raises(ValueError, match="at least one"):
        AnyOf([])


def told(trigger: Perplexity) -> Perplexity:
    trigger.told("a red circle appears")
    return trigger


POLICIES: dict[str, Callable[[ModelAdapter], Trigger]] = {
    "novelty": lambda adapter: Novelty(16, z=0.5),
    "tiling": lambda adapter: SceneTiling(),
    "jump": lambda adapter: QueryJump(adapter.encode_question("red circle"), z=0.0),
    "yes/no": lambda adapter: YesNo(adapter, "tell me when a red circle appears"),
    "perplexity": lambda adapter: told(Perplexity(adapter, "comment")),
    "silence": lambda adapter: SilenceToken(adapter, "comment", "silence"),
    "gate": lambda adapter: create_gate(SessionConfig()),
}


def decisions(adapter: ModelAdapter, frames: list[Frame]) -> dict[str, list[Decision]]:
    """What every policy makes of the stream, chunk by chunk."""
    triggers = {name: make(adapter) for name, make in POLICIES.items()}
    found: dict[str, list[Decision]] = {name: [] for name in triggers}
    with StreamSession(adapter, SessionConfig(window_seconds=2)) as session:
        for record in session.feed(frames):
            for name, trigger in triggers.items():
                found[name].append(trigger.look(now_in(session, record)))
    return found


def now_in(session: StreamSession, record: ChunkRecord) -> LiveChunk:
    return LiveChunk(record, *session.ingest.newest, session.ingest.live)


def test_no_trigger_sees_the_future(random_adapter: ModelAdapter, frames: list[Frame]) -> None:
    frames, now = frames[:20], 10
    later = [frames[now + int(i)].data for i in np.random.default_rng(1).permutation(len(frames) - now)]
    shuffled = frames[:now] + [Frame(d, f.pts_seconds, f.duration_seconds) for d, f in zip(later, frames[now:], strict=True)]
    true, other = decisions(random_adapter, frames), decisions(random_adapter, shuffled)
    for name in POLICIES:
        assert true[name][: now // 2] == other[name][: now // 2], name
        assert true[name][now // 2 :] != other[name][now // 2 :], f"{name} looks at nothing, and would pass anything"


def test_yes_and_no_are_weighed_against_each_other(random_adapter: ModelAdapter, frames: list[Frame]) -> None:
    questions = ["comment", "tell me when a red circle appears"]
    with StreamSession(random_adapter) as session:
        list(session.feed(frames[:6]))
        live = session.ingest.live
        runs = [random_adapter.question_run(question) for question in questions]
        found = yes_probabilities(random_adapter, live, runs, ["yes", "red"], ["no"])
        for question, score in zip(questions, found, strict=True):
            chances = random_adapter.logits(live.fork(), random_adapter.question_run(question))[-1].softmax(-1)
            yes, red, no = (float(chances[random_adapter.opening_id(word)]) for word in ("yes", "red", "no"))
            assert score == pytest.approx((yes + red) / (yes + red + no), rel=1e-3)
        twice = yes_probabilities(random_adapter, live, runs, ["yes", "red", "yes"], ["no", "no"])
        assert twice == pytest.approx(found), "a spelling that begins alike is counted once"


def test_perplexity_compares_with_the_first_moment_after_the_caption(random_adapter: ModelAdapter, frames: list[Frame]) -> None:
    trigger = Perplexity(random_adapter, "comment", alpha=1.0)
    run = random_adapter.question_run("comment")
    with StreamSession(random_adapter) as session:
        first, second, third = (
            (trigger.look(now_in(session, record)), session.ingest.live.fork())
            for record in session.feed(frames[:6])
            for _ in [trigger.told("the star leaves") if record.chunk_id == 1 else None]
        )
    assert first[0].fired and "nothing" in first[0].reason
    assert second[0].score == 1.0 and not second[0].fired
    reference, now = (random_adapter.likelihoods(live, run, ["the star leaves"])[0] for _, live in (second, third))
    assert third[0].score == pytest.approx(math.exp(reference - now), rel=1e-4)
    assert third[0].fired == (now < reference)


def test_silence_is_the_chance_of_its_first_token(random_adapter: ModelAdapter, frames: list[Frame]) -> None:
    with StreamSession(random_adapter) as session:
        (record,) = session.feed(frames[:2])
        live = session.ingest.live
        chances = random_adapter.logits(live.fork(), random_adapter.question_run("comment"))[-1].softmax(-1)
        chance = float(chances[random_adapter.opening_id("silence")])
        for threshold in (chance * 0.9, chance * 1.1):
            decision = SilenceToken(random_adapter, "comment", "silence", threshold).look(now_in(session, record))
            assert decision.score == pytest.approx(chance, rel=1e-3)
            assert decision.fired == (chance < threshold)
