"""What changed, what is kept: against loops over cells, and the bounds that last-kept references promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from data.change import ChangeDetector, cell_change
from model_adapters.base import VisualTokens
from vstream.config import SessionConfig
from vstream.token_drop import CALIBRATION_SLOTS, FEATURE_THRESHOLD, PIXEL_THRESHOLD, create_token_drop

CELL = 4
ROWS, COLUMNS = 3, 5


def noise(seed: int, frames: int = 2, rows: int = ROWS, columns: int = COLUMNS) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (frames, 3, rows * CELL, columns * CELL), dtype=np.uint8))


def altered(picture: torch.Tensor, cells: list[tuple[int, int]], by: int) -> torch.Tensor:
    changed = picture.int()
    for row, column in cells:
        changed[..., row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] += by
    assert int(changed.min()) >= 0 and int(changed.max()) <= 255
    return changed.to(torch.uint8)


def grey(level: int, frames: int = 2) -> torch.Tensor:
    return torch.full((frames, 3, ROWS * CELL, COLUMNS * CELL), level, dtype=torch.uint8)


class Tower:
    """Stands for the vision tower: hands out what it is given, and counts its calls."""

    def __init__(self) -> None:
        self.num_calls = 0
        self.tokens = torch.zeros(1)
        self.grid = (1, ROWS, COLUMNS)

    def __call__(self) -> VisualTokens:
        self.num_calls += 1
        return VisualTokens(self.tokens, self.grid)


def policy(drop: str, **settings):
    return create_token_drop(SessionConfig(drop=drop, **settings), CELL, frames_per_slot=2)


def kept_cells(mask: torch.Tensor) -> set[tuple[int, int]]:
    return {(int(i) // COLUMNS, int(i) % COLUMNS) for i in mask.flatten().nonzero()}


@pytest.mark.parametrize("seed", range(5))
def test_cell_change_is_the_mean_difference_counted_pixel_by_pixel(seed: int) -> None:
    a, b = noise(seed), noise(seed + 100)
    found = cell_change(a, b, CELL)
    for row in range(ROWS):
        for column in range(COLUMNS):
            total = 0
            for frame in range(2):
                for channel in range(3):
                    for y in range(row * CELL, (row + 1) * CELL):
                        for x in range(column * CELL, (column + 1) * CELL):
                            total += abs(int(a[frame, channel, y, x]) - int(b[frame, channel, y, x]))
            assert float(found[row, column]) == pytest.approx(total / (2 * 3 * CELL * CELL * 255), abs=1e-6)


@pytest.mark.parametrize("reference", ["last_kept", "previous"])
@pytest.mark.parametrize("seed", range(4))
def test_the_detector_is_a_loop_over_cells(seed: int, reference: str) -> None:
    """Every cell by itself, with a reference picture of its own."""
    rng = np.random.default_rng(seed)
    detector = ChangeDetector(CELL, 0.05, reference)
    picture = grey(128)
    held: dict[tuple[int, int], torch.Tensor] = {}
    for step in range(25):
        cells = [(r, c) for r in range(ROWS) for c in range(COLUMNS) if rng.random() < 0.4]
        by = int(rng.integers(-20, 21))
        picture = altered(picture, cells, by) if int(picture.min()) > 60 and int(picture.max()) < 200 else grey(128)
        found = detector.keep(picture, whole=step % 9 == 0)
        for r in range(ROWS):
            for c in range(COLUMNS):
                patch = picture[..., r * CELL : (r + 1) * CELL, c * CELL : (c + 1) * CELL].float() / 255
                keep = step % 9 == 0 or float((patch - held[r, c]).abs().mean()) > 0.05
                assert bool(found[r, c]) == keep
                if keep or reference == "previous":
                    held[r, c] = patch


def test_a_slow_fade_is_bounded_by_last_kept_only() -> None:
    """design: over 60 steps of a fade the previous slot never differs much, the last kept one never by more than asked."""
    threshold, worst, num_kept = 0.1, {}, {}
    for reference in ("last_kept", "previous"):
        detector = ChangeDetector(CELL, threshold, reference)
        shown = grey(0).float()
        worst[reference], num_kept[reference] = 0.0, 0
        for step in range(61):
            picture = grey(round(step * 255 / 60))
            kept = detector.keep(picture)
            assert kept.all() or not kept.any()
            shown = picture.float() if kept.all() else shown
            num_kept[reference] += bool(kept.all())
            worst[reference] = max(worst[reference], float((picture.float() - shown).abs().max()) / 255)
    assert worst["last_kept"] <= threshold < 0.99 < worst["previous"]
    assert num_kept["previous"] == 1 and 8 <= num_kept["last_kept"] <= 11


@pytest.mark.parametrize("seed", range(5))
def test_last_kept_never_shows_a_cell_that_is_further_off_than_the_threshold(seed: int) -> None:
    rng = np.random.default_rng(seed)
    detector = ChangeDetector(CELL, 0.04)
    levels = rng.integers(80, 170, (ROWS, COLUMNS))
    shown = torch.zeros(2, 3, ROWS * CELL, COLUMNS * CELL)
    for _ in range(40):
        levels = np.clip(levels + rng.integers(-6, 7, levels.shape), 0, 255)
        cells = torch.from_numpy(levels.astype(np.uint8)).repeat_interleave(CELL, 0).repeat_interleave(CELL, 1)
        picture = cells.expand(2, 3, -1, -1).contiguous()
        pixels = detector.keep(picture).repeat_interleave(CELL, 0).repeat_interleave(CELL, 1)
        shown = torch.where(pixels, picture.float(), shown)
        assert float(cell_change(picture, shown, CELL).max()) <= 0.04 + 1e-6


def test_a_shorter_slot_is_compared_as_if_its_last_picture_stayed() -> None:
    detector = ChangeDetector(CELL, 0.01)
    assert detector.keep(grey(50)).all()
    assert not detector.keep(grey(50, frames=1)).any()
    assert detector.keep(torch.cat([grey(50, frames=1), grey(90, frames=1)])).all()


def test_another_size_is_all_new() -> None:
    detector = ChangeDetector(CELL, 0.01)
    detector.keep(grey(50))
    other = torch.full((2, 3, 2 * CELL, 2 * CELL), 50, dtype=torch.uint8)
    assert detector.keep(other).shape == (2, 2) and not detector.keep(other).any()


def test_pixel_drop_keeps_what_changed_and_asks_the_tower_only_then() -> None:
    drop, tower, picture = policy("pixel"), Tower(), noise(1).clamp(60, 180)
    mask, visual = drop.keep(picture, tower)
    assert mask.all() and len(mask) == ROWS * COLUMNS and tower.num_calls == 1 and visual is not None
    for _ in range(3):
        mask, visual = drop.keep(picture, tower)
        assert not mask.any() and visual is None and tower.num_calls == 1
    moved = altered(picture, [(1, 2), (0, 4)], 40)
    mask, visual = drop.keep(moved, tower)
    assert kept_cells(mask) == {(1, 2), (0, 4)} and visual is not None and tower.num_calls == 2
    assert not drop.keep(moved, tower)[0].any() and tower.num_calls == 2


def test_feature_drop_equals_a_cosine_written_out() -> None:
    rng = np.random.default_rng(0)
    drop, tower = policy("feature", drop_threshold=0.2, key_every=1000), Tower()
    tokens = rng.normal(size=(ROWS * COLUMNS, 6))
    held = tokens.copy()
    for step in range(30):
        tokens = tokens + rng.normal(size=tokens.shape) * 0.25 * (rng.random((len(tokens), 1)) < 0.4)
        tower.tokens = torch.from_numpy(tokens)
        mask, visual = drop.keep(grey(0), tower)
        assert visual is not None and torch.equal(visual.embeds, tower.tokens)
        if step == 0:
            expected = [True] * len(tokens)
        else:
            expected = []
            for new, old in zip(tokens, held, strict=True):
                dot, lengths = sum(a * b for a, b in zip(new, old, strict=True)), math.hypot(*new) * math.hypot(*old)
                expected.append(1 - dot / lengths > 0.2)
            if sum(expected) >= 0.75 * len(expected):
                expected = [True] * len(expected)
        assert mask.tolist() == expected
        held[mask.numpy()] = tokens[mask.numpy()]


@pytest.mark.parametrize("drop", ["pixel", "feature"])
def test_every_kth_chunk_is_whole(drop: str) -> None:
    subject, tower = policy(drop, key_every=4), Tower()
    tower.tokens = torch.ones(ROWS * COLUMNS, 6)
    shares = [float(subject.keep(grey(77), tower)[0].float().mean()) for _ in range(9)]
    assert shares == [1, 0, 0, 0, 1, 0, 0, 0, 1]


@pytest.mark.parametrize("drop", ["pixel", "feature"])
def test_a_scene_cut_is_kept_whole_and_less_than_one_is_not(drop: str) -> None:
    cells = [(r, c) for r in range(ROWS) for c in range(COLUMNS)]
    # Three quarters of 15 cells are 11.25.
    for num, whole in ((11, False), (12, True)):
        subject, tower = policy(drop), Tower()
        tower.tokens = torch.tensor([[1.0, 0.0]] * len(cells))
        subject.keep(grey(50), tower)
        tower.tokens = torch.tensor([[0.0, 1.0]] * num + [[1.0, 0.0]] * (len(cells) - num))
        mask, _ = subject.keep(altered(grey(50), cells[:num], 90), tower)
        assert int(mask.sum()) == (len(cells) if whole else num)


def test_several_slots_are_compared_one_after_the_other() -> None:
    drop, tower = policy("pixel"), Tower()
    changed = altered(grey(50), [(2, 3)], 90)
    drop.keep(torch.cat([grey(50), grey(50)]), tower)
    mask, _ = drop.keep(torch.cat([grey(50), changed, changed, grey(50)]), tower)
    slots = mask.view(4, -1)
    assert [kept_cells(slot) for slot in slots] == [set(), {(2, 3)}, set(), {(2, 3)}]


@pytest.mark.parametrize("drop", ["off", "pixel", "feature"])
@pytest.mark.parametrize("key_every", [3, 1000])
def test_peek_tells_what_keep_will_do_and_leaves_no_trace(drop: str, key_every: int) -> None:
    rng = np.random.default_rng(3)
    quiet, asked = policy(drop, key_every=key_every, drop_target=0.5), policy(drop, key_every=key_every, drop_target=0.5)
    tower, picture = Tower(), grey(120)
    for step in range(CALIBRATION_SLOTS + 10):
        cells = [(r, c) for r in range(ROWS) for c in range(COLUMNS) if rng.random() < (0.95 if step % 7 == 0 else 0.3)]
        picture = altered(grey(120), cells, int(rng.integers(-60, 60)))
        tower.tokens = torch.from_numpy(rng.normal(size=(ROWS * COLUMNS, 6)))
        for _ in range(int(rng.integers(0, 3))):
            asked.fork().keep(altered(picture, [(0, 0)], 30), tower)
        peeked, _ = asked.fork().keep(picture, tower)
        a, b = quiet.keep(picture, tower)[0], asked.keep(picture, tower)[0]
        assert torch.equal(a, b) and torch.equal(a, peeked)


@pytest.mark.parametrize("reference", ["previous", "last_kept"])
@pytest.mark.parametrize("target", [0.4, 0.6, 0.9])
@pytest.mark.parametrize("drop", ["pixel", "feature"])
def test_calibration_reaches_its_target_and_freezes(drop: str, target: float, reference: str) -> None:
    """Changes of every size, alike at all times: what was calibrated on the first chunks holds for those that follow."""
    rng = np.random.default_rng(5)
    rows = columns = 12
    drop_ = policy(drop, drop_target=target, drop_reference=reference, key_every=100_000)
    tower = Tower()
    tower.grid = (1, rows, columns)
    dropped, values = [], []
    for step in range(CALIBRATION_SLOTS + 41):
        # Independent of the chunk before, so that it does not matter which of the earlier ones is the reference.
        levels = torch.from_numpy(rng.integers(0, 256, (rows, columns), dtype=np.uint8))
        picture = levels.repeat_interleave(CELL, 0).repeat_interleave(CELL, 1).expand(2, 3, -1, -1).contiguous()
        angles = rng.uniform(0, math.pi, rows * columns)
        tower.tokens = torch.from_numpy(np.stack([np.cos(angles), np.sin(angles)], 1))
        mask, _ = drop_.keep(picture, tower)
        values.append(drop_.threshold.value)
        if step > CALIBRATION_SLOTS:
            dropped.append(1 - float(mask.float().mean()))
    start = PIXEL_THRESHOLD if drop == "pixel" else FEATURE_THRESHOLD
    assert set(values[:CALIBRATION_SLOTS]) == {start}
    assert len(set(values[CALIBRATION_SLOTS:])) == 1 and values[-1] != start
    assert np.mean(dropped) == pytest.approx(target, abs=0.05)


def test_without_a_target_the_threshold_stays() -> None:
    drop, tower = policy("pixel", drop_threshold=0.02), Tower()
    for step in range(CALIBRATION_SLOTS + 3):
        drop.keep(noise(step), tower)
    assert drop.threshold.value == 0.02


def test_off_keeps_everything() -> None:
    drop, tower = policy("off"), Tower()
    tower.tokens = torch.ones(ROWS * COLUMNS, 2)
    for _ in range(3):
        mask, visual = drop.keep(grey(5), tower)
        assert mask.all() and len(mask) == ROWS * COLUMNS and visual is not None
    assert tower.num_calls == 3
