"""The page's watches and commentary: what is shown, why, and what it can be taken away as."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from held_streams import (  # noqa: F401  # fixtures
    ALERT,
    EVIL,
    PLAIN,
    SECONDS,
    SEED,
    HeldSource,
    RecordedSource,
    request,
    studio,
    wait_for,
)

from data.errors import SourceError
from data.frames import Frame
from data.questions import comment_at
from data.world import make_world
from memory import open_memory
from memory.notes import Note, Notes
from model_adapters.base import ModelAdapter
from vstream.commentary import ContinuousCommentator, KeptNarration, NarrationRules, Utterance
from vstream.session import StreamSession
from vstream.ui.refresh import timeline_of
from vstream.ui.speech import log_html, overlay_words, utterances_html, watches_html
from vstream.ui.studio import Studio
from vstream.watches import Findings, Watch, WatchDecision, WatchRules, parse_condition


def decided(second: int, verdict: str, looked: bool, reason: str, number: int = 1) -> WatchDecision:
    return WatchDecision(Findings(number, second + 0.5, second, second, second + 1, looked, "", 0.1), verdict, 0.5, reason)


def test_the_log_gives_every_reason_and_folds_what_was_not_looked_at() -> None:
    log = [decided(t, "declined", False, f"not looked at: {t}") for t in range(3)]
    log += [decided(3, "declined", True, "the model says no"), decided(4, "fired", True, f"the model says yes {EVIL}")]
    log += [decided(t, "declined", False, "not looked at: again") for t in (5, 6)]
    html = log_html(log)
    assert html.count("<tr") == 4 and "00:05–00:06" in html and "not looked at: 2" in html and "not looked at: 1<" not in html
    assert html.index("again") < html.index("says yes") < html.index("says no"), "the newest comes first"
    assert EVIL not in html and "with its reason" in log_html([])


def test_alerts_and_words_are_shown_escaped() -> None:
    watch = Watch(1, "", parse_condition(f"it rains {EVIL}"), WatchRules(once=True, expires_seconds=60), 0.0)
    html = watches_html([watch], [ALERT])
    assert EVIL not in html and 'data-chunk="3"' in html and "00:02–00:04" in html and "once" in html and "01:00" in html
    assert "No watch is set" in watches_html([], []) and "No alert yet" in watches_html([watch], [])
    said = utterances_html([Utterance(1.0, 2.0, "first"), Utterance(61.0, 62.0, EVIL)])
    assert EVIL not in said and said.index("01:01") < said.index("first")


@pytest.mark.slow
def test_a_page_watches_and_comments_and_exports(studio: Studio, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    from vstream.ui.unasked import UnaskedHandlers

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    handlers, page = UnaskedHandlers(studio), request("a")
    assert "reload it" in handlers.watch("it rains", 3, False, "", *PLAIN, page)[0]
    tab = studio.open("a")
    assert "no stream yet" in handlers.narrate("plain", "", page)
    world = make_world(SEED, SECONDS)
    stay = world.stays[2]
    HeldSource.go.clear()
    tab.start(HeldSource(world))
    assert "say what to wait for" in handlers.watch("  ", 3, False, "", *PLAIN, page)[0]
    assert handlers.watch(f"tell me when a {stay.name} appears", 3, False, "", *PLAIN, page)[0] == ""
    assert "already" in handlers.watch(f"a {stay.name} appears", 3, False, "", *PLAIN, page)[0]
    assert handlers.watch("the door opens", 0, True, "", *PLAIN, page)[0] == ""
    assert "the door opens" not in handlers.unwatch(2, page)[1]
    assert "no watch number 2" in handlers.unwatch(2, page)[0]
    assert "nothing has been said" in handlers.export("vtt", page)[0]
    assert "knows one style" in handlers.narrate("sports", "Reds against blues.", page)
    _, _, words, *fields = handlers.tick(page)
    assert "Commentary is on; nothing" in words and fields == ["sports", "Reds against blues."]
    HeldSource.go.set()
    wait_for(lambda: tab.feeder is not None and not tab.feeder.running)
    session = tab.session
    assert session is not None
    (alert,) = session.unasked.watches.alerts
    assert int(alert.fired_at_seconds) == stay.start_seconds
    said = {int(u.start_seconds): u.text for u in session.unasked.utterances}
    truth = {t: comment_at(world, t) for t in range(SECONDS) if comment_at(world, t)}
    assert sum(said.get(t) == words for t, words in truth.items()) >= 0.8 * len(truth)
    watching, log, words, *_ = handlers.tick(page)
    assert "Commentary is off." in words, "with the stream"
    assert f'data-chunk="{alert.chunk_id}"' in watching and "the model says yes" in log and said[max(said)] in words
    assert tuple(type(piece) for piece in handlers.tick(page)) == (dict,) * 5, "shown already: nothing is sent"
    assert overlay_words(session) in (said[max(said)], "")
    timeline = timeline_of(tab)
    assert timeline.count("vs-dot vs-alert") == 1 and timeline.count("vs-dot vs-comment") == len(said)
    for kind in ("vtt", "srt", "jsonl", "md"):
        notice, file, _ = handlers.export(kind, page)
        assert notice == "" and said[max(said)] in Path(file["value"]).read_text()


def test_a_sentence_in_which_the_stream_breaks_off_is_told(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = HeldSource.frames

    def broken(source: HeldSource, fps: float, start_seconds: float = 0.0) -> Iterator[Frame]:
        yield from islice(frames(source, fps, start_seconds), 8)
        raise SourceError("the camera is gone")

    monkeypatch.setattr(HeldSource, "frames", broken)
    monkeypatch.setattr(ContinuousCommentator, "_speak", lambda engine, num_words: "and on")
    tab = studio.open("broken")
    HeldSource.go.clear()
    tab.start(HeldSource(make_world(SEED, 20)))
    session, feeder = tab.session, tab.feeder
    assert session is not None and feeder is not None
    session.narrate(NarrationRules("continuous"))
    HeldSource.go.set()
    wait_for(lambda: not feeder.running)
    assert feeder.error == "the camera is gone" and session.unasked.commentator is None
    assert [said.text for said in session.unasked.utterances] == ["and on"]
    studio.close("broken")


def test_words_over_the_picture_may_be_forgotten_while_they_are_looked_for() -> None:
    class Forgetting:
        said = iter([deque([Utterance(1.0, 2.0, "it rains")]), *[deque[Utterance]()] * 3])
        utterances = property(lambda self: next(self.said))

    assert overlay_words(cast(StreamSession, SimpleNamespace(unasked=Forgetting(), now_seconds=3.0))) == "it rains"


def test_a_page_sets_every_rule_of_a_watch(studio: Studio) -> None:
    pytest.importorskip("gradio")
    from vstream.ui.unasked import UnaskedHandlers

    handlers, page = UnaskedHandlers(studio), request("rules")
    tab = studio.open("rules")
    HeldSource.go.clear()
    tab.start(HeldSource(make_world(SEED, 4)))
    notice, watching, *_ = handlers.watch("it rains", 2, True, "", 0.7, 2, 3, 90, page)
    assert notice == "" and tab.session is not None
    (watch,) = tab.session.unasked.watches.active
    assert watch.rules == WatchRules(0.7, 2, 2, 3, True, 90)
    assert "cooldown 2 s, from 0.7, confirmed by 2 of 3 looks, once, until 01:30" in watching
    for rules, words in (
        ((0.7, 3, 2, None), "can never come"),
        ((1.5, None, None, None), "between 0 and 1"),
        ((None, None, None, None), "the threshold is empty"),
        ((0.5, None, None, -1), "more than 0"),
    ):
        assert words in handlers.watch("it snows", 2, False, "", *rules, page)[0]
    assert "the cooldown is empty" in handlers.watch("it snows", None, False, "", *PLAIN, page)[0]
    assert tab.session.unasked.watches.active == [watch], "what makes no sense is not set"
    studio.close("rules")


def test_what_is_wanted_goes_on_over_a_stored_memory_and_a_remembered_stream(studio: Studio, tmp_path: Path) -> None:
    """A stored memory in between changes nothing; a stream whose memory watches already is not told twice."""
    world = make_world(SEED, 4)
    with StreamSession(studio.adapter, studio.config, memory=tmp_path / "m") as session:
        session.watch("the door opens", WatchRules(expires_seconds=60))
        list(session.feed(world.frames()))
    remembering = Studio(studio.adapter, studio.config, start_source=None, folder=tmp_path / "library")
    tab = remembering.open("e")

    def conditions() -> list[str]:
        assert tab.session is not None
        return [watch.condition.text for watch in tab.session.unasked.watches.active]

    HeldSource.go.set()
    tab.start(RecordedSource(world))
    assert tab.session is not None
    tab.session.watch("it rains", WatchRules(expires_seconds=3600))
    wait_for(lambda: tab.feeder is not None and not tab.feeder.running)
    tab.open_stored(tmp_path / "m")
    assert conditions() == [] and not tab.session.writes
    tab.start(RecordedSource(world))
    assert conditions() == ["it rains"] and tab.session.unasked.kept == "Kept in this memory: 1 watch."
    tab.start(HeldSource(world))
    assert conditions() == ["it rains"] and tab.session.unasked.kept == "Kept from the stream before: 1 watch."
    tab.session.unasked.watches.remove(1)
    tab.open_stored(tmp_path / "m")
    tab.start(HeldSource(world))
    assert conditions() == [], "what was taken back stays so"
    remembering.close_all()


def test_a_source_is_commented_on_as_it_was_before(studio: Studio, tmp_path: Path) -> None:
    """Style and background belong to a source: they are on the page when it is watched again, and no other source has them."""
    pytest.importorskip("gradio")
    from vstream.ui.unasked import UnaskedHandlers

    HeldSource.go.set()
    here, there = RecordedSource(make_world(SEED, 4)), HeldSource(make_world(SEED, 4))
    fields: dict[str, list[Any]] = {}
    for key, source, chosen in (
        ("first", here, ("sports", "Reds against blues.")),
        ("other", there, None),
        ("again", RecordedSource(make_world(SEED, 4)), None),
    ):
        remembering = Studio(studio.adapter, studio.config, start_source=None, folder=tmp_path / "library")
        handlers = UnaskedHandlers(remembering)
        remembering.open(key).start(source)
        if chosen:
            handlers.narrate(*chosen, request(key))
        fields[key] = [field if isinstance(field, str) else None for field in handlers.tick(request(key))[-2:]]
        session = remembering.tab(key).session
        assert session is not None and (session.unasked.narration is not None) == (key == "first"), "nobody asked for words"
        remembering.close_all()
    assert fields == {"first": [*("sports", "Reds against blues.")], "other": [None, None], "again": fields["first"]}
    # A page that comments on one source comments on the next one as that was commented on.
    remembering = Studio(studio.adapter, studio.config, start_source=None, folder=tmp_path / "library")
    tab = remembering.open("last")
    tab.start(HeldSource(make_world(SEED, 4)))
    assert tab.session is not None
    tab.session.narrate(NarrationRules(background="A harbour."))
    tab.start(RecordedSource(make_world(SEED, 4)))
    assert tab.session.unasked.narration == NarrationRules(style="sports", background="Reds against blues.")
    remembering.close_all()


def test_how_it_was_commented_on_is_checked_when_it_is_read(
    random_adapter: ModelAdapter, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rules = NarrationRules(style="brief", words_per_second=1.5, background="Ein Häfen & <b>")
    with StreamSession(random_adapter, memory=tmp_path / "m") as session:
        session.narrate(NarrationRules())
        session.narrate(rules)
    with StreamSession(random_adapter, memory=tmp_path / "m", read_only=True) as session:
        assert session.unasked.suggested == rules
        session.narrate(NarrationRules(background="not written"))
    for content in ("[]", '{"style": "loud"}', "no JSON"):
        memory = open_memory(tmp_path / "m", write=True)
        assert KeptNarration(Notes(memory.manifest), True).load() == rules
        Notes(memory.manifest).put([Note("narration", 0, content)], 1)
        memory.close()
        with StreamSession(random_adapter, memory=tmp_path / "m") as session:
            assert session.unasked.suggested is None and "cannot be read" in caplog.text
            session.narrate(rules)
        caplog.clear()
