"""The measurement of what is said unasked: its streams, and its scores counted by hand."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from data.questions import comment_at
from data.world import Background, Stay, World
from eval.gates import Firing
from eval.proactive import watched_names
from eval.run import main
from eval.scenes import KINDS, make_scene
from eval.schedule import Tally, score_comments, score_watches
from vstream.commentary import Utterance

ROUND = {"direction": "left", "radius": 0.2, "mid_x": 0.5, "mid_y": 0.5, "speed": 0.1}
WORLD = World(
    20,
    (
        Stay("red", "circle", start_seconds=2, end_seconds=5, **ROUND),  # type: ignore[arg-type]
        Stay("blue", "star", start_seconds=5, end_seconds=8, **ROUND),  # type: ignore[arg-type]
        Stay("red", "circle", start_seconds=12, end_seconds=15, **ROUND),  # type: ignore[arg-type]
    ),
    Background((10, 10, 10), 0.0, 0),
    absent=("green ring", "cyan cross"),
)


def test_watches_are_counted() -> None:
    tally = Tally()
    alerts = [("a red circle appears", t) for t in (2.5, 3.5, 9.5)]
    alerts += [("a green ring appears", 6.5), ("a blue star appears", 8.0)]
    score_watches(tally, WORLD, ["red circle", "blue star", "green ring"], alerts)
    assert (tally.hits, tally.misses, tally.duplicates, tally.false) == (1, 2, 1, 3)
    row = tally.row()
    assert tally.delays == [0.5] and row["hit"] == pytest.approx(1 / 3)
    assert row["false_per_hour"] == pytest.approx(3 / (3 * 20) * 3600)


def test_comments_are_counted_by_the_clause() -> None:
    tally = Tally()
    said = [
        Utterance(2, 3, "A red circle appears"),
        Utterance(6, 7, "the red circle leaves and a blue star appears"),
        Utterance(6, 7, "a blue star appears"),
        Utterance(8, 9, "the green ring leaves"),
    ]
    score_comments(tally, WORLD, said)
    assert (tally.hits, tally.misses, tally.duplicates, tally.false) == (3, 3, 1, 1)
    assert tally.timing == [1.0, 0.5, 0.5, 0.0, 0.0, 0.0] and tally.said == 5
    assert tally.row()["words_per_second"] == (4 + 9 + 4 + 4) / 20


def test_a_firing_is_right_for_one_event_and_no_event_twice() -> None:
    firing = Firing()
    firing.add([1.0, 2.0, 9.0, 20.0], {1.0, 9.0, 20.0}, [0.5, 1.5, 2.5, 3.5, 9.5, 9.9, 15.0, 22.5], seconds=1800)
    row = firing.row()
    assert (firing.noticed, firing.entries, firing.right, firing.fired) == (3, 3, 4, 8)
    assert (row["noticed"], row["precision"], row["false_per_hour"]) == (1.0, 0.5, 8.0)
    late = Firing()
    late.add([1.0], {1.0}, [0.5, 3.6], seconds=60)
    assert (late.noticed, late.right) == (0, 0), "neither before it nor more than 2 s after its second"


@pytest.mark.parametrize("kind", KINDS)
def test_scenes_show_their_schedule(kind: str) -> None:
    scene = make_scene(kind, seed=4, seconds=100, side=96)
    frames, again = list(scene.frames(2.0)), list(scene.frames(2.0))
    assert len(frames) == 200 and all(np.array_equal(a.data, b.data) for a, b in zip(frames, again, strict=True))
    for frame in frames[::7]:
        stay = scene.world.on_screen(frame.pts_seconds)
        spread = int(np.percentile(frame.data, 99)) - int(np.median(frame.data))
        assert frame.data.dtype == np.uint8 and (spread > 45) == (stay is not None), "the object is seen when it is there"
    still = [np.abs(a.data.astype(int) - b.data).mean() for a, b in itertools.pairwise(frames)]
    empty = [
        change
        for change, frame in zip(still, frames, strict=False)
        if not scene.world.on_screen(frame.pts_seconds) and not scene.world.on_screen(frame.pts_seconds + 0.5)
    ]
    assert (max(empty) > 0) == (kind not in ("eventful", "quiet")), "what changes, changes when nothing happens too"
    if kind == "quiet":
        edges = [t for t in range(100) if comment_at(scene.world, t)]
        assert 0 < len(edges) <= 8
    with pytest.raises(ValueError, match="unknown kind"):
        make_scene("loud", 1, 10)


def test_half_of_the_watches_are_for_what_comes() -> None:
    names = watched_names(WORLD, 4, seed=0)
    assert set(names[:2]) == {"red circle", "blue star"} and set(names[2:]) == {"green ring", "cyan cross"}


@pytest.mark.slow
def test_a_short_run_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "proactive.json"
    argv = ["proactive", "--streams", "1", "--seconds", "12", "--kinds", "eventful", "quiet", "--watches", "2"]
    assert main([*argv, "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    assert set(result["watches"]) == {"native", "poll"} and set(result["cost"]) == {"eventful", "quiet"}
    assert "of ingest time" in capsys.readouterr().out
    alone = result["triggers"]["stream"]["eventful"]
    assert alone["every chunk"]["noticed"] == 1.0
    assert [alone[name]["fired_per_hour"] for name in ("every chunk", "poll, 4 s")] == pytest.approx([3600, 900])
    assert 0 < alone["gate (tiling or novelty)"]["fired_per_hour"] < 3600
    assert result["triggers"]["watches"]["eventful"]["yes or no"]["cost"] > 0
    assert main([*argv, "--no-triggers", "--no-poll", "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    assert set(result["watches"]) == {"native"} and "triggers" not in result
