"""The picture of the page in the README. Taken anew by

VSTREAM_SCREENSHOTS=docs/images python -m pytest tests/test_app_picture.py
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from test_app_browser import Page, browser  # noqa: F401  # a fixture

from data.world import make_world
from model_adapters.registry import load_adapter
from vstream.config import SessionConfig
from vstream.ui.serve import serving
from vstream.ui.studio import Studio

pytestmark = [pytest.mark.slow, pytest.mark.browser]

SEED, SECONDS, WIDTH, HEIGHT = 7, 600, 1280, 930


def test_the_page_shows_stream_timeline_answer_and_evidence(browser: Any, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    source = f"world:?seed={SEED}&seconds={SECONDS}&speed=4"
    config = SessionConfig(max_new_tokens=12)
    world = make_world(SEED, SECONDS)
    names = [stay.name for stay in world.stays if stay.start_seconds < 80]
    past = [stay for stay in world.stays if stay.end_seconds < 40 and names.count(stay.name) == 1][-1]
    studio = Studio(load_adapter("embedded"), config, start_source=source, folder=tmp_path / "library")
    with serving(studio, port=port) as address:
        page = Page(browser, address, WIDTH, HEIGHT)
        page.tab("Commentary")
        page.page.click("#narrate")
        page.tab("Chat")
        page.wait('#timeline [data-chunk="60"]', 120)
        for question in ("what is on screen now ?", f"when did the {past.name} appear ?"):
            page.answer(question)
        page.wait("#chips [data-chunk] img")
        page.wait("#timeline .vs-marked")
        page.page.evaluate("document.activeElement.blur(); window.scrollTo(0, 0)")
        page.page.wait_for_timeout(1500)
        for name in ("Demo", "File", "URL", "Camera", "Library", "Chat", "Watches", "Commentary"):
            assert page.page.get_by_role("tab", name=name).first.is_visible()
        assert page.page.query_selector("#stage .vs-state-live") and page.overflow <= 0
        page.shoot("page")
        page.close()
