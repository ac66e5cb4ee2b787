"""The page without a browser: the streams behind its tabs, and its handlers."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from held_streams import request, wait_for

from data.errors import ConfigError, MemoryBankError, QuestionError, SourceError
from data.sources import WorldSource
from data.world import make_world
from model_adapters.base import ModelAdapter
from vstream.commentary import NarrationRules
from vstream.config import SessionConfig
from vstream.ingest import thumbnail
from vstream.ui import tab as tab_module
from vstream.ui.dialogue import Exchange
from vstream.ui.refresh import fresh
from vstream.ui.snapshot import snapshot_of
from vstream.ui.speech import watches_html
from vstream.ui.studio import PageError, Studio
from vstream.ui.tab import Tab
from vstream.watches import WatchRules

FAST = "world:?seed=7&seconds=20&speed=0"


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


def test_the_page_offers_nothing_to_other_programs(studio: Studio) -> None:
    pytest.importorskip("gradio")
    from vstream.ui.page import build

    page = build(studio)
    assert {fn.api_visibility for fn in page.fns.values()} == {"private"}
    assert page.analytics_enabled is False


def test_a_taken_port_is_a_message(studio: Studio) -> None:
    pytest.importorskip("gradio")
    from vstream.ui.serve import serving

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port} is taken"), serving(studio, port=port):
            pass


def test_an_earlier_answer_stays_in_view_while_a_new_one_is_written(studio: Studio) -> None:
    gradio = pytest.importorskip("gradio")
    from vstream.ui.handlers import Handlers

    handlers, page = Handlers(studio), request("a")
    tab = studio.open("a")
    studio.start_first("a")
    watched(tab)
    *_, first = handlers.ask("what is on screen now ?", "5", False, page)
    assert "Asked at 00:05" in first[1]
    writing = handlers.ask("what is on screen now ?", "9", False, page)
    assert "Looking for the moments" in next(writing)[1] and "Asked at 00:09" in next(writing)[1]
    chosen = SimpleNamespace(index=1)
    assert "Asked at 00:05" in handlers.show_answer(chosen, page)[0]  # type: ignore[arg-type]
    marked = tab.marked
    *_, last = writing
    assert last[1] == gradio.skip() and tab.marked == marked and tab.dialogue[1].answer is not None
    assert "Asked at 00:09" in handlers.show_answer(SimpleNamespace(index=3), page)[0]  # type: ignore[arg-type]
