"""The page in a real Chromium with a fake camera.

The answers are a slow story, so that streaming and Stop can be seen; everything else is the real thing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from browser_page import Page, address, browser, page, served  # noqa: F401  # fixtures
from video_files import write_video

from model_adapters.base import AttentionTrace, KVContext, ModelAdapter, TokenRun
from vstream.config import SessionConfig
from vstream.ui.studio import Studio

pytestmark = [pytest.mark.slow, pytest.mark.browser]

NUM_WORDS = 60
HELD_WORDS = 10
EVIL = "<img src=x onerror=\"document.title='broken'\"> <b>bold</b> [link](https://example.org) ![x](https://example.org/x.png)"


class Held:
    """While it holds, an answer stops in the middle and says the same again and again, so that whoever looks has the time."""

    def __init__(self) -> None:
        self.holds = False

    @contextmanager
    def holding(self) -> Iterator[None]:
        self.holds = True
        try:
            yield
        finally:
            self.holds = False


@pytest.fixture(scope="module")
def held() -> Held:
    return Held()


@pytest.fixture(scope="module")
def story(held: Held, random_adapter: ModelAdapter) -> Iterator[ModelAdapter]:
    """The random adapter, with answers of many slow words behind its own first token."""
    generate = random_adapter.generate

    def tell(
        context: KVContext,
        run: TokenRun,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        trace: AttentionTrace | None = None,
    ) -> Iterator[str]:
        next(generate(context, run, 1, temperature, seed, trace=trace), None)
        for num in range(1, NUM_WORDS + 1):
            time.sleep(0.04)
            yield (words := " ".join(f"word{i}" for i in range(num)) + f" {EVIL}" * (num == NUM_WORDS))
            while num == HELD_WORDS and held.holds:
                time.sleep(0.04)
                yield words

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random_adapter, "generate", tell)
        yield random_adapter


@pytest.fixture(scope="module")
def studio(story: ModelAdapter) -> Studio:
    return Studio(story, SessionConfig(window_seconds=2, top_k=4), start_source="world:?seed=7&seconds=600&speed=4")


def test_demo_answers_with_evidence_that_seeks(page: Page, held: Held) -> None:
    page.wait("#stage .vs-picture img")
    page.wait('#timeline [data-chunk="6"]')
    with held.holding():
        page.ask("what is on screen now ?")
        page.wait_text("#chat", "word3")
        assert f"word{NUM_WORDS - 1}" not in page.text("#chat"), "the answer streams in"
    page.wait_text("#chat", f"word{NUM_WORDS - 1}")
    chip = page.wait("#chips [data-chunk]")
    assert page.page.eval_on_selector("#chips [data-chunk] img", "image => image.naturalWidth > 0"), "a thumbnail is the proof"
    page.wait("#timeline .vs-marked")
    page.shoot("answer")

    when = chip.inner_text().strip("[] \n")
    chip.click()
    page.wait("#stage .vs-state-moment")
    page.shoot("moment")
    chunk = int(chip.get_attribute("data-chunk"))
    minutes, seconds = when.split("–")[0].split(":")
    assert chunk >= 60 * int(minutes) + int(seconds)
    page.wait_text("#stage figcaption", f"{chunk // 60:02d}:{chunk % 60:02d}–")
    time.sleep(2)
    assert page.page.query_selector("#stage .vs-state-moment"), "refreshing leaves the moment on the stage"
    page.page.click("#back-to-live")
    page.wait_text("#stage figcaption", "Stream time")

    page.page.click('#timeline [data-chunk="2"]')
    page.wait_text("#stage figcaption", "00:02–00:03")
    page.wait("#stage .vs-cells rect.kept, #stage .vs-cells rect.dropped")


def test_what_is_said_is_text_and_never_markup(page: Page) -> None:
    page.ask(EVIL)
    page.wait_text("#chat", f"word{NUM_WORDS - 1} <img src=x")
    assert page.page.title() == "vstream"
    assert not page.page.query_selector("#chat .message-content :is(img, b, a)")
    assert "<b>bold</b>" in page.text("#chat") and "[link](https://example.org)" in page.text("#chat")


def test_stop_ends_the_answer(page: Page, held: Held) -> None:
    with held.holding():
        page.ask("tell me a story")
        page.wait_text("#chat", "word5")
        page.page.click("#stop-answer")
        page.wait_text("#chat", "(stopped)")
    stopped = page.text("#chat")
    time.sleep(1)
    assert page.text("#chat") == stopped and f"word{NUM_WORDS - 1}" not in stopped
    assert page.page.is_enabled("#ask") and page.page.is_disabled("#stop-answer")


def test_a_new_stream_begins_a_new_conversation(page: Page) -> None:
    page.ask("about the old stream")
    page.wait_text("#chat", "word3")
    page.page.click("#start-demo")
    page.wait_text("#stage .vs-label", "speed=1")
    page.wait("#ask:not([disabled])")
    assert "old stream" not in page.text("#chat") and not page.page.query_selector("#timeline .vs-marked")


def test_two_browser_tabs_never_mix(page: Page, browser: Any, address: str, studio: Studio) -> None:
    before = len(studio)
    other = Page(browser, address)
    assert len(studio) == before + 1
    other.page.fill("#seed input", "23")
    other.page.click("#start-demo")
    other.wait_text("#stage .vs-label", "seed=23")
    page.ask("a question of the first page")
    page.wait_text("#chat", "word3")
    assert "seed=7" in page.text("#stage") and "first page" not in other.text("#chat")
    other.ask("a question of the second page")
    other.wait_text("#chat", f"word{NUM_WORDS - 1}")
    assert "second page" not in page.text("#chat") and "first page" not in other.text("#chat")
    other.close()
    for _ in range(100):
        if len(studio) == before:
            break
        time.sleep(0.1)
    assert len(studio) == before, "a closed page gives its session back"
    page.wait_text("#chat", f"word{NUM_WORDS - 1}")


def test_camera_feeds_the_stream_and_leaves_no_file(page: Page) -> None:
    page.tab("Camera")
    page.page.get_by_text("Click to Access Webcam").click()
    page.page.click("#camera button:has-text('Record')")
    page.wait_text("#stage .vs-label", "camera of this browser")
    page.wait('#timeline [data-chunk="3"]')
    page.shoot("camera")
    assert page.page.query_selector("#stage .vs-state-live")
    left = [path for path in Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*") if path.is_file()]
    assert not left, "camera pictures are private"
    page.page.click("#stop-stream")
    page.wait("#stage .vs-state-ended")
    time.sleep(1.5)
    assert page.page.query_selector("#stage .vs-state-ended"), "the frames that still come do not start it again"
    page.ask("what was that ?")
    page.wait_text("#chat", "word3")


@pytest.mark.parametrize("url", ["rtsp://127.0.0.1:1/x", "file:///etc/passwd", "nonsense"])
def test_a_bad_url_is_a_message_and_the_stream_goes_on(page: Page, url: str) -> None:
    page.tab("URL")
    page.page.fill("#url input, #url textarea", url)
    page.page.click("#open-url")
    page.wait("#notice [role=alert]")
    page.shoot("bad-url")
    assert page.text("#notice").strip() and page.page.query_selector("#stage .vs-state-live")


def test_an_uploaded_file_is_watched_and_its_player_seeks(page: Page, tmp_path: Path) -> None:
    video = write_video(tmp_path / "holiday.mp4", seconds=12, size=(160, 120))
    page.tab("File")
    page.page.set_input_files("#player input[type=file]", str(video))
    page.wait("#stage .vs-state-ended", 60)
    assert "holiday" in page.text("#stage .vs-label")
    page.wait('#timeline [data-chunk="11"]')
    page.page.click('#timeline [data-chunk="7"]')
    page.wait_text("#stage figcaption", "00:07–00:08")
    page.page.wait_for_function("Math.abs(document.querySelector('#player video').currentTime - 7) < 0.5", timeout=30_000)
    page.shoot("file")


def test_a_broken_upload_is_a_message(page: Page, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"this is no video" * 100)
    page.tab("File")
    page.page.set_input_files("#player input[type=file]", str(broken))
    page.wait("#notice [role=alert]")
    assert "broken" in page.text("#notice") and "/" not in page.text("#notice")


def test_it_works_on_a_phone_and_with_the_keyboard(browser: Any, address: str) -> None:
    phone = Page(browser, address, 390, 844)
    phone.wait('#timeline [data-chunk="8"]')
    for name in ("File", "URL", "Camera", "Demo"):
        phone.tab(name)
        phone.page.wait_for_timeout(300)
        assert phone.overflow <= 0, f"{name}: nothing is cut off"
        phone.shoot(f"phone-{name.lower()}")
    phone.page.focus("#question textarea")
    phone.page.keyboard.type("what is on screen now ?")
    phone.page.keyboard.press("Enter")
    phone.wait_text("#chat", f"word{NUM_WORDS - 1}")
    phone.page.focus("#chips [data-chunk]")
    phone.page.keyboard.press("Enter")
    phone.wait("#stage .vs-state-moment")
    phone.page.focus("#timeline .vs-bar:last-child")
    phone.page.keyboard.press("Home")
    assert phone.page.evaluate("document.activeElement.dataset.chunk") == "0"
    phone.page.keyboard.press("ArrowRight")
    phone.page.keyboard.press("Enter")
    phone.wait_text("#stage figcaption", "00:01–00:02")
    assert phone.overflow <= 0
    if os.environ.get("VSTREAM_SCREENSHOTS"):
        phone.page.screenshot(path=Path(os.environ["VSTREAM_SCREENSHOTS"]) / "phone.png", full_page=True)
    phone.close()


def test_too_many_pages_are_told_so(
    page: Page, browser: Any, address: str, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studio, "max_tabs", 1)
    refused = Page(browser, address)
    refused.wait_text("#notice", "pages are open")
    refused.wait("#stage .vs-state-closed")
    refused.close()


def test_a_token_is_asked_for(browser: Any, studio: Studio, address: str) -> None:
    """Without the token there is no page; `served` with one asks for it."""
    with served(Studio(studio.adapter, studio.config, start_source=None), token="open sesame") as url:
        context = browser.new_context()
        guarded = context.new_page()
        guarded.goto(url)
        guarded.wait_for_selector("input[type=password]", timeout=20_000)
        assert not guarded.query_selector("#stage")
        for token, opens in (("wrong", False), ("open sesame", True)):
            guarded.fill("input[type=password]", token)
            guarded.locator("input:not([type=password]), textarea").first.fill("me")
            guarded.get_by_role("button", name="Login").click()
            if opens:
                guarded.wait_for_selector("#stage", timeout=30_000)
            else:
                guarded.wait_for_timeout(2500)
                assert not guarded.query_selector("#stage")
        context.close()


def test_earlier_answers_show_their_moments_again_and_the_chat_can_be_cleared(page: Page, held: Held) -> None:
    page.wait('#timeline [data-chunk="4"]')
    page.ask("first")
    page.wait_text("#chat", f"word{NUM_WORDS - 1}")
    early = page.text("#chips .vs-note")
    page.wait('#timeline [data-chunk="24"]')
    with held.holding():
        page.ask("second")
        page.page.wait_for_selector("#chat .bot >> nth=1 >> text=word3")
        late = page.text("#chips .vs-note")
        assert late != early
        page.page.click("#chat .bot .message-content >> nth=0")
        page.wait_text("#chips .vs-note", early)
    page.wait("#ask:not([disabled])")
    assert page.text("#chips .vs-note") == early, "the end of an answer leaves what is looked at"
    page.page.click("#chat .bot .message-content >> nth=1")
    page.wait_text("#chips .vs-note", late)
    page.page.click("#chat button[aria-label=Clear], #chat button[title=Clear]")
    page.wait_text("#chips", "appear here")
    page.ask("third")
    page.wait_text("#chat", "word3")
    assert "first" not in page.text("#chat") and "second" not in page.text("#chat")
