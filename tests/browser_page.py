"""The page in a real Chromium, for the tests that need one. VSTREAM_REQUIRE_BROWSER=1 turns a skip into a failure.

A module that imports the fixtures here says which studio it means with a fixture `studio` of its own.
VSTREAM_SCREENSHOTS=DIR keeps pictures of the page.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.world import make_world
from vstream.ui.studio import Studio

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
    *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"),
]


def missing() -> str:
    """Why there is no browser to test with; empty if there is one."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "playwright is not installed"
    return "" if CHROMIUM else "chromium is not installed"


def write_y4m(path: Path, seconds: int = 8, fps: int = 5, width: int = 320, height: int = 240) -> Path:
    """An uncompressed video of a world, which Chromium plays as its camera."""
    world = make_world(3, 30, side=height)
    left = (width - height) // 2
    with path.open("wb") as file:
        file.write(f"YUV4MPEG2 W{width} H{height} F{fps}:1 Ip A1:1 C420jpeg\n".encode())
        for index in range(seconds * fps):
            rgb = np.zeros((3, height, width), np.float32)
            rgb[:, :, left : left + height] = world.frame(index / fps)
            r, g, b = rgb
            luma = 0.299 * r + 0.587 * g + 0.114 * b
            chroma = ((b - luma) / 1.772 + 128, (r - luma) / 1.402 + 128)
            planes = (luma, *(plane[::2, ::2] for plane in chroma))
            file.write(b"FRAME\n" + b"".join(plane.clip(0, 255).astype(np.uint8).tobytes() for plane in planes))
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    reason = missing()
    if reason and os.environ.get("VSTREAM_REQUIRE_BROWSER") == "1":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    camera = write_y4m(tmp_path_factory.mktemp("camera") / "camera.y4m")
    with sync_playwright() as playwright:
        flags = [*FLAGS, f"--use-file-for-fake-video-capture={camera}"]
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield launched
        launched.close()


@contextmanager
def served(studio: Studio, **options: Any) -> Iterator[str]:
    """The page over `studio` at a free port; gives its address. options: of `vstream.ui.serve.serving`."""
    from vstream.ui.serve import serving

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with serving(studio, port=port, **options) as url:
        yield url


@pytest.fixture(scope="module")
def address(browser: Any, studio: Studio) -> Iterator[str]:
    with served(studio) as url:
        yield url


class Page:
    """One browser tab with the page, and what its tests look at."""

    def __init__(self, browser: Any, address: str, width: int = 1280, height: int = 900) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": height}, permissions=["camera"])
        self.page = self.context.new_page()
        self.foreign: list[str] = []
        self.problems: list[str] = []
        self.page.on("request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else self.foreign.append(r.url))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.goto(address)
        self.wait("#stage .vs-state-live, #stage .vs-state-closed, #notice .vs-notice")

    def wait(self, selector: str, seconds: float = 30) -> Any:
        return self.page.wait_for_selector(selector, timeout=1000 * seconds)

    def wait_text(self, selector: str, text: str, seconds: float = 30) -> None:
        self.page.wait_for_function(
            "([s, t]) => (document.querySelector(s)?.innerText || '').includes(t)", arg=[selector, text], timeout=1000 * seconds
        )

    def ask(self, question: str) -> None:
        """Ask as a person does: a page still busy with the answer before keeps the text, and Enter is pressed again."""
        from playwright.sync_api import TimeoutError as NotYet

        self.page.fill("#question textarea", question)
        for last in (False, False, True):
            self.page.press("#question textarea", "Enter")
            try:
                self.page.wait_for_function("document.querySelector('#question textarea').value === ''", timeout=10_000)
                return
            except NotYet:
                if last:
                    raise

    def answer(self, question: str) -> str:
        """Ask, and wait for the whole answer."""
        said = self.page.locator("#chat .bot .message-content")
        num_before = said.count()
        self.page.wait_for_selector("#ask:not([disabled])")
        self.ask(question)
        self.page.wait_for_function(
            "n => { const said = document.querySelectorAll('#chat .bot .message-content');"
            " return said.length > n && said[n].innerText.trim() !== '…' && !document.querySelector('#ask').disabled; }",
            arg=num_before,
            timeout=60_000,
        )
        return said.last.inner_text().strip()

    def tab(self, name: str) -> None:
        tab = self.page.get_by_role("tab", name=name)
        if not tab.count():  # a narrow page keeps its last tabs in a menu
            self.page.locator(".overflow-menu > button:visible").first.click()
            tab = self.page.locator(".overflow-dropdown button", has_text=name)
        tab.click()

    def text(self, selector: str) -> str:
        return self.page.inner_text(selector)

    def shoot(self, name: str) -> None:
        folder = os.environ.get("VSTREAM_SCREENSHOTS")
        if folder:
            self.page.screenshot(path=Path(folder) / f"{name}.png")

    @property
    def overflow(self) -> int:
        """Pixels by which the page is wider than its window."""
        return self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")

    def close(self) -> None:
        self.context.close()
        assert not self.foreign, "the page asks nobody but its own server"
        assert not self.problems


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Page]:
    opened = Page(browser, address)
    yield opened
    opened.close()
