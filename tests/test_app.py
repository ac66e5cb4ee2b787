"""The page without a browser: what it shows, the streams behind its tabs, and the command line."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import app
from data.errors import ConfigError, MemoryBankError, QuestionError, SourceError
from data.sources import WorldSource
from data.world import make_world
from model_adapters.base import ModelAdapter
from vstream.answer import Answer, Evidence
from vstream.commentary import NarrationRules
from vstream.config import SessionConfig
from vstream.ingest import ChunkRecord, thumbnail
from vstream.ui import stage
from vstream.ui import tab as tab_module
from vstream.ui.chips import MAX_CHIPS, chips_html, merged
from vstream.ui.dialogue import Exchange, finished_turns, messages
from vstream.ui.refresh import fresh
from vstream.ui.snapshot import snapshot_of
from vstream.ui.speech import watches_html
from vstream.ui.stage import Picture, Snapshot, badge_html, kept_cells_svg, notice_html, stage_html, telemetry_html
from vstream.ui.studio import PageError, Studio, check_source
from vstream.ui.tab import Tab
from vstream.ui.text import clock, count, escaped, jpeg_uri, seconds_of, size, span
from vstream.ui.timeline import MAX_BARS, bars_of, legend_html, tier_names, timeline_html
from vstream.ui.watched import PREVIEW_SIDE, WatchedSource, preview_jpeg
from vstream.watches import WatchRules

ROOT = Path(__file__).parent.parent
EVIL = '"><script>alert(1)</script><img src=x onerror=alert(1)>'
NAMES = tier_names("cpu")
JPEG = thumbnail(np.zeros((3, 32, 48), np.uint8))
FAST = "world:?seed=7&seconds=20&speed=0"


def record(i: int, kept: int = 4, seconds: float = 1.0) -> ChunkRecord:
    keep = np.zeros((1, 4, 4), bool)
    keep.reshape(-1)[:kept] = True
    return ChunkRecord(i, i * seconds, (i + 1) * seconds, (i + 0.5) * seconds, kept + 3, keep, JPEG)


def moment(i: int, score: float, seconds: float = 1.0) -> Evidence:
    return Evidence(i, i * seconds, (i + 1) * seconds, score, "gpu")


def wait_for(condition: Callable[[], object], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


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


@pytest.fixture
def studio(random_adapter: ModelAdapter) -> Iterator[Studio]:
    config = SessionConfig(window_seconds=4, top_k=4, max_new_tokens=6)
    made = Studio(random_adapter, config, start_source=FAST, max_tabs=2)
    yield made
    made.close_all()


def watched(tab: Tab) -> Tab:
    wait_for(lambda: snapshot_of(tab).state == "ended")
    return tab


def test_a_tab_watches_answers_and_shows_moments(studio: Studio) -> None:
    tab = studio.open("a")
    assert snapshot_of(tab).state == "idle" and tab.picture() is None
    with pytest.raises(QuestionError, match="no stream yet"):
        next(tab.ask("what is on screen now ?"))
    studio.start_first("a")
    watched(tab)
    snapshot = snapshot_of(tab)
    assert (snapshot.num_chunks, snapshot.now_seconds) == (20, 19.5) and snapshot.num_bytes["gpu"] > 0
    pieces = fresh(tab)
    assert set(pieces) == {"stage", "telemetry", "timeline"} and pieces["timeline"].count("data-chunk=") == 20
    assert fresh(tab) == {}, "what has not changed is not sent again"

    answers = list(tab.ask("what is on screen now ?"))
    assert answers[-1].done and answers[-1].evidence
    tab.dialogue.append(Exchange("q", answers[-1]))
    assert all(0 <= e.chunk_id < 20 for e in tab.evidence(tab.dialogue[-1]))

    assert tab.look_at(7) == 7.0
    stage = fresh(tab)["stage"]
    assert "vs-cells" in stage and "00:07–00:08" in stage
    tab.look_live()
    assert "Stream time 00:19" in fresh(tab)["stage"]
    with pytest.raises(MemoryBankError, match="no longer in memory"):
        tab.look_at(999)


def test_stop_ends_an_answer_at_its_next_token(studio: Studio) -> None:
    tab = studio.open("a")
    studio.start_first("a")
    watched(tab)
    answers = tab.ask("what is on screen now ?")
    first = next(answers)
    with pytest.raises(QuestionError, match="still being written"):
        next(tab.ask("and now ?"))
    tab.cancel()
    rest = list(answers)
    assert not first.done and not any(answer.done for answer in rest)
    assert list(tab.ask("what is on screen now ?"))[-1].done, "the next question is answered"


def test_a_new_stream_ends_the_answer_about_the_old_one(studio: Studio) -> None:
    tab = studio.open("a")
    studio.start_first("a")
    watched(tab)
    session, answers = tab.session, tab.ask("what is on screen now ?")
    next(answers)
    starter = threading.Thread(target=studio.start_demo, args=("a", 8, 0.0))
    starter.start()
    assert not any(answer.done for answer in answers)
    starter.join(30)
    assert tab.session is not session and tab.dialogue == []


def test_a_new_stream_keeps_the_watches_and_the_commentary(studio: Studio) -> None:
    tab = studio.open("keeping")
    tab.start(WorldSource(seed=7, seconds=4, speed=0))
    session = watched(tab).session
    assert session is not None
    session.watch("tell me when a red circle appears", WatchRules(cooldown_seconds=7))
    session.narrate(NarrationRules(words_per_second=4))
    tab.start(WorldSource(seed=7, seconds=4, speed=0))
    unasked = watched(tab).session.unasked  # type: ignore[union-attr]
    (kept,) = unasked.watches.active
    assert kept.condition.text == "a red circle appears" and kept.rules.cooldown_seconds == 7 and kept.set_at_seconds == 0
    assert unasked.narration == NarrationRules(words_per_second=4)
    assert "before: 1 watch and the commentary." in watches_html(unasked.watches.active, (), unasked.kept)
    unasked.quiet()
    unasked.watches.remove(kept.number)
    tab.start(WorldSource(seed=7, seconds=4, speed=0))
    unasked = watched(tab).session.unasked  # type: ignore[union-attr]
    assert not unasked.watches.active and unasked.narration is None and not unasked.kept


def test_two_tabs_never_mix(studio: Studio) -> None:
    one, two = studio.open("a"), studio.open("b")
    studio.start_demo("a", 1, 0.0)
    studio.start_demo("b", 2, 0.0)
    wait_for(lambda: snapshot_of(one).num_chunks > 8 and snapshot_of(two).num_chunks > 8)
    one.stop(), two.stop()
    truth = {"a": make_world(1, 600), "b": make_world(2, 600)}
    for key, tab in (("a", one), ("b", two)):
        for stored in tab.records()[:8]:
            assert stored.thumbnail == thumbnail(truth[key].frame(stored.start_seconds))
    one.look_at(3)
    one.marked = frozenset({3})
    assert two.moment is None and "vs-marked" not in fresh(two)["timeline"]
    studio.close("a")
    assert list(two.ask("what is on screen now ?"))[-1].done, "closing one leaves the other"


def test_pages_are_limited_and_lost_ones_say_so(studio: Studio) -> None:
    studio.open("a"), studio.open("b")
    assert studio.open("a") is studio.tab("a"), "opening twice is the same page"
    with pytest.raises(PageError, match="2 pages are open"):
        studio.open("c")
    studio.tab("a").last_seen -= 10_000
    studio.open("c")
    with pytest.raises(PageError, match="reload"):
        studio.tab("a")
    studio.close("unknown")
    studio.close_all()
    assert len(studio) == 0


def test_closing_a_page_ends_its_threads(studio: Studio) -> None:
    tab = studio.open("a")
    studio.start_demo("a", 7, 1.0)
    feeder = tab.feeder
    assert feeder and feeder.running
    studio.close("a")
    wait_for(lambda: not feeder.running)
    assert snapshot_of(tab).state == "closed" and tab.records() == []
    with pytest.raises(SourceError, match="closed"):
        tab.start(WorldSource(speed=0))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "not a stream's address"),
        ("notes.txt", "not a stream's address"),
        ("file:///etc/passwd", "not a stream's address"),
        ("world:?seconds=600", "not a stream's address"),
        ("http://127.0.0.1:1/x.m3u8", "."),
        ("rtsp://user:secret@192.168.0.1/cam", "."),
    ],
)
def test_a_bad_url_is_a_message_and_stops_nothing(studio: Studio, url: str, words: str) -> None:
    tab = studio.open("a")
    studio.start_demo("a", 7, 1.0)
    session = tab.session
    with pytest.raises(SourceError, match=words) as raised:
        studio.start_url("a", url)
    assert "secret" not in str(raised.value) and "\n" not in str(raised.value)
    assert tab.session is session and snapshot_of(tab).state in ("opening", "live")


def test_bad_uploads_and_seeds_are_messages(studio: Studio, tmp_path: Path) -> None:
    studio.open("a")
    fake = tmp_path / "video.mp4"
    fake.write_bytes(b"no video")
    with pytest.raises(SourceError) as raised:
        studio.start_upload("a", str(fake))
    assert str(tmp_path) not in str(raised.value), "the page does not say where the server keeps files"
    for seed in (None, -1, 0.5):
        with pytest.raises(SourceError, match="whole number"):
            studio.start_demo("a", seed, 1.0)


@pytest.mark.slow
def test_camera_frames_start_a_stream_until_it_is_stopped(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    tab = studio.open("a")
    world = make_world(5, 30)
    for i in range(4):
        tab.push(world.frame(i).transpose(1, 2, 0))
        time.sleep(0.5)
    wait_for(lambda: snapshot_of(tab).num_chunks > 0)
    assert snapshot_of(tab).state == "live" and snapshot_of(tab).label == "camera of this browser"
    tab.stop()
    stopped = tab.session
    tab.push(world.frame(5).transpose(1, 2, 0))
    assert tab.session is stopped and snapshot_of(tab).state == "ended", "frames that still come do not start it again"
    monkeypatch.setattr(tab_module, "CAMERA_SILENCE_SECONDS", 0.1)
    time.sleep(0.2)
    tab.push(world.frame(6).transpose(1, 2, 0))
    assert tab.session is not stopped
    wait_for(lambda: snapshot_of(tab).state == "paused")


def test_memory_folder_is_private_and_checked(random_adapter: ModelAdapter, tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    studio = Studio(random_adapter, folder=folder, start_source=FAST)
    assert folder.stat().st_mode & 0o777 == 0o700
    studio.open("a")
    studio.start_first("a")
    assert "disk" in snapshot_of(watched(studio.tab("a"))).num_bytes
    studio.close_all()
    (tmp_path / "file").write_text("x")
    with pytest.raises(MemoryBankError, match="cannot be used"):
        Studio(random_adapter, folder=tmp_path / "file")


def test_hosts_need_a_token() -> None:
    pytest.importorskip("gradio")
    from vstream.ui.serve import check_host, is_loopback

    assert all(map(is_loopback, ("127.0.0.1", "localhost", "::1", "127.1.2.3")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.4", "example.org", "localhost.example.org", "")))
    check_host("127.0.0.1", None, False)
    check_host("0.0.0.0", "long enough", False)
    check_host("0.0.0.0", None, True)
    with pytest.raises(ConfigError, match="--token"):
        check_host("0.0.0.0", None, False)
    with pytest.raises(ConfigError, match="too short"):
        check_host("0.0.0.0", "short", False)


def test_the_page_offers_nothing_to_other_programs(studio: Studio) -> None:
    pytest.importorskip("gradio")
    from vstream.ui.page import build

    page = build(studio)
    assert {fn.api_visibility for fn in page.fns.values()} == {"private"}
    assert page.analytics_enabled is False


def test_source_is_checked_before_serving() -> None:
    check_source("world:?seed=1&seconds=5&speed=1")
    with pytest.raises(SourceError):
        check_source("world:?seed=no")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--source", "no-such-file.mp4"], "no-such-file.mp4"),
        (["--source", "world:?speed=fast"], "speed"),
        (["--host", "0.0.0.0"], "--insecure"),
        (["--fps", "0"], "fps"),
        (["--model", "no-such-folder/at/all"], "model"),
        (["--port", "many"], "--port"),
        (["--port", "99999"], "99999"),
        (["--port", "-1"], "from 1 to 65535"),
        (["--no-such-flag"], "--no-such-flag"),
        (["--certificate", "no.pem", "no.key"], "no.pem"),
    ],
)
def test_a_bad_command_line_is_one_line_and_exit_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gradio")
    try:
        status = app.main(arguments)
    except SystemExit as left:
        status = left.code
    out, err = capsys.readouterr()
    assert status == 2 and out == ""
    assert len(err.strip().splitlines()) == 1 and words in err


@pytest.fixture
def certified(tmp_path: Path) -> Callable[[str], tuple[str, str]]:
    """Makes a certificate and its key, as PEM files."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")

    def make(name: str, *locked: str) -> tuple[str, str]:
        files = str(tmp_path / f"{name}.crt"), str(tmp_path / f"{name}.key")
        made = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-subj", "/CN=localhost", "-out", files[0], "-keyout", files[1]]
        subprocess.run([*made, *(locked or ("-nodes",))], check=True, capture_output=True)
        return files

    return make


@pytest.mark.slow
def test_a_certificate_that_cannot_be_used_is_one_line_and_exit_2(
    certified: Callable[..., tuple[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gradio")
    from vstream.ui.serve import checked_certificate

    chain, key = certified("right")
    _, other_key = certified("other")
    locked_chain, locked_key = certified("locked", "-passout", "pass:a secret")
    no_pem = tmp_path / "no.pem"
    no_pem.write_text("no certificate\n")
    wrong = [
        (str(no_pem), key, "PEM"),
        (chain, str(no_pem), "PEM"),
        (chain, other_key, "is not the key of"),
        (locked_chain, locked_key, "PEM"),
    ]
    for *files, words in wrong:
        assert app.main(["--certificate", *files]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and words in err and str(files[0]) in err, err
    assert checked_certificate([chain, key]) == (chain, key)


@pytest.mark.slow
def test_the_program_itself_exits_2_without_a_traceback() -> None:
    pytest.importorskip("gradio")
    command = [sys.executable, "app.py", "--host", "0.0.0.0", "--source", "no-such-file.mp4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1 and "--token" in done.stderr


def test_a_taken_port_is_a_message(studio: Studio) -> None:
    pytest.importorskip("gradio")
    from vstream.ui.serve import serving

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port} is taken"), serving(studio, port=port):
            pass
