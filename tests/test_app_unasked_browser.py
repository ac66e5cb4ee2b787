"""The page in a real Chromium: commentary, two watches and a question at the same time, checked against the schedule."""

from __future__ import annotations

import json
from typing import Any

import pytest
from browser_page import Page, address, browser  # noqa: F401  # fixtures
from held_streams import LedWorld, wait_for

from data.questions import comment_at
from data.sources import FileSource
from data.sources.record import write_world
from data.world import make_world
from model_adapters.registry import load_adapter
from vstream.config import SessionConfig
from vstream.ui.studio import Studio

pytestmark = [pytest.mark.slow, pytest.mark.browser]

SEED, SECONDS = 12, 600


@pytest.fixture(scope="module")
def studio() -> Studio:
    config = SessionConfig(max_new_tokens=12)
    return Studio(load_adapter("embedded"), config, start_source=f"world:?seed={SEED}&seconds={SECONDS}&speed=1")


def test_commentary_two_watches_and_a_question_at_once(browser: Any, address: str, studio: Studio) -> None:
    page = Page(browser, address)
    world = make_world(SEED, SECONDS)
    (tab,) = studio._tabs.values()
    source = LedWorld(SEED, SECONDS)
    source.lead(4.0)
    tab.start(source)
    assert tab.session is not None
    page.tab("Commentary")
    page.page.click("#narrate")
    wait_for(lambda: tab.session.unasked.narration)
    page.tab("Watches")
    coming = [stay for stay in world.stays if stay.start_seconds > 10]
    page.page.click("#watch-rules button")
    for stay, seconds in zip(coming[:2], ("", "500"), strict=True):
        page.page.fill("#watch-words input, #watch-words textarea", f"tell me when a {stay.name} appears")
        page.page.fill("#watch-expires input", seconds)
        page.page.click("#watch")
        page.wait_text("#watching", f"a {stay.name} appears")
    assert page.text("#watching").count("until 08:2") == 1
    page.page.click("#watch")
    page.wait_text("#watch-notice", "the watch is empty")
    source.lead(SECONDS)
    page.wait("#stage .vs-said", 60)
    page.tab("Chat")
    page.ask("what is on screen now ?")
    colours = "red|green|blue|yellow|white|purple|orange|cyan"
    seen = f"() => /nothing|a ({colours}) \\w+/.test(document.querySelector('#chat').innerText)"
    page.page.wait_for_function(seen, timeout=60_000)
    page.tab("Watches")
    page.wait(f'#watching [data-chunk="{coming[1].start_seconds}"]', 300)
    page.wait_text("#watch-log", "the model says yes")
    page.shoot("watches")
    assert {a.text for a in tab.session.unasked.watches.alerts} == {f"a {stay.name} appears" for stay in coming[:2]}
    page.page.click(f'#watching [data-chunk="{coming[1].start_seconds}"]')
    page.wait("#stage .vs-state-moment")
    page.tab("Commentary")
    page.shoot("commentary")
    said = {int(u.start_seconds): u.text for u in list(tab.session.unasked.utterances)}
    truth = {t: comment_at(world, t) for t in range(min(said), max(said) + 1) if comment_at(world, t)}
    right = sum(said.get(t) == words for t, words in truth.items())
    assert len(truth) >= 4 and right >= 0.9 * len(truth)
    assert page.page.locator("#timeline .vs-dot.vs-comment").count() >= 4
    page.page.click("#export")
    page.wait("#captions a[href]")
    assert page.overflow <= 0
    page.close()


def test_a_recorded_file_plays_with_its_comments(browser: Any, address: str, studio: Studio, tmp_path: Any) -> None:
    page = Page(browser, address)
    path = write_world(make_world(SEED, 8), tmp_path / "short.mp4")
    assert FileSource(str(path)).info.duration_seconds
    page.tab("File")
    page.page.set_input_files("#player input[type=file]", str(path))
    page.wait_text("#stage", "short.mp4", 60)
    (tab,) = (tab for tab in studio._tabs.values() if tab.is_upload)
    page.tab("Commentary")
    page.page.click("#narrate")
    wait_for(lambda: tab.session and tab.session.unasked.narration)
    page.tab("File")
    page.page.click("#start-file")
    page.tab("Watches")
    page.wait_text("#watching", "Kept from the stream before: the commentary.")
    page.tab("Commentary")
    page.page.wait_for_function("() => /appears|leaves/.test(document.querySelector('#said').innerText)", timeout=60_000)
    page.page.click("#export")
    page.wait("#captions a[href]")
    page.tab("File")
    page.page.wait_for_selector("#player track[src]", timeout=30_000, state="attached")
    address_of = page.page.eval_on_selector("#player track[src]", "track => track.src")
    text = page.page.evaluate("url => fetch(url).then(reply => reply.text())", address_of)
    assert text.startswith("WEBVTT") and json.dumps(text).count("-->") >= 1
    page.close()
