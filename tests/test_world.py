"""The synthetic world against its written rules: the picture pixel by pixel, the schedule, the questions second by second."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from data.questions import comment_at, questions_about
from data.world import Background, Stay, World, make_world

COLORS = {
    "red": (220, 40, 40),
    "green": (40, 200, 60),
    "blue": (50, 80, 230),
    "yellow": (230, 220, 50),
    "white": (240, 240, 240),
    "purple": (160, 50, 200),
    "orange": (240, 140, 30),
    "cyan": (40, 210, 220),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
PAIRS = {f"{color} {shape}" for color in COLORS for shape in SHAPES}
SEEDS = range(40)


def covers(shape: str, x: float, y: float, r: float) -> bool:
    """Whether the shape with its centre at 0 and radius r covers the point (x, y), y down; written from the rules' words."""
    far = math.hypot(x, y)
    if shape == "circle":
        return far <= r
    if shape == "square":
        return max(abs(x), abs(y)) <= 0.85 * r
    if shape == "triangle":
        return -0.9 * r <= y <= 0.8 * r and abs(x) <= 0.6 * (y + 0.9 * r)
    if shape == "star":
        # cos(5 theta + pi / 2) = -sin(5 theta), the imaginary part of the fifth power of a unit complex number.
        return far == 0 or far <= r * (0.6 - 0.4 * ((complex(x, y) / far) ** 5).imag)
    if shape == "cross":
        upright = abs(x) <= 0.3 * r and abs(y) <= r
        level = abs(y) <= 0.3 * r and abs(x) <= r
        return upright or level
    return 0.55 * r <= far <= r


def names_by_second(world: World) -> list[str | None]:
    """The name on screen in every second, marked from the schedule."""
    names: list[str | None] = [None] * (world.seconds + 5)
    for stay in world.stays:
        for second in range(stay.start_seconds, stay.end_seconds):
            assert names[second] is None, "two objects on screen at once"
            names[second] = stay.name
    return names


def pixel_direction(world: World, name: str) -> str:
    """The way in which the middle of the drawn object moves, measured on pictures."""
    second = names_by_second(world).index(name)
    empty = World(world.seconds, (), world.background, world.side)
    middles = []
    for t in (second, second + 1.5):
        changed = (world.frame(t) != empty.frame(t)).any(0)
        rows, columns = np.nonzero(changed)
        middles.append((columns.mean(), rows.mean()))
    (x0, y0), (x1, y1) = middles
    if abs(x1 - x0) > abs(y1 - y0):
        return "right" if x1 > x0 else "left"
    return "down" if y1 > y0 else "up"


def truth(world: World, question: str, at: float) -> str:
    """The answer to a question about a needle, counted second by second up to `at`."""
    names = names_by_second(world)[: math.floor(at) + 1]
    words = question.removesuffix(" ?")
    if words == "what is on screen now":
        return f"a {names[-1]}" if names[-1] else "nothing"
    if found := re.fullmatch(r"what was on screen at (\d+) s", words):
        name = names[int(found[1])]
        return f"a {name}" if name else "nothing"
    if found := re.fullmatch(r"when did the (.+) appear", words):
        return f"at {names.index(found[1])} s"
    if found := re.fullmatch(r"did a (.+) appear", words):
        return "yes" if found[1] in names else "no"
    if found := re.fullmatch(r"which way did the (.+) move", words):
        return pixel_direction(world, found[1])
    found = re.fullmatch(r"what came after the (.+)", words)
    assert found, question
    later = [name for name in names[names.index(found[1]) :] if name not in (None, found[1])]
    return f"a {later[0]}" if later else "nothing"


@pytest.mark.parametrize("side", [96, 131, 160])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_pixel_of_every_shape(shape: str, side: int) -> None:
    color = list(COLORS)[SHAPES.index(shape)]
    # The second one leaves the canvas.
    for x, y, r in ((0.45, 0.55, 0.2), (0.07, 0.95, 0.15)):
        stay = Stay(color, shape, "right", r, x, y, 0.1, 0, 2)
        world = World(2, (stay,), Background((10, 20, 30), 5.0, 1), side)
        empty = World(2, (), Background((10, 20, 30), 5.0, 1), side).frame(0)
        picture = world.frame(1.0)
        expected = empty.copy()
        for row in range(side):
            for column in range(side):
                if covers(shape, (column + 0.5) / side - x, (row + 0.5) / side - y, r):
                    expected[:, row, column] = COLORS[color]
        assert picture.dtype == np.uint8 and picture.shape == (3, side, side)
        assert (picture != expected).any(0).sum() == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_ranges_of_objects_and_schedule(seed: int) -> None:
    world = make_world(seed, seconds=60)
    assert world.stays
    gaps = [b.start_seconds - a.end_seconds for a, b in pairwise(world.stays)]
    assert 0 <= world.stays[0].start_seconds <= 2 and set(gaps) <= {0, 1, 2}
    assert world.stays[-1].end_seconds <= 60
    for stay in world.stays:
        assert isinstance(stay.start_seconds, int) and stay.end_seconds - stay.start_seconds in (2, 3, 4)
        assert stay.name in PAIRS and stay.direction in ("left", "right", "up", "down")
        assert 0.15 <= stay.radius <= 0.23 and 0.10 <= stay.speed <= 0.16
        assert 0.31 <= stay.mid_x <= 0.69 and 0.31 <= stay.mid_y <= 0.69
    assert all(0 <= level <= 60 for level in world.background.color) and abs(world.background.ramp) <= 25


def test_every_value_is_drawn() -> None:
    worlds = [make_world(seed, seconds=60) for seed in SEEDS]
    stays = [stay for world in worlds for stay in world.stays]
    assert {stay.name for stay in stays} == PAIRS
    assert {stay.direction for stay in stays} == {"left", "right", "up", "down"}
    assert {stay.end_seconds - stay.start_seconds for stay in stays} == {2, 3, 4}
    gaps = {b.start_seconds - a.end_seconds for world in worlds for a, b in pairwise(world.stays)}
    assert gaps == {0, 1, 2} == {world.stays[0].start_seconds for world in worlds}


@pytest.mark.parametrize("direction,step", [("left", (-1, 0)), ("right", (1, 0)), ("up", (0, -1)), ("down", (0, 1))])
def test_the_midpoint_is_reached_half_way(direction: str, step: tuple[int, int]) -> None:
    stay = Stay("red", "circle", direction, 0.15, 0.4, 0.6, 0.12, 10, 13)
    assert stay.center(11.5) == pytest.approx((0.4, 0.6))
    x, y = stay.center(12.25)
    assert (x - 0.4, y - 0.6) == pytest.approx((0.75 * 0.12 * step[0], 0.75 * 0.12 * step[1]))
    world = World(20, (stay,), Background((0, 0, 0), 0.0, 0), 128)
    assert world.on_screen(9.99) is None and world.on_screen(10) is stay
    assert world.on_screen(12.99) is stay and world.on_screen(13) is None


@pytest.mark.parametrize("seed", range(8))
def test_background(seed: int) -> None:
    world = make_world(seed, seconds=12, side=160)
    color, ramp = world.background.color, world.background.ramp
    plain = World(12, (), world.background, 160)
    first = plain.frame(0.0)
    assert (first == plain.frame(7.5)).all()
    noise = []
    for channel in range(3):
        level = first[channel].astype(float)
        columns = level.mean(0) - color[channel]
        if level.min() > 0:
            slope = np.polyfit(np.arange(160), columns, 1)[0] * 159
            assert slope == pytest.approx(ramp, abs=1.5)
            noise.append(level - color[channel])
    for other in noise[1:]:
        # Sums near a half may round apart.
        assert (other != noise[0]).mean() < 1e-3 and abs(other - noise[0]).max() <= 1, "the noise differs between channels"
    if noise:
        rest = noise[0] - np.linspace(-ramp / 2, ramp / 2, 160)
        assert rest.std() == pytest.approx(3.0, abs=0.15) and abs(rest.mean()) < 0.2
    # Behind an object and beside it nothing changes either.
    for frame in world.frames(2.0):
        stay = world.on_screen(frame.pts_seconds)
        same = (frame.data == first).all(0)
        painted = np.zeros_like(same) if stay is None else (COLORS[stay.color] == frame.data.T).all(-1).T
        assert (same | painted).all()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("seconds", [20, 120, 400])
def test_needles_occur_once_and_absent_names_never(seed: int, seconds: int) -> None:
    world = make_world(seed, seconds)
    counts = Counter(stay.name for stay in world.stays)
    assert all(counts[name] == 1 for name in world.needles) and len(set(world.needles)) == len(world.needles)
    assert world.absent and all(counts[name] == 0 for name in world.absent) and set(world.absent) <= PAIRS
    if len(world.stays) <= 40:
        assert set(world.needles) == set(counts)
    else:
        assert len(world.needles) == 6
        others = [count for name, count in counts.items() if name not in world.needles]
        assert max(others) > 1 and sum(others) > len(others)
        # Spread over the stream: one in every sixth of it.
        places = sorted(next(i for i, s in enumerate(world.stays) if s.name == name) for name in world.needles)
        for k, place in enumerate(places):
            assert k * len(world.stays) / 6 - 1 <= place <= (k + 1) * len(world.stays) / 6 + 1


def test_one_seed_one_world() -> None:
    assert make_world(11, 90) == make_world(11, 90) and make_world(11, 90) != make_world(12, 90)
    a, b = make_world(11, 90, side=96), make_world(11, 90, side=96)
    assert all((a.frame(t) == b.frame(t)).all() for t in (0.0, 31.5, 60.25))
    assert a.at_side(160).stays == a.stays and a.at_side(160).frame(3.0).shape == (3, 160, 160)


def test_frames_are_on_the_grid() -> None:
    world = make_world(1, 5, side=96)
    for fps in (2.0, 3.0, 0.5):
        found = [frame.pts_seconds for frame in world.frames(fps)]
        assert found == pytest.approx([k / fps for k in range(math.ceil(5 * fps))])
    assert [f.pts_seconds for f in world.frames(2.0, 3.2)] == [3.5, 4.0, 4.5]
    assert (list(world.frames(2.0))[5].data == world.frame(2.5)).all()


@pytest.mark.parametrize("seed,seconds", [(seed, seconds) for seed in range(10) for seconds in (15, 60)] + [(3, 300), (4, 300)])
def test_answers_are_what_can_be_counted(seed: int, seconds: int) -> None:
    world = make_world(seed, seconds, side=96)
    names = names_by_second(world)
    rng = np.random.default_rng(seed)
    families = set()
    for at in (0.0, 3.5, seconds / 2, seconds - 0.5):
        for asked in questions_about(world, at, rng, per_family=2):
            families.add(asked.family)
            assert asked.answer == truth(world, asked.question, at), (asked.question, at)
            assert asked.at_seconds == at
            if asked.evidence:
                start, end = asked.evidence
                assert 0 <= start < end <= math.floor(at) + 1
                shown = {names[second] for second in range(start, end)}
                assert len(shown) == 1
                if asked.family in ("when", "which", "did"):
                    assert shown.pop() in asked.question
                elif asked.answer != "nothing":
                    assert f"a {shown.pop()}" == asked.answer
                assert asked.age_seconds == max(0.0, at - end)
    assert families == {"now", "at", "when", "did", "which", "after"}


@pytest.mark.parametrize("seed", range(10))
def test_comments_tell_every_entry_and_exit_once(seed: int) -> None:
    world = make_world(seed, 30)
    names = names_by_second(world)
    previous = None
    for second in range(31):
        now = names[second]
        # No object follows itself: a pair is never drawn twice in a row.
        words = [f"the {previous} leaves"] * (previous is not None and previous != now)
        words += [f"a {now} appears"] * (now is not None and previous != now)
        assert comment_at(world, second) == " and ".join(words)
        previous = now


def test_spread_out_keeps_order_and_looks_and_leaves_out_what_does_not_fit() -> None:
    world = make_world(3, 60)
    quiet = world.spread_out(np.random.default_rng(0), (5, 9))
    assert 2 <= len(quiet.stays) < len(world.stays)
    ends = [0] + [stay.end_seconds for stay in quiet.stays]
    for was, now, end in zip(world.stays, quiet.stays, ends, strict=False):
        assert 5 <= now.start_seconds - end < 9
        assert now == replace(was, start_seconds=now.start_seconds, end_seconds=now.end_seconds)
        assert now.end_seconds - now.start_seconds == was.end_seconds - was.start_seconds
    assert set(quiet.needles) == {stay.name for stay in quiet.stays} & set(world.needles)
    for t in (0.0, 4.9):
        assert quiet.on_screen(t) is None
