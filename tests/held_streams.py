"""Streams that begin, or go on, when a test tells them to, and the page's studio over such streams."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from data.frames import Frame
from data.sources import Source, SourceInfo, WorldSource
from data.world import World
from model_adapters.registry import load_adapter
from vstream.config import SessionConfig
from vstream.ui.studio import Studio
from vstream.watches import Alert

EVIL = '"><script>alert(1)</script><img src=x onerror=alert(1)>'
ALERT = Alert("tell me when it rains", 1, 3.5, f"it rains {EVIL}", 0.9, 3, 2.0, 4.0, b"\xff\xd8")
SEED, SECONDS = 12, 20
PLAIN = (0.5, 0, 0, 0)
"""The rules that are folded away, as the page has them: threshold, confirming looks, of how many, expiry."""


class HeldSource(Source):
    """A world that begins when it is told to, so that everything can be set before."""

    go = threading.Event()

    def __init__(self, world: World) -> None:
        super().__init__(SourceInfo(kind="world", label="held", live=False, width=128, height=128, duration_seconds=1.0))
        self.world = world

    def frames(self, fps: float, start_seconds: float = 0.0) -> Iterator[Frame]:
        while not self.go.wait(0.05):
            if self.closed:
                return
        yield from self.world.frames(fps)


class RecordedSource(HeldSource):
    """One that is known again."""

    recording_key = "a held world"


class LedWorld(WorldSource):
    """A live world that waits for whoever looks at it: it keeps its own pace, but shows nothing from `until_seconds` on."""

    until_seconds = 0.0

    def frames(self, fps: float, start_seconds: float = 0.0) -> Iterator[Frame]:
        for frame in super().frames(fps, start_seconds):
            while frame.pts_seconds >= self.until_seconds:
                if self._closed.wait(0.02):
                    return
            yield frame

    def lead(self, until_seconds: float) -> None:
        """Let it go on up to a stream time, but never back."""
        self.until_seconds = max(self.until_seconds, until_seconds)


def wait_for(condition: Callable[[], object], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def studio() -> Iterator[Studio]:
    source = f"world:?seed={SEED}&seconds={SECONDS}&speed=0"
    made = Studio(load_adapter("embedded"), SessionConfig(max_new_tokens=12), start_source=source)
    yield made
    made.close_all()


def request(key: str) -> Any:
    return SimpleNamespace(session_hash=key)
