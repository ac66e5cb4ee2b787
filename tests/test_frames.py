"""Sampling and chunking against plain grouping by slot, on regular, variable and rounded time stamps."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import numpy as np
import pytest

from data.frames import Chunk, Chunker, Frame, sample

TOLERANCE = 0.002
SETTINGS = [(2.0, 1.0), (2.5, 1.0), (1.7, 1.0), (0.7, 2.0), (1.0, 1.0), (0.5, 4.0), (10.0, 0.3), (4.0, 0.5), (3.0, 2.0)]


def still(pts: float, size: tuple[int, int] = (4, 6), level: int | None = None) -> Frame:
    return Frame(np.full((3, *size), round(pts * 10) % 256 if level is None else level, np.uint8), pts)


def stream(rng: random.Random, seconds: float = 20.0) -> list[Frame]:
    """Frames of a variable rate with a gap now and then, time stamps rounded to a millisecond."""
    t, frames = rng.choice([0.0, 0.0, 0.4, 3.1]), []
    while t < seconds:
        frames.append(still(round(t, 3)))
        t += rng.choice([0.01, 0.033, 0.1, 0.25, 0.5]) * rng.uniform(0.8, 1.2) if rng.random() < 0.95 else rng.uniform(1, 5)
    return frames


def slot(pts: float, length: float) -> int:
    return math.floor((pts + TOLERANCE) / length + 1e-12)


def by_slot(frames: list[Frame], fps: float) -> list[float]:
    """The first pts in every slot of 1/fps seconds, found by looking at all of them."""
    groups: dict[int, list[float]] = {}
    for frame in frames:
        groups.setdefault(math.floor((frame.pts_seconds + TOLERANCE) * fps), []).append(frame.pts_seconds)
    return sorted(min(group) for group in groups.values())


def cut(frames: list[Frame], fps: float, seconds: float, flush: bool = True) -> list[Chunk]:
    chunker = Chunker(fps, seconds)
    chunks = [chunk for frame in frames for chunk in chunker.push(frame)]
    return chunks + (chunker.flush() if flush else [])


@pytest.mark.parametrize("seed", range(30))
def test_sampling_takes_the_first_of_every_slot_and_is_causal(seed: int) -> None:
    rng = random.Random(seed)
    frames, fps = stream(rng), rng.choice([0.5, 1, 2, 2.5, 3, 10])
    kept = list(sample(frames, fps))
    assert [frame.pts_seconds for frame in kept] == by_slot(frames, fps)
    end = rng.randrange(len(frames) + 1)
    past = list(sample(frames[:end], fps))
    assert [f.pts_seconds for f in past] == [f.pts_seconds for f in kept][: len(past)]


@pytest.mark.parametrize("seed", range(10))
def test_sampling_in_pieces_is_sampling_at_once(seed: int) -> None:
    rng = random.Random(seed)
    frames = stream(rng)
    pieces: list[Frame] = []
    at = 0
    while at < len(frames):
        size = rng.randrange(1, 9)
        pieces += sample(frames[at : at + size], 2.0, after_seconds=pieces[-1].pts_seconds if pieces else None)
        at += size
    assert [f.pts_seconds for f in pieces] == [f.pts_seconds for f in sample(frames, 2.0)]


# A hundredth of a second is coarser than the tolerance where the rate does not divide it.
ROUNDED = [
    (rate, digits) for rate in (8, 10, 15, 24, 25, 29.97, 30, 60) for digits in (2, 3, 9) if digits > 2 or rate in (8, 10, 25)
]


@pytest.mark.parametrize("rate,digits", ROUNDED)
def test_rounded_time_stamps_do_not_shift_the_grid(rate: float, digits: int) -> None:
    """At 2 fps the frames at or just after the half seconds are taken, though their pts may be rounded down."""
    pts = [round(k / rate, digits) for k in range(int(8 * rate))]
    kept = [frame.pts_seconds for frame in sample(map(still, pts), 2.0)]
    expected = [round(math.ceil(k / 2 * rate - 1e-6) / rate, digits) for k in range(16)]
    exact = [e for e in expected if e <= pts[-1]]
    # 29.97: a frame up to the tolerance early is taken as on time.
    assert len(kept) == len(exact) and all(abs(a - b) <= 1 / rate + 1e-9 for a, b in zip(kept, exact, strict=True))
    if rate != 29.97:
        assert kept == exact


def test_hours_into_a_stream_nothing_drifts() -> None:
    pts = [round(36_000 + k / 30, 3) for k in range(300)]
    kept = [frame.pts_seconds for frame in sample(map(still, pts), 2.0)]
    assert kept == [36_000 + k / 2 for k in range(20)]
    chunks = cut(list(sample(map(still, pts), 2.0)), 2.0, 1.0)
    assert [(c.chunk_id, c.start_seconds, c.end_seconds) for c in chunks] == [
        (36_000 + k, 36_000 + k, 36_001 + k) for k in range(10)
    ]


@pytest.mark.parametrize("fps,seconds", SETTINGS)
@pytest.mark.parametrize("seed", range(12))
def test_chunks_are_the_sampled_frames_grouped_by_slot(seed: int, fps: float, seconds: float) -> None:
    rng = random.Random(seed)
    frames = list(sample(stream(rng), fps))
    chunks = cut(frames, fps, seconds)
    expected: dict[int, list[Frame]] = {}
    for frame in frames:
        expected.setdefault(slot(frame.pts_seconds, seconds), []).append(frame)
    assert [chunk.chunk_id for chunk in chunks] == list(expected), "an id per slot, each once, in order"
    for chunk, (number, members) in zip(chunks, expected.items(), strict=True):
        assert chunk.pts_seconds == tuple(frame.pts_seconds for frame in members)
        assert (chunk.frames == np.stack([frame.data for frame in members])).all()
        assert chunk.start_seconds == pytest.approx(number * seconds) and chunk.end_seconds == pytest.approx(
            (number + 1) * seconds
        )
        assert all(chunk.start_seconds - TOLERANCE <= pts < chunk.end_seconds for pts in chunk.pts_seconds)


@pytest.mark.parametrize("fps,seconds", SETTINGS)
@pytest.mark.parametrize("seed", range(4))
def test_chunking_is_causal_and_partial_shows_the_rest(seed: int, fps: float, seconds: float) -> None:
    rng = random.Random(seed)
    frames = list(sample(stream(rng), fps))
    whole = [(chunk.chunk_id, chunk.pts_seconds) for chunk in cut(frames, fps, seconds)]
    chunker = Chunker(fps, seconds)
    done: list[tuple[int, tuple[float, ...]]] = []
    for number, frame in enumerate(frames):
        done += [(chunk.chunk_id, chunk.pts_seconds) for chunk in chunker.push(frame)]
        assert done == whole[: len(done)]
        seen = [f.pts_seconds for f in frames[: number + 1]]
        waiting = seen[sum(len(pts) for _, pts in done) :]
        for until in (math.inf, frame.pts_seconds, frame.pts_seconds - 0.3):
            part = chunker.partial(until)
            wanted = tuple(pts for pts in waiting if pts <= until + TOLERANCE)
            assert (part.pts_seconds if part else ()) == wanted
    assert done + [(c.chunk_id, c.pts_seconds) for c in chunker.flush()] == whole
    assert chunker.flush() == [] and chunker.partial() is None


@pytest.mark.parametrize("fps,seconds", SETTINGS)
def test_a_chunk_comes_with_its_last_possible_frame(fps: float, seconds: float) -> None:
    """On a regular stream no chunk waits for the first frame of the next one."""
    frames = [still(k / fps) for k in range(60)]
    chunker = Chunker(fps, seconds)
    for frame, following in pairwise(frames):
        done = chunker.push(frame)
        last = slot(following.pts_seconds, seconds) > slot(frame.pts_seconds, seconds)
        assert len(done) == last and (chunker.partial() is None) == last


def test_a_gap_closes_the_open_chunk() -> None:
    chunker = Chunker(2.0, 1.0)
    assert chunker.push(still(0.0)) == []
    first, *rest = chunker.push(still(7.0))
    assert first.chunk_id == 0 and first.pts_seconds == (0.0,) and rest == []
    (second,) = chunker.push(still(7.5))
    assert second.chunk_id == 7 and second.pts_seconds == (7.0, 7.5)
    (late,) = chunker.push(still(9.6))
    assert late.chunk_id == 9 and late.pts_seconds == (9.6,), "no later frame can belong to it"
    early, later = [*chunker.push(still(11.0)), *chunker.push(still(12.7))]
    assert (early.pts_seconds, later.pts_seconds) == ((11.0,), (12.7,))


def test_a_changed_frame_size_keeps_one_chunk_per_slot() -> None:
    frames = [still(0.0), still(0.5, size=(8, 12), level=9), still(1.0, size=(8, 12)), still(1.5, size=(2, 3), level=4)]
    chunks = cut(frames, 2.0, 1.0)
    assert [chunk.chunk_id for chunk in chunks] == [0, 1]
    assert chunks[0].frames.shape == (2, 3, 4, 6) and (chunks[0].frames[1] == 9).all()
    assert chunks[1].frames.shape == (2, 3, 8, 12) and (chunks[1].frames[1] == 4).all()
    pattern = np.arange(3 * 8 * 12, dtype=np.uint8).reshape(3, 8, 12)
    (chunk,) = cut([still(0.0), Frame(pattern, 0.5)], 2.0, 1.0)
    assert (chunk.frames[1] == pattern[:, ::2, ::2]).all()


def test_words_of_nouns_tell_shapes_and_times() -> None:
    assert repr(still(1.25)) == "Frame(data=uint8[3, 4, 6], pts_seconds=1.250)"
    (chunk,) = cut([still(3.0)], 2.0, 1.0)
    assert repr(chunk) == "Chunk(3, frames=[1, 3, 4, 6], 3.00..4.00 s)"
