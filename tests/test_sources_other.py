"""The synthetic world, pushed frames, missing packages and the doctor."""

from __future__ import annotations

import importlib
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from data.errors import SourceError
from data.sources import PushSource, WorldSource, open_source
from data.sources import open as opening
from data.world import make_world


def test_world_gives_the_pictures_of_the_world() -> None:
    source = open_source("world:?seed=7&seconds=6&speed=0&side=64&needles=3")
    assert isinstance(source, WorldSource) and source.info.duration_seconds == 6.0 and not source.info.live
    world = make_world(7, 6, 64)
    frames = list(source.frames(2.0, start_seconds=1.0))
    assert [f.pts_seconds for f in frames] == [1 + i / 2 for i in range(10)]
    for frame in frames:
        np.testing.assert_array_equal(frame.data, world.frame(frame.pts_seconds))
    assert source.world.stays == world.stays and source.stats.state == "ended"


def test_world_is_paced_and_close_interrupts() -> None:
    with open_source("world:?seconds=100&speed=10&side=32") as source:
        frames = source.frames(5.0)
        started = time.monotonic()
        for _ in range(11):
            next(frames)
        assert time.monotonic() - started > 0.15
    slow = open_source("world:?seconds=100&speed=0.01&side=32")
    threading.Timer(0.1, slow.close).start()
    assert len(list(slow.frames(1.0))) == 1, "the next frame would come in 100 s"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("world:?seed=x", "seed must be a whole number"),
        ("world:?speed=-1", "speed must be from 0"),
        ("world:?speed=nan", "speed must be from 0"),
        ("world:?seconds=0", "seconds must be from 1"),
        ("world:?seconds=99999999999", "seconds must be from 1"),
        ("world:?side=1", "side must be"),
        ("world:?colour=red", "unknown field 'colour'"),
        ("world:?seed=1&seed=2", "given twice"),
        ("world:?seed", "name=value"),
        ("world:seed=1", "question mark"),
    ],
)
def test_bad_worlds(spec: str, words: str) -> None:
    with pytest.raises(SourceError, match=words):
        open_source(spec)


def test_pushed_frames_come_out_in_both_layouts() -> None:
    source = PushSource()
    picture = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    assert source.push(picture, 0.0) and source.push(picture.transpose(2, 0, 1), 1.0)
    assert not source.push(picture, 0.5)
    source.end()
    frames = list(source.frames(2.0))
    assert [f.pts_seconds for f in frames] == [0.0, 1.0] and not source.push(picture, 9.0)
    for frame in frames:
        np.testing.assert_array_equal(frame.data, picture.transpose(2, 0, 1))
        assert frame.data.flags.c_contiguous and not np.shares_memory(frame.data, picture)
    assert (source.info.width, source.info.height) == (6, 4) and source.stats.frames_dropped == 1


def test_newest_pushed_frames_win() -> None:
    source = PushSource(capacity=3)
    for i in range(10):
        source.push(np.full((4, 4, 3), i, np.uint8), float(i))
    source.end()
    assert [f.pts_seconds for f in source.frames(1.0)] == [7.0, 8.0, 9.0] and source.stats.frames_dropped == 7


def test_push_from_another_thread_and_sampling() -> None:
    source = PushSource(capacity=64)

    def camera() -> None:
        for i in range(40):
            source.push(np.full((8, 8, 3), i, np.uint8), i / 20)
            time.sleep(0.001)
        source.end()

    threading.Thread(target=camera).start()
    pts = [f.pts_seconds for f in source.frames(5.0)]
    assert pts == pytest.approx([i / 5 for i in range(10)]) and source.stats.frames_seen == 40


def test_pushed_frames_without_pts_take_the_clock_and_close_ends() -> None:
    source = PushSource()
    started = time.monotonic()
    source.push(np.zeros((4, 4, 3), np.uint8))
    time.sleep(0.02)
    source.push(np.zeros((4, 4, 3), np.uint8))
    at_most = time.monotonic() - started
    frames = source.frames(1000.0)
    assert next(frames).pts_seconds == 0.0 and 0.01 < next(frames).pts_seconds <= at_most
    threading.Timer(0.05, source.close).start()
    assert list(frames) == []


@pytest.mark.parametrize(
    "bad", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((1, 1, 3), np.uint8), "x"]
)
def test_bad_pictures(bad: object) -> None:
    with pytest.raises(SourceError, match="picture must be"):
        PushSource().push(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("height", "width", "words"),
    [(16384, 40, "strip"), (8001, 8000, "64 megapixels"), (2, 16385, "16384 a side"), (9, 1, "2x2")],
)
def test_a_pushed_picture_keeps_to_the_sizes_of_all_sources(height: int, width: int, words: str) -> None:
    """The same sizes that a file or a camera in the network may have: what goes in can be read by a model."""
    source = PushSource()
    for shape in ((height, width, 3), (3, height, width)):
        with pytest.raises(SourceError, match=words):
            source.push(np.zeros(shape, np.uint8))
    assert source.stats.frames_seen == 0 and source.push(np.zeros((200, 2, 3), np.uint8))


def test_decoders_are_not_imported_before_they_are_needed() -> None:
    code = "import sys, data.sources; sys.exit(int('av' in sys.modules or 'decord' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        raise ModuleNotFoundError(f"No module named 'av' for {name}", name="av")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(SourceError, match="pip install"):
        opening.open_source("some.mp4")


def test_doctor_never_raises() -> None:
    from data.sources.doctor import check

    rows = check()
    assert rows and all(isinstance(n, str) and isinstance(ok, bool) and d for n, ok, d in rows)
    if {n: ok for n, ok, _ in rows}["PyAV"]:
        assert {"decodes h264", "decodes av1", "reads rtsp", "reads hls"} <= {n for n, _, _ in rows}
