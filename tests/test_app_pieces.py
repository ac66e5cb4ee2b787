"""What the page shows, piece by piece: times, timeline, chips, stage and dialogue."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.errors import QuestionError
from data.sources import WorldSource
from vstream.answer import Answer, Evidence
from vstream.ingest import ChunkRecord, thumbnail
from vstream.ui import stage
from vstream.ui.chips import MAX_CHIPS, chips_html, merged
from vstream.ui.dialogue import Exchange, finished_turns, messages
from vstream.ui.stage import Picture, Snapshot, badge_html, kept_cells_svg, notice_html, stage_html, telemetry_html
from vstream.ui.text import clock, count, escaped, jpeg_uri, seconds_of, size, span
from vstream.ui.timeline import MAX_BARS, bars_of, legend_html, tier_names, timeline_html
from vstream.ui.watched import PREVIEW_SIDE, WatchedSource, preview_jpeg

EVIL = '"><script>alert(1)</script><img src=x onerror=alert(1)>'
NAMES = tier_names("cpu")
JPEG = thumbnail(np.zeros((3, 32, 48), np.uint8))


def record(i: int, kept: int = 4, seconds: float = 1.0) -> ChunkRecord:
    keep = np.zeros((1, 4, 4), bool)
    keep.reshape(-1)[:kept] = True
    return ChunkRecord(i, i * seconds, (i + 1) * seconds, (i + 0.5) * seconds, kept + 3, keep, JPEG)


def moment(i: int, score: float, seconds: float = 1.0) -> Evidence:
    return Evidence(i, i * seconds, (i + 1) * seconds, score, "gpu")


@pytest.mark.parametrize(("seconds", "text"), [(0, "00:00"), (134.9, "02:14"), (59.9999999, "01:00"), (3734, "1:02:14")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_texts() -> None:
    assert span(134, 142) == "02:14–02:22"
    assert [size(n) for n in (0, 1023, 1536, 12.5 * 2**20, 3 * 2**30)] == ["0 B", "1023 B", "1.5 KiB", "12.5 MiB", "3.0 GiB"]
    assert [count(n) for n in (950, 12_345, 4_100_000)] == ["950", "12.3k", "4.1M"]
    assert jpeg_uri(b"\xff\xd8").startswith("data:image/jpeg;base64,")
    assert "<" not in escaped(EVIL) and '"' not in escaped(EVIL)


@pytest.mark.parametrize(("text", "seconds"), [("", None), (None, None), (" 134 ", 134), ("2:14", 134), ("1:02:14.5", 3734.5)])
def test_times_that_are_typed(text: str | None, seconds: float | None) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["-1", "soon", "1:2:3:4", "1e400", "nan", "2:", "٣"])
def test_times_that_are_none(text: str) -> None:
    with pytest.raises(QuestionError, match="not a stream time"):
        seconds_of(text)


def test_timeline_has_a_bar_per_chunk_with_its_tier_mark_and_title() -> None:
    bars = bars_of([record(0, 16), record(1), record(3)], {0: "gpu", 1: "ram"}.get, marked={1})
    assert [(b.chunk_id, b.tier, b.kept_ratio, b.marked) for b in bars] == [
        (0, "gpu", 1.0, False),
        (1, "ram", 0.25, True),
        (3, "gone", 0.25, False),
    ]
    html = timeline_html(bars, NAMES)
    assert html.count("data-chunk=") == 3 and html.count("vs-marked") == 1
    assert "00:01–00:02 · 75 % dropped · RAM · behind the last answer" in html
    thinned = timeline_html(bars_of([record(0), record(1)], lambda _: "disk", steps={0: 1}), NAMES)
    assert (
        thinned.count("vs-thinned")
        == 1
        == thinned.count('title="00:00–00:01 · 75 % dropped · disk · thinned to fit its budget"')
    )
    assert "starts with the first" in timeline_html([], NAMES)
    assert "CPU" in legend_html(NAMES) and "GPU" in legend_html(tier_names("cuda"))


@pytest.mark.parametrize("num", [239, 240, 241, 1000, 30_000])
def test_long_timelines_are_binned(num: int) -> None:
    records = [record(i) for i in range(5, 5 + num)]
    bars = bars_of(records, lambda _: "disk", marked={100})
    assert len(bars) <= MAX_BARS and sum(bar.num_chunks for bar in bars) == num
    assert [bar.chunk_id for bar in bars if bar.marked] == [100], "a click on a marked bar shows the marked chunk"
    assert bars[0].start_seconds == 5 and bars[-1].end_seconds == 5 + num
    # One chunk more must not move the bars that are there.
    grown = bars_of([*records, record(5 + num)], lambda _: "disk", marked={100})
    same_width = grown[1].num_chunks == bars[1].num_chunks
    assert not same_width or [b.start_seconds for b in grown[: len(bars)]] == [b.start_seconds for b in bars]


def test_chips_merge_contiguous_chunks_and_show_the_best_first() -> None:
    chips = merged([moment(4, 0.9), moment(12, 0.5), moment(5, 0.2), moment(3, 0.1), moment(13, 0.95)])
    assert [(c.chunk_id, c.start_seconds, c.end_seconds, c.num_chunks) for c in chips] == [(13, 12, 14, 2), (4, 3, 6, 3)]
    html = chips_html(chips, lambda chunk_id: JPEG if chunk_id == 13 else None)
    assert "[00:12–00:14]" in html and html.count("data:image/jpeg") == 1 and 'data-chunk="4"' in html
    many = chips_html(merged([moment(2 * i, 0.1) for i in range(MAX_CHIPS + 3)]), lambda _: None)
    assert many.count("data-chunk=") == MAX_CHIPS and "and 3 more" in many
    assert EVIL not in chips_html([], lambda _: None, EVIL)


def test_everything_shown_is_escaped() -> None:
    snapshot = Snapshot(EVIL, EVIL, error=EVIL, num_bytes={EVIL: 1})
    picture = Picture(JPEG, EVIL, np.ones((2, 2), bool))
    for html in (
        stage_html(snapshot, picture),
        stage_html(snapshot, None),
        telemetry_html(snapshot, {}),
        notice_html(EVIL, EVIL),
    ):
        assert "<script" not in html and "<img src=x" not in html
    assert ">idle<" in badge_html(snapshot), "an unknown state has no words of its own"


def test_stage_shows_the_picture_with_its_cells() -> None:
    html = stage_html(Snapshot("live", "here"), Picture(JPEG, "02:14", np.array([[True, False]])), moment=True)
    assert "aspect-ratio:48/32" in html and html.count('class="kept"') == 1 and html.count('class="dropped"') == 1
    assert ">live<" in html and ">moment<" in html and "02:14" in html
    assert 'viewBox="0 0 2 1"' in kept_cells_svg(np.array([[True, False]]))
    assert "Reload" in stage_html(Snapshot("closed"), None)
    assert notice_html("") == ""
    styles = (Path(stage.__file__).parent / "page.css").read_text()
    assert all(f'vs-{kind}"' in notice_html("x", kind) and f".vs-{kind} " in styles for kind in ("info", "done"))


def test_dialogue() -> None:
    answer = Answer("a red <b>", "answer", 134.0, (), 0.1, 10)
    done = replace(answer, text="a red circle", done=True)
    exchanges = [
        Exchange("q0", done),
        Exchange("q1"),
        Exchange("q2", answer, stopped=True),
        Exchange("q3", error="no"),
        Exchange("q4", replace(done, text="")),
    ]
    assert [m["content"] for m in messages(exchanges)] == [
        *("q0", "a red circle"),
        *("q1", "…"),
        *("q2", "a red &lt;b&gt; (stopped)"),
        *("q3", "⚠ no"),
        *("q4", "(no answer)"),
    ]
    assert finished_turns(exchanges) == [("q0", "a red circle"), ("q4", "")]
    assert exchanges[0].note.startswith("Asked at 02:14")


def test_watched_source_remembers_what_passed_by() -> None:
    source = WatchedSource(WorldSource(seed=3, seconds=4, speed=0, side=640), 1.0)
    assert source.newest() is None and source.info.width == 640
    frames = list(source.frames(2.0))
    assert len(frames) == 8 and source.stats.state == "ended"
    assert source.newest() == (3.5, preview_jpeg(frames[-1].data))
    assert source.picture(2) == preview_jpeg(frames[4].data) and source.picture(9) is None
    html = stage_html(Snapshot("ended"), Picture(source.picture(2) or b"", ""))
    assert f"aspect-ratio:{PREVIEW_SIDE}/{PREVIEW_SIDE}" in html
