"""The Library tab in a real Chromium: a stream is watched, left and found again, asked about, thinned out and deleted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from browser_page import Page, address, browser, page  # noqa: F401  # fixtures

from data.world import make_world
from memory.manifest import MANIFEST
from model_adapters.registry import load_adapter
from vstream.config import SessionConfig
from vstream.session import StreamSession
from vstream.ui.studio import Studio
from vstream.ui.text import clock

pytestmark = [pytest.mark.slow, pytest.mark.browser]

SEED, SECONDS = 12, 180
WORLD = make_world(SEED, SECONDS)
NEEDLE = next(stay for stay in WORLD.stays if stay.name in WORLD.needles and stay.start_seconds > 30)
FIRST = make_world(SEED, 600).stays[1]
CONFIG = SessionConfig(max_new_tokens=12)
LIVE = f"world:?seed={SEED}&seconds=600&speed=4"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Memories of yesterday: a whole one, one that had to thin out, and two that something has happened to."""
    folder = tmp_path_factory.mktemp("library")
    adapter = load_adapter("embedded")
    for name, config in (("whole", CONFIG), ("thinned", CONFIG.replace(disk_bytes=1_500_000))):
        with StreamSession(adapter, config, memory=folder / name) as session:
            session.join(f"{name} film")
            for frame in WORLD.frames(config.fps):
                session.push(frame)
            session.finish()
    for name in ("damaged", "beheaded"):
        with StreamSession(adapter, CONFIG, memory=folder / name) as session:
            for frame in make_world(3, 4).frames(CONFIG.fps):
                session.push(frame)
    content = (folder / "damaged" / MANIFEST).read_bytes()
    (folder / "damaged" / MANIFEST).write_bytes(content[:100] + bytes(4000) + content[4100:])
    (folder / "beheaded" / MANIFEST).unlink()
    return folder


@pytest.fixture(scope="module")
def studio(browser: Any, library: Path) -> Studio:
    return Studio(load_adapter("embedded"), CONFIG, start_source=LIVE, folder=library)


def choose(page: Page, words: str) -> str:
    """Choose the saved memory whose line has `words` in it. Returns the line."""
    from playwright.sync_api import TimeoutError as NotYet

    page.tab("Demo")
    page.tab("Library")
    option = page.page.locator("ul[role=listbox] li", has_text=words).first
    for _ in range(30):  # The choices come when the tab is opened; they close a list that is open, or do not get into it.
        page.page.click("#saved input")
        try:
            option.click(timeout=3000)
            page.page.wait_for_function(
                "w => document.querySelector('#saved input').value.includes(w)", arg=words, timeout=3000
            )
            return page.page.input_value("#saved input")
        except NotYet:
            # The list opens when the box gets the focus, which it must lose first.
            page.page.locator("#saved input").blur()
    pytest.fail(f"no saved memory with {words!r} can be chosen")


def opened(page: Page, words: str) -> None:
    choose(page, words)
    page.page.click("#open-saved")
    page.wait("#stage .vs-state-stored", 60)
    # It may have been open before: what was said about it goes when it is opened again.
    page.page.wait_for_function("!document.querySelector('#chat .message-content')", timeout=60_000)
    page.tab("Chat")


def chunks_behind(page: Page) -> set[int]:
    return {int(chip.get_attribute("data-chunk") or -1) for chip in page.page.query_selector_all("#chips [data-chunk]")}


def test_a_reload_goes_on_and_what_came_before_is_asked_about(page: Page, studio: Studio) -> None:
    page.wait('#timeline [data-chunk="12"]', 60)
    before = len(studio.saved())
    page.page.reload()
    page.wait_text("#notice", "its memory goes on", 60)
    page.wait('#timeline [data-chunk="2"]')
    page.wait('#timeline [data-chunk="16"]', 60)
    assert len(studio.saved()) == before, "no second memory of the same stream"
    assert page.answer(f"when did the {FIRST.name} appear ?") == f"at {FIRST.start_seconds} s"
    assert chunks_behind(page) & set(range(FIRST.start_seconds, FIRST.end_seconds))
    page.shoot("library-continued")


def test_a_span_is_forgotten_and_the_answer_with_it(page: Page, library: Path) -> None:
    question = f"when did the {NEEDLE.name} appear ?"
    seen = set(range(NEEDLE.start_seconds, NEEDLE.end_seconds))
    opened(page, "whole film")
    assert page.answer(question) == f"at {NEEDLE.start_seconds} s"
    assert chunks_behind(page) & seen and page.page.query_selector(f'#timeline [data-chunk="{NEEDLE.start_seconds}"]')
    line = choose(page, "whole film")
    assert "03:00 long" in line
    page.page.click("#forget")
    page.wait_text("#notice", "say from when to when")
    page.page.fill("#forget-from input, #forget-from textarea", str(NEEDLE.start_seconds - 1))
    page.page.fill("#forget-to input, #forget-to textarea", "soon")
    page.page.click("#forget")
    page.wait_text("#notice", "'soon' is not a stream time")
    page.page.fill("#forget-to input, #forget-to textarea", clock(NEEDLE.end_seconds + 1))
    page.page.click("#forget")
    page.wait_text("#notice", f"{len(seen) + 2} chunks between")
    page.shoot("library-forgotten")
    # The page that forgot shows it at once, and so does whoever opens it next.
    for again in (False, True):
        if again:
            opened(page, "whole film")
        page.tab("Chat")
        assert page.answer(question) != f"at {NEEDLE.start_seconds} s"
        assert not chunks_behind(page) & seen
        for second in seen:
            page.page.wait_for_selector(f'#timeline [data-chunk="{second}"]', state="detached")


def test_what_was_thinned_is_striped_and_what_is_gone_is_grey(page: Page) -> None:
    opened(page, "thinned film")
    page.wait("#timeline .vs-bar.vs-thinned")
    assert "thinned to fit" in (page.page.get_attribute("#timeline .vs-thinned", "title") or "")
    gone = page.page.query_selector("#timeline .vs-bar.vs-gone")
    assert gone and "not stored" in (gone.get_attribute("title") or "")
    gone.click()
    page.wait("#stage .vs-state-moment")
    assert page.page.eval_on_selector("#stage .vs-picture img", "image => image.naturalWidth > 0"), "its picture is left"
    page.wait("#stage figcaption")
    page.shoot("library-thinned")


def test_a_damaged_memory_says_so_and_the_others_stay_usable(page: Page) -> None:
    for name in ("damaged", "beheaded"):
        line = choose(page, f"{name}:")
        assert line.startswith(f"{name}: ") and "memory rebuild" in line and "\n" not in line
        page.page.click("#open-saved")
        page.wait_text("#notice", name)
        assert page.page.query_selector("#stage .vs-state-live"), "what was watched goes on"
    page.shoot("library-damaged")
    opened(page, "thinned film")
    assert page.answer("what is on screen now ?")


def test_a_memory_is_pinned_and_the_library_says_how_full_it_is(page: Page, studio: Studio) -> None:
    choose(page, "whole film")
    page.wait_text("#library-usage", "of 64.0 GiB")
    page.page.click("#pin-saved")
    page.wait_text("#notice", "it stays, whatever comes")
    assert choose(page, "whole film").endswith("pinned")
    page.page.click("#pin-saved")
    page.wait_text("#notice", "it gives way when its turn comes")
    assert studio.library is not None
    studio.library._say("the memory of last week was deleted")
    page.wait_text("#stage .vs-notice", "last week was deleted")
    choose(page, "whole film")
    page.wait_text("#library-usage li", "last week was deleted")
    page.shoot("library-usage")


def test_a_memory_is_deleted_once_the_box_is_ticked(page: Page, library: Path) -> None:
    choose(page, "thinned film")
    page.page.click("#delete-saved")
    page.wait_text("#notice", "tick the box first")
    assert (library / "thinned").exists()
    page.page.check("#sure input")
    page.page.click("#delete-saved")
    page.wait_text("#notice", "the memory is deleted")
    assert not (library / "thinned").exists()
    page.page.click("#saved input")
    assert page.page.locator("ul[role=listbox] li", has_text="thinned film").count() == 0
    page.page.keyboard.press("Escape")
    page.page.check("#sure input")
    choose(page, "damaged:")
    page.page.click("#delete-saved")
    # The notice stands there already, of the one before.
    for _ in range(300):
        if not (library / "damaged").exists():
            break
        page.page.wait_for_timeout(100)
    assert not (library / "damaged").exists(), "a damaged one, too"
    assert page.overflow <= 0
