"""Commentary as files: whoever reads them finds the same times and words; and the commands that write them."""

from __future__ import annotations

import html
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import pytest

from data.errors import ConfigError, SourceError
from data.frames import Frame
from data.questions import comment_at
from data.sources.burn import burn, with_words
from data.sources.record import write_world
from data.sources.world_source import WorldSource
from data.world import make_world
from vstream.__main__ import main
from vstream.captions import CaptionFile, cues, kind_of, write_captions
from vstream.commentary import ContinuousCommentator, PromptedCommentator, Utterance, prompted
from vstream.triggers import Never

Row = tuple[float, float, str]
SAID = [
    Utterance(0.0, 1.0, "a red circle appears"),
    Utterance(2.0, 3.0, "the red circle leaves and a blue star appears"),
    Utterance(3725.25, 3726.25, 'he says: "<b>5 > 3</b> & -->\n\nnothing", doesn\'t he? Ünïcödé 😀'),
]


def seconds(stamp: str) -> float:
    """`01:02:05.250` or `02:05,250` as a person reads it."""
    *hours, minutes, rest = stamp.replace(",", ".").split(":")
    return 3600 * float(hours[0] if hours else 0) + 60 * float(minutes) + float(rest)


def read_vtt(text: str) -> list[Row]:
    """By the letter of the specification: a header, then blocks between empty lines."""
    header, *blocks = re.split(r"\n\n+", text.strip())
    assert header == "WEBVTT"
    found = []
    for block in blocks:
        timing, *lines = block.split("\n")
        start, end = re.fullmatch(r"(\S+) --> (\S+)", timing).groups()  # type: ignore[union-attr]
        assert "-->" not in "".join(lines) and "<" not in "".join(lines)
        found.append((seconds(start), seconds(end), html.unescape("\n".join(lines))))
    return found


def read_srt(text: str) -> list[Row]:
    found = []
    for number, block in enumerate(re.split(r"\n\n+", text.strip()) if text.strip() else [], 1):
        index, timing, *lines = block.split("\n")
        assert int(index) == number
        start, end = timing.split(" --> ")
        found.append((seconds(start), seconds(end), "\n".join(lines)))
    return found


def read_jsonl(text: str) -> list[Row]:
    rows = [json.loads(line) for line in text.splitlines()]
    assert all(list(row) == ["start_seconds", "end_seconds", "text"] for row in rows)
    return [(row["start_seconds"], row["end_seconds"], row["text"]) for row in rows]


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize(
    ("kind", "read", "shown"),
    [
        ("vtt", read_vtt, flat),
        ("srt", read_srt, lambda text: flat(text).replace("-->", "→")),
        ("jsonl", read_jsonl, lambda text: text),
    ],
)
def test_what_is_written_reads_back_at_every_moment(
    tmp_path: Path, kind: str, read: Callable[[str], list[Row]], shown: Callable[[str], str]
) -> None:
    path = tmp_path / f"said.{kind}"
    expected = [(c.start_seconds, pytest.approx(c.end_seconds, abs=1e-3), shown(c.text)) for c in cues(SAID)]
    with CaptionFile(path) as file:
        for number, utterance in enumerate(SAID):
            file.say(utterance)
            assert read(path.read_text()) == expected[:number], "all but the one whose end is open"
        settled = expected[-1][1].expected
        file.passed(settled + 11.9)
        assert len(read(path.read_text())) == len(SAID) - 1, "a sentence of 12 s could still begin in it"
        file.passed(settled + 12.1)
        assert read(path.read_text()) == expected
        file.say(Utterance(4000.0, 4001.0, "the end"))
    assert [row[2] for row in read(path.read_text())] == [*(row[2] for row in expected), "the end"]


@pytest.mark.parametrize("kind", ["vtt", "srt"])
def test_ffmpeg_reads_the_same_cues(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"said.{kind}"
    shown = list(cues(SAID))
    assert write_captions(path, SAID) == len(SAID)
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(container.streams.subtitles[0]) if p.size]
        found = [(float(p.pts * p.time_base), float(p.duration * p.time_base)) for p in packets]
        assert b"a red circle appears" in bytes(packets[0])
    for (start, length), cue in zip(found, shown, strict=True):
        assert start == pytest.approx(cue.start_seconds, abs=0.002)
        assert start + length == pytest.approx(cue.end_seconds, abs=0.002)


def test_markdown_is_a_list_in_which_nothing_is_markup(tmp_path: Path) -> None:
    path = tmp_path / "said.md"
    write_captions(path, [*SAID, Utterance(5.0, 6.0, "*a* [link](x) &lt; ~~b~~")])
    lines = path.read_text().splitlines()
    assert lines[:3] == ["# Commentary", "", "- **00:00:00** a red circle appears"]
    assert lines[-1] == "- **00:00:05** \\*a\\* \\[link\\](x) \\&lt; \\~\\~b\\~\\~" and "\\<b\\>" in lines[4]


def test_cues_stay_to_be_read_but_never_into_the_next() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        starts = np.cumsum(rng.integers(1, 9, 8))
        said = [Utterance(float(s), float(s + 1), "word " * int(rng.integers(1, 20))) for s in starts]
        shown = list(cues(said))
        assert [(c.start_seconds, c.text) for c in shown] == [(u.start_seconds, u.text) for u in said]
        for cue, following in zip(shown, [*shown[1:], None], strict=True):
            needed = len(cue.text.split()) / 3
            limit = following.start_seconds if following else float("inf")
            assert cue.end_seconds <= limit and cue.end_seconds >= min(cue.start_seconds + needed, limit) - 1e-9
    assert list(cues([])) == []


def test_a_file_that_names_no_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"end it in \.vtt, \.srt, \.jsonl, \.md"):
        kind_of(Path("said.txt"))
    with pytest.raises(ConfigError, match="cannot be written"):
        write_captions(tmp_path / "nowhere" / "said.vtt", SAID)


def test_burnt_words_are_there_when_they_are_said(tmp_path: Path) -> None:
    frames = [Frame(np.full((3, 97, 129), 90, np.uint8), t) for t in (0.0, 0.31, 0.5, 1.1, 1.74, 2.2)]
    path = tmp_path / "clip.mp4"
    assert burn(frames, [(0.3, 1.0, "a red circle appears"), (1.7, 2.0, "gone")], path, fps=3.0) == 6
    with av.open(str(path)) as container:
        found = [(float(f.pts * f.time_base), f.to_ndarray(format="gray")) for f in container.decode(video=0)]
    assert [round(t, 2) for t, _ in found] == [f.pts_seconds for f in frames]
    assert [bool(np.ptp(picture[48:]) > 60) for _, picture in found] == [False, True, True, False, True, False]
    assert not np.ptp(found[1][1][:40]) > 30, "the words stand at the foot"
    with pytest.raises(SourceError, match="no frames"):
        burn([], [], path, 3.0)


def test_long_words_are_wrapped_inside_the_picture() -> None:
    picture = with_words(np.zeros((3, 96, 96), np.uint8), "the yellow triangle leaves and a purple star appears")
    assert picture.shape == (3, 96, 96) and picture.max() > 200
    assert picture[:, :, :2].max() < 100 and picture[:, :, -2:].max() < 100, "no letter is cut off at the side"


@pytest.fixture(scope="module")
def variable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short world as a file with a variable frame rate."""
    world = make_world(seed=12, seconds=10, side=128)
    return write_world(world, tmp_path_factory.mktemp("said") / "world.mp4", fps=15, jitter_seconds=0.05)


@pytest.mark.slow
def test_comment_on_a_file_with_a_variable_rate(variable: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, clip = tmp_path / "said.jsonl", tmp_path / "clip.mp4"
    assert main(["comment", str(variable), "--out", str(out), "--burn", str(clip)]) == 0
    rows = read_jsonl(out.read_text())
    truth = {t: comment_at(make_world(12, 10, 128), t) for t in range(1, 10)}
    right = sum(any(start == t and text == words for start, _, text in rows) for t, words in truth.items() if words)
    assert right >= 0.7 * sum(map(bool, truth.values())), "at the second of the stream, not at a number of frames"
    with av.open(str(clip)) as container:
        assert sum(1 for _ in container.decode(video=0)) > 50
    assert capsys.readouterr().out == "", "progress and counts go to stderr"


def test_a_clip_is_read_as_far_as_it_is_burnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames, read = WorldSource.frames, []

    def counted(source: WorldSource, fps: float, start_seconds: float = 0.0) -> Iterator[Frame]:
        for frame in frames(source, fps, start_seconds):
            read.append(frame.pts_seconds)
            yield frame

    monkeypatch.setattr(WorldSource, "frames", counted)
    argv = ["comment", "world:?seed=12&seconds=60&speed=0", "--until", "2", "--out", str(tmp_path / "said.vtt")]
    assert main([*argv, "--burn", str(tmp_path / "clip.mp4")]) == 0
    assert max(read) < 3


@pytest.mark.parametrize(("flags", "asked"), [([], 2), (["--poll-seconds", "0"], 6)])
def test_comment_looks_as_often_as_it_is_told(
    flags: list[str], asked: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six seconds in which only the poll asks for words, by default every 4 s."""
    looked: list[int] = []
    monkeypatch.setattr(PromptedCommentator, "_comment", lambda engine, num_words: looked.append(num_words) or "")
    monkeypatch.setattr(prompted, "create_gate", lambda config: Never())
    assert main(["comment", "world:?seed=12&seconds=6&speed=0", "--out", str(tmp_path / "said.vtt"), *flags]) == 0
    assert len(looked) == asked


@pytest.mark.slow
def test_what_was_said_before_a_kill_is_in_the_file(tmp_path: Path) -> None:
    out = tmp_path / "said.vtt"
    source = "world:?seed=12&seconds=600&speed=4"
    child = subprocess.Popen([sys.executable, "-m", "vstream", "comment", source, "--out", str(out)], stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while not out.exists() or out.read_text().count("-->") < 3:
        assert child.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    child.kill()
    child.wait()
    rows = read_vtt(out.read_text())
    assert len(rows) >= 3 and all(start < stop <= 600 for start, stop, _ in rows)


def test_a_stream_that_is_stopped_from_outside_tells_what_was_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGTERM, as a service gets it, in the middle of a sentence."""
    frames, before = WorldSource.frames, signal.getsignal(signal.SIGTERM)

    def stopped(source: WorldSource, fps: float, start_seconds: float = 0.0) -> Iterator[Frame]:
        for frame in frames(source, fps, start_seconds):
            if frame.pts_seconds >= 4:
                signal.raise_signal(signal.SIGTERM)
            yield frame

    monkeypatch.setattr(WorldSource, "frames", stopped)
    monkeypatch.setattr(ContinuousCommentator, "_speak", lambda engine, num_words: "and on")
    # Whatever is not taken as Ctrl-C must not end the tests.
    monkeypatch.setattr(signal, "raise_signal", lambda number: cast(Any, signal.getsignal(number))(number, None))
    out = tmp_path / "said.srt"
    argv = ["comment", "world:?seed=12&seconds=20&speed=0", "--engine", "continuous", "--out", str(out)]
    assert main(argv) == 0 and "stopped\n1 cues" in capsys.readouterr().err
    assert [text for *_, text in read_srt(out.read_text())] == ["and on"] and signal.getsignal(signal.SIGTERM) == before


def test_a_stream_that_breaks_off_leaves_what_was_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The source fails in the middle of a sentence, which is told as far as it went."""
    frames = WorldSource.frames

    def broken(source: WorldSource, fps: float, start_seconds: float = 0.0) -> Iterator[Frame]:
        for frame in frames(source, fps, start_seconds):
            if frame.pts_seconds >= 4:
                raise SourceError("the camera is gone")
            yield frame

    monkeypatch.setattr(WorldSource, "frames", broken)
    monkeypatch.setattr(ContinuousCommentator, "_speak", lambda engine, num_words: "and on")
    out = tmp_path / "said.srt"
    argv = ["comment", "world:?seed=12&seconds=20&speed=0", "--engine", "continuous", "--out", str(out)]
    assert main(argv) == 2 and "the camera is gone" in capsys.readouterr().err
    assert read_srt(out.read_text()) == [(0.0, 4.0, "and on")]


def test_watch_prints_a_line_per_alert(variable: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stay = make_world(12, 10, 128).stays[1]
    log = tmp_path / "log.jsonl"
    flags = ["--json", "--log", str(log), "--until", str(stay.start_seconds + 2)]
    assert main(["watch", str(variable), "--when", f"a {stay.name} appears", "--when", "the door opens", *flags]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [set(row) for row in rows] == [{"watch", "fired_at_seconds", "text", "score", "chunk_id"}]
    assert stay.start_seconds <= rows[0]["fired_at_seconds"] < stay.start_seconds + 2
    assert {json.loads(line)["watch"] for line in log.read_text().splitlines()} == {1, 2}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["watch", "world:?seconds=5&speed=0", "--when", " "], "the watch is empty"),
        (["watch", "world:?seconds=5&speed=0", "--when", "it is on and it is not on"], "contradicts itself"),
        (["watch", "world:?seconds=5&speed=0", "--when", "x", "--confirm", "3", "--of", "2"], "can never come"),
        (["watch", "world:?seconds=5&speed=0", "--when", "x", "--webhook", "http://x.example/"], "not allowed"),
        (["watch", "world:?seconds=5&speed=0", "--when", "x", "--until", "0"], "after 0 s"),
        (["watch", "world:?seconds=5&speed=0"], "--when"),
        (["watch", "world:?seconds=5&speed=0", "--when", "x", "--log", "/dev/full"], "/dev/full cannot be written"),
        (["watch", "world:?seconds=5&speed=0", "--when", "x", "--log", "/no/such/folder/log"], "choose another --log"),
        (["comment", "world:?seconds=5&speed=0", "--out", "/no/such/folder/said.vtt"], "choose another --out"),
        (["comment", "world:?seconds=5&speed=0", "--out", "said.doc"], "end it in"),
        (["comment", "world:?seconds=5&speed=1", "--out", "said.vtt", "--burn", "clip.mp4"], "cannot be watched twice"),
        (["comment", "world:?seconds=5&speed=0", "--out", "said.vtt", "--burn", "clip.avi"], "end it in .mp4"),
    ],
)
def test_bad_input_is_one_line(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main(argv)
    except SystemExit as stop:
        status = stop.code  # type: ignore[assignment]
    told = capsys.readouterr().err.strip()
    assert status == 2 and words in told and "\n" not in told and "Traceback" not in told
