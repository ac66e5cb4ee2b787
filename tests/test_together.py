"""Chunks that wait pass the tower together: stored is what one by one stores, and nothing waits for a group to fill."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from everyday import everyday
from families import BUILDERS

from data.frames import Frame
from data.sources.camera import PushSource
from data.sources.world_source import WorldSource
from data.world import make_world
from model_adapters.base import ModelAdapter, VisualTokens
from model_adapters.registry import load_adapter
from vstream import ingest
from vstream.config import SessionConfig
from vstream.recorded import Reel
from vstream.session import StreamSession
from vstream.together import CHUNKS_AT_ONCE, num_at_once

DROPS = (
    {"drop": "off"},
    {"drop": "pixel", "key_every": 5},
    {"drop": "feature", "drop_threshold": 0.05, "key_every": 5},
    {"drop": "pixel", "drop_target": 0.5, "key_every": 100},
)


class Tower:
    """Counts the forwards of an adapter's tower and the pictures in each."""

    def __init__(self, adapter: ModelAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        embed_many = adapter.embed_many

        def counted(pictures: list[torch.Tensor]) -> list[VisualTokens]:
            self.sizes.append(len(pictures))
            return embed_many(pictures)

        monkeypatch.setattr(adapter, "embed_many", counted)


def watched(adapter: ModelAdapter, frames: list[Frame], config: SessionConfig, waits: bool) -> StreamSession:
    session = StreamSession(adapter, config)
    list(session.feed(frames, lambda: waits))
    session.finish()
    return session


@pytest.mark.parametrize("drop", everyday(DROPS), ids=lambda drop: "-".join(map(str, drop.values())))
def test_what_is_stored_is_what_one_by_one_stores(random_adapter: ModelAdapter, frames: list[Frame], drop, monkeypatch) -> None:
    config = SessionConfig(window_seconds=3, **drop)
    tower = Tower(random_adapter, monkeypatch)
    with watched(random_adapter, frames, config, False) as alone:
        assert set(tower.sizes) == {1}
        num_alone = len(tower.sizes)
        tower.sizes.clear()
        with watched(random_adapter, frames, config, True) as together:
            assert len(tower.sizes) < num_alone == sum(tower.sizes), "the same pictures in fewer forwards"
            ids = alone.bank.chunk_ids()
            assert together.bank.chunk_ids() == ids and together.stats.num_frames == alone.stats.num_frames
            for one, other in zip(alone.bank.get(ids), together.bank.get(ids), strict=True):
                assert torch.equal(one.position_ids, other.position_ids), "the same tokens are kept"
                torch.testing.assert_close(one.keys, other.keys, rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(one.values, other.values, rtol=1e-4, atol=1e-4)
            for number in ids:
                mine, theirs = alone.record(number), together.record(number)
                assert mine and theirs and np.array_equal(mine.keep, theirs.keep) and mine.thumbnail == theirs.thumbnail
            question = "what is on screen now ?"
            assert alone.answer(question).text == together.answer(question).text


@pytest.mark.parametrize("family", BUILDERS)
def test_every_tower_takes_several_chunks(family: str, tmp_path: Path) -> None:
    """Chunks of other lengths, and of other sizes where the family does not resize to one."""
    adapter = load_adapter(str(BUILDERS[family](tmp_path / "model")), device="cpu")
    frames = list(make_world(seed=4, seconds=3, side=96).frames(4.0))
    session = StreamSession(adapter, SessionConfig(fps=4))
    chunks = [chunk for frame in frames for chunk in session.chunker.push(frame)]
    pictures = [adapter.picture(chunk) for chunk in chunks]
    pictures[1] = pictures[1][: adapter.frames_per_slot]
    if family not in ("llava_onevision", "internvl", "smolvlm"):
        pictures.append(adapter.picture(chunks[0])[..., : round(2 * adapter.cell)])
    session.close()
    together = adapter.embed_many(pictures)
    for picture, found in zip(pictures, together, strict=True):
        expected = adapter.embed(picture)
        assert found.grid == expected.grid
        torch.testing.assert_close(found.embeds, expected.embeds, rtol=1e-4, atol=1e-4)
        if expected.deepstack is None:
            assert found.deepstack is None
        else:
            torch.testing.assert_close(found.deepstack, expected.deepstack, rtol=1e-4, atol=1e-4)


def test_large_pictures_pass_one_by_one(random_adapter, frames, monkeypatch) -> None:
    tower = Tower(random_adapter, monkeypatch)
    with watched(random_adapter, frames, SessionConfig(drop="off"), True) as session:
        record = session.record(0)
        assert record and set(tower.sizes) == {CHUNKS_AT_ONCE}
    for most, expected in ((2 * record.keep.size, 2), (2 * record.keep.size - 1, 1), (1, 1)):
        tower.sizes.clear()
        monkeypatch.setattr(ingest, "MANY_CELLS", most)
        with watched(random_adapter, frames, SessionConfig(drop="off"), True):
            assert set(tower.sizes) == {expected}


def test_nothing_waits_for_a_group(random_adapter: ModelAdapter, frames: list[Frame]) -> None:
    """A frame behind which none waits is watched before the next one is asked for; so is a group that is full."""
    with StreamSession(random_adapter, SessionConfig()) as session:
        left = [0]
        seen: list[int] = []

        def coming() -> Iterator[Frame]:
            for frame in frames:
                seen.append(session.stats.num_frames)
                left[0] -= 1
                yield frame

        bursts = [1, 1, 3, 20]
        starts = [0, 1, 2, 5]
        left[0] = bursts[0]

        def waits() -> bool:
            num_read = len(seen)
            if num_read in starts:
                left[0] = bursts[starts.index(num_read)]
                return False
            return left[0] > 0

        list(session.feed(coming(), waits))
    most = CHUNKS_AT_ONCE * 2
    expected = [0, 1, *[2] * 3, *(5 + most * (number // most) for number in range(len(frames) - 5))]
    assert seen == expected


def test_a_reel_sees_nothing_later_than_it_is_asked_for(random_adapter: ModelAdapter, frames: list[Frame]) -> None:
    with StreamSession(random_adapter, SessionConfig()) as one, StreamSession(random_adapter, SessionConfig()) as other:
        reels = Reel(one, iter(frames)), Reel(other, iter(frames), lambda: True)
        for seconds in (0.2, 3.1, 3.2, 7.0, 100.0):
            for reel in reels:
                reel.watch_until(seconds)
            assert one.now_seconds == other.now_seconds and one.bank.chunk_ids() == other.bank.chunk_ids()
        assert all(reel.ended for reel in reels) and one.stats.num_frames == other.stats.num_frames


def test_an_answer_that_waits_makes_groups_small(random_adapter: ModelAdapter) -> None:
    with StreamSession(random_adapter, SessionConfig()) as session:
        assert num_at_once(session.config, session.turns) == 2 * CHUNKS_AT_ONCE
        session.turns._answers_waiting = 1
        assert num_at_once(session.config, session.turns) == 1


def test_sources_say_whether_frames_wait() -> None:
    for speed, waits in ((0, True), (1, False)):
        with WorldSource(seed=1, seconds=4, speed=speed) as source:
            assert source.waits is waits
    with PushSource("camera") as camera:
        assert not camera.waits
        camera.push(np.zeros((32, 32, 3), np.uint8), 0.0)
        assert camera.waits
