"""Recorded files: the right pictures at the right times, and one clear line for every bad file."""

from __future__ import annotations

import threading
import tracemalloc
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from everyday import everyday

av = pytest.importorskip("av")

from data.errors import SourceError  # noqa: E402
from data.frames import Frame, sample  # noqa: E402
from data.sources import FileSource, open_source, probe_file  # noqa: E402
from data.sources.base import Slots  # noqa: E402
from tests.video_files import reference_frames, write_audio, write_video  # noqa: E402

VIDEOS = Path(__file__).resolve().parents[2] / "shared" / "videos"
needs_videos = pytest.mark.skipif(not VIDEOS.is_dir(), reason="no folder with real clips beside the checkout")


def check_against_reference(path: Path, fps: float, reader: str = "pyav", start: float = 0.0) -> FileSource:
    """The sampled frames are those of an independent decode, sampled by the rule of data.frames."""
    frames = (Frame(rgb, pts) for pts, rgb in reference_frames(path) if pts >= start - 0.002)
    expected = list(sample(frames, fps))
    with FileSource(path, reader=reader) as source:
        got = list(source.frames(fps, start))
        assert [round(f.pts_seconds, 6) for f in got] == [round(f.pts_seconds, 6) for f in expected]
        for a, b in zip(got, expected, strict=True):
            assert a.data.dtype == np.uint8 and a.data.flags.c_contiguous
            np.testing.assert_array_equal(a.data, b.data)
        assert source.stats.state == "ended"
        assert got[0].data.shape[1:] == (source.info.height, source.info.width)
    return source


VFR = [0.0, 0.04, 0.2, 0.21, 0.9, 1.0, 1.05, 1.9, 2.6, 2.61, 3.0]
FILES = {
    "h264.mp4": {},
    "h264_30.mp4": {"fps": 30, "seconds": 2.0, "gop": 60},
    "vp9.webm": {"codec": "libvpx-vp9", "seconds": 2.0},
    "vfr.mkv": {"times": VFR},
    "odd.mp4": {"size": (65, 33)},
    "rotated.mp4": {"rotation": 90},
    "turned.mp4": {"rotation": 180},
    "offset.ts": {"offset_seconds": 5.0, "format": "mpegts"},
    "late.mp4": {"offset_seconds": 1.5},
    "two.mp4": {"num_streams": 2},
    "small.avi": {"codec": "mpeg4"},
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("fps", [2.0, 7.0])
def test_frames_match_an_independent_decode(tmp_path: Path, name: str, fps: float) -> None:
    check_against_reference(write_video(tmp_path / name, **FILES[name]), fps)


@pytest.mark.parametrize("name", ["h264_30.mp4", "vfr.mkv", "odd.mp4"])
def test_decord_gives_the_same(tmp_path: Path, name: str) -> None:
    pytest.importorskip("decord")
    source = check_against_reference(write_video(tmp_path / name, **FILES[name]), 5.0, reader="decord")
    assert source.stats.reader == "decord" and not source.stats.warnings


@pytest.mark.parametrize("name", ["offset.ts", "rotated.mp4", "turned.mp4"])
def test_decord_hands_over_where_it_is_not_exact(tmp_path: Path, name: str) -> None:
    pytest.importorskip("decord")
    source = check_against_reference(write_video(tmp_path / name, **FILES[name]), 5.0, reader="decord")
    assert source.stats.reader.startswith("pyav (") and len(source.stats.warnings) == 1


@pytest.mark.parametrize("name", ["h264_30.mp4", "vp9.webm", "offset.ts"])
@pytest.mark.parametrize("start", [0.55, 1.3])
def test_seeking_gives_what_reading_on_gives(tmp_path: Path, name: str, start: float) -> None:
    check_against_reference(write_video(tmp_path / name, **FILES[name]), 3.0, start=start)


def test_rotation_turns_the_picture(tmp_path: Path) -> None:
    flat = next(FileSource(write_video(tmp_path / "a.mp4")).frames(1)).data
    turned = FileSource(write_video(tmp_path / "b.mp4", rotation=90))
    assert (turned.info.width, turned.info.height, turned.info.rotation) == (48, 64, 90)
    np.testing.assert_array_equal(next(turned.frames(1)).data, np.rot90(flat, 1, axes=(1, 2)))


def test_pixels_are_made_square(tmp_path: Path) -> None:
    with FileSource(write_video(tmp_path / "a.mp4", pixel_aspect=Fraction(3, 2))) as source:
        assert (source.info.width, source.info.height) == (96, 48)
        assert next(source.frames(1)).data.shape == (3, 48, 96)


def test_presentation_starts_at_zero_and_pts_increase(tmp_path: Path) -> None:
    with FileSource(write_video(tmp_path / "a.ts", offset_seconds=100.0, format="mpegts")) as source:
        pts = [f.pts_seconds for f in source.frames(30)]
    assert pts[0] == pytest.approx(0.0, abs=0.05) and all(a < b for a, b in pairwise(pts))


def test_later_frames_change_nothing_before(tmp_path: Path) -> None:
    """The same beginning, another end: the frames before it are the same."""
    short, long = write_video(tmp_path / "s.mp4", seconds=2), write_video(tmp_path / "l.mp4", seconds=4)
    a, b = list(FileSource(short).frames(4)), list(FileSource(long).frames(4))
    for x, y in zip(a, b, strict=False):
        assert x.pts_seconds == y.pts_seconds
        assert np.abs(x.data.astype(int) - y.data).mean() < 3
    assert len(a) == 8 and len(b) == 16


def test_slots_are_the_rule_of_sample() -> None:
    rng = np.random.default_rng(0)
    for fps in (0.5, 1.0, 2.0, 7.3):
        pts = np.cumsum(rng.exponential(0.1, 300))
        slots = Slots(fps)
        kept = [f.pts_seconds for f in sample((Frame(np.zeros(0), float(t)) for t in pts), fps)]
        assert [t for t in pts if slots.due(float(t))] == kept


@pytest.mark.slow
def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    path = write_video(tmp_path / "still.mp4", seconds=60, fps=10, size=(320, 240), still=True, gop=100)
    tracemalloc.start()
    with FileSource(path) as source:
        count = sum(1 for _ in source.frames(10))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 600 and peak < 20 * 320 * 240 * 3


def test_close_ends_reading(tmp_path: Path) -> None:
    source = FileSource(write_video(tmp_path / "a.mp4"))
    frames = source.frames(10)
    next(frames)
    threading.Thread(target=source.close).start()
    assert len(list(frames)) < 40
    source.close()


def bad_file(kind: str, folder: Path) -> Path:
    path = folder / "video.mp4"
    if kind == "directory":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "malformed":
        path.write_bytes(bytes(range(256)) * 40)
    elif kind == "headless":
        path.write_bytes(write_video(folder / "whole.mp4").read_bytes()[:4000])
    elif kind == "text":
        path.write_text("hello")
    elif kind == "audio-only":
        write_audio(path)
    elif kind == "undecodable":
        data = bytearray(write_video(folder / "whole.mp4").read_bytes())
        at = data.index(b"mdat") + 4
        data[at : data.index(b"moov") - 4] = b"\xff" * (data.index(b"moov") - 4 - at)
        path.write_bytes(data)
    elif kind == "1x1":
        path = folder / "video.avi"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("rawvideo", rate=5)
            stream.width = stream.height = 1
            stream.pix_fmt = "bgr24"
            frame = av.VideoFrame.from_ndarray(np.zeros((1, 1, 3), np.uint8), format="bgr24")
            container.mux(stream.encode(frame))
    elif kind == "huge":
        path = folder / "video.mkv"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mjpeg", rate=5)
            stream.width, stream.height, stream.pix_fmt = 16400, 16, "yuvj420p"
            container.mux(stream.encode(av.VideoFrame(16400, 16, "yuvj420p")))
            container.mux(stream.encode(None))
    elif kind == "playlist":
        segment = write_video(folder / "segment.ts", format="mpegts")
        path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{segment}\n#EXT-X-ENDLIST\n")
    elif kind == "file list":
        path.write_text(f"ffconcat version 1.0\nfile {write_video(folder / 'whole.mp4')}\n")
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "no such file"),
        ("directory", "folder"),
        ("empty", "empty"),
        ("malformed", "not a video"),
        ("headless", "not a video"),
        ("text", "not a video"),
        ("audio-only", "no video stream"),
        ("undecodable", "decoded"),
        ("1x1", "too small"),
        ("huge", "16400x16"),
        ("playlist", "not a video"),
        ("file list", "not a video"),
    ],
)
def test_bad_files_are_one_clear_line(tmp_path: Path, kind: str, words: str) -> None:
    path = bad_file(kind, tmp_path)
    with pytest.raises(SourceError) as caught:
        open_source(str(path))
    assert words in str(caught.value) and "\n" not in str(caught.value) and path.name in str(caught.value)


def test_truncated_file_is_read_and_says_what_is_missing(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mkv", seconds=20, gop=10)
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with FileSource(cut) as source:
        frames = list(source.frames(2))
    assert 8 < len(frames) < 36
    assert any("missing" in w and "20.0 s" in w for w in source.stats.warnings)


def test_one_broken_packet_is_skipped_and_counted(tmp_path: Path) -> None:
    data = bytearray(write_video(tmp_path / "a.mp4", gop=5, seconds=4).read_bytes())
    middle = (data.index(b"mdat") + data.index(b"moov")) // 2
    data[middle : middle + 60] = b"\xff" * 60
    (tmp_path / "b.mp4").write_bytes(data)
    with FileSource(tmp_path / "b.mp4") as source:
        frames = list(source.frames(10))
    assert len(frames) >= 30 and frames[-1].pts_seconds > 3.5
    assert source.stats.frames_broken == 0 or source.stats.warnings


def test_specs(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a b.mp4")
    with open_source(path.as_uri()) as source:
        assert source.info.kind == "file" and source.info.label == "a b.mp4"
    with pytest.raises(SourceError, match="command line"):
        open_source(str(path), allow_files=False)
    with pytest.raises(SourceError, match="known: a file"):
        open_source("ftp://example.com/x.mp4")
    with pytest.raises(SourceError, match="no source"):
        open_source("  ")


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan")])
def test_bad_rate(tmp_path: Path, fps: float) -> None:
    with FileSource(write_video(tmp_path / "a.mp4")) as source, pytest.raises(SourceError, match="frames per second"):
        next(source.frames(fps))


REAL = {  # name: (width, height) upright, seconds, first pts, num frames at 1 per second
    "one-by-one-person-detection.mp4": ((768, 432), 139.4, 0.0, 140),
    "car-detection.mp4": ((768, 432), 30.16, 0.0, 31),
    "bottle-detection.mp4": ((640, 360), 39.855, 0.0, 40),
    "dog_270_rotated.mp4": ((720, 1280), 4.972, 0.0, 5),
    "mixed-content_vfr.webm": ((480, 270), 15.008, 0.0, 15),
    "chrome.mp4": ((480, 270), 29.997, 0.0, 30),
    "big_buck_bunny_0_30.webm": ((1280, 720), 30.003, 0.003, 30),
    "edge/fire2_rot180_lowfps.mp4": ((1280, 720), 2.38, 0.0, 3),
    "edge/no_duration.webm": ((1280, 720), None, 0.0, 5),
    "edge/bbb_2500ms_start1.5s.ts": ((1920, 1080), 2.513, 0.011, 3),
    "edge/sample_edit_list_negpts_hevc_rot.mp4": ((1080, 1920), 2.548, 0.0, 3),
    "edge/corrupted.mp4": ((1280, 720), 5.0, 0.0, 5),
    "edge/DERIVED_truncated_one-by-one.mp4": ((768, 432), 139.4, 0.0, 80),
}
QUICK = {
    "car-detection.mp4",
    "dog_270_rotated.mp4",
    "edge/no_duration.webm",
    "edge/bbb_2500ms_start1.5s.ts",
    "edge/corrupted.mp4",
}


@needs_videos
@pytest.mark.parametrize("name", everyday(REAL, QUICK))
def test_real_clips(name: str) -> None:
    size, seconds, first, count = REAL[name]
    with FileSource(VIDEOS / name) as source:
        assert (source.info.width, source.info.height) == size
        assert source.info.duration_seconds == (pytest.approx(seconds, abs=0.01) if seconds else None)
        pts = []
        for frame in source.frames(1.0):
            pts.append(frame.pts_seconds)
            assert frame.data.shape == (3, size[1], size[0])
    assert pts[0] == pytest.approx(first, abs=0.002) and abs(len(pts) - count) <= 1
    assert all(a < b for a, b in pairwise(pts))
    text = " ".join(source.stats.warnings)
    assert ("59.3 s are missing" in text) == ("truncated" in name)
    assert ("damaged" in text) == ("corrupted" in name or "truncated" in name)


@needs_videos
@pytest.mark.slow
@pytest.mark.parametrize("name", ["chrome.mp4", "edge/fire2_rot180_lowfps.mp4", "edge/corrupted.mp4", "mixed-content_vfr.webm"])
@pytest.mark.parametrize("reader", ["pyav", "decord"])
def test_real_clips_match_an_independent_decode(name: str, reader: str) -> None:
    check_against_reference(VIDEOS / name, 2.0, reader)


@pytest.mark.slow
@needs_videos
def test_real_bad_files_and_long_ones() -> None:
    for name, words in (("edge/invalid-bitstream.webm", "decoded"), ("edge/sample_audio_only.mp4", "no video stream")):
        with pytest.raises(SourceError, match=words):
            FileSource(VIDEOS / name)
    for name in ("long_1080p_lowbitrate.mp4", "long_180p_av1.mp4"):
        with FileSource(VIDEOS / name) as source:
            assert source.info.duration_seconds == pytest.approx(362.767, abs=0.01) and not source.stats.warnings
            frames = source.frames(2.0, start_seconds=300.2)
            assert [next(frames).pts_seconds for _ in range(3)] == pytest.approx([300.2, 300.5, 301.0], abs=0.02)
            assert source.stats.frames_seen < 2000


def test_probe_reports_the_plain_facts(tmp_path: Path) -> None:
    found = probe_file(write_video(tmp_path / "a.mp4", seconds=3))
    assert found.pts_seconds is not None and len(found.pts_seconds) == 30 and found.plain and not found.warnings
    assert found.info.codec == "h264" and found.info.fps == pytest.approx(10)
